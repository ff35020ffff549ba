"""The best of several models without believing its luck: choose on one half of the samples, score on the other.

The best of twelve equal models looks better than it is (the winner's curse). Each half chooses for the other, and the
two scores are put together. Items with one sample only are split by item instead. What remains: the halves share the
luck of the items, so that the best of a dozen *equal* models is still up to about half a standard error too high; and
where a dozen are nearly equal, a half often chooses a worse one, which pulls the other way. No estimate of a maximum is
unbiased in both (Hirano & Porter 2012, Econometrica 80:1769). An interval must therefore ask which models can be the best:
`contenders`.

Axis letters: I items, S samples, M models, F = 2 halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mopd_diag.errors import BadInput
from mopd_diag.estimators.draws import Floats
from mopd_diag.estimators.statistics import item_means

CONTEST = 3.0
"""Standard errors behind the best up to which a model may be the best itself: somewhat more than the √ln I of Andrews & Soares (2010,
Econometrica 78:119), which is 2.4 for 256 items and let 6 % of a dozen equal models through a test at 5 %."""


@dataclass(frozen=True, eq=False)
class Best:
    """The best of several models on one set of items.

    `column_I`: item scores of the models chosen by the respective other half; on average at most the true best model's,
    hence a lower bound of the cap. `chosen`: the model each half chose. `index`: the best on all samples; `whole_I`:
    its item means, on average at least the true best model's mean, hence an upper bound of the cap.
    """

    column_I: Floats
    chosen: tuple[int, int]
    index: int
    whole_I: Floats


@dataclass(frozen=True, eq=False)
class Shortfall:
    """How far a model is behind the best reference in its worst domain: domain and reference chosen on one half,
    measured on the other.

    `domains` and `references`: what each half chose. `columns`: for each half's choice, I × 2 item scores (model,
    reference) on the other half; only the items of which that half has samples.
    """

    domains: tuple[int, int]
    references: tuple[int, int]
    columns: tuple[Floats, Floats]


def as_items_by_samples(scores: npt.ArrayLike) -> Floats:
    """I × S floats from I or I × S; raises BadInput for other shapes and for items without any score."""
    array = np.asarray(scores, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise BadInput(f"expected items × samples, got an array of shape {array.shape}")
    empty = np.isnan(array).all(1).sum()
    if empty:
        raise BadInput(f"{int(empty)} of {len(array)} items have no score")
    return array


def halves(scores_MIS: Sequence[npt.ArrayLike], *, seed: int = 0) -> tuple[Floats, Floats]:
    """Sums and counts (each F × M × I) of every item's scores in two halves of the samples, even and odd ones.

    When some item has fewer than two samples under some model, the halves are two random halves of the items (the same
    for all models). `scores_MIS`: M arrays I × S; the numbers of samples may differ. Raises BadInput when the items
    differ in number.
    """
    models = [as_items_by_samples(s) for s in scores_MIS]
    if len({len(m) for m in models}) != 1:
        raise BadInput(f"expected the same items for every model, got {sorted({len(m) for m in models})}")
    parts = [[m[:, half::2] for m in models] for half in (0, 1)]
    counts = np.array([[(~np.isnan(x)).sum(1) for x in half] for half in parts], dtype=float)
    if (counts > 0).all():
        return np.array([[np.nansum(x, 1) for x in half] for half in parts]), counts
    second = np.random.default_rng(seed).permutation(len(models[0])) % 2 == 1
    inside_FI = np.stack([~second, second]).astype(float)
    totals = np.array([np.nansum(m, 1) for m in models])
    number = np.array([(~np.isnan(m)).sum(1) for m in models], dtype=float)
    return totals * inside_FI[:, None], number * inside_FI[:, None]


def best_of(scores_MIS: Sequence[npt.ArrayLike], *, seed: int = 0) -> Best:
    """The best of M models by mean over items; ties go to the earlier one. Raises BadInput for no models or unequal
    items."""
    if not len(scores_MIS):
        raise BadInput("no models to choose from")
    sums, counts = halves(scores_MIS, seed=seed)
    by_first, by_second = _leaders(sums, counts)
    total, number = sums[1][by_first] + sums[0][by_second], counts[1][by_first] + counts[0][by_second]
    means_MI = np.stack([item_means(as_items_by_samples(s)) for s in scores_MIS])
    index = int(means_MI.mean(1).argmax())
    return Best(total / number, (by_first, by_second), index, means_MI[index])


def contenders(means_TMI: Sequence[Floats]) -> list[int]:
    """The models that can be the best one over T trainings: the leader first, then those at most `CONTEST` standard errors behind.

    `means_TMI`: M × I item means of each training; the items may differ between trainings. The standard error is that of the paired
    difference to the leader; the trainings' errors over items are taken as equal, the spread between trainings is added.
    """
    levels_TM = np.stack([m.mean(1) for m in means_TMI])
    leader = int(levels_TM.mean(0).argmax())
    behind_TM = levels_TM[:, [leader]] - levels_TM
    error_M = np.mean([(m[leader] - m).std(1) / np.sqrt(m.shape[1]) for m in means_TMI], axis=0)
    if len(means_TMI) > 1:
        error_M = np.hypot(error_M, behind_TM.std(0, ddof=1) / np.sqrt(len(means_TMI)))
    rivals = np.flatnonzero(behind_TM.mean(0) <= CONTEST * error_M)
    return [leader, *(int(m) for m in rivals if m != leader)]


def worst_shortfall(domains: Sequence[tuple[npt.ArrayLike, Sequence[npt.ArrayLike]]], *, seed: int = 0) -> Shortfall:
    """Where one model is furthest behind the best of its references.

    `domains`: for each domain the model's I × S scores and those of the references. Raises BadInput for no domains.
    """
    if not domains:
        raise BadInput("no domains to compare")
    halved = [halves([model, *references], seed=seed) for model, references in domains]
    picks, references, columns = [], [], []
    for half in (0, 1):
        behind, leaders = [], []
        for sums, counts in halved:
            means = _means(sums[half], counts[half])
            leaders.append(int(means[1:].argmax()))
            behind.append(means[1:].max() - means[0])
        worst = int(np.argmax(behind))
        sums, counts = (x[1 - half][[0, 1 + leaders[worst]]] for x in halved[worst])
        held = (counts > 0).all(0)
        picks.append(worst)
        references.append(leaders[worst])
        columns.append((sums[:, held] / counts[:, held]).T)
    return Shortfall((picks[0], picks[1]), (references[0], references[1]), (columns[0], columns[1]))


def _leaders(sums: Floats, counts: Floats) -> tuple[int, int]:
    first, second = (int(_means(s, c).argmax()) for s, c in zip(sums, counts, strict=True))
    return first, second


def _means(sums_MI: Floats, counts_MI: Floats) -> Floats:
    """Mean over the items that a half holds, each item weighing the same: M."""
    scores = np.divide(sums_MI, counts_MI, out=np.zeros(sums_MI.shape), where=counts_MI > 0)
    return scores.sum(1) / np.maximum((counts_MI > 0).sum(1), 1)
