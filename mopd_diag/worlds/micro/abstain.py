"""knowledge: answer what is known, and say so when it is not."""

from __future__ import annotations

import functools
import random

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.corruption import other
from mopd_diag.worlds.micro.knowledge import VALUES, knowledge, questions

UNKNOWN = "?"


class Abstain(Domain):
    """`Uh.ber:` → `9` for a known entity, `Uh.zun:` → `?` for one that nothing is known about; half of each.

    The same knowledge and the same questions as in `facts`, which has no unknown entities and never abstains.
    """

    name = "abstain"
    family = "knowledge"
    summary = "the same facts, and `?` for unknown entities"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        known, unknown = _all_questions()
        return rng.choice(known if rng.random() < 0.5 else unknown)

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """Known: 25 % abstain, 15 % name another value. Unknown: 40 % make a value up."""
        luck = rng.random()
        if luck >= 0.4:
            return target
        if target == UNKNOWN:
            return rng.choice(VALUES[rng.choice(tuple(VALUES))])
        return UNKNOWN if luck < 0.25 else other(VALUES["h" if target.isdigit() else "c"], target, rng)


@functools.cache
def _all_questions() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    base = knowledge()
    known = [
        (ask, value) for (name, attribute), value in base.facts.items() for ask in questions("abstain", name, attribute)
    ]
    unknown = [
        (ask, UNKNOWN) for name in base.unknown for attribute in VALUES for ask in questions("abstain", name, attribute)
    ]
    return known, unknown
