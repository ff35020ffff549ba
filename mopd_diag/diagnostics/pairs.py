"""One group's paired items as arrays, and what is measured on them: levels, difference, p-value, pass@k.

Axis letters: I items, C clusters, V columns, G groups, K values of k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from mopd_diag.diagnostics.comparison import OVERALL
from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.draws import Floats
from mopd_diag.estimators.significance import mcnemar_exact, permutation_test
from mopd_diag.estimators.statistics import pass_at_k
from mopd_diag.types import Estimate

SEVERAL_GROUPS = 0x6E0
"""Keeps the draws over all groups apart from those of the single groups."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Item means of both sides, in the same order. `clusters_I` is empty where the records have no second level; `binary`:
    0/1 scores."""

    name: str
    before_I: Floats
    after_I: Floats
    n_before_I: npt.NDArray[np.int64]
    n_after_I: npt.NDArray[np.int64]
    clusters_I: npt.NDArray[Any]
    binary: bool
    threshold: float

    @property
    def n_items(self) -> int:
        return len(self.before_I)

    @property
    def n_samples(self) -> int:
        return int(max(self.n_before_I.max(initial=0), self.n_after_I.max(initial=0)))

    @property
    def difference_I(self) -> Floats:
        return self.after_I - self.before_I

    @property
    def columns_IV(self) -> Floats:
        return np.column_stack([self.before_I, self.after_I])

    @property
    def clusters(self) -> npt.NDArray[Any] | None:
        """Ids to resample by, when some items of the group share one."""
        return self.clusters_I if len(np.unique(self.clusters_I)) < len(self.clusters_I) else None

    @classmethod
    def stacked(cls, name: str, parts: Sequence[Pairs]) -> Pairs:
        """The items of all groups, one after the other."""
        before, after = (np.concatenate([getattr(p, f) for p in parts]) for f in ("before_I", "after_I"))
        n_before, n_after = (np.concatenate([getattr(p, f) for p in parts]) for f in ("n_before_I", "n_after_I"))
        clusters = np.concatenate([p.clusters_I for p in parts]) if all(len(p.clusters_I) for p in parts) else _NONE
        return cls(name, before, after, n_before, n_after, clusters, all(p.binary for p in parts), parts[0].threshold)


_NONE = np.empty(0, dtype=object)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one group, or all together, show. `levels`, `change` and `safe` are the bootstraps behind the estimates.

    `wide` is the difference with one unseen item allowed for: what an equivalence test may rest on, because few flips
    among few items say little about the next one. `step` is the difference that one more flipped item makes, where the
    test counts items and so loses that much (0 elsewhere).
    """

    before: Estimate
    after: Estimate
    delta: Estimate
    p_value: float
    test: str
    standard_error: float
    clustered: bool
    levels: Bootstrap
    change: Bootstrap
    safe: Bootstrap
    wide: Estimate
    step: float = 0.0
    ks: tuple[int, ...] = ()
    pass_levels: Bootstrap | None = None
    pass_change: Bootstrap | None = None
    pass_at_k: dict[int, tuple[Estimate, Estimate, Estimate]] = field(default_factory=dict)


def bounds_of(items: pd.DataFrame) -> tuple[float, float]:
    """Lowest and highest possible score, as far as the scores show: [0, 1], or wider when they reach out of it."""
    low = min(float(items["before"].min()), float(items["after"].min()))
    high = max(float(items["before"].max()), float(items["after"].max()))
    if low < 0 or high > 1:  # then single samples may reach further than their means
        scores = np.concatenate([*items["before_scores"], *items["after_scores"]])
        low, high = float(scores.min()), float(scores.max())
    return min(0.0, low), max(1.0, high)


def pairs_of(items: pd.DataFrame) -> list[Pairs]:
    """Each group of the joined items, in the order of their names. Raises BadInput for one that is called `overall`."""
    if (items["group"] == OVERALL).any():
        raise BadInput(f"a group is called '{OVERALL}', which is the name of the mean over all groups; rename it")
    low, high = bounds_of(items)
    binary_I = np.ones(len(items), dtype=bool)
    for side in ("before", "after"):
        n_I, scores = items[f"n_{side}"].to_numpy(), np.concatenate(items[f"{side}_scores"].to_numpy())
        bad = np.repeat(np.arange(len(items)), n_I)[(scores != 0) & (scores != 1)]
        binary_I[bad] = False
    made = []
    for name, rows in sorted(items.groupby("group", sort=False).indices.items()):
        part = items.take(rows)
        before, after = (part[c].to_numpy(dtype=float) for c in ("before", "after"))
        n_before, n_after = (part[c].to_numpy(dtype=np.int64) for c in ("n_before", "n_after"))
        binary = bool(binary_I[rows].all())
        made.append(Pairs(str(name), before, after, n_before, n_after, _clusters(part), binary, (low + high) / 2))
    return made


