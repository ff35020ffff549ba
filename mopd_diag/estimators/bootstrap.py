"""Joint bootstrap of column means: draw once, then ask for any statistic of the means (differences, ratios, averages).

Axis letters: I items, C clusters, V columns (one a model, usually), K distinct rows, R replicates, T training seeds.

Two ways to draw, both seeded, both resampling whole items (or whole clusters of items), never samples or tokens:

- `bayesian`: item weights are Dirichlet(1, …, 1) (Rubin 1981, Ann. Stat. 9:130), and one *unseen item* joins the
  others, whose score in each column is drawn from Beta(1/2, 1/2) between the bounds of the scores. For 0/1 scores of
  one column this is exactly the Jeffreys interval, so that 30 right answers out of 30 give [0.92, 1] and not [1, 1].
  Columns that go together on the seen items go together on the unseen one (Gaussian copula, correlation shrunk).
- `percentile`: the textbook bootstrap (Efron 1979), multinomial counts over the items. It is what published intervals
  of paired differences use. When all replicates agree (no spread among the items) it falls back to `bayesian` and says
  so.

Joined strata share one unseen item between them: with one in each, the pull toward the middle would add up over strata
while the interval of their mean shrinks.

Equal rows are drawn as one with their joint weight: the same distribution, and much faster for a few samples an item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from mopd_diag.errors import BadInput
from mopd_diag.types import Estimate

Floats = npt.NDArray[np.floating[Any]]
Statistic = Callable[[Floats], Floats]
"""A function of column means: (..., V) -> (...); it sees the measured means once and the replicates once."""
Method = Literal["bayesian", "percentile"]
Seed = int | Sequence[int]
Clusters = Sequence[object] | npt.NDArray[Any]
"""One id an item; items with equal ids are resampled together."""
Bounds = tuple[float, float] | None
"""Lowest and highest possible score; None when scores have no bounds (then no unseen item is added)."""

REPLICATES = 10_000
CHUNK = 4_000_000  # weights held at once: 32 MB
INDEPENDENT = 10  # items' worth of belief that columns differ on the unseen item
SEED_LEVEL = 0x5EED  # keeps the draws of the training-seed level apart from those of the items


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """R joint replicates of V column means over the same I items.

    `point_V` are the measured means and `means_RV` the replicates; `reason` is not empty when nothing can be said (too
    few items), and every estimate is then undefined for that reason. Several bootstraps of different items (domains)
    are put side by side with `join`; their columns then follow one another.
    """

    point_V: Floats
    means_RV: Floats
    n_items: int
    n_clusters: int
    level: float
    method: str
    reason: str = ""
    kind: Method = "bayesian"
    redraw: Callable[[float], Bootstrap] | None = None
    """The same draws with an unseen item of the given weight; None when scores have no bounds."""

    @classmethod
    def of(
        cls, columns_IV: npt.ArrayLike, *, seed: Seed = 0, level: float = 0.95, replicates: int = REPLICATES,
        clusters: Clusters | None = None, bounds: Bounds = (0.0, 1.0), method: Method = "bayesian",
        unseen: float = 1.0,
    ) -> Bootstrap:  # fmt: skip
        """Resample the rows of `columns_IV` (I × V item-level values, or I for one column), all columns together.

        `clusters` (I ids) resamples whole clusters: the mean stays the mean over items. `unseen` is the unseen item's
        expected weight, as a number of items (`bayesian` only). The result does not depend on the order of the items.
        Raises BadInput for values that are not finite or outside `bounds`, and for a wrong shape.
        """
        columns = _checked(columns_IV, bounds)
        draw = partial(cls.of, columns, seed=seed, level=level, replicates=replicates, clusters=clusters, bounds=bounds)
        if clusters is None:
            sums_CV, sizes_C = columns, np.ones(len(columns))
        else:
            sums_CV, sizes_C = _cluster_sums(columns, clusters)
        unit = "item" if clusters is None else "cluster"
        about = f"{method} bootstrap over {unit}s, {replicates} replicates"
        if method == "percentile" or bounds is None:
            unseen = 0.0
        about += f", one unseen {unit}" if unseen else ""
        reason = f"needs at least 2 {unit}s, got {len(sums_CV)}" if len(sums_CV) < 2 else ""
        point = columns.mean(0) if len(columns) else np.full(columns.shape[1], np.nan)
        means = np.empty((0, columns.shape[1]))
        if not reason:
            means = _draw_means(sums_CV, sizes_C, seed, replicates, bounds, method, unseen)
        redraw = None if bounds is None else lambda weight: draw(method="bayesian", unseen=weight)
        return cls(point, means, len(columns), len(sums_CV), level, about, reason, method, redraw)

    @classmethod
    def over_seeds(
        cls, columns_TIV: Sequence[npt.ArrayLike], *, same_items: bool = True, seed: Seed = 0,
        shift_seed: Seed | None = None, level: float = 0.95, replicates: int = REPLICATES,
        clusters: Clusters | None = None, bounds: Bounds = (0.0, 1.0), method: Method = "bayesian",
        unseen: float = 1.0,
    ) -> Bootstrap:  # fmt: skip
        """T trainings (one I × V array each), so that the interval covers items and training seeds.

        The seed level is a draw from the multivariate t with T − 1 degrees of freedom around the mean of the trainings:
        resampling three seeds with replacement would cover far less than it says. With `same_items` the items of all
        trainings are the same rows and are resampled on top; otherwise the spread of the trainings' means already holds
        the items. Equal `shift_seed`s make the seed effect common to bootstraps that are joined later. Slightly
        conservative where trainings hardly differ. Raises BadInput when `same_items` and shapes differ.
        """
        trainings = [_checked(c, bounds) for c in columns_TIV]
        if not trainings:
            raise BadInput("no training seeds: expected one array of item-level values for each")
        resample = partial(cls.of, seed=seed, level=level, replicates=replicates, clusters=clusters, bounds=bounds)
        if len(trainings) == 1:
            one = resample(trainings[0], method=method, unseen=unseen)
            return replace(one, method=f"{one.method}, one training seed")
        means_TV = np.stack([c.mean(0) for c in trainings])
        shift_RV = _seed_shift(means_TV, seed if shift_seed is None else shift_seed, replicates)
        low, high = bounds or (-np.inf, np.inf)
        if not same_items:
            point, n_items = means_TV.mean(0), sum(map(len, trainings))
            about = f"t over {len(trainings)} training seeds with their own items, {replicates} draws"
            return cls(point, np.clip(point + shift_RV, low, high), n_items, len(trainings), level, about)
        if len({c.shape for c in trainings}) > 1:
            raise BadInput(f"training seeds with the same items need equal shapes, got {[c.shape for c in trainings]}")
        items = resample(np.mean(trainings, 0), method=method, unseen=unseen)
        means = items.means_RV if items.reason else np.clip(items.means_RV + shift_RV, low, high)
        again = partial(cls.over_seeds, trainings, seed=seed, shift_seed=shift_seed, level=level, replicates=replicates,
                        clusters=clusters, bounds=bounds)  # fmt: skip
        redraw = None if bounds is None else lambda weight: again(method="bayesian", unseen=weight)
        return replace(
            items, means_RV=means, method=f"{items.method}, t over {len(trainings)} training seeds", redraw=redraw
        )

    @classmethod
    def join(cls, parts: Sequence[Bootstrap]) -> Bootstrap:
        """Independent strata (domains, groups) side by side: columns of the first part, then of the second, and so on.

        Raises BadInput for no parts or different numbers of replicates. One undefined part makes the whole undefined.
        """
        if not parts:
            raise BadInput("nothing to join: expected at least one bootstrap")
        if len(parts) > 1:
            parts = [p.redraw(1 / len(parts)) if p.redraw and p.kind == "bayesian" else p for p in parts]
        return _side_by_side(parts)

    def draws(self, statistic: Statistic) -> Floats:
        """The statistic in every replicate: R values. All statistics of one bootstrap share its draws: they are paired."""
        return np.asarray(statistic(self.means_RV), dtype=float)

    def estimate(self, statistic: Statistic, *, unit: str = "share", note: str = "") -> Estimate:
        """The statistic of the measured means, with the central interval of its replicates.

        Undefined, with the reason, for too few items and when the statistic is not finite at the measured means or in
        more replicates than one tail of the interval holds. The interval always contains the value.
        """
        undefined = partial(Estimate.undefined, unit=unit, n_items=self.n_items, method=self.method)
        if self.reason:
            return undefined(self.reason)
        with np.errstate(divide="ignore", invalid="ignore"):
            value, draws = float(statistic(self.point_V)), self.draws(statistic)
        if not np.isfinite(value):
            return undefined("not finite at the measured means")
        finite, tail = draws[np.isfinite(draws)], (1 - self.level) / 2
        if finite.size < (1 - tail) * draws.size:
            return undefined(f"not finite in {1 - finite.size / draws.size:.1%} of the replicates")
        if np.ptp(finite) <= 1e-12 * max(1.0, abs(value)):
            if self.redraw is None or self.kind == "bayesian":
                return undefined("no spread among the items, and no bounds from which to allow for an unseen one")
            return self.redraw(1.0).estimate(statistic, unit=unit, note=_sentence(note, "no spread among the items"))
        low, high = np.quantile(finite, [tail, 1 - tail])
        return Estimate(value, min(float(low), value), max(float(high), value), self.level, unit,
                        self.n_items, self.n_clusters, self.method, note)  # fmt: skip

    def column(self, index: int, *, unit: str = "share", note: str = "") -> Estimate:
        """The mean of one column."""
        return self.estimate(lambda m: m[..., index], unit=unit, note=note)


def _sentence(*parts: str) -> str:
    return "; ".join(p for p in parts if p)


def _side_by_side(parts: Sequence[Bootstrap]) -> Bootstrap:
    """The columns of all parts in one bootstrap, as they were drawn."""
    reason = next((p.reason for p in parts if p.reason), "")
    point = np.concatenate([p.point_V for p in parts])
    if not reason and len({len(p.means_RV) for p in parts}) > 1:
        raise BadInput(f"joined bootstraps need equal replicates, got {[len(p.means_RV) for p in parts]}")
    means = np.empty((0, len(point))) if reason else np.concatenate([p.means_RV for p in parts], axis=1)
    about = parts[0].method if len(parts) == 1 else f"{parts[0].method}, within {len(parts)} strata"
    n_items, n_clusters = sum(p.n_items for p in parts), sum(p.n_clusters for p in parts)
    redraw = partial(_redraw_all, tuple(parts)) if any(p.redraw for p in parts) else None
    return Bootstrap(point, means, n_items, n_clusters, parts[0].level, about, reason, parts[0].kind, redraw)


def _redraw_all(parts: tuple[Bootstrap, ...], weight: float) -> Bootstrap:
    """Strata drawn again with an unseen item of the given weight between them."""
    return _side_by_side([p.redraw(weight / len(parts)) if p.redraw else p for p in parts])


def _checked(columns: npt.ArrayLike, bounds: Bounds) -> Floats:
    """Item-level values as I × V floats."""
    array = np.asarray(columns, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise BadInput(f"expected items × columns, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).any(1).sum())
        raise BadInput(f"{bad} of {len(array)} items have values that are not finite numbers")
    if bounds is not None and array.size and (array.min() < bounds[0] or array.max() > bounds[1]):
        found = f"values from {array.min():g} to {array.max():g} lie outside {list(bounds)}"
        raise BadInput(f"{found}: pass bounds=(low, high) or bounds=None")
    return array


def _cluster_sums(columns_IV: Floats, clusters: Clusters) -> tuple[Floats, Floats]:
    """Sums (C × V) and sizes (C) of each cluster's items."""
    ids = np.asarray(clusters)
    if ids.shape != (len(columns_IV),):
        raise BadInput(f"expected one cluster id for each of {len(columns_IV)} items, got shape {ids.shape}")
    names, index = np.unique(ids, return_inverse=True)
    sums = np.zeros((len(names), columns_IV.shape[1]))
    np.add.at(sums, index, columns_IV)
    return sums, np.bincount(index, minlength=len(names)).astype(float)


