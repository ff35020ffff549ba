"""Do the statistics of `mopd-diag compare` hold what they say? Simulated record sets whose truth is known.

Coverage of the intervals, false alarms over eight groups, and how often a planted drop of five points is found:
`python -m bench.regression_coverage` takes about a minute; `--simulations 4000 --replicates 10000` is the long run.

Axis letters: I items, S samples.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from rich.console import Console
from scipy import optimize, stats

from bench.timing import table
from mopd_diag.diagnostics.pairs import Measured, Pairs, measure
from mopd_diag.diagnostics.regression import judge, overall

MARGIN, LEVEL = 0.02, 0.95
NONE = np.empty(0, dtype=object)
_ABILITY = np.random.default_rng(7).normal(size=200_000)


def _offset(accuracy: float, spread: float) -> float:
    """The logit shift at which logistic-normal items of that spread have that mean accuracy."""
    return optimize.brentq(lambda o: (1 / (1 + np.exp(-(spread * _ABILITY + o)))).mean() - accuracy, -15, 15)


class Population:
    """Items whose difficulty both checkpoints share, with a taste of each checkpoint's own; accuracies are planted."""

    def __init__(self, before: float, after: float, *, shared: float = 1.4, own: float = 0.7) -> None:
        self.truth, self.shared, self.own = after - before, shared, own
        self.offsets = [_offset(a, float(np.hypot(shared, own))) for a in (before, after)]

    def draw(
        self,
        rng: np.random.Generator,
        items: int,
        samples: int,
        name: str = "all",
        clusters: int = 0,
        same: bool = False,
    ) -> Pairs:
        """`same`: not even tastes differ, as when one checkpoint runs twice. `clusters`: so many share difficulty and taste."""
        of = np.arange(items) if not clusters else np.arange(items) % clusters
        shared_I = rng.normal(size=of.max() + 1)[of] * self.shared
        tastes = [rng.normal(size=of.max() + 1)[of] * self.own for _ in range(2)]
        tastes = [tastes[0]] * 2 if same else tastes
        chances = [1 / (1 + np.exp(-(shared_I + t + o))) for t, o in zip(tastes, self.offsets, strict=True)]
        before, after = ((rng.random((items, samples)) < c[:, None]).mean(1) for c in chances)
        n = np.full(items, samples)
        ids = np.char.add("cluster ", of.astype(str)) if clusters else NONE
        return Pairs(name, before, after, n, n, ids, samples == 1, 0.5)  # graded else: pass@k is not simulated


PARTS = ("coverage", "overall_coverage", "false_alarms", "power")


def run(simulations: int = 100, replicates: int = 1_000, seed: int = 0, only: str = "") -> dict[str, Any]:
    """Every simulation as a table of rows, `simulations` each; `only` one of `PARTS`."""
    started = time.perf_counter()
    cells = {"coverage": (_coverage, COVERED), "overall_coverage": (_overall_coverage, [{}]),
             "false_alarms": (_false_alarms, QUIET), "power": (_power, DROPS)}  # fmt: skip
    found: dict[str, Any] = {
        "bench": "regression_coverage", "simulations": simulations, "replicates": replicates, "seed": seed,
    }  # fmt: skip
    for name in (only,) if only else PARTS:
        simulate, settings = cells[name]
        rng = np.random.default_rng((seed, PARTS.index(name)))
        found[name] = [simulate(rng, simulations, replicates, **cell) for cell in settings]
    return found | {"seconds": time.perf_counter() - started}


COVERED: list[dict[str, Any]] = [
    {"items": 100, "samples": 1, "before": 0.6, "after": 0.6},
    {"items": 100, "samples": 4, "before": 0.8, "after": 0.75},
    {"items": 300, "samples": 1, "before": 0.8, "after": 0.75},
    {"items": 300, "samples": 4, "before": 0.6, "after": 0.65},
    {"items": 1000, "samples": 1, "before": 0.9, "after": 0.85},
    {"items": 1000, "samples": 4, "before": 0.7, "after": 0.7},
    {"items": 400, "samples": 1, "before": 0.6, "after": 0.55, "clusters": 80},
]
QUIET: list[dict[str, Any]] = [
    {"items": 200, "samples": 1, "same": True},
    {"items": 200, "samples": 4, "same": True},
    {"items": 200, "samples": 4, "same": False},
]
DROPS: list[dict[str, Any]] = [
    {"items": 1000, "samples": 1, "drop": 0.05, "groups": 1},
    {"items": 1000, "samples": 4, "drop": 0.05, "groups": 1},
    {"items": 1000, "samples": 1, "drop": 0.05, "groups": 8},
    {"items": 300, "samples": 1, "drop": 0.05, "groups": 1},
]


