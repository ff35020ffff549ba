"""code: one operation on a short list of digits."""

from __future__ import annotations

import random

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.corruption import other, wrong_digit

OPERATIONS = "flmrtu"


class Lists(Domain):
    """`L4172r:` → `2714`: (f)irst, (l)ast, (m)aximum, (r)everse, (t)ail or (u)p by one modulo ten of four digits.

    The operation stands last, so that up to it the prompt looks like one of `sorting`.
    """

    name = "lists"
    family = "code"
    summary = "first, last, maximum, reverse, tail or successor of a list"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        digits, operation = f"{rng.randrange(10_000):04d}", rng.choice(OPERATIONS)
        return f"L{digits}{operation}:", _apply(operation, digits)

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """30 % run another operation (which now and then agrees), 15 % write a wrong digit."""
        luck = rng.random()
        if luck < 0.30:
            return _apply(other(OPERATIONS, prompt[5], rng), prompt[1:5])
        return wrong_digit(target, rng) if luck < 0.45 else target


def _apply(operation: str, digits: str) -> str:
    if operation == "f":
        return digits[0]
    if operation == "l":
        return digits[-1]
    if operation == "m":
        return max(digits)
    if operation == "r":
        return digits[::-1]
    if operation == "t":
        return digits[1:]
    return "".join(str((int(digit) + 1) % 10) for digit in digits)
