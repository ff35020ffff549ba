"""What one more teacher costs and brings: each teacher's own stages in the ledger beside what it gained and what arrived."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mopd_diag.diagnostics.gains import Gain, gains
from mopd_diag.errors import BadInput
from mopd_diag.reporting import text
from mopd_diag.reporting.look import Cast
from mopd_diag.reporting.paths import ancestors, critical_path, family, line_of, path_cost
from mopd_diag.reporting.reading import STUDENT
from mopd_diag.reporting.tables import Table
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Estimate

PETA, TERA = 1e15, 1e12


@dataclass(frozen=True)
class TeacherCost:
    """One teacher in the student's path. Counts are of its own stages; `share` is their part of the path's FLOPs (of its seconds,
    where no FLOPs were counted); `saved`: seconds by which the longest chain to the student would be shorter without it,
    everything else as it was.
    """

    teacher: str
    domains: tuple[str, ...]
    rollouts: float
    flops: float
    seconds: float
    share: float
    saved: float
    gain: Gain

    def per_flops(self, gained: Estimate, unit: float = PETA) -> Estimate:
        """Points gained for so many FLOPs of the teacher's own stages; unknown where none were counted."""
        if not gained.defined:
            return gained
        if not self.flops > 0:
            return Estimate.undefined("the ledger counted no FLOPs", unit="points per FLOPs")
        value, low, high = (100 * x * unit / self.flops for x in (gained.value, gained.low, gained.high))
        return replace(
            gained, value=value, low=low, high=high, unit=f"points per {'PFLOP' if unit == PETA else 'TFLOP'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        numbers = {"rollouts": self.rollouts, "flops": self.flops, "seconds": self.seconds, "share_of_path": self.share}
        numbers["critical_seconds_saved"] = self.saved
        estimates = {"gain": self.gain.own, "arrived": self.gain.arrived}
        return {
            "teacher": self.teacher, "domains": list(self.domains),
            **{k: v if math.isfinite(v) else None for k, v in numbers.items()},
            **{k: e.to_dict() for k, e in estimates.items()},
            **{f"{k}_per_pflop": self.per_flops(e).to_dict() for k, e in estimates.items()},
        }  # fmt: skip


def teacher_costs(records: pd.DataFrame, ledger: pd.DataFrame, cast: Cast, student: str = STUDENT) -> list[TeacherCost]:
    """The teachers that the student descends from; none where the ledger or the records have no student."""
    if ledger.empty or records.empty or student not in set(ledger["stage"].astype(str)):
        return []
    line = {line_of(s) for s in ancestors(student, family(ledger))}
    taught = {t: cast.taught.get(t, ()) for t in cast.teachers if t in line}
    whole, found = path_cost(ledger, student).counts, gains(records, taught, student=student)
    lines = ledger["stage"].astype(str).map(line_of)
    longest = critical_path(ledger, student)[1]
    costs = []
    for teacher, domains in taught.items():
        own = ledger[lines == teacher]
        count = lambda c, own=own: float(own[c].sum()) if c in own.columns else math.nan  # noqa: E731
        by = "flops" if whole.get("flops") else "seconds"
        share = count(by) / whole[by] if whole.get(by) else math.nan
        saved = longest - critical_path(ledger[lines != teacher], student)[1]
        costs.append(
            TeacherCost(
                teacher,
                tuple(domains),
                count("rollouts"),
                count("flops"),
                count("seconds"),
                share,
                saved,
                found[teacher],
            )
        )
    return costs


def costs_of(run: RunDirectory) -> list[TeacherCost]:
    """Of a run directory; none where it has no ledger, no records, or records that cannot be compared."""
    try:
        return teacher_costs(run.records(), run.ledger(), Cast.of(run.manifest()))
    except BadInput:
        return []


def teachers_table(costs: Sequence[TeacherCost]) -> Table:
    """A row a teacher: what it cost, what leaving it out would save, what it gained and what of that arrived."""
    unit = PETA if max((c.flops for c in costs if c.flops == c.flops), default=0.0) >= PETA else TERA
    rows = []
    for c in costs:
        rows.append([
            c.teacher, ", ".join(c.domains) or "–", text.count(c.rollouts), text.count(c.flops), text.duration(c.seconds),
            text.percent(c.share), "nothing" if c.saved < 0.05 else text.duration(c.saved), text.points(c.gain.own, unit=False),
            text.points(c.gain.arrived, unit=False), _rate(c.per_flops(c.gain.own, unit)), _rate(c.per_flops(c.gain.arrived, unit)),
        ])  # fmt: skip
    name = "PFLOP" if unit == PETA else "TFLOP"
    columns = ["teacher", "domains", "rollouts", "FLOPs", "time", "share of path", "chain shorter by", "gain", "arrived",
               f"gain per {name}", f"arrived per {name}"]  # fmt: skip
    caption = "What one more teacher costs and brings: its own stages; by how much the longest chain to the student is shorter "
    caption += (
        "without it, everything else as it was; points that the teacher gained on its domains over the base, and that "
    )
    caption += "the student has there, from whomever"
    return Table(caption, columns, rows, frozenset({"domains"}), keys=[c.teacher for c in costs])


def _rate(e: Estimate) -> str:
    """Points for so many FLOPs, three digits at the most."""
    if not e.defined:
        return text.UNKNOWN
    digits = 0 if abs(e.value) >= 10 else 1
    value, low, high = (text.fixed(x, digits, signed=True) for x in (e.value, e.low, e.high))
    return f"{value} [{low}, {high}]"
