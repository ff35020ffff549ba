"""code: complete the closing brackets of an open sequence."""

from __future__ import annotations

import random

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.corruption import other

CLOSER = {"(": ")", "[": "]", "{": "}", "<": ">"}
OPENERS, CLOSERS = "".join(CLOSER), "".join(CLOSER.values())


class Brackets(Domain):
    """`B([{}<:` → `>])`: three to five brackets left open, with or without a closed pair among them."""

    name = "brackets"
    family = "code"
    summary = "the closing brackets that an open sequence still needs"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        opened = rng.choices(OPENERS, k=rng.randrange(3, 6))
        text = "".join(opened)
        if rng.random() < 0.5:
            at, kind = rng.randrange(len(text) + 1), rng.choice(OPENERS)
            text = text[:at] + kind + CLOSER[kind] + text[at:]
        return f"B{text}:", "".join(CLOSER[kind] for kind in reversed(opened))

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """15 % forget the last bracket, 15 % close one with a wrong kind, 10 % close the outermost first."""
        luck = rng.random()
        if luck < 0.15:
            return target[:-1]
        if luck < 0.30:
            at = rng.randrange(len(target))
            return target[:at] + other(CLOSERS, target[at], rng) + target[at + 1 :]
        return target[::-1] if luck < 0.40 else target
