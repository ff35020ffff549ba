"""Is the cap binding? Reads the probe of a run: a short RL run from the student, evaluated like every other model.

What the verdicts `binding`, `not-binding` and `undetermined` claim stands in `estimators.binding`. The probe is no member of the cast: no
other diagnosis and no table of rivals reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mopd_diag.diagnostics.accuracy import OVERALL, pivot, slug
from mopd_diag.diagnostics.caps import CapsReport, caps
from mopd_diag.estimators.binding import Binding, Compared, Reason, compare, judge
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.significance import holm
from mopd_diag.estimators.statistics import item_means
from mopd_diag.runs.directory import PROBE, RunDirectory
from mopd_diag.types import Estimate, Finding, Severity

COUNTED = ("rollouts", "tokens_sampled", "tokens_trained", "flops", "seconds")
SEVERITY: dict[Binding, Severity] = {"binding": "notice", "not-binding": "info", "undetermined": "notice"}
WINDOW = 5
"""Training steps over which a reward is averaged."""
SAYS: dict[Reason, str] = {
    "bound": "the student stopped at or below {teacher}, and {steps} RL steps from it lead past that",
    "past": "the student is past {teacher} already, so it was not held there",
    "full": "the student has nothing left to gain that the margin of {margin:g} would notice",
    "flat": "{steps} RL steps gain nothing beyond the margin of {margin:g}{unchecked}; a longer run may",
    "short": "no gain, but as many rollouts did not move a specialist beyond the margin of {margin:g} either: the probe is too short",
    "unreached": "the probe gains, but is not surely past {teacher}: the student had more to learn, how much is open; {power}",
    "level": "the probe gains and is past {teacher}, but whether the student was not already is open",
    "corrected": "past {teacher} when this domain is looked at alone, not surely so among {domains}; {power}",
    "fell": "RL from the student lost accuracy, which says nothing about the teachers",
    "wide": "whether the probe gains is open; {power}",
    "unknown": "{note}",
}


@dataclass(frozen=True, eq=False)
class DomainBinding:
    """One domain, or `overall`: the mean over domains. `rise`: what as many rollouts gave the domain's own specialist, in its training
    reward; NaN where that is not known."""

    compared: Compared
    p_adjusted: float
    verdict: Binding
    why: str
    teacher: str
    student: Estimate | None
    best_teacher: Estimate | None
    probe: Estimate | None
    rise: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. `gap` is probe − best teacher, `gain` probe − student, `gap_of_student` student − best teacher."""
        x, levels = self.compared, {"student": self.student, "best_teacher": self.best_teacher, "probe": self.probe}
        return {
            "verdict": self.verdict,
            "gap": x.after.to_dict(),
            "gain": x.gain.to_dict(),
            "gap_of_student": x.before.to_dict(),
            **{name: e.to_dict() for name, e in levels.items() if e is not None},
            "teacher": self.teacher,
            "p_value": _number(x.p_value),
            "p_adjusted": _number(self.p_adjusted),
            "smallest_detectable_effect": _number(x.smallest_detectable_effect),
            "specialist_rise": _number(self.rise),
            "why": self.why,
        }


