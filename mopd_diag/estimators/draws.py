"""How replicates of means are drawn; `Bootstrap` is what to use.

Axis letters: I items, C clusters, V columns, K distinct rows, R replicates, T training seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from mopd_diag.errors import BadInput

Floats = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.integer[Any]]
Method = Literal["bayesian", "percentile"]
Seed = int | Sequence[int]
Clusters = Sequence[object] | npt.NDArray[Any]
"""One id an item; items with equal ids are resampled together."""
Bounds = tuple[float, float] | None
"""Lowest and highest possible score; None when scores have no bounds (then no unseen item is added)."""

CHUNK = 4_000_000  # weights held at once: 32 MB
FEW_ROWS = 1_000  # distinct rows up to which their counts are drawn at once; a binomial draw costs several integers
INDEPENDENT = 10  # items' worth of belief that columns differ on the unseen item
SEED_LEVEL = 0x5EED  # keeps the draws of the training-seed level apart from those of the items
NOISE_LEVEL = 0x0153  # and from those of the noise between trainings


def cluster_sums(columns_IV: Floats, clusters: Clusters) -> tuple[Floats, Floats]:
    """Sums (C × V) and sizes (C) of each cluster's items."""
    ids = np.asarray(clusters)
    if ids.shape != (len(columns_IV),):
        raise BadInput(f"expected one cluster id for each of {len(columns_IV)} items, got shape {ids.shape}")
    names, index = np.unique(ids, return_inverse=True)
    sums = np.zeros((len(names), columns_IV.shape[1]))
    np.add.at(sums, index, columns_IV)
    return sums, np.bincount(index, minlength=len(names)).astype(float)


def distinct_rows(table_CV: Floats) -> tuple[Floats, Counts]:
    """What `np.unique(axis=0, return_counts=True)` gives, in the same order, by ranking one column after the other."""
    code_C = np.zeros(len(table_CV), dtype=np.int64)
    for column_C in table_CV.T:
        values, rank_C = np.unique(column_C, return_inverse=True)
        if len(values) > 1:
            code_C = np.unique(code_C * len(values) + rank_C, return_inverse=True)[1]
    _, first_K, counts_K = np.unique(code_C, return_index=True, return_counts=True)
    return table_CV[first_K], counts_K


def draw_means(
    sums_CV: Floats,
    sizes_C: Floats,
    seed: Seed,
    replicates: int,
    bounds: Bounds,
    method: Method,
    unseen_weight: float,
) -> Floats:
    """R × V means, each Σ weight·sum / Σ weight·size over the clusters, in chunks of bounded memory."""
    rows_KV, counts_K = distinct_rows(np.column_stack([sums_CV, sizes_C]))
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


def _unseen_scores(rng: np.random.Generator, rows_KV: Floats, counts_K: Counts, replicates: int) -> Floats:
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


def _weights(rng: np.random.Generator, counts_K: Counts, shape: tuple[int, int], method: Method, n: int) -> Floats:
    distinct = len(counts_K)
    if method == "percentile" and counts_K.max() > 1 and (distinct <= FEW_ROWS or 8 * distinct < n):
        return rng.multinomial(n, counts_K / n, size=shape[0]).astype(float)
    if method == "percentile":  # the same counts, faster where most rows differ
        drawn = rng.integers(0, n, (shape[0], n))
        drawn = drawn if distinct == n else np.repeat(np.arange(distinct), counts_K)[drawn]
        drawn += distinct * np.arange(shape[0])[:, None]
        return np.bincount(drawn.ravel(), minlength=shape[0] * distinct).reshape(shape).astype(float)
    if counts_K.max() == 1:
        return rng.standard_exponential(shape)  # what gamma(1) is, faster
    return rng.standard_gamma(counts_K.astype(float), size=shape)


def draw_seed_shift(means_TV: Floats, seed: Seed, replicates: int) -> Floats:
    """R × V normal draws around 0 with the covariance of the mean over trainings, S / T: T − 1 degrees of freedom."""
    rng = np.random.default_rng([*np.atleast_1d(np.asarray(seed)).tolist(), SEED_LEVEL])
    n = len(means_TV)
    return rng.standard_normal((replicates, n)) @ (means_TV - means_TV.mean(0)) / np.sqrt(n * (n - 1))


def draw_crossed_noise(
    columns_TIV: Sequence[Floats], seed: Seed, replicates: int, clusters: Clusters | None = None
) -> Floats:
    """R × V normal draws of what trainings alike in truth would differ by: the interaction of items and trainings.

    Its covariance is the residual mean square of the items × trainings table, per mean over all trainings: an item's samples, and what
    a training did to that item alone. The draws over items hold it already.
    """
    table_TIV = np.stack(columns_TIV)
    residual_TIV = table_TIV - table_TIV.mean(0) - table_TIV.mean(1, keepdims=True) + table_TIV.mean((0, 1))
    parts_TCV = residual_TIV if clusters is None else np.stack([cluster_sums(r, clusters)[0] for r in residual_TIV])
    n, n_clusters, n_columns = parts_TCV.shape
    flat = parts_TCV.reshape(-1, n_columns)
    freedom = max(1, (n - 1) * (n_clusters - 1))
    values, vectors = np.linalg.eigh(flat.T @ flat * (n_clusters / (freedom * n * table_TIV.shape[1] ** 2)))
    rng = np.random.default_rng([*np.atleast_1d(np.asarray(seed)).tolist(), NOISE_LEVEL])
    return (rng.standard_normal((replicates, n_columns)) * np.sqrt(values.clip(0))) @ vectors.T
