"""How likely is it that a listed teacher taught this, and which one? Two logistic models on pooled evidence.

The models' weights come from casts whose truth is known (`bench/provenance`); here is only their arithmetic. What a single answer
cannot tell is asked of the answers *around* it, those of the same domain, and of the whole cast.

Axis letters: N groups, K teachers, D decoys, C features of a teacher, F features of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from mopd_diag.estimators.attribution import FLOOR, Pooled, alone, shares
from mopd_diag.estimators.evidence import Floats, Ints

FAINT = 1e-3
"""nats added to every divergence before a ratio is taken: two trainings that agree differ by as much."""
FARTHEST = 5.0
"""Log-ratios are cut here: beyond a factor of 150 more says no more."""
LITTLE = 0.05
"""Added to shares before a ratio is taken."""
CHOICE = ("near", "along", "along_around")
INHERITED = (
    "near", "joint", "near_around", "along_around", "unexplained", "size", "lift", "rivalry", "rivalry_around",
)  # fmt: skip


def around(pooled: Pooled, place_N: Ints) -> Pooled:
    """The sums of `pooled` over the groups of one place (ids 0, 1, … such as domains), handed back to each group."""
    size = int(place_N.max(initial=-1)) + 1

    def sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        total = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
        np.add.at(total, place_N, values)
        return total

    largest = np.zeros(size)
    np.maximum.at(largest, place_N, pooled.unexplained_N)
    parts: dict[str, Any] = {n: sums(getattr(pooled, n)) for n in Pooled.__dataclass_fields__}
    parts["unexplained_N"] = largest
    whole = Pooled(**parts)
    return take(whole, place_N)


def take(pooled: Pooled, rows: Ints) -> Pooled:
    """Some groups, in the order given."""
    return Pooled(*(getattr(pooled, name)[rows] for name in Pooled.__dataclass_fields__))


def _log_ratio(above: npt.ArrayLike, below: npt.ArrayLike) -> Floats:
    """log((above + FAINT) / (below + FAINT)), within ±FARTHEST."""
    ratio = np.log(np.asarray(above, dtype=float) + FAINT) - np.log(np.asarray(below, dtype=float) + FAINT)
    return np.clip(ratio, -FARTHEST, FARTHEST)


def choice_features(pooled: Pooled, near: Pooled) -> Floats:
    """(N, K, C): how much nearer than the base each teacher is, and how much of the shift it alone explains, in the group and around
    it; all logs, larger for a better explanation."""
    return np.stack([_near(pooled), _along(pooled), _along(near)], -1)


def _near(pooled: Pooled) -> Floats:
    return _log_ratio(pooled.kl_base_N[:, None], pooled.kl_NK)


def _along(pooled: Pooled) -> Floats:
    return -np.log(np.maximum(alone(pooled.gram_NSS)[1], FLOOR))


def inherited_features(pooled: Pooled, near: Pooled, best_N: Ints) -> Floats:
    """(N, F): features of each group and its best teacher, in the order INHERITED. Needs at least one decoy."""
    row = np.arange(len(best_N))
    own = np.nan_to_num(shares(pooled.gram_NSS)[1], nan=1.0)
    columns = [
        _near(pooled)[row, best_N], -np.log(np.maximum(own, FLOOR)), _near(near)[row, best_N], _along(near)[row, best_N],
        np.log1p(pooled.unexplained_N), np.log(pooled.kl_base_N + FAINT),
        np.clip(pooled.lift_NK[row, best_N], -FARTHEST, FARTHEST), _rivalry(pooled, best_N), _rivalry(near, best_N),
    ]  # fmt: skip
    return np.stack(columns, -1)


def _rivalry(pooled: Pooled, best_N: Ints) -> Floats:
    """Log-ratio (N) of the best teacher's share of the shift to the largest decoy's, when both compete to explain it."""
    n_teachers = pooled.kl_NK.shape[1]
    share = np.nan_to_num(shares(pooled.gram_NRR)[0])
    of_best, of_decoys = share[np.arange(len(best_N)), best_N], share[:, n_teachers:].max(1)
    return np.log(of_best + LITTLE) - np.log(of_decoys + LITTLE)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """`choice` (C) weighs a teacher's features in a conditional logit, `inherited` (F) and `bias` a group's in a logistic model."""

    choice: Floats
    inherited: Floats
    bias: float

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Model:
        """From the numbers of a calibration file, by name. Raises KeyError for a feature it lacks."""
        weights = {name: np.array([float(document[name][f]) for f in features]) for name, features in
                   (("choice", CHOICE), ("inherited", INHERITED))}  # fmt: skip
        return cls(weights["choice"], weights["inherited"], float(document["bias"]))


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """`inherited_N`: P(some listed teacher taught it). `choice_NK`: P(this one | a listed one did); rows sum to one."""

    inherited_N: Floats
    choice_NK: Floats

    @property
    def teacher_NK(self) -> Floats:
        """P(this teacher taught it)."""
        return self.inherited_N[:, None] * self.choice_NK


def origin(pooled: Pooled, near: Pooled, model: Model) -> Origin:
    """Probabilities of where each group comes from, given what surrounds it (`around`). Needs at least one decoy."""
    features = choice_features(pooled, near)
    choice = special.softmax(features @ model.choice, axis=1)
    table = inherited_features(pooled, near, choice.argmax(1))
    return Origin(special.expit(table @ model.inherited + model.bias), choice)