@dataclass(frozen=True, eq=False)
class ProbeReport:
    """The probe of a run. `cost`: counts of its training, of its evaluation, and the training's share of the student's whole path."""

    steps: int
    seed: int
    margin: float
    domains: dict[str, DomainBinding]
    overall: DomainBinding
    cost: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the `probe` of `mopd-diag caps --json`."""
        return {
            "model": PROBE,
            "steps": self.steps,
            "seed": self.seed,
            "margin": self.margin,
            "cost": self.cost,
            "domains": {d: b.to_dict() for d, b in self.domains.items()},
            OVERALL: self.overall.to_dict(),
        }

    def findings(self) -> list[Finding]:
        """One finding a domain and one over all; the estimate is probe − best teacher, the subject the probe."""
        about = {"steps": self.steps, "seed": self.seed, "margin": self.margin, "cost": self.cost}
        return [
            Finding(
                slug("cap-binding", domain), "cap", f"{PROBE}/{domain}", b.verdict, SEVERITY[b.verdict], b.compared.after,
                {k: v for k, v in b.to_dict().items() if k not in ("verdict", "gap")} | about,
            )
            for domain, b in {**self.domains, OVERALL: self.overall}.items()
        ]  # fmt: skip


def probed(run: RunDirectory) -> bool:
    """Whether the run has a probe that is trained, evaluated and in the ledger."""
    if not run.record_path(PROBE).is_file() or not (run.path / "ledger.parquet").is_file():
        return False
    return {PROBE, f"evaluate:{PROBE}"} <= set(run.ledger()["stage"])


def probe_report(run: RunDirectory, student: CapsReport, teachers: Mapping[str, list[str]]) -> ProbeReport | None:
    """What the probe of a run says, None where it has none. `student`: the caps of the run's student, under the margin that counts here.

    Raises BadInput for records of other items than the student's.
    """
    if not probed(run):
        return None
    margin, steps = student.margin, len(run.metrics(PROBE))
    records = run.records("student", "base", *teachers, PROBE)
    after = caps(records, teachers, student=PROBE, margin=margin)
    gains = {
        d: _gain(records[records["model"].isin(["student", PROBE])], d, (0, k)) for k, d in enumerate(student.caps)
    }
    compared = {
        d: compare([c.cap.bootstrap], [after.caps[d].cap.bootstrap], [gains[d]], margin=margin)
        for d, c in student.caps.items()
    }
    adjusted = dict(zip(compared, holm([x.p_value for x in compared.values()]), strict=True))
    rises = _rises(run, teachers, list(student.caps))
    found = {}
    for domain, x in compared.items():
        c = student.caps[domain]
        full = c.cap.student.defined and c.cap.student.low >= 1 - margin
        verdict, reason = judge(
            x, float(adjusted[domain]), margin=margin, full=full, moved=_moved(rises[domain], margin)
        )
        why = _say(reason, x, c.teacher, steps, margin, len(compared), rises[domain])
        levels = (c.cap.student, c.cap.best_teacher, after.caps[domain].cap.student)
        found[domain] = DomainBinding(x, float(adjusted[domain]), verdict, why, c.teacher, *levels, rises[domain])
    before, later = ([r.caps[d].cap.bootstrap for d in compared] for r in (student, after))
    mean = compare(before, later, list(gains.values()), margin=margin)
    rise = sum(rises.values()) / len(rises)
    verdict, reason = judge(mean, mean.p_value, margin=margin, moved=_moved(rise, margin))
    why = _say(reason, mean, "its best teachers", steps, margin, len(compared), rise)
    overall = DomainBinding(mean, mean.p_value, verdict, why, "", None, None, None, rise)
    return ProbeReport(steps, _seed(run), margin, found, overall, _cost(run.ledger()))


def _gain(records: pd.DataFrame, domain: str, seed: tuple[int, int]) -> Bootstrap:
    """Probe and student on the same items, drawn together."""
    models, _, scores_MIS = pivot(records, domain)
    means_MI = item_means(scores_MIS)
    return Bootstrap.of(means_MI[[models.index(PROBE), models.index("student")]].T, seed=seed)


def _rises(run: RunDirectory, teachers: Mapping[str, list[str]], domains: list[str]) -> dict[str, float]:
    """By how much the training reward of each domain's own specialist rose over as many rollouts a domain as the probe had there.

    The positive control: RL of that length moves a model that has something to learn. NaN for a domain without an RL specialist.
    """
    ledger = {str(r["stage"]): r for r in run.ledger().to_dict("records")}
    each = float(ledger[PROBE]["rollouts"]) / len(domains)
    found = dict.fromkeys(domains, math.nan)
    for teacher, own in teachers.items():
        curve = run.metrics(teacher)
        if ledger.get(teacher, {}).get("algorithm") not in ("grpo", "ppo") or "reward" not in curve:
            continue
        a_step = float(ledger[teacher]["rollouts"]) / len(curve) / len(own)
        reward = curve["reward"].iloc[: max(1, round(each / a_step))]
        rise = float(reward.tail(WINDOW).mean() - reward.head(WINDOW).mean())
        found |= {d: rise for d in own if d in found}
    return found


def _moved(rise: float, margin: float) -> bool | None:
    return None if math.isnan(rise) else rise > margin


def _say(reason: Reason, x: Compared, teacher: str, steps: int, margin: float, domains: int, rise: float) -> str:
    unknown = " (whether so short a run can move a model is not known: no specialist was trained by RL)"
    return SAYS[reason].format(
        teacher=teacher, steps=steps, margin=margin, domains=f"{domains} domains", unchecked=unknown if math.isnan(rise) else "",
        power=f"{100 * x.smallest_detectable_effect:.1f} points would be found with 80% power",
        note=next((e.note for e in (x.before, x.after, x.gain) if not e.defined), ""),
    )  # fmt: skip


def _cost(ledger: pd.DataFrame) -> dict[str, Any]:
    """Counts of the probe's training and evaluation, and its training against the student with all that it descends from.

    Cold starts stand for pretraining and count for nobody, as where budgets are matched.
    """
    rows = {str(r["stage"]): r for r in ledger.to_dict("records")}
    line, waiting = set[str](), ["student"]
    while waiting:
        name = waiting.pop()
        if name in rows and name not in line:
            line.add(name)
            waiting += [p for p in str(rows[name]["parents"] or "").split(",") if p]
    path = {c: sum(float(rows[n][c]) for n in line if rows[n]["parents"]) for c in COUNTED}
    own, evaluation = ({c: float(rows[n][c]) for c in COUNTED} for n in (PROBE, f"evaluate:{PROBE}"))
    shares = {c: own[c] / path[c] if path[c] else None for c in COUNTED}
    return {**own, "evaluation": evaluation, "share_of_students_path": shares}


def _seed(run: RunDirectory) -> int:
    asked = run.path / "probe.json"
    return int(json.loads(asked.read_text())["seed"] if asked.is_file() else run.manifest()["seeds"][0])


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
