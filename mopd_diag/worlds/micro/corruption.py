"""How demonstrations go wrong: the small errors that the cold start learns and RL repairs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def other(options: Sequence[T], than: T, rng: random.Random) -> T:
    """One of `options`, never `than`."""
    return rng.choice([option for option in options if option != than])


def wrong_digit(text: str, rng: random.Random) -> str:
    """`text` with one of its digits replaced by another one."""
    at = rng.choice([i for i, c in enumerate(text) if c.isdigit()])
    return text[:at] + other("0123456789", text[at], rng) + text[at + 1 :]