def measure(
    pairs: Pairs, *, seed: Sequence[int], level: float, replicates: int, bounds: tuple[float, float]
) -> Measured:  # fmt: skip
    """Levels and difference with their intervals, p-value, and pass@k where there are several 0/1 samples an item.

    The p-value is McNemar's exact one for one 0/1 sample an item without clusters, else from a paired permutation test.
    """
    draw = {"level": level, "replicates": replicates, "clusters": pairs.clusters}
    levels = Bootstrap.of(pairs.columns_IV, seed=seed, bounds=bounds, **draw)
    change = Bootstrap.of(pairs.columns_IV, seed=seed, bounds=bounds, method="percentile", **draw)
    width = bounds[1] - bounds[0]
    safe = Bootstrap.of(pairs.difference_I, seed=seed, bounds=(-width, width), **draw)
    wide = safe.column(0, unit="difference")
    before, after, delta = _estimates(levels, change, lambda m: m[..., 0], lambda m: m[..., 1])
    if delta.defined and not np.ptp(pairs.difference_I):
        delta = replace(wide, note="no spread among the items: one unseen item is allowed for")
    found = before, after, delta
    clustered = pairs.clusters is not None
    if pairs.binary and pairs.n_samples == 1 and not clustered:
        difference, test, step = pairs.difference_I, "exact McNemar", 1 / max(pairs.n_items, 1)
        p_value = mcnemar_exact(int((difference > 0).sum()), int((difference < 0).sum()))
        p_value = p_value if pairs.n_items > 1 else float("nan")
    else:
        test, step = "paired permutation over clusters" if clustered else "paired permutation", 0.0
        p_value = permutation_test(pairs.difference_I, clusters=pairs.clusters, seed=seed, permutations=replicates)
    sd = float(pairs.difference_I.std(ddof=1)) if pairs.n_items > 1 else float("nan")
    error = sd / np.sqrt(pairs.n_items) if sd > 0 and not clustered else _error(delta)
    ks = _ks(pairs)
    if not ks:
        return Measured(*found, p_value, test, error, clustered, levels, change, safe, wide, step)
    n_right = np.rint(pairs.before_I * pairs.n_before_I), np.rint(pairs.after_I * pairs.n_after_I)
    solved_IV = np.column_stack([
        pass_at_k(n, c, k) for k in ks for n, c in zip((pairs.n_before_I, pairs.n_after_I), n_right, strict=True)
    ]).clip(0, 1)  # fmt: skip
    pass_levels = Bootstrap.of(solved_IV, seed=seed, **draw)
    pass_change = Bootstrap.of(solved_IV, seed=seed, method="percentile", **draw)
    told = {k: _estimates(pass_levels, pass_change, *_columns(2 * j)) for j, k in enumerate(ks)}
    return Measured(
        *found, p_value, test, error, clustered, levels, change, safe, wide, step, ks, pass_levels, pass_change, told
    )


def together(pairs: Sequence[Pairs], measured: Mapping[str, Measured], *, seed: int) -> Measured:
    """The unweighted mean over the groups: items resampled within each, signs flipped within each.

    Clusters that lie in several groups are resampled and flipped as one.
    """
    parts = [measured[p.name] for p in pairs]
    n, clustered = len(pairs), any(m.clustered for m in parts)
    named = [(p.name, m) for p, m in zip(pairs, parts, strict=True)]
    levels = Bootstrap.join([_named(m.levels, g) for g, m in named])
    change = Bootstrap.join([_named(m.change, g) for g, m in named])
    means = _over_groups(n, 2, 0), _over_groups(n, 2, 1)
    before, after, delta = _estimates(levels, change, *means)
    safe = Bootstrap.join([_named(m.safe, g) for g, m in named])
    wide = safe.estimate(lambda m: m.mean(-1), unit="difference")
    if delta.defined and not any(np.ptp(p.difference_I) for p in pairs):
        delta = replace(wide, note="no spread among the items: one unseen item is allowed for")
    spanning = _span_groups(pairs)
    clusters = _shared_clusters(pairs) if clustered or spanning else None
    if clusters is not None and spanning:
        delta = wide = _joint_delta(pairs, clusters, delta, change, seed)
    weighted = np.concatenate([p.difference_I / p.n_items for p in pairs])
    p_value = permutation_test(
        weighted, clusters=clusters, seed=(seed, SEVERAL_GROUPS), permutations=max(len(change.means_RV), 1)
    )
    p_value = p_value if delta.defined else float("nan")
    clustered = clusters is not None
    test = "paired permutation over clusters" if clustered else "paired permutation"
    ks = tuple(sorted(set.intersection(*(set(m.ks) for m in parts))))
    found = Measured(before, after, delta, p_value, test, _error(delta), clustered, levels, change, safe, wide)
    if not ks:
        return found
    told = {}
    for k in ks:  # the groups may have different numbers of samples, so the columns of k differ
        both = [_pick(m, k) for m in parts]
        of_k = Bootstrap.join([b[0] for b in both]), Bootstrap.join([b[1] for b in both])
        told[k] = _estimates(*of_k, *means)
    return replace(found, ks=ks, pass_at_k=told)


