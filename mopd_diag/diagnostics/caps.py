"""What did the teachers cap? Recovery, verdict and item partition of every domain, from the records of a cast.

Verdicts: `below`, `at`, `above` the best teacher (equivalence test on accuracy), `undetermined`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mopd_diag.diagnostics.accuracy import OVERALL, names, pivot, slug
from mopd_diag.errors import BadInput, nearest
from mopd_diag.estimators.bootstrap import REPLICATES
from mopd_diag.estimators.caps import (
    PARTS,
    Cap,
    Part,
    cap_over_seeds,
    joint_gap,
    joint_recovery,
    one_sided_gap,
    pass_at_ks,
)
from mopd_diag.estimators.statistics import equivalence_verdict
from mopd_diag.types import Estimate, Finding, Severity

Records = pd.DataFrame | Sequence[pd.DataFrame]
"""Records of one run, or of several runs that differ in the training seed."""
SEVERITY: dict[str, Severity] = {"below": "warning", "undetermined": "notice"}
EVIDENCE_ITEMS = 20
"""Item ids of each part that a finding carries."""


@dataclass(frozen=True, eq=False)
class DomainCap:
    """The cap of one model on one domain, with names in place of indices.

    `routed`: the teachers whose domain it is; the best teacher need not be one of them. `items`: ids in each part of
    the partition. `pass_at_k`: model -> k -> estimate for the model itself, the base and the best teacher (first
    training seed only).
    """

    domain: str
    cap: Cap
    teacher: str
    chosen: tuple[str, ...]
    routed: tuple[str, ...]
    items: dict[Part, list[str]]
    pass_at_k: dict[str, dict[int, Estimate]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the contract of `mopd-diag caps --json` and more."""
        counts = {p: int(sum((x == p).sum() for x in self.cap.partition_TI)) for p in PARTS}
        total = sum(counts.values())
        estimates = ("recovery", "student", "base", "best_teacher", "headroom", "gap", "tested")
        return {name: getattr(self.cap, name).to_dict() for name in estimates} | {
            "teacher": self.teacher,
            "verdict": self.cap.verdict,
            "partition": counts,
            "partition_shares": {p: counts[p] / total for p in PARTS},
            "items": {p: ids[:EVIDENCE_ITEMS] for p, ids in self.items.items() if p != "both"},
            "chosen": list(self.chosen),
            "routed": list(self.routed),
            "smallest_detectable_effect": _number(self.cap.smallest_detectable_effect),
            "pass_at_k": {m: {str(k): e.to_dict() for k, e in row.items()} for m, row in self.pass_at_k.items()},
        }

    @property
    def why(self) -> str:
        """The diagnosis in a sentence."""
        if not self.cap.recovery.defined:
            return f"recovery unknown: {self.cap.recovery.note}"
        if self.cap.verdict == "undetermined":
            return self.cap.gap.note
        share = {p: np.mean([(x == p).mean() for x in self.cap.partition_TI]) for p in PARTS}
        return (
            f"{self.cap.verdict} the level of {self.teacher}: {share['lost']:.0%} of the items lost that it solves, "
            f"{share['inherited']:.0%} failed by both, {share['surpassing']:.0%} solved that no teacher solves"
        )


