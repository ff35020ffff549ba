"""math: two-digit addition with carries written out in a scratchpad."""

from __future__ import annotations

import random

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.corruption import other, wrong_digit
from mopd_diag.worlds.micro.verdict import same_answer


class Addition(Domain):
    """`M37+58:` → `15,09=95`: the sum of the ones, the sum of the tens with the carry, then the answer."""

    name = "addition"
    family = "math"
    summary = "two-digit sums with carries in a scratchpad"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        ones = a % 10 + b % 10
        tens = a // 10 + b // 10 + ones // 10
        return f"M{a}+{b}:", f"{ones:02d},{tens:02d}={a + b}"

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """40 % slip once: in the ones, in the carry, or in the answer.

        A slip in the scratchpad carries through, so that the model learns to trust its scratchpad and an error has one
        place where it was made.
        """
        if rng.random() >= 0.4:
            return target
        ones, tens = int(target[:2]), int(target[3:5])
        slip = rng.randrange(3)
        if slip == 0:
            ones = ones // 10 * 10 + other(range(10), ones % 10, rng)
        elif slip == 1:
            tens += rng.choice((-1, 1))
        answer = f"{10 * tens + ones % 10}"
        return f"{ones:02d},{tens:02d}={wrong_digit(answer, rng) if slip == 2 else answer}"

    def score(self, prompt: str, target: str, response: str) -> float:
        """Only the answer after the first `=` counts."""
        return same_answer("=", target, response)
