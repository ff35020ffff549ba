"""What the domains did to one another: transfer, forgetting, regret, and the geometry of task vectors.

Axis letters: I items, S samples, M models, D domains, P parameters. Scores are accuracies in [0, 1]; higher is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import REPLICATES, Bootstrap
from mopd_diag.estimators.draws import Floats, Seed
from mopd_diag.estimators.selection import Shortfall, as_items_by_samples, best_of, worst_shortfall
from mopd_diag.estimators.significance import holm, permutation_test
from mopd_diag.estimators.statistics import equivalence_verdict, item_means
from mopd_diag.types import Estimate

Effect = Literal["harm", "help", "none", "undetermined"]


@dataclass(frozen=True, slots=True)
class Change:
    """One cell of the transfer matrix before judgement: after − before on one domain (positive: it gained), and its
    p-value."""

    delta: Estimate
    p_value: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A change with its Holm-adjusted p-value over the whole family of cells, and what it amounts to."""

    delta: Estimate
    p_value: float
    p_adjusted: float
    verdict: Effect


def changes(
    before: npt.ArrayLike, after: Sequence[npt.ArrayLike], *, seed: Seed = 0, level: float = 0.95,
    replicates: int = REPLICATES,
) -> list[Change]:  # fmt: skip
    """Paired differences of M models to one reference (the base) on one domain, all on the same draws of items.

    `before` and each of `after`: I × S scores. Intervals by the joint bootstrap, p-values by flipping signs of items.
    Raises BadInput when the items differ in number.
    """
    start = item_means(as_items_by_samples(before))
    ends = [item_means(as_items_by_samples(a)) for a in after]
    if any(len(e) != len(start) for e in ends):
        raise BadInput(f"expected {len(start)} items for every model, got {[len(e) for e in ends]}")
    boot = Bootstrap.of(np.column_stack([start, *ends]), seed=seed, level=level, replicates=replicates)
    return [
        Change(
            boot.estimate(lambda m, v=v: m[..., v] - m[..., 0], unit="difference"),
            permutation_test(end - start, seed=seed, permutations=replicates),
        )
        for v, end in enumerate(ends, 1)
    ]


def judge(cells: Sequence[Change], *, margin: float = 0.05) -> list[Judged]:
    """Verdicts for a family of cells (the whole matrix).

    `none` when the interval lies within ±margin (equivalent, whatever its sign); otherwise `harm` or `help` when the
    Holm-adjusted p-value is below 1 − level, by the sign of the change; otherwise `undetermined`. The chance of any
    false harm or help in the family is at most 1 − level.
    """
    adjusted = holm([c.p_value for c in cells])
    return [
        Judged(c.delta, c.p_value, float(p), _effect(c.delta, float(p), margin))
        for c, p in zip(cells, adjusted, strict=True)
    ]


def forgetting(
    stages: Sequence[npt.ArrayLike], *, seed: int = 0, level: float = 0.95, replicates: int = REPLICATES
) -> tuple[Estimate, int]:
    """What a path had on a domain and lost by its end: best earlier stage − last stage (positive: forgotten), and that
    stage.

    `stages`: I × S scores of the start and of each checkpoint in order of training, on one domain. The best earlier
    stage is chosen on one half of the samples and scored on the other (Chaudhry et al. 1801.10112, without its
    winner's curse). Raises BadInput for fewer than 2 stages.
    """
    if len(stages) < 2:
        raise BadInput(f"forgetting needs a start and an end, got {len(stages)} stages")
    best = best_of(stages[:-1], seed=seed)
    end = item_means(as_items_by_samples(stages[-1]))
    if len(end) != len(best.column_I):
        raise BadInput(f"expected {len(best.column_I)} items at the end, got {len(end)}")
    boot = Bootstrap.of(np.column_stack([end, best.column_I]), seed=seed, level=level, replicates=replicates)
    return boot.estimate(lambda m: m[..., 1] - m[..., 0], unit="difference"), best.index


def backward_transfer(
    domains: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    seed: int = 0,
    level: float = 0.95,
    replicates: int = REPLICATES,
) -> Estimate:
    """Mean over domains of (end of the path − just after the domain's own stage); negative means later stages cost it.

    `domains`: (just after, end) I × S scores for every domain but the last (Lopez-Paz & Ranzato 1706.08840, BWT).
    Undefined for no domains.
    """
    if not domains:
        return Estimate.undefined("no stage but the last: nothing came after", unit="difference")
    parts = [
        Bootstrap.of(_columns(then, end), seed=[seed, d], level=level, replicates=replicates)
        for d, (then, end) in enumerate(domains)
    ]
    return Bootstrap.join(parts).estimate(lambda m: (m[..., 1::2] - m[..., 0::2]).mean(-1), unit="difference")


