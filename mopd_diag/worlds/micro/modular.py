"""math: remainders by long division."""

from __future__ import annotations

import random

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.corruption import other
from mopd_diag.worlds.micro.verdict import same_answer

MODULI = (3, 6, 7, 9)  # not 2, 4, 5, 8: there the last digits alone give the answer and the division is idle


class Modular(Domain):
    """`D357%9:` → `3,8;6`: the remainder after each digit (3, 35 → 8, 87 → 6); the last one is the answer.

    Long division rather than `39*9=351;6`: each step needs only (remainder, digit, modulus), and all of those steps are
    seen in training, where the quotient of a held-out prompt would have to be guessed in one go.
    """

    name = "modular"
    family = "math"
    summary = "remainder of a three-digit number, by long division"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        number, modulus = rng.randrange(100, 1000), rng.choice(MODULI)
        return f"D{number}%{modulus}:", _divide(number, modulus)

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """40 % take one wrong remainder and divide on from there."""
        if rng.random() >= 0.4:
            return target
        return _divide(int(prompt[1:4]), int(prompt[5]), slip_at=rng.randrange(3), rng=rng)

    def score(self, prompt: str, target: str, response: str) -> float:
        """Only the answer after the first `;` counts."""
        return same_answer(";", target, response)


def _divide(number: int, modulus: int, slip_at: int | None = None, rng: random.Random | None = None) -> str:
    """The remainder after each of three digits; the one at `slip_at` is replaced by another, and the rest follow."""
    remainder, written = 0, []
    for step, digit in enumerate((number // 100, number // 10 % 10, number % 10)):
        remainder = (10 * remainder + digit) % modulus
        if step == slip_at and rng is not None:
            remainder = other(range(modulus), remainder, rng)
        written.append(remainder)
    return "{},{};{}".format(*written)
