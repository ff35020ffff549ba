"""Means, paired differences and verdicts from item-level scores, each with an interval over items.

Axis letters: I items, S samples of an item, T training seeds. Scores lie in `bounds`, [0, 1] unless told otherwise. NaN
marks a sample that was not drawn (items with fewer samples than others); it is left out, never counted as 0.

Coverage of the nominal 95 % intervals is simulated in `tests/test_statistics.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import REPLICATES, Bootstrap, Statistic
from mopd_diag.estimators.draws import Bounds, Clusters, Floats, Method, Seed
from mopd_diag.types import Estimate

__all__ = [
    "Bootstrap", "Bounds", "Clusters", "Floats", "Method", "Scores", "Seed", "Statistic", "Verdict",
    "detectable_from_interval", "equivalence_verdict", "item_means", "mean", "paired_difference", "pass_at_k",
    "smallest_detectable_effect",
]  # fmt: skip

Scores = npt.ArrayLike | Sequence[npt.NDArray[Any]]
"""I item means or I × S sample scores; or a list or tuple of such arrays over the same items, one a training seed."""
Verdict = Literal["below", "at", "above", "undetermined"]


def item_means(scores: npt.ArrayLike, *, axis: int = -1, where: npt.ArrayLike | None = None) -> Floats:
    """Mean over the samples of each item: (I, S) -> (I,), or any array reduced over `axis`.

    Samples that are NaN or False in `where` are left out, exactly as if they had been sliced away; an item without any
    is NaN.
    """
    values = np.asarray(scores, dtype=float)
    present = ~np.isnan(values)
    if where is not None:
        present &= np.broadcast_to(np.asarray(where, dtype=bool), values.shape)
    count = present.sum(axis)
    total = np.where(present, values, 0.0).sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def mean(
    scores: Scores, *, seed: Seed = 0, level: float = 0.95, replicates: int = REPLICATES,
    clusters: Clusters | None = None, bounds: Bounds = (0.0, 1.0), method: Method = "bayesian",
    unit: str = "share",
) -> Estimate:  # fmt: skip
    """Mean score over items (samples averaged within an item first, so every item weighs the same).

    `clusters`, I ids, are a second level (documents, templates): they are resampled whole. Several training seeds widen
    the interval by the spread between trainings. NaN with the reason for fewer than 2 items. Raises BadInput for scores
    outside `bounds` and for items without any sample. For 0/1 scores the default method is the Jeffreys interval
    (Brown, Cai & DasGupta 2001).
    """
    columns = [_items(s)[:, None] for s in _per_seed(scores)]
    drawn = _bootstrap(columns, seed, level, replicates, clusters, bounds, method)
    return drawn.column(0, unit=unit)


def paired_difference(
    before: Scores, after: Scores, *, seed: Seed = 0, level: float = 0.95, replicates: int = REPLICATES,
    clusters: Clusters | None = None, bounds: Bounds = (0.0, 1.0), method: Method = "percentile",
    unit: str = "difference",
) -> Estimate:  # fmt: skip
    """Mean of (after − before) over the same items in the same order; positive means `after` is better.

    Both sides share every draw of items (Miller 2411.00640: pairing removes the items' difficulty from the interval).
    With training seeds, both sides list their seeds in the same order, or one side has a single training. The default
    is the percentile bootstrap, as in published paired comparisons. Other arguments as in `mean`; raises BadInput when
    the items do not match in number.
    """
    befores, afters = [_items(s) for s in _per_seed(before)], [_items(s) for s in _per_seed(after)]
    trainings = max(len(befores), len(afters))
    if {len(befores), len(afters)} - {1, trainings}:
        raise BadInput(
            f"{len(befores)} training seeds before and {len(afters)} after: expected equal numbers, or one on a side"
        )
    befores, afters = befores * (trainings // len(befores)), afters * (trainings // len(afters))
    if any(len(b) != len(a) for b, a in zip(befores, afters, strict=True)):
        raise BadInput(f"paired scores need the same items: got {len(befores[0])} before and {len(afters[0])} after")
    columns = [np.column_stack([b, a]) for b, a in zip(befores, afters, strict=True)]
    drawn = _bootstrap(columns, seed, level, replicates, clusters, bounds, method)
    return drawn.estimate(lambda m: m[..., 1] - m[..., 0], unit=unit)


def equivalence_verdict(estimate: Estimate, margin: float) -> Verdict:
    """Where a difference lies against 0, by its interval.

    `at` when the whole interval is within ±margin (two one-sided tests, Schuirmann 1987: practically equal, even if it
    is not exactly 0); otherwise `below` or `above` when the interval excludes 0; otherwise `undetermined`, as is
    anything undefined. Raises BadInput for a negative margin.
    """
    if not margin >= 0:
        raise BadInput(f"an equivalence margin must be 0 or more, got {margin}")
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return "undetermined"
    if -margin <= estimate.low and estimate.high <= margin:
        return "at"
    if estimate.high < 0:
        return "below"
    return "above" if estimate.low > 0 else "undetermined"


def smallest_detectable_effect(sd: float, n: int, power: float = 0.8, level: float = 0.95) -> float:
    """The true mean difference that a two-sided test of n items finds with probability `power`.

    (z_{(1+level)/2} + z_power) · sd / √n, in the unit of `sd`, the standard deviation of the items' differences
    (normal approximation). NaN for n < 2 or an unknown sd.
    """
    if n < 2 or not sd >= 0:
        return math.nan
    return float((stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)) * sd / math.sqrt(n))


def detectable_from_interval(estimate: Estimate, power: float = 0.8) -> float:
    """The true effect that would be found with probability `power` at the precision of a measured interval.

    Half the interval's width times (1 + z_power / z_{(1+level)/2}): `smallest_detectable_effect` for statistics that
    are not plain means of items. NaN for an undefined estimate.
    """
    return float(
        (estimate.high - estimate.low) / 2 * (1 + stats.norm.ppf(power) / stats.norm.ppf((1 + estimate.level) / 2))
    )


def pass_at_k(n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike) -> Floats:
    """Probability that at least one of k samples is right, from c right ones among n: 1 − C(n−c, k) / C(n, k).

    Unbiased (Chen et al. 2107.03374, eq. 1); arguments broadcast, the result has their shape. NaN where k > n: it
    cannot be told. Raises BadInput unless 0 ≤ c ≤ n and k ≥ 1.
    """
    n, c, k = np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in (n, c, k)))
    if ((c < 0) | (c > n) | (k < 1)).any():
        raise BadInput("pass@k needs 0 <= c <= n and k >= 1")
    wrong, told = n - c, k <= n
    possible = told & (k <= wrong)  # all k samples can be wrong
    w, m, j = (np.where(possible, x, 1.0) for x in (wrong, n, k))
    all_wrong = np.exp(_log_choose(w, j) - _log_choose(m, j))
    return np.where(told, 1.0 - np.where(possible, all_wrong, 0.0), np.nan)


def _log_choose(n: Floats, k: Floats) -> Floats:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def _per_seed(scores: Scores) -> list[npt.ArrayLike]:
    """The array of each training seed; a plain list of numbers is one training."""
    if isinstance(scores, list | tuple) and scores and all(isinstance(s, np.ndarray) and s.ndim for s in scores):
        return list(scores)
    return [scores]  # type: ignore[list-item]


def _items(scores: npt.ArrayLike) -> Floats:
    """I item means from I or I × S scores."""
    array = np.asarray(scores, dtype=float)
    if array.ndim not in (1, 2):
        raise BadInput(f"expected items, or items × samples, got an array of shape {array.shape}")
    means = array if array.ndim == 1 else item_means(array)
    if np.isnan(means).any():
        raise BadInput(f"{int(np.isnan(means).sum())} of {len(means)} items have no score")
    return means


def _bootstrap(
    columns: list[Floats], seed: Seed, level: float, replicates: int,
    clusters: Clusters | None, bounds: Bounds, method: Method,
) -> Bootstrap:  # fmt: skip
    if len(columns) == 1:
        return Bootstrap.of(
            columns[0], seed=seed, level=level, replicates=replicates, clusters=clusters, bounds=bounds, method=method
        )
    return Bootstrap.over_seeds(
        columns, seed=seed, level=level, replicates=replicates, clusters=clusters, bounds=bounds, method=method
    )
