"""Non-negative least squares for many small problems at once, from inner products alone.

Axis letters: N problems, K columns (teachers).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mopd_diag.estimators.evidence import Bools, Floats

RIDGE = 1e-6
"""Relative to each column's own squared norm: makes the answer unique, so equal columns get equal coefficients."""
TOLERANCE = 1e-10
PATIENCE = 3
ROUNDS = 1000
"""Far more than positive definite problems need; a Gram that rounding has made indefinite ends here with the last x,
clipped."""


def nnls_gram(gram_NKK: npt.ArrayLike, rhs_NK: npt.ArrayLike, *, ridge: float = RIDGE) -> Floats:
    """argmin_{a ≥ 0} ‖y − Σ_k a_k x_k‖² for each problem, given x_i·x_j (N × K × K) and x_k·y (N × K) -> N × K.

    Block principal pivoting (Portugal, Júdice & Vicente 1994; Kim & Park 2011), all problems in step: exact up to
    `ridge`, no loop over problems. A column of norm 0 gets coefficient 0.
    """
    gram, rhs = np.asarray(gram_NKK, dtype=float), np.asarray(rhs_NK, dtype=float)
    norm_NK = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0))
    usable_NK = norm_NK > 0
    inverse_NK = np.divide(1.0, norm_NK, where=usable_NK, out=np.zeros_like(norm_NK))
    cosines = gram * inverse_NK[:, :, None] * inverse_NK[:, None, :]
    n_columns = rhs.shape[1]
    cosines[:, np.arange(n_columns), np.arange(n_columns)] = 1 + ridge
    target = rhs * inverse_NK
    size_N = np.abs(target).max(1, initial=0.0)
    target /= np.where(size_N > 0, size_N, 1)[:, None]
    return _pivot(cosines, target) * size_N[:, None] * inverse_NK


def _pivot(gram_NKK: Floats, rhs_NK: Floats) -> Floats:
    """Solve the complementarity problem x ≥ 0, y = G x − c ≥ 0, x·y = 0 for positive definite G of unit diagonal."""
    n, n_columns = rhs_NK.shape
    support = np.zeros((n, n_columns), bool)
    x, y = np.zeros((n, n_columns)), -rhs_NK
    fewest, patience = np.full(n, n_columns + 1), np.full(n, PATIENCE)
    open_ = np.arange(n)
    for _ in range(ROUNDS):
        wrong = _wrong(support[open_], x[open_], y[open_])
        count = wrong.sum(1)
        open_, wrong, count = open_[count > 0], wrong[count > 0], count[count > 0]
        if not len(open_):
            break
        better = count < fewest[open_]
        fewest[open_] = np.where(better, count, fewest[open_])
        patience[open_] = np.where(better, PATIENCE, patience[open_] - 1)
        # out of patience: exchange one column only (Murty's rule), which cannot cycle
        last = np.zeros_like(wrong)
        last[np.arange(len(wrong)), n_columns - 1 - wrong[:, ::-1].argmax(1)] = True
        support[open_] ^= np.where((patience[open_] >= 0)[:, None], wrong, last)
        x[open_] = _solve_on(support[open_], gram_NKK[open_], rhs_NK[open_])
        y[open_] = np.where(support[open_], 0.0, np.einsum("nij,nj->ni", gram_NKK[open_], x[open_]) - rhs_NK[open_])
    return np.maximum(x, 0)


def _wrong(support: Bools, x: Floats, y: Floats) -> Bools:
    return np.where(support, x < -TOLERANCE, y < -TOLERANCE)


def _solve_on(support: Bools, gram: Floats, rhs: Floats) -> Floats:
    """Least squares on each problem's own support, 0 elsewhere: rows and columns outside it become the identity."""
    both = support[:, :, None] & support[:, None, :]
    return np.linalg.solve(np.where(both, gram, np.eye(rhs.shape[1])), np.where(support, rhs, 0.0)[:, :, None])[:, :, 0]
