"""Scores of a method on judged items, each with an interval from resampling prompts (and seeds, when there are several)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from bench.provenance.cases import EXISTING, OWN
from bench.provenance.judged import Judged
from bench.provenance.methods import Said
from mopd_diag.estimators.judgement import MOVED, existing
from mopd_diag.seeds import seed_of
from mopd_diag.types import Estimate

REPLICATES = 500
BINS = 10
TOP = 0.7
INHERITED = ("single", "swapped", "quirk")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One row a judged item of any case; what the scores are made of."""

    kind: np.ndarray
    subject: np.ndarray
    domain: np.ndarray
    cluster: np.ndarray
    first_right: np.ndarray
    """The forced choice among teachers is right."""
    away: np.ndarray
    """The prompt alone does not give the teacher away."""
    taught: np.ndarray
    inherited: np.ndarray
    confidence: np.ndarray
    """Of the likeliest class of all: a teacher, own, pre-existing."""
    right: np.ndarray
    """That class is right."""
    accuses: np.ndarray
    """That class is a teacher."""
    existing: np.ndarray
    """That class is pre-existing."""

    @classmethod
    def join(cls, tables: Sequence[Table]) -> Table:
        """Tables one below the other."""
        return cls(*(np.concatenate([getattr(t, n) for t in tables]) for n in cls.__dataclass_fields__))

    def take(self, rows: np.ndarray) -> Table:
        return Table(*(getattr(self, n)[rows] for n in Table.__dataclass_fields__))


def tabulate(judged: Sequence[tuple[int, Judged]], say: Callable[[Judged], Said]) -> Table:
    """All items of (seed, case) as one table. An item's cluster is its prompt and seed."""
    parts: list[dict[str, Any]] = []
    for seed, j in judged:
        if not len(j.rows):
            continue
        said, teachers, truth = say(j), list(j.case.evidence.teachers), j.truth_N
        names = [*teachers, OWN, EXISTING]
        score = np.column_stack([said.teacher_NK, said.own_N, said.existing_N])
        pick = score.argmax(1)
        # What the base would write as readily is pre-existing by definition, whoever else teaches it.
        there = existing(j.pooled, MOVED)
        right = [names[p] in t or (names[p] == EXISTING and e) for p, t, e in zip(pick, truth, there, strict=True)]
        n = len(pick)
        parts.append(
            {
                "kind": [j.case.kind] * n,
                "subject": [f"{seed}:{j.case.subject}"] * n,
                "domain": j.domain_N,
                "cluster": [f"{seed}:{i}" for i in j.case.item_A[j.rows]],
                "first_right": [teachers[p] in t for p, t in zip(said.rank_NK.argmax(1), truth, strict=True)],
                "away": j.case.away_A[j.rows],
                "taught": [t[0].startswith("teacher") for t in truth],
                "inherited": said.inherited_N,
                "confidence": score.max(1),
                "right": right,
                "accuses": pick < len(teachers),
                "existing": pick == len(teachers) + 1,
            }
        )
    return Table(*(np.concatenate([np.asarray(p[n]) for p in parts]) for n in Table.__dataclass_fields__))


def told_at(table: Table, sure: Mapping[str, float]) -> np.ndarray:
    """Items of which something is said: a teacher from `sure["teacher"]` on, nobody listed from `sure["own"]`; what is the base's
    always."""
    least = np.select([table.accuses, table.existing], [sure["teacher"], 0.0], sure["own"])
    return table.confidence >= least


def scores(table: Table, sure: Mapping[str, float]) -> dict[str, Any]:
    """All keys of the bench but `causal_rank`, at the operating points `sure`: the confidence below which nothing is said."""
    is_inherited = np.isin(table.kind, INHERITED) & table.away
    is_own = np.isin(table.kind, ("own", "base", "marked"))
    nobody = np.isin(table.kind, ("control", "unlisted"))
    told = told_at(table, sure)
    n = lambda x: x.astype(float)  # noqa: E731
    document: dict[str, Any] = {
        "top1": scored(table.take(is_inherited), lambda t, w: _mean(n(t.first_right), w)),
        "auroc_own": scored(table.take(is_inherited | is_own), lambda t, w: auroc(t.inherited, t.taught, w)),
    }
    document |= _against_control(table)
    document |= {
        "ece": scored(table, lambda t, w: calibration_error(t.confidence, n(t.right), w)),
        "accuracy_at_70": scored(table, lambda t, w: accuracy_at(t.confidence, n(t.right), w, TOP)),
        "coverage": scored(_with(table, told), lambda t, w: _mean(n(t.right), w)),
        "accuracy": scored(table.take(told), lambda t, w: _mean(n(t.right), w)),
        "false_accusation": scored(
            _with(table.take(nobody), (told & table.accuses)[nobody]), lambda t, w: _mean(n(t.right), w)
        ),
        "false_acquittal": scored(
            _with(table.take(table.taught), (told & ~table.accuses & ~table.right)[table.taught]),
            lambda t, w: _mean(n(t.right), w),
        ),
        "named": scored(
            _with(table.take(table.taught), (told & table.accuses & table.right)[table.taught]),
            lambda t, w: _mean(n(t.right), w),
        ),
    }
    return document


