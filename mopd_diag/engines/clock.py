"""Counts the seconds this process spends inside model forward and backward passes."""

from __future__ import annotations

import time


class Stopwatch:
    """Accumulates the time spent in `with` blocks; blocks must not nest."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> Stopwatch:
        self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since


MODEL_TIME = Stopwatch()
"""One a process: a stage reads it before and after."""
