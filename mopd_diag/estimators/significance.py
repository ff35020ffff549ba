"""P-values for paired item-level differences, and corrections for many of them.

Axis letters: I items, C clusters, K distinct magnitudes, R permutations, N hypotheses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import REPLICATES
from mopd_diag.estimators.draws import CHUNK, Clusters, Floats, Seed

TABLES = 256
"""Tables of 256 sums that are looked up at once: half a megabyte, which stays in the cache."""


def permutation_test(
    differences_I: npt.ArrayLike, *, clusters: Clusters | None = None,
    seed: Seed = 0, permutations: int = REPLICATES,
) -> float:  # fmt: skip
    """Two-sided p-value that paired differences are symmetric around 0, by flipping the signs of items (Fisher 1935).

    With `clusters` (I ids) the items of a cluster flip together. (1 + b) / (1 + permutations), b counting the flips
    whose mean is at least as far from 0 as the measured one, so that p is never 0 and the test keeps its level at any
    number of permutations. NaN for fewer than 2 items; 1 when nothing differs. Raises BadInput for values that are not
    finite.
    """
    differences = np.asarray(differences_I, dtype=float)
    if differences.ndim != 1 or not np.isfinite(differences).all():
        raise BadInput(f"expected finite differences of items, got an array of shape {differences.shape}")
    if clusters is not None:
        names, index = np.unique(np.asarray(clusters), return_inverse=True)
        differences = np.bincount(index, weights=differences, minlength=len(names))
    if len(differences) < 2:
        return float("nan")
    sizes_K, counts_K = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes_K):
        return 1.0
    rng = np.random.default_rng(seed)
    reach = abs(differences.sum()) * (1 - 1e-9)
    alone = counts_K == 1
    single_K, sizes_K, counts_K = sizes_K[alone], sizes_K[~alone], counts_K[~alone]
    step, extreme = max(1, CHUNK // max(len(sizes_K), TABLES)), 0
    for start in range(0, permutations, step):
        rows = min(step, permutations - start)
        sums = (2 * rng.binomial(counts_K, 0.5, (rows, len(sizes_K))) - counts_K) @ sizes_K
        sums = sums + _signed_sums(rng, single_K, rows)
        extreme += int((np.abs(sums) >= reach).sum())
    return (1 + extreme) / (1 + permutations)


def _signed_sums(rng: np.random.Generator, sizes_K: Floats, rows: int) -> Floats:
    """Sums of the sizes under `rows` draws of random signs: eight signs a byte, their sum looked up in a table."""
    blocks = np.zeros(-(-len(sizes_K) // 8) * 8)
    blocks[: len(sizes_K)] = sizes_K
    signs = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) - 1
    sums = np.zeros(rows)
    for block in np.split(blocks, range(TABLES * 8, len(blocks), TABLES * 8)):
        table = block.reshape(-1, 8) @ signs.T
        drawn = rng.integers(0, 256, (rows, len(table)), dtype=np.uint8)
        sums += table.ravel()[drawn + 256 * np.arange(len(table))].sum(1)
    return sums


def mcnemar_exact(won: int, lost: int) -> float:
    """Exact two-sided McNemar test: binomial p-value of `won` among the `won + lost` items that changed; 1 when none
    changed."""
    return float(stats.binomtest(int(won), int(won + lost), 0.5).pvalue) if won + lost else 1.0


def holm(p_values_N: npt.ArrayLike) -> Floats:
    """Adjusted p-values that keep the family-wise error rate (Holm 1979). NaN stays NaN and does not count as a
    hypothesis."""
    return _adjusted(p_values_N, lambda p, rank: np.maximum.accumulate(p * (len(p) - rank)))


def benjamini_hochberg(p_values_N: npt.ArrayLike) -> Floats:
    """Adjusted p-values that keep the false discovery rate (Benjamini & Hochberg 1995). NaN stays NaN and does not
    count."""
    return _adjusted(p_values_N, lambda p, rank: np.minimum.accumulate((p * len(p) / (rank + 1))[::-1])[::-1])


def _adjusted(p_values: npt.ArrayLike, step: Any) -> Floats:
    """Apply a step procedure to the sorted p-values (rank 0 is the smallest) and undo the sorting."""
    p = np.asarray(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(1.0, step(p[order], np.arange(len(order)))) if len(order) else []
    return adjusted