@dataclass(frozen=True, eq=False)
class CapsReport:
    """Caps of one model over all domains.

    `mean_recovery`: unweighted mean over the domains whose headroom is surely above 0, resampled together. `mean_gap`:
    mean over all domains of model − best teacher, in accuracy; `tested` is the same with the one-sided bounds from which
    `verdict`, its side of the cap, is read.
    """

    model: str
    caps: dict[str, DomainCap]
    mean_recovery: Estimate
    mean_gap: Estimate
    tested: Estimate
    margin: float

    @property
    def domains(self) -> dict[str, dict[str, Any]]:
        """Domain -> the contract's dictionary of `mopd-diag caps --json`."""
        return {d: c.to_dict() for d, c in self.caps.items()}

    @property
    def verdict(self) -> str:
        return equivalence_verdict(self.tested, self.margin)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `domains` as in the contract, and the means over them."""
        return {
            "model": self.model,
            "margin": self.margin,
            "domains": self.domains,
            "mean_recovery": self.mean_recovery.to_dict(),
            "mean_gap": self.mean_gap.to_dict(),
            "tested": self.tested.to_dict(),
            "verdict": self.verdict,
        }

    def findings(self) -> list[Finding]:
        """One finding a domain (subject `MODEL/DOMAIN`) and one over all of them; the estimate is the recovery."""
        found = []
        for domain, c in self.caps.items():
            evidence = {k: v for k, v in c.to_dict().items() if k not in ("recovery", "verdict")} | {"why": c.why}
            found.append(self._finding(domain, c.cap.verdict, c.cap.recovery, evidence))
        told = sum(c.cap.recovery.defined for c in self.caps.values())
        evidence = {"domains": told, "gap": self.mean_gap.to_dict(), "why": self.mean_recovery.note}
        return [*found, self._finding(OVERALL, self.verdict, self.mean_recovery, evidence)]

    def _finding(self, domain: str, verdict: str, recovery: Estimate, evidence: dict[str, Any]) -> Finding:
        subject, severity = f"{self.model}/{domain}", SEVERITY.get(verdict, "info")
        name, evidence = slug("cap", self.model, domain), evidence | {"margin": self.margin}
        return Finding(name, "cap", subject, verdict, severity, recovery, evidence)


def caps(
    records: Records, teachers: Mapping[str, Iterable[str]], *, student: str = "student", base: str = "base",
    margin: float = 0.05, seed: int = 0, level: float = 0.95, replicates: int = REPLICATES,
) -> CapsReport:  # fmt: skip
    """Caps of `student` on every domain of its records.

    `teachers`: teacher model -> its domains. All of them compete for best teacher on every domain. `margin`: accuracies
    that differ by no more are called equal. `records` of several runs widen the intervals by the training seeds. Any
    model can stand in place of the student. Raises BadInput for models without records, unequal items or contents, and
    what `pivot` refuses.
    """
    runs: list[pd.DataFrame] = [records] if isinstance(records, pd.DataFrame) else list(records)
    teachers = {t: tuple(d) for t, d in teachers.items()}
    _require(runs, [student, base, *teachers])
    runs = [r[r["model"].isin([student, base, *teachers])] for r in runs]
    found, parts = dict[str, DomainCap](), []
    for k, domain in enumerate(names(runs[0][runs[0]["model"] == student], "domain")):
        found[domain] = _domain_cap(runs, domain, teachers, student, base, margin, (seed, k), level, replicates)
        parts.append(found[domain].cap.bootstrap)
    roomy = [c.cap.bootstrap for c in found.values() if c.cap.recovery.defined]
    mean = joint_recovery(roomy)
    note = f"mean of {len(roomy)} of {len(found)} domains, those with headroom" if roomy else mean.note
    return CapsReport(student, found, replace(mean, note=note), joint_gap(parts), one_sided_gap(parts), margin)


def recoveries(
    records: Records, models: Iterable[str], teachers: Mapping[str, Iterable[str]], *, base: str = "base",
    margin: float = 0.05, seed: int = 0, level: float = 0.95, replicates: int = REPLICATES,
) -> dict[str, dict[str, Estimate]]:  # fmt: skip
    """Model -> domain -> recovery, and `overall`: student and rivals against the same teachers, as in `caps`."""
    reports = {
        m: caps(records, teachers, student=m, base=base, margin=margin, seed=seed, level=level, replicates=replicates)
        for m in models
    }
    return {m: {d: c.cap.recovery for d, c in r.caps.items()} | {OVERALL: r.mean_recovery} for m, r in reports.items()}


def _domain_cap(
    runs: list[pd.DataFrame], domain: str, teachers: dict[str, tuple[str, ...]], student: str, base: str, margin: float,
    seed: tuple[int, int], level: float, replicates: int,
) -> DomainCap:  # fmt: skip
    tables = _aligned([pivot(r, domain) for r in runs])
    present = set.intersection(*(set(models) for models, _, _ in tables))
    if missing := [m for m in (student, base) if m not in present]:
        raise BadInput(f"no records of {missing[0]} on the domain {domain!r}; evaluate it there or leave it out")
    candidates = sorted(
        (t for t in teachers if t in present and t not in (student, base)), key=lambda t: domain not in teachers[t]
    )
    if not candidates:
        raise BadInput(f"no teacher has records on the domain {domain!r}; expected some of {', '.join(teachers)}")
    trainings = []
    for models, _, scores in tables:
        of = {m: scores[models.index(m)] for m in (student, base, *candidates)}
        trainings.append((of[student], of[base], [of[t] for t in candidates]))
    same = all(items == tables[0][1] for _, items, _ in tables)
    draw = {"level": level, "replicates": replicates}
    found = cap_over_seeds(trainings, same_items=same, margin=margin, seed=seed, shift_seed=seed[0], **draw)
    teacher = candidates[found.teacher]
    own, start, taught = trainings[0]
    first = {student: own, base: start, teacher: taught[found.teacher]}
    ks = _ks(own)
    told = pass_at_ks(list(first.values()), ks, seed=seed, **draw)
    items: dict[Part, list[str]] = {
        p: list(dict.fromkeys(i for (_, ids, _), part in zip(tables, found.partition_TI, strict=True)
                              for i, x in zip(ids, part, strict=True) if x == p))
        for p in PARTS
    }  # fmt: skip
    return DomainCap(
        domain, found, teacher, tuple(candidates[c] for pair in found.chosen for c in pair),
        tuple(t for t, d in teachers.items() if domain in d), items,
        {m: dict(zip(ks, row, strict=True)) for m, row in zip(first, told, strict=True)},
    )  # fmt: skip


def _aligned(
    tables: list[tuple[list[str], list[str], npt.NDArray[np.floating[Any]]]],
) -> list[tuple[list[str], list[str], npt.NDArray[np.floating[Any]]]]:
    """Items of every training in the order of the first one, where they are the same items."""
    order = {item: k for k, item in enumerate(tables[0][1])}
    aligned = []
    for models, items, scores in tables:
        if items != tables[0][1] and order.keys() == set(items):
            index = sorted(range(len(items)), key=lambda k: order[items[k]])
            models, items, scores = models, [items[k] for k in index], scores[:, index]
        aligned.append((models, items, scores))
    return aligned


def _ks(scores_IS: npt.NDArray[np.floating[Any]]) -> list[int]:
    """1, 2, 4, … and the number of samples that every item has."""
    most = int((~np.isnan(scores_IS)).sum(1).min())
    return sorted({2**j for j in range(most.bit_length()) if 2**j <= most} | {most})


def _require(runs: list[pd.DataFrame], models: list[str]) -> None:
    if not runs:
        raise BadInput("no records: expected one frame, or one for each training seed")
    for run in runs:
        if "model" not in run.columns:
            raise BadInput("records lack the column 'model'")
        known = names(run, "model")
        for model in models:
            if model not in known:
                raise BadInput(f"no records of the model {model!r}; {nearest(model, known)}")


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
