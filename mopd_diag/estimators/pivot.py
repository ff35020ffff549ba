"""The pivot of a failed answer: the token at which the chance of success falls most, and how sure that is.

V(t) = P(success | the first t tokens of the answer, continued by one model), measured by continuations: k_t of n_t succeed. The fall at
token t is V(t) − V(t + 1); behind the last token the answer has failed, so V is 0 there, exactly. Falls add up to V(0).

Everything is read off one posterior: V(t) ~ Beta(k_t + 1/2, n_t − k_t + 1/2), prefixes independent (Jeffreys' prior). A pivot is named
when, with probability `SURE`, one and the same token has the largest fall and that fall is at least `SMALLEST_FALL`; else the answer is
abstained on. One joint statement needs no correction for the number of tokens that were looked at.

Axis letters: T tokens the model chose itself, R posterior draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from mopd_diag.errors import BadInput
from mopd_diag.estimators.draws import Floats, Seed
from mopd_diag.types import Estimate

SURE = 0.9
"""Probability from which on a pivot is named."""
SMALLEST_FALL = 0.1
"""A smaller fall of the chance of success explains no failure."""
CREDIBLE = 0.95
DRAWS = 4000
METHOD = "Jeffreys interval over continuations of one answer"


@dataclass(frozen=True)
class Pivot:
    """Where the value falls. `at` is the index of the token among the T, None when abstained (`reason` says why).

    `likeliest` is the token that most probably has the largest fall, whether or not that is sure; `candidates` are the fewest tokens that
    together hold it with probability 0.95. `probability_T`: that the fall at a token is the largest one and large enough. `fall` is
    measured at `likeliest`, which was chosen for it: it is somewhat too large when the pivot is not sure.
    """

    at: int | None
    likeliest: int
    probability_T: Floats
    fall: Estimate
    candidates: tuple[int, ...]
    reason: str = ""


def share(successes: int, tried: int, *, level: float = 0.95) -> Estimate:
    """Share of continuations that succeed, with Jeffreys' interval (Brown, Cai & DasGupta 2001): it covers continuations, not items."""
    if tried == 0:
        return Estimate.undefined("nothing was continued", method=METHOD)
    if not 0 <= successes <= tried:
        raise BadInput(f"{successes} successes of {tried} continuations: expected between 0 and {tried}")
    tail = (1 - level) / 2
    low, high = stats.beta.ppf([tail, 1 - tail], successes + 0.5, tried - successes + 0.5)
    low, high = (0.0 if successes == 0 else float(low)), (1.0 if successes == tried else float(high))
    return Estimate(successes / tried, low, high, level, "share", tried, tried, METHOD)


def gain(before: tuple[int, int], after: tuple[int, int], *, seed: Seed = 0, level: float = 0.95) -> Estimate:
    """Difference of two shares, after − before, each (successes, tried): positive when `after` succeeds more often."""
    if not (before[1] and after[1]):
        return Estimate.undefined("nothing was continued", unit="difference", method=METHOD)
    rng = np.random.default_rng(seed)
    draws = _beta(rng, *map(np.array, after)) - _beta(rng, *map(np.array, before))
    return _interval(after[0] / after[1] - before[0] / before[1], draws, before[1] + after[1], level)


def find_pivot(successes_T: npt.ArrayLike, tried_T: npt.ArrayLike, *, seed: Seed = 0, level: float = 0.95) -> Pivot:
    """The pivot of one failed answer from `successes_T` of `tried_T` continuations of the prefix *before* each of its T tokens.

    Raises BadInput for shapes that differ, prefixes without continuations, and no tokens.
    """
    k_T, n_T = np.asarray(successes_T, dtype=float), np.asarray(tried_T, dtype=float)
    if k_T.shape != n_T.shape or k_T.ndim != 1 or not len(k_T):
        raise BadInput(f"expected two equal rows of at least one token, got shapes {k_T.shape} and {n_T.shape}")
    if (n_T < 1).any() or (k_T < 0).any() or (k_T > n_T).any():
        raise BadInput("every prefix needs at least one continuation, and from 0 to all of them succeeding")
    values_RT = _beta(np.random.default_rng(seed), k_T, n_T)
    fall_RT = values_RT - np.pad(values_RT[:, 1:], ((0, 0), (0, 1)))
    largest_R = fall_RT.argmax(1)
    enough_R = fall_RT.max(1) >= SMALLEST_FALL
    probability_T = np.bincount(largest_R[enough_R], minlength=len(k_T)) / len(fall_RT)
    measured_T = k_T / n_T - np.append(k_T[1:] / n_T[1:], 0.0)
    likeliest = int(probability_T.argmax() if probability_T.any() else measured_T.argmax())
    behind = n_T[likeliest + 1] if likeliest + 1 < len(n_T) else 0
    fall = _interval(measured_T[likeliest], fall_RT[:, likeliest], int(n_T[likeliest] + behind), level)
    sure = probability_T[likeliest] >= SURE
    reason = "" if sure else _reason(float(probability_T.sum()), float(k_T[0] / n_T[0]))
    return Pivot(likeliest if sure else None, likeliest, probability_T, fall, _credible(probability_T), reason)


def _reason(any_fall: float, start: float) -> str:
    if any_fall < SURE and start < SMALLEST_FALL:
        return (
            f"it hardly ever succeeds from here on ({start:.0%} before the first token): there is nothing to fall from"
        )
    if any_fall < SURE:
        return f"no fall is surely as large as {SMALLEST_FALL:.0%}"
    return "several tokens compete for the largest fall"


def _credible(probability_T: Floats) -> tuple[int, ...]:
    """The fewest tokens that hold the largest fall with probability `CREDIBLE`, in their order; none where there is no fall."""
    order = np.argsort(-probability_T, kind="stable")
    needed = int(np.searchsorted(np.cumsum(probability_T[order]), CREDIBLE * probability_T.sum())) + 1
    return tuple(sorted(int(i) for i in order[:needed] if probability_T[i] > 0))


def _beta(rng: np.random.Generator, successes: npt.NDArray[Any], tried: npt.NDArray[Any]) -> Floats:
    """R draws of each value from its posterior."""
    return rng.beta(successes + 0.5, tried - successes + 0.5, size=(DRAWS, *successes.shape))


def _interval(value: float, draws: Floats, n: int, level: float) -> Estimate:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    value = float(value)
    return Estimate(value, min(float(low), value), max(float(high), value), level, "difference", n, n, METHOD)