def worst_domain(
    domains: Sequence[tuple[npt.ArrayLike, Sequence[npt.ArrayLike]]], *, seed: int = 0, level: float = 0.95,
    replicates: int = REPLICATES,
) -> tuple[Estimate, Shortfall]:  # fmt: skip
    """How far a model is behind the best of its references in its worst domain (positive: behind), and which these are.

    `domains`: for each domain the model's I × S scores and those of the references. With rivals as references this is
    the worst-domain *regret*; negative means ahead of all of them everywhere. Domain and reference are chosen on one
    half of the samples and measured on the other, both ways; when the halves choose different domains the estimate is
    the mean of the two.
    """
    found = worst_shortfall(domains, seed=seed)
    first, second = found.columns
    same = found.domains[0] == found.domains[1]
    if same and len(first) == len(second) == len(as_items_by_samples(domains[found.domains[0]][0])):
        pools = [(first + second) / 2]  # halves of the samples: the same items twice
    elif same:
        pools = [np.concatenate([first, second])]  # halves of the items
    else:
        pools = [first, second]
    parts = [Bootstrap.of(p, seed=[seed, d], level=level, replicates=replicates) for d, p in enumerate(pools)]
    estimate = Bootstrap.join(parts).estimate(lambda m: (m[..., 1::2] - m[..., 0::2]).mean(-1), unit="difference")
    note = "" if same else "mean of the two domains that the halves of the samples chose"
    return (replace(estimate, note=note) if note and estimate.defined else estimate), found


@dataclass(frozen=True, eq=False)
class TaskGeometry:
    """Agreement of M task vectors (trained − base parameters), each M × M, symmetric.

    `cosine_MM`: in [−1, 1]. `conflict_MM`: share of the parameters moved by both whose signs differ, in [0, 1]; 1/2 is
    what unrelated vectors have. `conflict_energy_MM`: the same, weighted by |a·b|, so that large moves count. NaN where
    a vector is zero or no parameter was moved by both.
    """

    cosine_MM: Floats
    conflict_MM: Floats
    conflict_energy_MM: Floats


def task_geometry(vectors_MP: npt.ArrayLike, *, keep: float = 1.0) -> TaskGeometry:
    """Cosines and sign conflicts of task vectors (Ilharco et al. 2212.04089; TIES, Yadav et al. 2306.01708).

    `keep` leaves each vector only that share of its largest moves, as TIES trims them (0.2 there). Raises BadInput for
    values that are not finite, fewer than 2 vectors, or `keep` outside (0, 1].
    """
    vectors = np.asarray(vectors_MP, dtype=float)
    if vectors.ndim != 2 or len(vectors) < 2 or not np.isfinite(vectors).all():
        raise BadInput(f"expected at least 2 finite task vectors as M × P, got shape {vectors.shape}")
    if not 0 < keep <= 1:
        raise BadInput(f"keep is the share of the largest moves, in (0, 1], got {keep}")
    if keep < 1:
        least = np.quantile(np.abs(vectors), 1 - keep, axis=1, keepdims=True)
        vectors = np.where(np.abs(vectors) >= least, vectors, 0.0)
    lengths = np.linalg.norm(vectors, axis=1)
    signs, sizes = np.sign(vectors), np.abs(vectors)
    dot, agreement, moved, energy = (x @ x.T for x in (vectors, signs, np.abs(signs), sizes))
    with np.errstate(divide="ignore", invalid="ignore"):
        return TaskGeometry(
            np.clip(dot / np.outer(lengths, lengths), -1, 1),
            (1 - agreement / moved) / 2,
            np.clip((1 - dot / energy) / 2, 0, 1),
        )


def _effect(delta: Estimate, p_adjusted: float, margin: float) -> Effect:
    if equivalence_verdict(delta, margin) == "at":
        return "none"
    if not delta.defined or not p_adjusted < 1 - delta.level:
        return "undetermined"
    return "help" if delta.value > 0 else "harm"


def _columns(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    a, b = (item_means(as_items_by_samples(x)) for x in (first, second))
    if len(a) != len(b):
        raise BadInput(f"expected the same items, got {len(a)} and {len(b)}")
    return np.column_stack([a, b])
