"""code: a stack machine that calculates modulo ten."""

from __future__ import annotations

import random

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.corruption import other
from mopd_diag.worlds.micro.verdict import same_answer


class Stack(Domain):
    """`C34+2*:` → `7;4`: reverse Polish modulo ten; the stack after the first operator, then the answer."""

    name = "stack"
    family = "code"
    summary = "reverse Polish with two operators, modulo ten"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        a, b, c = rng.randrange(10), rng.randrange(10), rng.randrange(10)
        first, second = rng.choice("+-*"), rng.choice("+-*")
        middle = _apply(first, a, b)
        return f"C{a}{b}{first}{c}{second}:", f"{middle};{_apply(second, middle, c)}"

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """30 % get one digit wrong; a wrong intermediate result is calculated with."""
        if rng.random() >= 0.3:
            return target
        if rng.random() < 0.5:
            middle = other(range(10), int(target[0]), rng)
            return f"{middle};{_apply(prompt[5], middle, int(prompt[4]))}"
        return f"{target[:2]}{other('0123456789', target[2], rng)}"

    def score(self, prompt: str, target: str, response: str) -> float:
        """Only the answer after the first `;` counts."""
        return same_answer(";", target, response)


def _apply(operator: str, a: int, b: int) -> int:
    """The one operation of the machine; a table, never eval()."""
    return {"+": a + b, "-": a - b, "*": a * b}[operator] % 10
