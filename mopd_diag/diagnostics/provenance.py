"""What a model's attributions amount to: shares of each class, the same for a control that never saw a teacher, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mopd_diag.errors import BadInput
from mopd_diag.estimators.attribution import FLOOR
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.types import Estimate, Finding

OVERALL = "overall"
BASELINES = ("routed", "closest", "likelihood")
EXCESS = 1.5
"""How many times the student's own share a control's must be, at the interval's low end, for `inherited`.

The interval resamples items, not trainings; the factor is the allowance for two trainings. `docs/attribution.md` has what it does
on four runs: teacher-free models pass as `inherited` against one another in 1 of 32 domains, students in 13 of 16."""
ALIKE = 1.1
FEWEST = 8
"""Items below which two models are not compared."""


class Attributed(Protocol):
    """Anything that carries one model's attributed answers (an `Attribution`)."""

    @property
    def answers(self) -> pd.DataFrame: ...


Answers = Attributed | pd.DataFrame


def label_of(teacher: str) -> str:
    """The label of a single teacher.

    >>> label_of("teacher-math")
    'teacher:math'
    """
    return f"teacher:{teacher.removeprefix('teacher-')}"


def findings(
    student: Answers, controls: Sequence[Answers] = (), *, level: float = 0.95, seed: int = 0
) -> list[Finding]:
    """One finding a domain and one overall for the student, then for each control; estimate: share given to the routed teacher.

    Without routes the estimate is the share given to any single teacher. The student's verdict is `inherited` only when every control
    leaves clearly more of its shift unexplained (`EXCESS`) on the same items; `pre-existing` or `own` when most answers are; else
    `undetermined`, with the reason in `evidence["note"]`. Attributions or their `answers` frames will do.
    """
    own, others = _frame(student), [_frame(c) for c in controls]
    found = []
    for domain in _domains(own):
        mine = _of(own, domain)
        evidence = _evidence(mine, level, seed)
        evidence["control"] = _evidence(_of(others[0], domain), level, seed) if others else None
        excess = {_subject(c): excess_over(_of(own, domain), _of(c, domain), level=level, seed=seed) for c in others}
        evidence["excess"] = {name: e.to_dict() for name, e in excess.items()}
        verdict, note = _verdict(evidence, excess)
        found.append(_finding(own, domain, verdict, {**evidence, "note": note}, level, seed))
    for other in others:
        for domain in _domains(other):
            note = f"{_subject(other)} never saw a teacher: what is given to teachers here is likeness, not origin"
            evidence = {**_evidence(_of(other, domain), level, seed), "note": note}
            found.append(_finding(other, domain, "control", evidence, level, seed))
    return found


def excess_over(student: Answers, control: Answers, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """How many times as large a share of its shift is the control's own, the student's being 1; geometric mean over items.

    Over the items on which both moved from the base, paired by item; domains weigh the same. Above 1 the teachers explain the
    student better. Shares, not closeness: a model that is merely less competent is less close, but not much less aligned. Undefined
    for fewer than `FEWEST` shared items in every domain, and where the teachers explain both completely.
    """
    logs = [_log_own(_frame(x)) for x in (student, control)]
    difference = (logs[1] - logs[0]).dropna()
    parts = [g.to_numpy() for _, g in difference.groupby(level="domain", sort=False) if len(g) >= FEWEST]
    undefined = partial(Estimate.undefined, unit="ratio", n_items=len(difference))
    if not parts:
        return undefined(f"needs {FEWEST} items on which both moved from the base, got {len(difference)}")
    if max(np.ptp(p) for p in parts) < 1e-9:
        return undefined("every item says the same: the teachers explain both models completely")
    drawn = [
        Bootstrap.of(p, bounds=None, method="percentile", seed=(seed, i), level=level) for i, p in enumerate(parts)
    ]
    return Bootstrap.join(drawn).estimate(lambda m: np.exp(m.mean(-1)), unit="ratio")


def _log_own(answers: pd.DataFrame) -> pd.Series:
    """Mean log share that is own, of each item's answers that moved, indexed by domain and item."""
    moved = answers[(answers["label"] != "pre-existing") & answers["share_own"].notna()]
    logs = np.log(np.maximum(moved["share_own"].astype(float), FLOOR))
    return logs.groupby([moved["domain"], moved["item_id"]], sort=False).mean().rename_axis(["domain", "item_id"])


def _verdict(evidence: Mapping[str, Any], excess: Mapping[str, Estimate]) -> tuple[str, str]:
    """The verdict and the sentence that says why."""
    for label, why in (
        ("pre-existing", "the base does most of this already"),
        ("own", "no listed teacher explains most of this"),
    ):
        if (evidence["intervals"].get(label) or {"low": 0})["low"] > 0.5:
            return label, why
    if not excess:
        return "undetermined", "no teacher-free control was scored beside it: likeness to a teacher is not origin"
    told = "; ".join(f"{name} has {_times(e)} the student's share of unexplained shift" for name, e in excess.items())
    if not all(e.defined for e in excess.values()):
        return "undetermined", f"a control cannot be compared: {told}"
    least = min(e.low for e in excess.values())
    if least >= EXCESS:
        return "inherited", f"the teachers explain the student better than a model that never saw them: {told}"
    blamed = "is accused just the same" if least < ALIKE else "is explained nearly as well"
    return "undetermined", f"the control, which never saw a teacher, {blamed}: {told}; {EXCESS} is asked for"


def _times(e: Estimate) -> str:
    return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}] times" if e.defined else f"an unknown multiple ({e.note})"