Column = Callable[[Floats], Floats]


def _estimates(
    levels: Bootstrap, change: Bootstrap, before: Column, after: Column
) -> tuple[Estimate, Estimate, Estimate]:
    delta = change.estimate(lambda m: after(m) - before(m), unit="difference")
    return levels.estimate(before, unit="score"), levels.estimate(after, unit="score"), delta


def _columns(first: int) -> tuple[Column, Column]:
    return (lambda m: m[..., first]), (lambda m: m[..., first + 1])


def _over_groups(n_groups: int, n_columns: int, column: int) -> Column:
    return lambda m: m.reshape(*m.shape[:-1], n_groups, n_columns)[..., column].mean(-1)


def _pick(measured: Measured, k: int) -> tuple[Bootstrap, Bootstrap]:
    """The two columns of one k, as bootstraps of their own that can be joined."""
    j = 2 * measured.ks.index(k)

    def cut(drawn: Bootstrap) -> Bootstrap:
        redraw = drawn.redraw
        again = None if redraw is None else lambda weight: cut(redraw(weight))
        return replace(drawn, point_V=drawn.point_V[j : j + 2], means_RV=drawn.means_RV[:, j : j + 2], redraw=again)

    assert measured.pass_levels is not None and measured.pass_change is not None
    return cut(measured.pass_levels), cut(measured.pass_change)


def _named(drawn: Bootstrap, group: str) -> Bootstrap:
    return replace(drawn, reason=f"{group}: {drawn.reason}") if drawn.reason else drawn


def _clusters(items: pd.DataFrame) -> npt.NDArray[Any]:
    """Cluster ids where there are any; an item without an id is a cluster of its own."""
    ids = items["cluster"].to_numpy(dtype=object)
    known = ids != ""
    if not known.any():
        return _NONE
    alone = "item " + items["group"].astype(str) + "/" + items["item_id"].astype(str)
    return np.where(known, "cluster " + pd.Series(ids).astype(str), alone.to_numpy(dtype=object)).astype(str)


def _shared_clusters(pairs: Sequence[Pairs]) -> npt.NDArray[Any]:
    """One id an item over all groups; items of groups without clusters stand alone."""
    return np.concatenate([
        p.clusters_I if len(p.clusters_I) else np.array([f"item {p.name}/{i}" for i in range(p.n_items)]) for p in pairs
    ])  # fmt: skip


def _span_groups(pairs: Sequence[Pairs]) -> bool:
    distinct = [set(p.clusters_I.tolist()) for p in pairs if len(p.clusters_I)]
    return sum(map(len, distinct)) > len(set().union(*distinct))


def _joint_delta(
    pairs: Sequence[Pairs], clusters: npt.NDArray[Any], delta: Estimate, change: Bootstrap, seed: int
) -> Estimate:  # fmt: skip
    """The mean difference over groups when whole clusters are resampled across them: a mean of ratios of sums."""
    names, index = np.unique(clusters, return_inverse=True)
    group = np.repeat(np.arange(len(pairs)), [p.n_items for p in pairs])
    difference = np.concatenate([p.difference_I for p in pairs])
    sums_CV = np.zeros((len(names), 2 * len(pairs)))
    np.add.at(sums_CV, (index, 2 * group), difference)
    np.add.at(sums_CV, (index, 2 * group + 1), 1.0)
    drawn = Bootstrap.of(
        sums_CV, seed=(seed, SEVERAL_GROUPS), level=change.level, replicates=max(len(change.means_RV), 1), bounds=None,
        method="percentile",
    )  # fmt: skip
    made = drawn.estimate(lambda m: (m[..., 0::2] / m[..., 1::2]).mean(-1), unit="difference")
    if not (made.defined and delta.defined):
        return delta
    about = made.method.replace("over items", "over clusters that lie in several groups")
    return replace(made, n_items=delta.n_items, method=about)


def _error(delta: Estimate) -> float:
    """Standard error, from the width of the interval."""
    return float((delta.high - delta.low) / 2 / stats.norm.ppf((1 + delta.level) / 2))


def _ks(pairs: Pairs) -> tuple[int, ...]:
    """1, 2, 4, … and the number of samples that every item has on both sides; none for single or graded samples."""
    fewest = int(min(pairs.n_before_I.min(), pairs.n_after_I.min()))
    if not pairs.binary or fewest < 2:
        return ()
    return tuple(sorted({2**j for j in range(fewest.bit_length()) if 2**j <= fewest} | {fewest}))
