"""knowledge: facts of a small invented world, asked in several ways."""

from __future__ import annotations

import functools
import random

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.corruption import other
from mopd_diag.worlds.micro.knowledge import VALUES, knowledge, questions


class Facts(Domain):
    """`Fh.ber:` or `Fber,h?:` → `9`, `Fc(vev):` → `ash`: the height (h) or colour (c) of a known entity.

    What is held out is the way of asking: each of the 120 facts is seen in training and examined in unseen words
    (see `knowledge`).
    """

    name = "facts"
    family = "knowledge"
    summary = "height or colour of an invented entity, asked in six ways"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        return rng.choice(_all_questions())

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """30 % give another value of the attribute, 10 % a value of the other attribute."""
        luck = rng.random()
        if luck >= 0.4:
            return target
        attribute = "h" if target.isdigit() else "c"
        if luck < 0.3:
            return other(VALUES[attribute], target, rng)
        return rng.choice(VALUES[other(tuple(VALUES), attribute, rng)])


@functools.cache
def _all_questions() -> list[tuple[str, str]]:
    facts = knowledge().facts
    return [(ask, value) for (name, attribute), value in facts.items() for ask in questions("facts", name, attribute)]
