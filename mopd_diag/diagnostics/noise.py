"""The noise floor: by how much two runs of one checkpoint differ, from re-runs of the same items.

Axis letters: I items, N runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from mopd_diag.diagnostics.comparison import OVERALL
from mopd_diag.diagnostics.join import join
from mopd_diag.diagnostics.pairs import Pairs, bounds_of
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.significance import permutation_test
from mopd_diag.records.recordset import RecordSet
from mopd_diag.types import Estimate

SYSTEMATIC = 0.01
"""p-value below which a re-run differs from the first run by more than chance."""


def noise_floors(
    before: RecordSet, reruns: Sequence[RecordSet], pairs: Sequence[Pairs], *, level: float, replicates: int, seed: int
) -> tuple[dict[str, Estimate], list[str]]:  # fmt: skip
    """Group -> the difference of means that two runs of `before` exceed with probability 1 − `level`, and `overall`.

    z · √(Σ 2 s²) / n over a group's n compared items, s² the variance of an item's score between runs: runs differ item
    by item and independently. The interval is over items. Also warnings, of re-runs whose mean differs for good: then
    something else changed, and the floor is too low. Raises BadInput for re-runs that cannot be joined.
    """
    if not reruns:
        return {}, []
    tables, warnings = [], []
    for rerun in reruns:
        items = join(before, rerun).items
        p = permutation_test((items["after"] - items["before"]).to_numpy(), seed=seed, permutations=replicates)
        if p < SYSTEMATIC:
            warnings.append(
                f"{rerun.name} differs from {before.name} by more than chance (p = {p:.2g}): is it the same checkpoint?"
            )
        tables.append(items)
    runs = tables[0][["group", "item_id", "before"]]
    for k, items in enumerate(tables):
        column = items[["group", "item_id", "after"]].rename(columns={"after": f"run {k}"})
        runs = runs.merge(column, on=["group", "item_id"])
    ranges = [bounds_of(items) for items in tables]
    width = max(high for _, high in ranges) - min(low for low, _ in ranges)
    parts = {
        p.name: _part(runs[runs["group"] == p.name], width, (seed, k, len(reruns)), level, replicates)
        for k, p in enumerate(pairs)
    }
    z = float(stats.norm.ppf((1 + level) / 2))
    sizes = {p.name: p.n_items for p in pairs}
    floors = {
        g: part.estimate(lambda m, n=sizes[g]: z * np.sqrt(m[..., 0].clip(0) / n), unit="difference")
        for g, part in parts.items()
    }
    n_G = np.array([sizes[g] for g in parts])
    joined = Bootstrap.join(list(parts.values()))
    floors[OVERALL] = joined.estimate(lambda m: z * np.sqrt((m.clip(0) / n_G).sum(-1)) / len(n_G), unit="difference")
    return floors, warnings


def _part(runs: pd.DataFrame, width: float, seed: Sequence[int], level: float, replicates: int) -> Bootstrap:
    """The variance of a difference between two runs of each item; never above the squared width of the scale."""
    scores_IN = runs.drop(columns=["group", "item_id"]).to_numpy(dtype=float)
    variance_I = 2 * scores_IN.var(axis=1, ddof=1) if len(scores_IN) else np.empty(0)
    return Bootstrap.of(
        variance_I.clip(0, width**2), seed=seed, level=level, replicates=replicates, bounds=(0.0, width**2),
        method="percentile",
    )  # fmt: skip
