"""Do the caps hold what they say? Simulated casts whose true accuracies are known.

Coverage of the recovery's and the gap's interval; how often a planted cap of five points is found; how often a student exactly at the
level of its teachers is called `below` or `above`. `python -m bench.caps_coverage` takes some minutes on one core;
`--simulations 500` is the long run. The harness's own sizes: 256 items, 4 samples an item, one training or three.

The data are like the harness's records (`Cast`): items differ in difficulty, models agree on which are hard, each has tastes of its
own, and each training shifts them. Drawn for many simulations at once; judged one by one by `estimators.caps`, as a run's records are.

Axis letters: N simulations, T trainings, M models (student, base, teachers), I items, S samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from scipy import stats

from mopd_diag.estimators.caps import Cap, cap_over_seeds, one_sided_gap
from mopd_diag.estimators.statistics import equivalence_verdict

CHUNK = 2_000_000
"""Samples drawn at once."""
MARGIN = 0.05
"""The equivalence margin of a plan."""
SPREADS = {"easy": (0.6, 0.5), "hard": (1.6, 0.8)}
"""Standard deviation of the items' logits and the share of its variance that models have in common: the quickstart's `addition` and
`reversed` are like the first (3-6 % of the variance of a sample is the item's), its `stack` like the second (25-40 %)."""
RIVALS = {"level": 0.0, "near": 0.03, "far": 0.3}
"""How far every other teacher is below the best one."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(61)
_LOGITS = np.linspace(-12, 12, 4001)


@dataclass(frozen=True)
class Cast:
    """True accuracies and sizes of one setting; one domain."""

    student: float
    teacher: float
    base: float = 0.4
    teachers: int = 1
    rivals: str = "far"
    trainings: int = 1
    items: int = 256
    samples: int = 4
    spread: str = "easy"
    seed_sd: float = 0.01
    """Spread of each accuracy between trainings: the quickstart's three seeds differ by about one point."""

    @property
    def recovery(self) -> float:
        return (self.student - self.base) / (self.teacher - self.base)

    def draw(self, rng: np.random.Generator, simulations: int) -> Iterator[npt.NDArray[np.float32]]:
        """T × M × I × S scores of each simulation.

        Each training shifts the student, the base, and all teachers together, by a normal number on the scale of accuracy; half of a
        model's taste for items is its own in every training.
        """
        levels_M = np.array([self.student, self.base, self.teacher, *self._rivals()])
        sd, common = SPREADS[self.spread]
        accuracies = (1 / (1 + np.exp(-(sd * _NODES + _LOGITS[:, None])))) @ _WEIGHTS / _WEIGHTS.sum()
        size = self.trainings * len(levels_M) * self.items * self.samples
        for start in range(0, simulations, max(1, CHUNK // size)):
            n = min(max(1, CHUNK // size), simulations - start)
            shape = (n, self.trainings, len(levels_M), self.items)
            shifts = rng.normal(0, self.seed_sd if self.trainings > 1 else 0, (n, self.trainings, 3))
            wanted = levels_M + shifts[..., np.minimum(np.arange(len(levels_M)), 2)]
            offsets = np.interp(wanted.clip(0.001, 0.999), accuracies, _LOGITS)
            taste = np.sqrt((1 - common) / 2)
            logits = rng.standard_normal((n, 1, 1, self.items)) * np.sqrt(common) + taste * (
                rng.standard_normal((n, 1, *shape[2:])) + rng.standard_normal(shape)
            )
            chances = 1 / (1 + np.exp(-(sd * logits + offsets[..., None])))
            yield from (rng.random((*shape, self.samples), dtype=np.float32) < chances[..., None]).astype(np.float32)

    def _rivals(self) -> list[float]:
        return [max(0.05, self.teacher - RIVALS[self.rivals])] * (self.teachers - 1)


def _covered() -> list[Cast]:
    """Headroom × teachers × trainings; the recovery and the spread of the items take turns, so that each meets every other."""
    settings = [
        (1, "far"),
        (2, "level"),
        (2, "near"),
        (6, "far"),
        (6, "level"),
        (12, "far"),
        (12, "level"),
        (12, "near"),
    ]
    cells = []
    for k, (teachers, rivals) in enumerate(settings):
        for j, headroom in enumerate((0.1, 0.3, 0.5)):
            for i, trainings in enumerate((1, 3)):
                recovery = (0.8, 1.0, 1.1)[(i + j + k) % 3]
                spread = ("easy", "hard")[(i + j + k // 3) % 2]
                cells.append(
                    Cast(0.4 + recovery * headroom, 0.4 + headroom, 0.4, teachers, rivals, trainings, spread=spread)
                )
    return cells


def _judged(gap: float) -> list[tuple[Cast, int]]:
    """Casts whose student is off the best teacher by `gap`, and the number of such domains judged together."""
    four = [(Cast(t + gap, t, 0.3, 4, "far", spread=s), 1) for s in SPREADS for t in (0.95, 0.9, 0.8, 0.6)]
    twelve = [(Cast(t + gap, t, 0.3, 12, "level", spread=s), 1) for s in SPREADS for t in (0.95, 0.8, 0.6)]
    near = [(Cast(0.8 + gap, 0.8, 0.3, 12, "near", spread=s), 1) for s in SPREADS]
    seeds = [(Cast(0.8 + gap, 0.8, 0.3, k, r, 3), d) for k, r in ((4, "far"), (12, "level")) for d in (1, 4)]
    together = [(Cast(0.6 + gap, 0.6, 0.3, k, r), 4) for k, r in ((4, "far"), (12, "level"))]
    return four + twelve + near + together + seeds


CELLS: dict[str, list[tuple[Cast, int]]] = {
    "coverage": [(c, 1) for c in _covered()],
    "five_points_below": _judged(-0.05),
    "at_the_cap": _judged(0.0),
    "between_trainings": [
        (Cast(0.7, 0.7, trainings=t, spread=s, seed_sd=sd), 1)
        for t in (2, 3, 5)
        for sd in (0.0, 0.02, 0.05)
        for s in SPREADS
    ],
}


def run(simulations: int = 100, replicates: int = 1_000, seed: int = 0, only: str = "") -> dict[str, Any]:
    """Every simulation as a table of rows, `simulations` each; `only` one of `CELLS`."""
    started = time.perf_counter()
    found: dict[str, Any] = {
        "bench": "caps_coverage",
        "simulations": simulations,
        "replicates": replicates,
        "seed": seed,
    }
    bar = Progress(TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(),
                   console=Console(stderr=True), transient=True)  # fmt: skip
    with bar:
        for name in (only,) if only else CELLS:
            rng = np.random.default_rng((seed, list(CELLS).index(name)))
            row = _coverage if name in ("coverage", "between_trainings") else _verdicts
            found[name] = [
                row(*cell, rng, simulations, replicates) for cell in bar.track(CELLS[name], description=name)
            ]
    if "coverage" in found:
        found["pooled"] = _pooled(found["coverage"])
    return found | {"seconds": time.perf_counter() - started}


def _caps(cast: Cast, rng: np.random.Generator, simulations: int, replicates: int, domains: int = 1) -> Iterator[Cap]:
    """Caps of one domain after the other; those that are judged together share the draws of the trainings, as in a diagnosis."""
    for k, scores_TMIS in enumerate(cast.draw(rng, simulations * domains)):
        trainings = [(m[0], m[1], list(m[2:])) for m in scores_TMIS]
        yield cap_over_seeds(trainings, margin=MARGIN, seed=k, shift_seed=k // domains, replicates=replicates)


def _coverage(cast: Cast, _: int, rng: np.random.Generator, simulations: int, replicates: int) -> dict[str, Any]:
    """How often the intervals hold the truth; an undefined recovery holds nothing and is counted apart."""
    missed, defined, gap = np.zeros(2, dtype=int), 0, cast.student - cast.teacher
    held_gap = 0
    for found in _caps(cast, rng, simulations, replicates):
        defined += found.recovery.defined
        missed += [found.recovery.low > cast.recovery, found.recovery.high < cast.recovery]
        held_gap += found.gap.low <= gap <= found.gap.high
    about = _about(cast) | {"headroom": round(cast.teacher - cast.base, 6), "recovery": round(cast.recovery, 6)}
    return about | {"undefined": simulations - defined, "low_end_missed": int(missed[0]), "high_end_missed": int(missed[1])} | {
        "recovery_held": _share(defined - int(missed.sum()), defined), "gap_held": _share(held_gap, simulations),
    }  # fmt: skip


def _verdicts(cast: Cast, domains: int, rng: np.random.Generator, simulations: int, replicates: int) -> dict[str, Any]:
    """How often each verdict is given, of one domain or of the mean over `domains` alike ones."""
    seen, parts = dict.fromkeys(("below", "at", "above", "undetermined"), 0), []
    for found in _caps(cast, rng, simulations, replicates, domains):
        parts.append(found.bootstrap)
        if len(parts) == domains:
            tested = found.tested if domains == 1 else one_sided_gap(parts)
            seen[equivalence_verdict(tested, MARGIN)] += 1
            parts = []
    about = _about(cast) | {"domains": domains, "teacher": cast.teacher, "gap": cast.student - cast.teacher}
    return about | {verdict: _share(count, simulations) for verdict, count in seen.items()}


def _about(cast: Cast) -> dict[str, Any]:
    return {k: v for k, v in asdict(cast).items() if k in ("teachers", "rivals", "trainings", "spread", "seed_sd")}


def _pooled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The coverage rows put together, by each factor and over all."""
    groups = {"all": rows}
    for factor in ("rivals", "trainings", "headroom", "recovery", "spread"):
        for value in dict.fromkeys(r[factor] for r in rows):
            groups[f"{factor} {value}"] = [r for r in rows if r[factor] == value]
    return [
        {"which": name, "cells": len(group)}
        | {
            held: _share(sum(r[held]["count"] for r in group), sum(r[held]["of"] for r in group))
            for held in ("recovery_held", "gap_held")
        }
        for name, group in groups.items()
    ]


def _share(count: int, of: int) -> dict[str, float]:
    """The share with its own simulation error (Jeffreys)."""
    low, high = stats.beta.ppf([0.025, 0.975], count + 0.5, of - count + 0.5)
    return {
        "count": count,
        "of": of,
        "share": count / of if of else float("nan"),
        "low": float(low),
        "high": float(high),
    }


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as tables."""
    console = console or (Console() if sys.stdout.isatty() else Console(width=190))
    for name in (p for p in (*CELLS, "pooled") if p in result):
        rows = result[name]
        made = Table(title=f"{name}, {result['simulations']} simulations a cell", title_justify="left")
        for column in rows[0]:
            made.add_column(column.replace("_", " "), justify="right")
        for row in rows:
            made.add_row(*map(_cell, row.values()))
        console.print(made)
    console.print(f"{result['seconds']:.0f} s")


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['share']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    options.add_argument("--simulations", type=int, default=100)
    options.add_argument("--replicates", type=int, default=1_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=CELLS, default="")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    result = run(given.simulations, given.replicates, given.seed, given.only)
    print(json.dumps(result, indent=2)) if given.json else show(result)
