"""What did the domains do to one another? The transfer matrix, forgetting, and worst-domain regret, from the records of
a cast.

Verdicts of a cell: `harm`, `help`, `none` (equivalent to no change), `undetermined`; Holm-corrected over the whole
matrix. Verdicts of forgetting: `forgets`, `none`, `gains`, `undetermined`. Verdicts of regret: `behind`, `level`,
`ahead`, `undetermined`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mopd_diag.diagnostics.accuracy import names, pivot, slug
from mopd_diag.errors import BadInput, nearest
from mopd_diag.estimators.bootstrap import REPLICATES
from mopd_diag.estimators.interference import Judged, backward_transfer, changes, forgetting, judge, worst_domain
from mopd_diag.estimators.statistics import equivalence_verdict, item_means
from mopd_diag.types import Estimate, Finding

SEQUENTIAL = "rival-sequential-rl"
FORGETTING = {"above": "forgets", "at": "none", "below": "gains", "undetermined": "undetermined"}
REGRET = {"above": "behind", "at": "level", "below": "ahead", "undetermined": "undetermined"}
EVIDENCE_ITEMS = 20

Scores = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Measure:
    """Forgetting or regret of one path in its worst domain; positive is bad.

    `worst`: estimate there, the domain chosen on one half of the samples and measured on the other. `by_domain`: every
    domain, for forgetting. `reference`: what the path is measured against: `checkpoints`, `base`, or a rival's name.
    """

    name: str
    model: str
    worst: Estimate
    domain: str
    reference: str
    verdict: str
    by_domain: dict[str, Estimate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "worst": self.worst.to_dict(),
            "domain": self.domain,
            "reference": self.reference,
            "verdict": self.verdict,
            "by_domain": {d: e.to_dict() for d, e in self.by_domain.items()},
        }


@dataclass(frozen=True, eq=False)
class InterferenceReport:
    """Transfer matrix and measures of the paths.

    `matrix`: model -> domain -> change against the base, specialists first, then student and rivals. `trained_on`: the
    domains of each specialist. `lost_items`: (model, domain) -> items that the base answers in a majority of samples
    and the model does not. `forgetting` and `regret`: path model -> measure. `backward_transfer`: of the sequential
    path, if its checkpoints are known.
    """

    base: str
    domains: list[str]
    trained_on: dict[str, tuple[str, ...]]
    matrix: dict[str, dict[str, Judged]]
    lost_items: dict[tuple[str, str], list[str]]
    forgetting: dict[str, Measure]
    regret: dict[str, Measure]
    backward_transfer: Estimate
    margin: float
    labels: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "base": self.base,
            "margin": self.margin,
            "domains": self.domains,
            "trained_on": {m: list(d) for m, d in self.trained_on.items()},
            "transfer": {m: {d: _cell(c) for d, c in row.items()} for m, row in self.matrix.items()},
            "forgetting": {m: x.to_dict() for m, x in self.forgetting.items()},
            "backward_transfer": self.backward_transfer.to_dict(),
            "regret": {m: x.to_dict() for m, x in self.regret.items()},
            "paths": self.labels,
        }

    def findings(self) -> list[Finding]:
        """One finding for each cell of a specialist, and one for forgetting and regret of each path."""
        cells = [
            self._cell_finding(model, domain, cell)
            for model, row in self.matrix.items()
            if model in self.trained_on
            for domain, cell in row.items()
        ]
        return cells + [self._measure_finding(x) for x in (*self.forgetting.values(), *self.regret.values())]

    def _cell_finding(self, model: str, domain: str, cell: Judged) -> Finding:
        trained_on = "+".join(self.trained_on[model]) or model
        evidence = {
            "trained_on": trained_on,
            "evaluated_on": domain,
            "model": model,
            "own_domain": domain in self.trained_on[model],
            "margin": self.margin,
            "lost_items": self.lost_items[model, domain][:EVIDENCE_ITEMS],
            "n_lost_items": len(self.lost_items[model, domain]),
        }
        severity = "warning" if cell.verdict == "harm" else "info"
        return Finding(
            slug("transfer", model, domain), "interference", f"{trained_on}->{domain}", cell.verdict, severity,
            cell.delta, evidence | {k: v for k, v in _cell(cell).items() if k.startswith("p_")},
        )  # fmt: skip

    def _measure_finding(self, x: Measure) -> Finding:
        against = x.reference if x.name == "regret" else f"its best earlier level ({x.reference})"
        evidence = {
            "measure": x.name,
            "model": x.model,
            "path": self.labels.get(x.model, x.model),
            "margin": self.margin,
            "why": x.worst.note or f"{x.verdict}: {x.model} against {against} on {x.domain}, its worst domain",
        }
        bad = x.verdict in ("forgets", "behind")
        return Finding(
            slug(x.name, x.model), "interference", f"{x.model}/{x.name}", x.verdict, "warning" if bad else "info",
            x.worst, evidence | {k: v for k, v in x.to_dict().items() if k not in ("worst", "verdict")},
        )  # fmt: skip


def interference(
    records: pd.DataFrame, teachers: Mapping[str, Iterable[str]], *, base: str = "base", student: str = "student",
    paths: Mapping[str, str] | None = None, sequence: Sequence[tuple[str, str]] = (), sequential: str = SEQUENTIAL,
    margin: float = 0.05, seed: int = 0, level: float = 0.95, replicates: int = REPLICATES,
) -> InterferenceReport:  # fmt: skip
    """Transfer, forgetting and regret from the records of specialists, student and rivals.

    `teachers`: specialist -> the domains it was trained on. `paths`: label -> model, the end of each path that is
    compared; by default the student and every model named `rival-…`. `sequence`: (stage model, domain) of the
    `sequential` path in order of training, the last stage being its end; its forgetting is then measured against its
    own checkpoints, and backward transfer is known. Of every other path only the base is known to lie before its end:
    a level that only a specialist had cannot be forgotten. `margin`: changes of accuracy that count as none. Raises
    BadInput for models without records and what `pivot` refuses.
    """
    known = names(records, "model")
    labels = {m: label for label, m in (paths or _paths(known, student)).items()}
    taught = {t: tuple(d) for t, d in teachers.items()}
    stages = [m for m, _ in sequence]
    needed = list(dict.fromkeys([base, *taught, *labels, *stages]))
    for model in needed:
        if model not in known:
            raise BadInput(f"no records of the model {model!r}; {nearest(model, known)}")
    if stages and sequential not in labels:
        raise BadInput(f"the sequence belongs to {sequential!r}, which is not one of the paths {', '.join(labels)}")
    kept = records[records["model"].isin(needed)]
    tables = {d: _Table.of(kept, d) for d in names(kept[kept["model"] == base], "domain")}
    draw = {"level": level, "replicates": replicates}
    matrix, lost = _matrix(tables, base, [m for m in (*taught, *labels) if m != base], margin, seed, draw)
    end = sequential if stages else ""
    references = {m: {d: [base, *_earlier(m, end, stages)] for d, t in tables.items() if m in t.scores} for m in labels}
    forgot = {m: _forgetting(tables, m, refs, m == end, margin, seed, draw) for m, refs in references.items()}
    regret = {m: _regret(tables, m, [x for x in labels if x != m], margin, seed, draw) for m in labels}
    came_back = backward_transfer(
        [(tables[d].scores[m], tables[d].scores[end]) for m, d in sequence[:-1] if d in tables], seed=seed, **draw
    ) if stages else Estimate.undefined(f"no checkpoints of {sequential} were given", unit="difference")  # fmt: skip
    return InterferenceReport(base, list(tables), taught, matrix, lost, forgot, regret, came_back, margin, labels)


@dataclass(frozen=True, eq=False)
class _Table:
    """One domain: item ids and the I × S scores of every model that answered it."""

    items: list[str]
    scores: dict[str, Scores]

    @classmethod
    def of(cls, records: pd.DataFrame, domain: str) -> _Table:
        models, items, scores = pivot(records, domain)
        return cls(items, dict(zip(models, scores, strict=True)))


def _paths(known: list[str], student: str) -> dict[str, str]:
    return {m: m for m in known if m == student or m.startswith("rival-")}


def _earlier(model: str, end: str, stages: list[str]) -> list[str]:
    """The checkpoints of a path that are known, its end left out."""
    return [s for s in stages[:-1] if s != model] if model == end else []


def _matrix(
    tables: dict[str, _Table], base: str, rows: list[str], margin: float, seed: int, draw: dict[str, Any]
) -> tuple[dict[str, dict[str, Judged]], dict[tuple[str, str], list[str]]]:
    places, cells = [], []
    lost: dict[tuple[str, str], list[str]] = {}
    for k, (domain, table) in enumerate(tables.items()):
        models = [m for m in rows if m in table.scores]
        cells += changes(table.scores[base], [table.scores[m] for m in models], seed=[seed, k], **draw)
        places += [(m, domain) for m in models]
        start = item_means(table.scores[base]) > 0.5
        for m in models:
            gone = start & (item_means(table.scores[m]) <= 0.5)
            lost[m, domain] = [table.items[i] for i in np.flatnonzero(gone)]
    judged = dict(zip(places, judge(cells, margin=margin), strict=True))
    return {m: {d: judged[m, d] for d in tables if (m, d) in judged} for m in rows}, lost


def _forgetting(
    tables: dict[str, _Table],
    model: str,
    references: dict[str, list[str]],
    own: bool,
    margin: float,
    seed: int,
    draw: dict[str, Any],
) -> Measure:
    scores = {d: [tables[d].scores[r] for r in refs if r in tables[d].scores] for d, refs in references.items()}
    by_domain = {d: forgetting([*s, tables[d].scores[model]], seed=seed, **draw)[0] for d, s in scores.items()}
    worst, found = worst_domain([(tables[d].scores[model], s) for d, s in scores.items()], seed=seed, **draw)
    verdict = FORGETTING[equivalence_verdict(worst, margin)]
    domain = list(scores)[found.domains[0]]
    return Measure("forgetting", model, worst, domain, "checkpoints" if own else "base", verdict, by_domain)


def _regret(
    tables: dict[str, _Table], model: str, rivals: list[str], margin: float, seed: int, draw: dict[str, Any]
) -> Measure:
    domains = [d for d, t in tables.items() if model in t.scores and all(r in t.scores for r in rivals)]
    if not rivals or not domains:
        alone = Estimate.undefined("no other path to compare with on the same domains", unit="difference")
        return Measure("regret", model, alone, "", "", "undetermined")
    pairs = [(tables[d].scores[model], [tables[d].scores[r] for r in rivals]) for d in domains]
    worst, found = worst_domain(pairs, seed=seed, **draw)
    verdict = REGRET[equivalence_verdict(worst, margin)]
    return Measure("regret", model, worst, domains[found.domains[0]], rivals[found.references[0]], verdict)


def _cell(cell: Judged) -> dict[str, Any]:
    p, adjusted = (None if np.isnan(x) else x for x in (cell.p_value, cell.p_adjusted))
    return {"delta": cell.delta.to_dict(), "p_value": p, "p_adjusted": adjusted, "verdict": cell.verdict}
