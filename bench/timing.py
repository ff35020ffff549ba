"""Interleaved timing: on a shared machine only neighbours in time compare, so ratios are taken round by round."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.table import Table

from mopd_diag.runs.scheduler import keep_memory

Job = Callable[[], int]
"""Does the work once and returns how many tokens it made."""


@dataclass(slots=True)
class Rounds:
    """Tokens per second of each contender, one entry a round."""

    rates: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, tokens: int, seconds: float) -> None:
        self.rates.setdefault(name, []).append(tokens / seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.rates[name])

    def ratio(self, name: str, against: str) -> dict[str, float]:
        """Median over rounds of rate(name)/rate(against), with the lowest and highest round."""
        each = [a / b for a, b in zip(self.rates[name], self.rates[against], strict=True)]
        return {"median": statistics.median(each), "low": min(each), "high": max(each), "rounds": len(each)}


def interleaved(jobs: Mapping[str, Job], rounds: int, warmup: int = 2) -> Rounds:
    """Run every job once a round, in an order that turns, so that none always follows the same neighbour."""
    names = list(jobs)
    for _ in range(warmup):
        for job in jobs.values():
            job()
    result = Rounds()
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            started = time.perf_counter()
            tokens = jobs[name]()
            result.add(name, tokens, time.perf_counter() - started)
    return result


@contextmanager
def alone() -> Iterator[None]:
    """One thread, and freed memory kept, for every contender alike: so our workers run (page faults are dear in a VM)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if sys.platform == "linux":
        keep_memory(ctypes.CDLL(None))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "cpu": _cpu_name()}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def matrix_rate(shapes: list[tuple[int, int, int]], product: Product, rounds: int = 25) -> float:
    """FLOPs per second of x[m, k] · w[n, k]ᵀ over all shapes (m, k, n) together: the best round, for it makes a floor."""
    pairs = [(torch.randn(m, k), torch.randn(n, k)) for m, k, n in shapes]
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds):
            started = time.perf_counter()
            for x, w in pairs:
                product(x, w)
            seconds.append(time.perf_counter() - started)
    return sum(2 * m * k * n for m, k, n in shapes) / min(seconds)


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", header_style="bold")
    made.add_column(columns[0])
    for column in columns[1:]:
        made.add_column(column, justify="right")
    return made
