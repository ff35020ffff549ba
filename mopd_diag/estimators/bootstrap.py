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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy import stats

from mopd_diag.errors import BadInput
from mopd_diag.estimators.draws import (
    Bounds,
    Clusters,
    Floats,
    Method,
    Seed,
    cluster_sums,
    draw_crossed_noise,
    draw_means,
    draw_seed_shift,
)  # fmt: skip
from mopd_diag.types import Estimate

Statistic = Callable[[Floats], Floats]
"""A function of column means: (..., V) -> (...); it sees the measured means once and the replicates once."""

REPLICATES = 10_000
TAKEN_OFF = 0.5
"""Share of the noise between trainings that `crossed` takes off their spread. All of it is the textbook's two-way table, but three
trainings often look alike by chance: with all of it, trainings 5 points apart were covered to 90 %, with none of it equal ones to 99 %."""


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """R joint replicates of V column means over the same I items.

    `point_V` are the measured means and `means_RV` the replicates; `reason` is not empty when nothing can be said (too
    few items), and every estimate is then undefined for that reason. Several bootstraps of different items (domains)
    are put side by side with `join`; their columns then follow one another.
    """

    point_V: Floats
    means_RV: Floats
    """Replicates of the items alone."""
    n_items: int
    n_clusters: int
    level: float
    method: str
    reason: str = ""
    kind: Method = "bayesian"
    redraw: Callable[[float], Bootstrap] | None = None
    """The same draws with an unseen item of the given weight; None when scores have no bounds."""
    shift_RV: Floats | None = None
    """What the training seeds add to each replicate; None for one training."""
    n_trainings: int = 1
    bounds: Bounds = None
    noise_RV: Floats | None = None
    """What trainings alike in truth would differ by on the same items; the replicates hold it already. None: not taken off the shift."""

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
            sums_CV, sizes_C = cluster_sums(columns, clusters)
        unit = "item" if clusters is None else "cluster"
        about = f"{method} bootstrap over {unit}s, {replicates} replicates"
        if method == "percentile" or bounds is None:
            unseen = 0.0
        about += f", one unseen {unit}" if unseen else ""
        reason = f"needs at least 2 {unit}s, got {len(sums_CV)}" if len(sums_CV) < 2 else ""
        point = columns.mean(0) if len(columns) else np.full(columns.shape[1], np.nan)
        means = np.empty((0, columns.shape[1]))
        if not reason:
            means = draw_means(sums_CV, sizes_C, seed, replicates, bounds, method, unseen)
        redraw = None if bounds is None else lambda weight: draw(method="bayesian", unseen=weight)
        return cls(point, means, len(columns), len(sums_CV), level, about, reason, method, redraw, bounds=bounds)

    @classmethod
    def over_seeds(
        cls, columns_TIV: Sequence[npt.ArrayLike], *, same_items: bool = True, seed: Seed = 0,
        shift_seed: Seed | None = None, level: float = 0.95, replicates: int = REPLICATES,
        clusters: Clusters | None = None, bounds: Bounds = (0.0, 1.0), method: Method = "bayesian",
        unseen: float = 1.0, crossed: bool = False,
    ) -> Bootstrap:  # fmt: skip
        """T trainings (one I × V array each), so that the interval covers items and training seeds.

        With `same_items` the items of all trainings are the same rows: they are resampled, and a normal draw with the
        covariance of the trainings' mean is added. The sum is stretched to Student's t with Satterthwaite's degrees of
        freedom (Satterthwaite 1946), because resampling three seeds with replacement would cover far less than it says.
        Otherwise the spread of the trainings' means already holds the items. Equal `shift_seed`s make the seed effect
        common to bootstraps that are joined later. `crossed` takes half of the noise that both levels hold (items × trainings) off the
        trainings' spread: without it the interval is too wide where trainings differ little. Raises BadInput when `same_items` and
        shapes differ.
        """
        trainings = [_checked(c, bounds) for c in columns_TIV]
        if not trainings:
            raise BadInput("no training seeds: expected one array of item-level values for each")
        resample = partial(cls.of, seed=seed, level=level, replicates=replicates, clusters=clusters, bounds=bounds)
        if len(trainings) == 1:
            one = resample(trainings[0], method=method, unseen=unseen)
            return replace(one, method=f"{one.method}, one training seed")
        means_TV = np.stack([c.mean(0) for c in trainings])
        shift_RV = draw_seed_shift(means_TV, seed if shift_seed is None else shift_seed, replicates)
        n = len(trainings)
        if not same_items:
            point, about = means_TV.mean(0), f"t over {n} training seeds with their own items, {replicates} draws"
            means = np.broadcast_to(point, shift_RV.shape)
            return cls(point, means, sum(map(len, trainings)), n, level, about, shift_RV=shift_RV, n_trainings=n,
                       bounds=bounds)  # fmt: skip
        if len({c.shape for c in trainings}) > 1:
            raise BadInput(f"training seeds with the same items need equal shapes, got {[c.shape for c in trainings]}")
        items = resample(np.mean(trainings, 0), method=method, unseen=unseen)
        again = partial(cls.over_seeds, trainings, seed=seed, shift_seed=shift_seed, level=level, replicates=replicates,
                        clusters=clusters, bounds=bounds, crossed=crossed)  # fmt: skip
        redraw = None if bounds is None else lambda weight: again(method="bayesian", unseen=weight)
        noise_RV = draw_crossed_noise(trainings, seed, replicates, clusters) if crossed and len(trainings[0]) else None
        return replace(items, shift_RV=shift_RV, n_trainings=n, method=f"{items.method}, t over {n} training seeds",
                       redraw=redraw, noise_RV=noise_RV)  # fmt: skip

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
        if self.shift_RV is None:
            return np.asarray(statistic(self.means_RV), dtype=float)
        of_seeds, of_items = (_half_width(statistic(m)) for m in (self.point_V + self.shift_RV, self.means_RV))
        stretch = _t_over_normal(of_seeds**2, of_items**2, self.n_trainings - 1, self.n_clusters - 1, self.level)
        kept = 1.0
        if self.noise_RV is not None and of_seeds > 0:
            of_noise = _half_width(statistic(self.point_V + self.noise_RV))
            kept = math.sqrt(max(0.0, 1 - TAKEN_OFF * (of_noise / of_seeds) ** 2))
        means = self.point_V + stretch * (self.means_RV - self.point_V + kept * self.shift_RV)
        return np.asarray(statistic(means if self.bounds is None else means.clip(*self.bounds)), dtype=float)

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
    several = [p.n_trainings for p in parts if p.shift_RV is not None]
    shift = noise = None
    if several and not reason:
        shifts = [np.zeros(p.means_RV.shape) if p.shift_RV is None else p.shift_RV for p in parts]
        shift = np.concatenate(shifts, axis=1)
        if any(p.noise_RV is not None for p in parts):
            noises = [np.zeros(p.means_RV.shape) if p.noise_RV is None else p.noise_RV for p in parts]
            noise = np.concatenate(noises, axis=1)
    return Bootstrap(point, means, n_items, n_clusters, parts[0].level, about, reason, parts[0].kind, redraw,
                     shift, min(several, default=1), parts[0].bounds, noise)  # fmt: skip


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


def _half_width(draws_R: Floats) -> float:
    """Half the width of the central 68 % of a statistic's draws: its standard deviation if normal, and safe from outliers."""
    finite = draws_R[np.isfinite(draws_R)]
    low, high = np.quantile(finite, stats.norm.cdf([-1, 1])) if finite.size else (0.0, 0.0)
    return float(high - low) / 2


def _t_over_normal(first: float, second: float, first_df: int, second_df: int, level: float) -> float:
    """By how much a sum of two variance components is wider than normal: Student's t with Satterthwaite's freedom."""
    if first + second <= 0:
        return 1.0
    second_part = second**2 / second_df if second else 0.0
    freedom = (first + second) ** 2 / (first**2 / first_df + second_part)
    return float(stats.t.ppf((1 + level) / 2, freedom) / stats.norm.ppf((1 + level) / 2))
