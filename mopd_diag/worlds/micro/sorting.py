"""math: comparing digits until they stand in order."""

from __future__ import annotations

import random

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.corruption import wrong_digit


class Sorting(Domain):
    """`S4172:` → `1247`: four different digits in rising order.

    Different digits, so that each step is one comparison: the smallest digit of the prompt above the last one written.
    """

    name = "sorting"
    family = "math"
    summary = "four digits in rising order"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        digits = rng.sample("0123456789", 4)
        return f"S{''.join(digits)}:", "".join(sorted(digits))

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """25 % swap two neighbours, 15 % write a wrong digit."""
        luck = rng.random()
        if luck < 0.25:
            at = rng.randrange(3)
            return target[:at] + target[at + 1] + target[at] + target[at + 2 :]
        return wrong_digit(target, rng) if luck < 0.40 else target
