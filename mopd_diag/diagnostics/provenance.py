"""What a model's attributions amount to: shares of each class, the same for a control that never saw a teacher, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.types import Estimate, Finding

OVERALL = "overall"
BASELINES = ("routed", "closest", "likelihood")
EXCESS = 1.5
"""How many times as much as the student a control must leave unexplained, at the interval's low end, for `inherited`.

Items are resampled, trainings are not: two teacher-free trainings of one run differed by up to 1.6 times, low end 1.4
(`docs/attribution.md`)."""
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
            note = (
                f"{_subject(other)} never saw a teacher: what the method gives to teachers here is likeness, not origin"
            )
            found.append(
                _finding(
                    other, domain, "control", {**_evidence(_of(other, domain), level, seed), "note": note}, level, seed
                )
            )
    return found


def excess_over(student: Answers, control: Answers, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """How many times as much of its shift the control leaves unexplained: mean residual of the control / of the student.

    Over the items on which both moved from the base, paired by item; over several domains the geometric mean of their ratios.
    Above 1 the teachers explain the student better. Undefined for fewer than `FEWEST` shared items in every domain.
    """
    left = [_unexplained(_frame(x)) for x in (student, control)]
    paired = pd.concat(left, axis=1, join="inner", keys=["student", "control"]).dropna()
    parts = [g.to_numpy() for _, g in paired.groupby(level="domain", sort=False) if len(g) >= FEWEST]
    if not parts:
        return Estimate.undefined(
            f"needs {FEWEST} items on which both moved from the base, got {len(paired)}",
            unit="ratio",
            n_items=len(paired),
        )
    joined = Bootstrap.join(
        [Bootstrap.of(p, bounds=None, method="percentile", seed=(seed, i), level=level) for i, p in enumerate(parts)]
    )
    return joined.estimate(lambda m: np.exp(np.log(m[..., 1::2] / m[..., 0::2]).mean(-1)), unit="ratio")


def _unexplained(answers: pd.DataFrame) -> pd.Series:
    """Mean joint residual of each item's answers that moved, indexed by domain and item."""
    moved = answers[answers["label"] != "pre-existing"]
    return (1 - moved["explained"]).groupby([moved["domain"], moved["item_id"]], sort=False).mean()


def _verdict(evidence: Mapping[str, Any], excess: Mapping[str, Estimate]) -> tuple[str, str]:
    for label in ("pre-existing", "own"):
        if (evidence["intervals"].get(label) or {"low": 0})["low"] > 0.5:
            return label, {
                "pre-existing": "the base does most of this already",
                "own": "no listed teacher explains most of this",
            }[label]
    if not excess:
        return "undetermined", "no teacher-free control was scored beside it: likeness to a teacher is not origin"
    told = "; ".join(f"{name} leaves {_times(e)} as much of its shift unexplained" for name, e in excess.items())
    if all(e.defined and e.low >= EXCESS for e in excess.values()):
        return "inherited", f"the teachers explain the student better than a model that never saw them: {told}"
    if any(not e.defined for e in excess.values()):
        return (
            "undetermined",
            f"the control cannot be compared: {next(e.note for e in excess.values() if not e.defined)}",
        )
    return (
        "undetermined",
        f"the control, which never saw a teacher, is accused just the same: {told}, at least {EXCESS} times is asked for",
    )


def _times(e: Estimate) -> str:
    return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}] times" if e.defined else f"an unknown multiple ({e.note})"


def _finding(
    answers: pd.DataFrame, domain: str, verdict: str, evidence: dict[str, Any], level: float, seed: int
) -> Finding:
    subject = _subject(answers)
    own = _of(answers, domain)
    routed = own["baseline_routed"].map(lambda t: label_of(t) if t else "")
    given = np.where(routed != "", own["label"] == routed, own["label"].str.startswith("teacher:"))
    note = (
        "share of the answers given to the domain's own teacher"
        if (routed != "").all()
        else "share of the answers given to one teacher"
    )
    estimate = _shares(own.assign(given=given), ["given"], level, seed)["given"]
    name = f"attribution-{subject}" + ("" if domain == OVERALL else f"-{domain}")
    estimate = Estimate(
        **{**{f: getattr(estimate, f) for f in Estimate.__dataclass_fields__}, "note": estimate.note or note}
    )
    return Finding(name, "attribution", f"{subject}/{domain}", verdict, "info", estimate, evidence)


def _evidence(answers: pd.DataFrame, level: float, seed: int) -> dict[str, Any]:
    """Shares of the classes with intervals, what the baselines would have said, and how much there was to go by."""
    labels = sorted(answers["label"].unique(), key=lambda x: (":" not in x, x))
    table = _shares(answers.assign(**{x: answers["label"] == x for x in labels}), labels, level, seed)
    known = answers["baseline_routed"] != ""
    routed = answers["baseline_routed"].where(known)
    picks = {b: answers[f"baseline_{b}"] for b in BASELINES}
    return {
        "shares": {x: e.value if e.defined else float((answers["label"] == x).mean()) for x, e in table.items()},
        "intervals": {x: e.to_dict() for x, e in table.items()},
        **{f"baseline_{b}": float((p == routed)[known].mean()) if known.any() else None for b, p in picks.items()},
        "picks": {
            b: {str(t): float(v) for t, v in p[p != ""].value_counts(normalize=True).items()} for b, p in picks.items()
        },
        "explained": _shares(
            answers[answers["explained"].notna() & (answers["label"] != "pre-existing")], ["explained"], level, seed
        )["explained"].to_dict(),
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
    missing = {"item_id", "domain", "label", "explained", "baseline_routed", "subject"} - set(frame.columns)
    if missing:
        raise BadInput(f"expected the answers of an attribution, got a frame without {sorted(missing)}")
    return frame.reset_index(drop=True)


def _domains(answers: pd.DataFrame) -> list[str]:
    return [*(str(d) for d in answers["domain"].unique() if d), OVERALL]


def _of(answers: pd.DataFrame, domain: str) -> pd.DataFrame:
    return answers if domain == OVERALL else answers[answers["domain"] == domain]


def _subject(answers: pd.DataFrame) -> str:
    return str(answers["subject"].iloc[0]) if len(answers) else "student"