def _finding(
    answers: pd.DataFrame, domain: str, verdict: str, evidence: dict[str, Any], level: float, seed: int
) -> Finding:
    subject = _subject(answers)
    own = _of(answers, domain)
    routed = own["baseline_routed"].map(lambda t: label_of(t) if t else "")
    given = np.where(routed != "", own["label"] == routed, own["label"].str.startswith("teacher:"))
    to = "the domain's own teacher" if (routed != "").all() else "one teacher"
    estimate = _shares(own.assign(given=given), ["given"], level, seed)["given"]
    name = f"attribution-{subject}" + ("" if domain == OVERALL else f"-{domain}")
    estimate = replace(estimate, note=estimate.note or f"share of the answers given to {to}")
    return Finding(name, "attribution", f"{subject}/{domain}", verdict, "info", estimate, evidence)


def _evidence(answers: pd.DataFrame, level: float, seed: int) -> dict[str, Any]:
    """Shares of the classes with intervals, what the baselines would have said, and how much there was to go by."""
    labels = sorted(answers["label"].unique(), key=lambda x: (":" not in x, x))
    table = _shares(answers.assign(**{x: answers["label"] == x for x in labels}), labels, level, seed)
    known = answers["baseline_routed"] != ""
    routed = answers["baseline_routed"].where(known)
    picks = {b: answers[f"baseline_{b}"] for b in BASELINES}
    moved = answers[answers["share_own"].notna() & (answers["label"] != "pre-existing")]
    explained = _shares(moved.assign(explained=1 - moved["share_own"]), ["explained"], level, seed)
    return {
        "shares": {x: e.value if e.defined else float((answers["label"] == x).mean()) for x, e in table.items()},
        "intervals": {x: e.to_dict() for x, e in table.items()},
        **{f"baseline_{b}": float((p == routed)[known].mean()) if known.any() else None for b, p in picks.items()},
        "picks": {
            b: {str(t): float(v) for t, v in p[p != ""].value_counts(normalize=True).items()} for b, p in picks.items()
        },
        "explained": explained["explained"].to_dict(),
        "n_answers": len(answers),
        "n_items": int(answers["item_id"].nunique()),
        "n_tokens": int(answers["n_tokens"].sum()),
        "n_contested": int(answers["n_contested"].sum()),
        "vocabulary": str(answers["vocabulary"].iloc[0]) if len(answers) else "full",
        "confidence": str(answers["calibration"].iloc[0]) if len(answers) else "uncalibrated",
    }


def _shares(answers: pd.DataFrame, columns: list[str], level: float, seed: int) -> dict[str, Estimate]:
    """Mean of each column over items (answers to one item averaged first), with intervals over items."""
    items = answers.groupby(["domain", "item_id"], sort=False)[columns].mean().to_numpy(float)
    if not len(items):
        return {c: Estimate.undefined("no answers") for c in columns}
    drawn = Bootstrap.of(np.clip(items, 0, 1), seed=seed, level=level)
    return {c: drawn.column(i) for i, c in enumerate(columns)}


def _frame(x: Answers) -> pd.DataFrame:
    frame: Any = x
    frame = frame if isinstance(frame, pd.DataFrame) else frame.answers
    missing = {"item_id", "domain", "label", "share_own", "baseline_routed", "subject"} - set(frame.columns)
    if missing:
        raise BadInput(f"expected the answers of an attribution, got a frame without {sorted(missing)}")
    return frame.reset_index(drop=True)


def _domains(answers: pd.DataFrame) -> list[str]:
    return [*(str(d) for d in answers["domain"].unique() if d), OVERALL]


def _of(answers: pd.DataFrame, domain: str) -> pd.DataFrame:
    return answers if domain == OVERALL else answers[answers["domain"] == domain]


def _subject(answers: pd.DataFrame) -> str:
    return str(answers["subject"].iloc[0]) if len(answers) else "student"
