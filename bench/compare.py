"""A regression report of 100,000 items: two checkpoints, four samples an item, 10,000 bootstrap replicates.

The whole path is timed, from two data frames to the finished comparison. Its bootstrap of the difference is also timed
against the plain loop that everyone writes: draw item numbers, index, take the mean, once a replicate. The two take turns.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from bench.timing import machine, table
from mopd_diag.diagnostics.regression import compare
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.records.read import from_frame

GROUPS = 8


def run(
    items: int = 100_000, samples: int = 4, replicates: int = 10_000, rounds: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Seconds of a whole comparison at a quarter, half and all of the items, peak memory, and ours over the plain loop."""
    sizes = [items // 4, items // 2, items]
    _whole(GROUPS * 10, samples, replicates, seed)  # imports and first calls are no part of it
    whole = {n: _whole(n, samples, replicates, seed) for n in sizes}
    before, after = (_scores(items, samples, seed, drop).mean(1) for drop in (0.0, 0.05))
    ours, theirs, low_high = [], [], {}
    for r in range(rounds):
        seconds, low_high["ours"] = _timed(lambda: _fast(before, after, replicates, seed))
        ours.append(seconds)
        # A loop's time is proportional to its replicates, so each turn makes its share of them.
        seconds, draws = _timed(lambda r=r: _loop(before, after, replicates // rounds, (seed, r)))
        theirs.append(seconds * replicates / len(draws))
        low_high["loop"] = [*low_high.get("loop", []), *draws]
    low_high["loop"] = np.quantile(low_high["loop"], [0.025, 0.975]).tolist()
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "bench": "compare", "items": items, "samples": samples, "replicates": replicates, "machine": machine(),
        "seconds": {str(n): wall for n, (wall, _) in whole.items()},
        "cpu_seconds": {str(n): cpu for n, (_, cpu) in whole.items()},
        "cpu_per_item_growth": (whole[sizes[-1]][1] / sizes[-1]) / (whole[sizes[0]][1] / sizes[0]),
        "peak_memory_bytes": _peak(),
        "bootstrap": {"ours_seconds": statistics.median(ours), "loop_seconds": statistics.median(theirs)},
        "ours_over_loop": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "rounds": rounds},
        "interval": low_high,
    }  # fmt: skip


def _scores(items: int, samples: int, seed: int, drop: float) -> np.ndarray:
    """I × S zeros and ones; both checkpoints see the same difficulties."""
    chance = np.random.default_rng(seed).beta(2, 1, items)
    return (np.random.default_rng((seed, int(drop * 1e6), 1)).random((items, samples)) < chance[:, None] - drop) * 1.0


def _frame(items: int, samples: int, seed: int, drop: float) -> pd.DataFrame:
    ids = np.char.add("item-", np.arange(items).astype(str))
    return pd.DataFrame({
        "item_id": np.repeat(ids, samples), "domain": np.repeat(np.char.add("group-", (np.arange(items) % GROUPS).astype(str)), samples),
        "sample": np.tile(np.arange(samples), items), "score": _scores(items, samples, seed, drop).ravel(),
    })  # fmt: skip


def _whole(items: int, samples: int, replicates: int, seed: int) -> tuple[float, float]:
    """Seconds, and CPU seconds, from two data frames to the comparison's document."""
    frames = [_frame(items, samples, seed, drop) for drop in (0.0, 0.05)]
    started, started_cpu = time.perf_counter(), time.process_time()
    sides = [from_frame(f, name) for f, name in zip(frames, ("before", "after"), strict=True)]
    compare(*sides, replicates=replicates, seed=seed).to_dict()
    return time.perf_counter() - started, time.process_time() - started_cpu


def _fast(before: np.ndarray, after: np.ndarray, replicates: int, seed: int) -> list[float]:
    drawn = Bootstrap.of(np.column_stack([before, after]), method="percentile", replicates=replicates, seed=seed)
    delta = drawn.estimate(lambda m: m[..., 1] - m[..., 0])
    return [delta.low, delta.high]


def _loop(before: np.ndarray, after: np.ndarray, replicates: int, seed: tuple[int, int]) -> list[float]:
    rng, difference = np.random.default_rng(seed), after - before
    n = len(difference)
    return [float(difference[rng.integers(0, n, n)].mean()) for _ in range(replicates)]


def _timed(job: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = job()
    return time.perf_counter() - started, result


def _peak() -> int:
    """The most memory this process has held: kilobytes on Linux, bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as tables."""
    title = f"Compare, {result['samples']} samples an item, {result['replicates']:,} replicates, {GROUPS} groups"
    made = table(title, "items", "seconds", "CPU seconds", "CPU µs an item")
    for n, seconds in result["seconds"].items():
        cpu = result["cpu_seconds"][n]
        made.add_row(f"{int(n):,}", f"{seconds:.2f}", f"{cpu:.2f}", f"{1e6 * cpu / int(n):.1f}")
    console = console or Console()
    console.print(made)
    console.print(f"peak memory {result['peak_memory_bytes'] / 1e9:.2f} GB")
    ratio, each = result["ours_over_loop"], result["bootstrap"]
    ours, loop = (", ".join(f"{x:+.5f}" for x in result["interval"][k]) for k in ("ours", "loop"))
    console.print(
        f"bootstrap of the difference: ours {each['ours_seconds']:.3f} s, plain loop {each['loop_seconds']:.1f} s, "
        f"{ratio['median']:.0f} × ({ratio['low']:.0f} to {ratio['high']:.0f}); intervals {ours} and {loop}"
    )


if __name__ == "__main__":
    show(run())
