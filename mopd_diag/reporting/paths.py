"""What a model cost with everything it was made from: sums, longest chains and shares over the ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mopd_diag.types import Estimate

COUNTS = ("tokens_sampled", "tokens_trained", "tokens_scored", "rollouts", "flops", "seconds")


@dataclass(frozen=True)
class PathCost:
    """The counts of a stage and of all stages it descends from, the shared base left out."""

    stages: tuple[str, ...]
    counts: dict[str, float]


def parents_of(value: Any) -> list[str]:
    """The parents of a ledger row, however they were written: a list, a JSON list, or names with commas."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, str):
        if value.startswith("["):
            return [str(p) for p in json.loads(value)]
        return [p.strip() for p in value.split(",") if p.strip()]
    return [str(p) for p in value] if isinstance(value, Iterable) else []


SERVICES = {"evaluate": "evaluation", "trace": "tracing"}


def line_of(stage: str) -> str:
    """The line of the time table a stage belongs to: `rival.1-x` to `rival`, `evaluate:student` to `evaluation`.

    >>> line_of("evaluate:student"), line_of("rival-sequential-rl.1-stack")
    ('evaluation', 'rival-sequential-rl')
    """
    head, colon, _ = stage.partition(":")
    return SERVICES.get(head, head) if colon else stage.partition(".")[0]


def wall_seconds(ledger: pd.DataFrame) -> float:
    """From the start of the run to the end of its last stage; NaN when starts were not counted."""
    if ledger.empty or "started" not in ledger.columns:
        return math.nan
    return float((ledger["started"] + ledger["seconds"]).max())


def family(ledger: pd.DataFrame) -> dict[str, list[str]]:
    """Each stage's parents that are stages themselves; a parent that is none, or a stage of its own line, is dropped."""
    stages = [str(s) for s in ledger["stage"]]
    parents = ledger["parents"] if "parents" in ledger.columns else [None] * len(stages)
    return {s: [p for p in parents_of(v) if p in set(stages) and p != s] for s, v in zip(stages, parents, strict=True)}


def ancestors(stage: str, parents: dict[str, list[str]]) -> list[str]:
    """`stage` and everything it descends from, each once."""
    found: dict[str, None] = {}
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = None
            waiting += parents.get(name, [])
    return list(found)


def path_cost(ledger: pd.DataFrame, stage: str, *, without: Iterable[str] = ("base",)) -> PathCost:
    """The cost of a whole path: a student pays for its teachers. `without` names what every path shares."""
    left_out = set(without)
    line = [s for s in ancestors(stage, family(ledger)) if s == stage or s not in left_out]
    rows = ledger[ledger["stage"].astype(str).isin(line)]
    counts = {c: float(rows[c].sum()) if stage not in left_out else 0.0 for c in COUNTS if c in rows.columns}
    return PathCost(tuple(line), counts)


def critical_path(ledger: pd.DataFrame, stage: str | None = None) -> tuple[list[str], float]:
    """The longest chain of stages that ends in `stage` (or in any model): the time that no number of machines could save.

    Returns the stages in order and their summed seconds.
    """
    parents = family(ledger)
    seconds = {str(s): float(t) for s, t in zip(ledger["stage"], ledger["seconds"], strict=True)}
    best: dict[str, tuple[list[str], float]] = {}

    def chain(name: str, above: frozenset[str]) -> tuple[list[str], float]:
        if name not in best:
            longer = [chain(p, above | {name}) for p in parents[name] if p not in above]
            line, time = max(longer, key=lambda c: c[1], default=([], 0.0))
            best[name] = ([*line, name], time + seconds[name])
        return best[name]

    chains = [chain(s, frozenset()) for s in ([stage] if stage in parents else (p for p in parents if ":" not in p))]
    return max(chains, key=lambda c: c[1], default=([], 0.0))


def model_share(ledger: pd.DataFrame) -> float:
    """The part of all stages' time that was spent inside model forward and backward passes; NaN when it was not counted."""
    if "seconds_model" not in ledger.columns or not float(ledger["seconds"].sum()):
        return math.nan
    return float(ledger["seconds_model"].sum()) / float(ledger["seconds"].sum())


@dataclass(frozen=True)
class CostPoint:
    """What a model cost with everything it was made from, and what came of it."""

    model: str
    cost: float
    result: Estimate


def pareto(points: Sequence[CostPoint]) -> list[CostPoint]:
    """The points that no other one beats at the same cost or less, by increasing cost."""
    best: list[CostPoint] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.result.value)):
        if point.result.defined and (not best or point.result.value > best[-1].result.value):
            best.append(point)
    return best