def _draw_means(
    sums_CV: Floats,
    sizes_C: Floats,
    seed: Seed,
    replicates: int,
    bounds: Bounds,
    method: Method,
    unseen_weight: float,
) -> Floats:
    """R × V means, each Σ weight·sum / Σ weight·size over the clusters, in chunks of bounded memory."""
    rows_KV, counts_K = np.unique(np.column_stack([sums_CV, sizes_C]), axis=0, return_counts=True)
    items, unseen = np.random.default_rng(seed).spawn(2)
    n_clusters, n_columns = len(sums_CV), sums_CV.shape[1]
    totals_RV = np.empty((replicates, n_columns + 1))
    step = max(1, CHUNK // len(rows_KV))
    for start in range(0, replicates, step):
        shape = (min(step, replicates - start), len(rows_KV))
        totals_RV[start : start + step] = _weights(items, counts_K, shape, method, n_clusters) @ rows_KV
    if bounds is not None and unseen_weight:
        weight_R = unseen.standard_gamma(unseen_weight, replicates) * sizes_C.mean()
        scores_RV = bounds[0] + (bounds[1] - bounds[0]) * _unseen_scores(unseen, rows_KV, counts_K, replicates)
        totals_RV += weight_R[:, None] * np.column_stack([scores_RV, np.ones(replicates)])
    return totals_RV[:, :-1] / totals_RV[:, -1:]


def _unseen_scores(
    rng: np.random.Generator, rows_KV: Floats, counts_K: npt.NDArray[np.integer[Any]], replicates: int
) -> Floats:
    """R × V scores in [0, 1], each Beta(1/2, 1/2), correlated as the columns are: `rows_KV` holds sums and, last, sizes."""
    values_KV, n_columns = rows_KV[:, :-1] / rows_KV[:, -1:], rows_KV.shape[1] - 1
    correlation = np.eye(n_columns)
    varies = np.flatnonzero(np.ptp(values_KV, axis=0) > 0)
    if len(varies) > 1:
        correlation[np.ix_(varies, varies)] = _correlation(np.cov(values_KV[:, varies].T, fweights=counts_K))
    n = counts_K.sum()
    shrunk = (n * correlation + INDEPENDENT * np.eye(n_columns)) / (n + INDEPENDENT)
    normal_RV = rng.standard_normal((replicates, n_columns)) @ np.linalg.cholesky(shrunk).T
    return np.sin(np.pi / 2 * special.ndtr(normal_RV)) ** 2  # the arcsine law is Beta(1/2, 1/2)


def _correlation(covariance: Floats) -> Floats:
    sd = np.sqrt(np.diag(covariance))
    return covariance / np.outer(sd, sd)


def _weights(
    rng: np.random.Generator, counts_K: npt.NDArray[np.integer[Any]], shape: tuple[int, int], method: Method, n: int
) -> Floats:
    if method == "percentile":
        return rng.multinomial(n, counts_K / n, size=shape[0]).astype(float)
    if counts_K.max() == 1:
        return rng.standard_exponential(shape)  # what gamma(1) is, faster
    return rng.standard_gamma(counts_K.astype(float), size=shape)


def _seed_shift(means_TV: Floats, seed: Seed, replicates: int) -> Floats:
    """R × V draws of (true mean over trainings − measured mean): multivariate t with T − 1 degrees of freedom."""
    rng = np.random.default_rng([*np.atleast_1d(np.asarray(seed)).tolist(), SEED_LEVEL])
    n = len(means_TV)
    normal_RT = rng.standard_normal((replicates, n))
    scale_R = np.sqrt((n - 1) / rng.chisquare(n - 1, replicates) / (n * (n - 1)))
    return (normal_RT @ (means_TV - means_TV.mean(0))) * scale_R[:, None]