def _with(table: Table, right: np.ndarray) -> Table:
    return Table(**{**{f: getattr(table, f) for f in Table.__dataclass_fields__}, "right": right})


def _against_control(table: Table) -> dict[str, Any]:
    """Items taught by someone listed against answers of the teacher-free controls in the same domain; then the mean over domains."""
    control = table.kind == "control"
    taught = np.isin(table.kind, ("single", "swapped", "routed"))
    domains = [d for d in dict.fromkeys(table.domain[taught]) if (control & (table.domain == d)).any()]
    chosen = table.take(control | taught)
    by_domain = lambda t, w, d: auroc(t.inherited[t.domain == d], t.taught[t.domain == d], w[t.domain == d])  # noqa: E731
    routed = table.take(control | (table.kind == "routed"))
    return {
        "auroc_control": scored(chosen, lambda t, w: float(np.mean([by_domain(t, w, d) for d in domains]))),
        "auroc_control_by_domain": {
            d: scored(chosen.take(chosen.domain == d), lambda t, w: auroc(t.inherited, t.taught, w)) for d in domains
        },
        "auroc_control_routed": scored(
            routed,
            lambda t, w: float(
                np.nanmean([by_domain(t, w, d) for d in dict.fromkeys(routed.domain) if t.taught[t.domain == d].any()])
            ),
        ),
    }


def scored(table: Table, statistic: Callable[[Table, np.ndarray], float]) -> Estimate:
    """`estimate` of a statistic of a table."""
    return estimate(table.cluster, lambda w: statistic(table, w))


def estimate(cluster: np.ndarray, statistic: Callable[[np.ndarray], float], level: float = 0.95) -> Estimate:
    """A statistic of row weights, with a percentile interval from resampling clusters (`SEED:PROMPT`), seeds first."""
    clusters, row = np.unique(cluster, return_inverse=True)
    if not len(clusters):
        return Estimate.undefined("no such items")
    value = statistic(np.ones(len(row)))
    rng = np.random.default_rng(seed_of("provenance", "bootstrap"))
    seeds = np.array([c.split(":")[0] for c in clusters])
    drawn = []
    for _ in range(REPLICATES):
        weight = np.zeros(len(clusters))
        names = np.unique(seeds)
        for seed in rng.choice(names, len(names)):  # seeds first, then prompts within them
            own = np.flatnonzero(seeds == seed)
            np.add.at(weight, rng.choice(own, len(own)), 1)
        found = statistic(weight[row])
        if np.isfinite(found):
            drawn.append(found)
    if not drawn or not np.isfinite(value):
        return Estimate.undefined("undefined on these items", n_items=len(row))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    note = "" if len(np.unique(seeds)) > 1 else "one training: the interval covers prompts, not trainings"
    return Estimate(
        float(value),
        float(min(low, value)),
        float(max(high, value)),
        level,
        "share",
        len(row),
        len(clusters),
        "bootstrap over prompts within seeds",
        note,
    )


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum()) if weights.sum() else np.nan


def auroc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """P(a positive's score is above a negative's), ties half; weighted. NaN without both kinds."""
    order = np.argsort(score, kind="stable")
    score, w = score[order], weights[order]
    up, down = w * positive[order], w * ~positive[order]
    if not up.sum() or not down.sum():
        return np.nan
    _, group = np.unique(score, return_inverse=True)
    negative, positive_ = np.bincount(group, down), np.bincount(group, up)
    below = np.cumsum(negative) - negative
    return float((positive_ * (below + negative / 2)).sum() / (up.sum() * down.sum()))


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> float:
    """Expected calibration error over ten equally wide bins (Naeini et al. 2015): Σ share · |accuracy − mean confidence|."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    total = np.bincount(bins, weights, BINS)
    gap = np.abs(np.bincount(bins, weights * right, BINS) - np.bincount(bins, weights * confidence, BINS))
    return float(gap.sum() / total.sum()) if total.sum() else np.nan


def reliability(table: Table) -> list[dict[str, float | int]]:
    """The bins of `calibration_error` that hold items: mean stated confidence, the share that is right with its interval, items."""
    place = np.minimum((table.confidence * BINS).astype(int), BINS - 1)
    rows = []
    for b in np.unique(place):
        part = table.take(place == b)
        right = scored(part, lambda t, w: _mean(t.right.astype(float), w))
        numbers = {"low": b / BINS, "high": (b + 1) / BINS, "confidence": float(part.confidence.mean())}
        numbers |= {"right": right.value, "right_low": right.low, "right_high": right.high}
        rows.append({k: round(v, 4) for k, v in numbers.items()} | {"n": len(part.kind)})
    return rows


def accuracy_at(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray, share: float) -> float:
    """Accuracy on the most confident `share` of the items."""
    order = np.argsort(-confidence, kind="stable")
    w = weights[order]
    kept = np.clip(share * w.sum() - (np.cumsum(w) - w), 0, w)
    return _mean(right[order], kept)


def rank_agreement(shares: np.ndarray, effects: np.ndarray) -> float:
    """Spearman's rank correlation; NaN when one side is constant."""
    if np.ptp(shares) == 0 or np.ptp(effects) == 0:
        return np.nan
    return float(stats.spearmanr(shares, effects).statistic)
