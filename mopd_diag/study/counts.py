"""What paths cost, from the counts of the jobs that are done: the same numbers as the ledger's, while a run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mopd_diag.config import Counted, Stage

if TYPE_CHECKING:
    from mopd_diag.study.resolve import Study

Column = Counted | Literal["tokens_scored"]
Rows = Mapping[str, Mapping[str, Any]]
"""Stage → its row of the ledger."""


def counted(run: Path) -> dict[str, dict[str, Any]]:
    """The rows of all stages that are trained."""
    rows = (json.loads(p.read_text())["ledger"] for p in sorted((run / "done").glob("train-*.json")))
    return {row["stage"]: row for row in rows}


def spent(study: Study, rows: Rows, names: Iterable[str], on: Column) -> float:
    """What some stages cost together. Cold starts, which stand for pretraining, count for nobody."""
    return sum(float(rows[n][on]) for n in names if study.stage(n).parents)


def path_count(study: Study, rows: Rows, model: str, on: Column, scope: str = "path", other: str = "student") -> float:
    """What a model cost: with all that it descends from, or only its `own` stages, those that `other` does not descend from."""
    names = study.ancestry(model)
    if scope != "path":
        names = [n for n in names if n == model or n not in study.ancestry(other)]
    return spent(study, rows, names, on)


def allowance(study: Study, stage: Stage, rows: Rows) -> float:
    """How much a matched stage may count, given what the stages before it did; below zero when they did too much already."""
    match = stage.match
    assert match is not None, stage.name
    before = [a for a in study.ancestry(stage.name) if a != stage.name]
    theirs = study.ancestry(match.to)
    target = theirs if match.scope == "path" else [match.to]
    if match.scope == "stage":
        before = [a for a in before if a not in theirs]
    shared = [a for a in before if a in target]
    left = spent(study, rows, target, match.on) - spent(study, rows, shared if match.share else before, match.on)
    return left * (match.share or 1.0)
