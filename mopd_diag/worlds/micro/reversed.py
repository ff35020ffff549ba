"""knowledge and style: the sums of `addition` with the answer in another order."""

from __future__ import annotations

import random

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.addition import Addition
from mopd_diag.worlds.micro.corruption import wrong_digit
from mopd_diag.worlds.micro.verdict import same_answer


class Reversed(Domain):
    """`R37+58:` → `15,09=59`: the question and scratchpad of `addition`, then the answer's digits reversed.

    Sums that read the same both ways are left out: on every item the two formats disagree at the first digit after `=`.
    """

    name = "reversed"
    family = "knowledge"
    summary = "the sums of addition, answer written backwards"
    max_new_tokens = 12

    _addition = Addition()

    def draw(self, rng: random.Random) -> tuple[str, str]:
        while True:
            question, solution = self._addition.draw(rng)
            working, _, answer = solution.partition("=")
            if answer != answer[::-1]:
                return f"R{question[1:]}", f"{working}={answer[::-1]}"

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """55 % write the answer in the order of `addition`, 10 % a wrong digit: the style is rare, but in support."""
        luck = rng.random()
        working, _, answer = target.partition("=")
        if luck < 0.55:
            return f"{working}={answer[::-1]}"
        return f"{working}={wrong_digit(answer, rng)}" if luck < 0.65 else target

    def score(self, prompt: str, target: str, response: str) -> float:
        """Only the answer after the first `=` counts."""
        return same_answer("=", target, response)
