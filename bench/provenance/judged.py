"""Cases as one table: the evidence of every judged item beside its truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.provenance.cases import Case
from mopd_diag.estimators.attribution import Pooled, contested, pool, responsibilities, total_logp
from mopd_diag.estimators.origin import around, take


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The N judged items of one case: pooled evidence, what surrounds it, and log-likelihoods (N, 1 + K) of base and teachers."""

    case: Case
    pooled: Pooled
    near: Pooled
    logp_NC: np.ndarray
    posterior_NC: np.ndarray
    rows: np.ndarray

    @property
    def truth_N(self) -> list[tuple[str, ...]]:
        return [self.case.truth_A[r] for r in self.rows]

    @property
    def domain_N(self) -> np.ndarray:
        return self.case.domain_A[self.rows]


def judged(cases: Iterable[Case]) -> list[Judged]:
    """Pool each case's evidence as `diagnostics.attribution` does."""
    found = []
    for case in cases:
        evidence, n = case.evidence, len(case.domain_A)
        mask = contested(evidence)
        whole = pool(evidence, evidence.answer_T, n, mask=mask)
        place = np.unique(case.domain_A, return_inverse=True)[1]
        near = around(whole, place)
        each = whole if case.span_T is None else pool(evidence, evidence.answer_T, n, mask=case.span_T)
        rows = np.flatnonzero(case.asked_A)
        use = evidence if case.span_T is None else evidence.masked(case.span_T)
        logp = total_logp(use, use.answer_T, n)[:, evidence.columns([evidence.base, *evidence.teachers])]
        posterior, _ = responsibilities(logp[rows])
        found.append(Judged(case, take(each, rows), take(near, rows), logp[rows], posterior, rows))
    return found


def with_decoys(j: Judged, names: Sequence[str]) -> Judged:
    """The same items, seen with some of the decoys only."""
    teachers, decoys = j.case.evidence.teachers, j.case.evidence.decoys
    columns = [decoys.index(n) for n in names if n in decoys]
    rows = [*range(1 + len(teachers)), *(1 + len(teachers) + c for c in columns)]

    def fewer(p: Pooled) -> Pooled:
        return replace(p, kl_ND=p.kl_ND[:, columns], gram_NRR=p.gram_NRR[:, rows][:, :, rows])

    return replace(j, pooled=fewer(j.pooled), near=fewer(j.near))
