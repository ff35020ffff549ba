"""Bounded non-negative least squares for many small problems at once, from inner products alone.

Axis letters: N problems, K columns (teachers).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mopd_diag.estimators.evidence import Bools, Floats, Ints

RIDGE = 1e-6
"""Relative to the largest column's squared norm: makes the answer unique, so equal columns get equal coefficients, and of
columns that point the same way the longer is used."""
TOLERANCE = 1e-10
PATIENCE = 3
ROUNDS = 1000
"""Far more than positive definite problems need; a Gram that rounding has made indefinite ends here with the last x, clipped."""
LOWER, FREE, UPPER = -1, 0, 1


def nnls_gram(gram_NKK: npt.ArrayLike, rhs_NK: npt.ArrayLike, *, upper: float = np.inf, ridge: float = RIDGE) -> Floats:
    """argmin ‖y − Σ_k a_k x_k‖² over 0 ≤ a ≤ `upper` for each problem, given x_i·x_j (N × K × K) and x_k·y (N × K) -> N × K.

    Block principal pivoting (Portugal, Júdice & Vicente 1994; Kim & Park 2011; with upper bounds Júdice & Pires 1992), all problems in
    step: exact up to `ridge`, no loop over problems. A column of norm 0 gets coefficient 0.
    """
    gram, rhs = np.asarray(gram_NKK, dtype=float), np.asarray(rhs_NK, dtype=float)
    n_columns = rhs.shape[1]
    norm_NK = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0))
    inverse_NK = np.divide(1.0, norm_NK, where=norm_NK > 0, out=np.zeros_like(norm_NK))
    # unit columns and a right-hand side of unit size, so that one tolerance fits all
    cosines = gram * inverse_NK[:, :, None] * inverse_NK[:, None, :]
    diagonal = 1 + ridge * (norm_NK.max(1, initial=0.0)[:, None] * inverse_NK) ** 2
    cosines[:, np.arange(n_columns), np.arange(n_columns)] = diagonal
    target = rhs * inverse_NK
    size_N1 = np.abs(target).max(1, initial=0.0)[:, None]
    size_N1 = np.where(size_N1 > 0, size_N1, 1.0)
    bound = np.where(norm_NK > 0, upper * np.where(norm_NK > 0, norm_NK, 1), np.inf) / size_N1
    return _pivot(cosines, target / size_N1, bound) * size_N1 * inverse_NK


def _pivot(gram_NKK: Floats, rhs_NK: Floats, bound_NK: Floats) -> Floats:
    """0 ≤ x ≤ u with gradient y = G x − c that is ≥ 0 where x = 0, 0 where x is free, ≤ 0 where x = u; G positive definite."""
    n, n_columns = rhs_NK.shape
    state = np.full((n, n_columns), LOWER)
    x, y = np.zeros((n, n_columns)), -rhs_NK
    fewest, patience = np.full(n, n_columns + 1), np.full(n, PATIENCE)
    open_ = np.arange(n)
    for _ in range(ROUNDS):
        better_state = _corrected(state[open_], x[open_], y[open_], bound_NK[open_])
        wrong = better_state != state[open_]
        count = wrong.sum(1)
        keep = count > 0
        open_, wrong, count, better_state = open_[keep], wrong[keep], count[keep], better_state[keep]
        if not len(open_):
            break
        progress = count < fewest[open_]
        fewest[open_] = np.where(progress, count, fewest[open_])
        patience[open_] = np.where(progress, PATIENCE, patience[open_] - 1)
        # out of patience: correct one column only (Murty's rule), which cannot cycle
        last = np.zeros_like(wrong)
        last[np.arange(len(wrong)), n_columns - 1 - wrong[:, ::-1].argmax(1)] = True
        change = np.where((patience[open_] >= 0)[:, None], wrong, last)
        state[open_] = np.where(change, better_state, state[open_])
        x[open_] = _solve(state[open_], gram_NKK[open_], rhs_NK[open_], bound_NK[open_])
        y[open_] = np.einsum("nij,nj->ni", gram_NKK[open_], x[open_]) - rhs_NK[open_]
    return np.clip(x, 0, bound_NK)


def _corrected(state: Ints, x: Floats, y: Floats, bound: Floats) -> Ints:
    """Where each column should be, judged by itself."""
    free = np.where(x < -TOLERANCE, LOWER, np.where(x > bound + TOLERANCE, UPPER, FREE))
    at_bound = np.where(state == LOWER, np.where(y < -TOLERANCE, FREE, LOWER), np.where(y > TOLERANCE, FREE, UPPER))
    return np.where(state == FREE, free, at_bound)


def _solve(state: Ints, gram: Floats, rhs: Floats, bound: Floats) -> Floats:
    """Least squares on each problem's free columns, the others at their bounds: rows and columns of these become the identity."""
    free: Bools = state == FREE
    fixed = np.where(state == UPPER, bound, 0.0)
    rest = np.where(free, rhs - np.einsum("nij,nj->ni", gram, fixed), fixed)
    both = free[:, :, None] & free[:, None, :]
    return np.linalg.solve(np.where(both, gram, np.eye(rhs.shape[1])), rest[:, :, None])[:, :, 0]