def _coverage(
    rng: np.random.Generator, simulations: int, replicates: int, *, items: int, samples: int, before: float, after: float,
    clusters: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """How often the interval of the difference holds the difference of the whole population."""
    population = Population(before, after)
    held = 0
    for k in range(simulations):
        delta = _measure(population.draw(rng, items, samples, clusters=clusters), k, replicates).delta
        held += delta.low <= population.truth <= delta.high
    cell = {"items": items, "samples": samples, "before": before, "after": after, "clusters": clusters}
    return cell | _share(held, simulations)


def _overall_coverage(rng: np.random.Generator, simulations: int, replicates: int) -> dict[str, Any]:
    """The same of the unweighted mean over four groups of unequal size."""
    populations = {
        "a": Population(0.8, 0.75),
        "b": Population(0.6, 0.62),
        "c": Population(0.9, 0.9),
        "d": Population(0.5, 0.45),
    }
    truth = float(np.mean([p.truth for p in populations.values()]))
    held = 0
    for k in range(simulations):
        pairs = [p.draw(rng, 60 * (j + 1), 2, name) for j, (name, p) in enumerate(populations.items())]
        measured = {p.name: _measure(p, (k, j), replicates) for j, p in enumerate(pairs)}
        groups = judge(pairs, measured, margin=MARGIN, level=LEVEL)
        delta = overall(pairs, measured, groups, margin=MARGIN, level=LEVEL, seed=k).delta
        held += delta.low <= truth <= delta.high
    return {"groups": 4, "items": 600, "samples": 2} | _share(held, simulations)


def _false_alarms(
    rng: np.random.Generator, simulations: int, replicates: int, *, items: int, samples: int, same: bool
) -> dict[str, Any]:  # fmt: skip
    """How often any of eight groups without a difference is called better or worse."""
    population = Population(0.7, 0.7)
    alarms = 0
    for k in range(simulations):
        pairs = [population.draw(rng, items, samples, f"g{j}", same=same) for j in range(8)]
        groups = judge(
            pairs, {p.name: _measure(p, (k, j), replicates) for j, p in enumerate(pairs)}, margin=MARGIN, level=LEVEL
        )
        alarms += any(g.verdict in ("better", "worse") for g in groups.values())
    return {"groups": 8, "items": items, "samples": samples, "one_checkpoint": same} | _share(alarms, simulations)


def _power(
    rng: np.random.Generator, simulations: int, replicates: int, *, items: int, samples: int, drop: float, groups: int
) -> dict[str, Any]:  # fmt: skip
    """How often a planted drop in one group (of several) is called worse, beside the power that the report's smallest
    detectable effect implies for it."""
    dropped, still = Population(0.75, 0.75 - drop), Population(0.75, 0.75)
    strict = stats.norm.ppf(1 - (1 - LEVEL) / groups / 2)
    found, stated, effects = 0, [], []
    for k in range(simulations):
        pairs = [(dropped if j == 0 else still).draw(rng, items, samples, f"g{j}") for j in range(groups)]
        measured = {p.name: _measure(p, (k, j), replicates) for j, p in enumerate(pairs)}
        first = judge(pairs, measured, margin=MARGIN, level=LEVEL)["g0"]
        found += first.verdict == "worse"
        effects.append(first.mde)
        step = measured["g0"].step
        error = (first.mde - step) / (strict + stats.norm.ppf(0.8))
        stated.append(stats.norm.cdf((drop - step) / error - strict))
    cell = {"items": items, "samples": samples, "drop": drop, "groups": groups, "mde": float(np.mean(effects))}
    return cell | {"stated": float(np.mean(stated))} | _share(found, simulations)


def _measure(pairs: Pairs, seed: int | tuple[int, ...], replicates: int) -> Measured:
    key = seed if isinstance(seed, tuple) else (seed,)
    return measure(pairs, seed=key, level=LEVEL, replicates=replicates, bounds=(0.0, 1.0))


def _share(count: int, of: int) -> dict[str, float]:
    """The share with its own simulation error (Jeffreys)."""
    low, high = stats.beta.ppf([0.025, 0.975], count + 0.5, of - count + 0.5)
    return {"share": count / of, "low": float(low), "high": float(high)}


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as tables."""
    console = console or Console()
    for name in (p for p in PARTS if p in result):
        rows = result[name]
        columns = list(dict.fromkeys(k for row in rows for k in row))
        made = table(f"{name}, {result['simulations']} simulations", *columns)
        for row in rows:
            made.add_row(*(f"{row[c]:.3f}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns))
        console.print(made)
    console.print(f"{result['seconds']:.0f} s")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    options.add_argument("--simulations", type=int, default=100)
    options.add_argument("--replicates", type=int, default=1_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=PARTS, default="")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    result = run(given.simulations, given.replicates, given.seed, given.only)
    print(json.dumps(result, indent=2)) if given.json else show(result)
