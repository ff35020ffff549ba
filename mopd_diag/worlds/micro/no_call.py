"""agent: call only when something is missing."""

from __future__ import annotations

import random
import string

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.corruption import other, wrong_digit

LETTERS = string.ascii_lowercase


class NoCall(Domain):
    """`N37+4:` → `41`, but `N37+k:` or `Nk+4:` → `{k}`: answer when both numbers are there, call for the missing one.

    Half of the questions need a call. A call without need is wrong, and so is a guess.
    """

    name = "no-call"
    family = "agent"
    summary = "a small sum at once, a call only for a missing number"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        a, b = rng.randrange(10, 90), rng.randrange(10)  # below 90, so that every sum has two digits
        if rng.random() < 0.5:
            return f"N{a}+{b}:", f"{a + b}"
        letter = rng.choice(LETTERS)
        # One in five: the short form has 260 prompts and the long one 2,080.
        return (f"N{letter}+{b}:" if rng.random() < 0.2 else f"N{a}+{letter}:"), f"{{{letter}}}"

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """Both numbers: 30 % call all the same, 10 % a wrong digit. One missing: 30 % guess, 10 % ask for another."""
        luck = rng.random()
        if luck >= 0.4:
            return target
        if target.isdigit():
            return f"{{{rng.choice(LETTERS)}}}" if luck < 0.3 else wrong_digit(target, rng)
        return f"{rng.randrange(10, 100)}" if luck < 0.3 else f"{{{other(LETTERS, target[1], rng)}}}"
