"""Which modules do domains pull in opposite directions? Cosines of gradients, module by module, against random directions.

One cosine over all parameters hides conflict: modules that agree and modules that fight cancel (2606.02398). So each module has its
own, beside the share of the gradients' energy that lies in it, and beside the cosine that random directions of equal rank would have.

Axis letters: M modules, D domains, B batches, P parameters of a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mopd_diag.errors import BadInput
from mopd_diag.estimators.draws import Floats

DRAWS = 2000
CHANCE = 0.05
TINY = 1e-12
"""Added to a root mean square: a parameter that no batch moves is not moved."""


@dataclass(frozen=True, eq=False)
class GradientGeometry:
    """Pairs of domains in every module.

    `cosine_MDD`: of the mean gradients, in [−1, 1]; NaN where one is zero. `energy_MD`: share of a domain's squared gradient norm
    that lies in a module; sums to one over modules. `control_M`: |cosine| that two random directions with the spectrum of the
    module's own gradients exceed in 5 % of draws. `rank_M`: effective rank of that spectrum, (Σλ)²/Σλ². `whole_DD`: the cosine
    over all parameters together. `conflict_error_DD`, `synergy_error_DD`: standard errors of conflict and synergy by the jackknife over
    batches; NaN for one batch.
    """

    modules: tuple[str, ...]
    cosine_MDD: Floats
    energy_MD: Floats
    control_M: Floats
    rank_M: Floats
    whole_DD: Floats
    conflict_error_DD: Floats
    synergy_error_DD: Floats

    @property
    def conflict_DD(self) -> Floats:
        """Σ over modules of the pair's energy share times how far its cosine is below zero, in [0, 1]: what cancels nothing."""
        return self._weighted(np.maximum(-self.cosine_MDD, 0))

    @property
    def synergy_DD(self) -> Floats:
        """The same for cosines above zero."""
        return self._weighted(np.maximum(self.cosine_MDD, 0))

    @property
    def beyond_chance_MDD(self) -> npt.NDArray[np.bool_]:
        """Where a cosine is larger, either way, than random directions of equal rank give."""
        return np.abs(self.cosine_MDD) > self.control_M[:, None, None]

    @property
    def weight_MDD(self) -> Floats:
        """√(share of one domain's energy · share of the other's) in a module; sums over modules to at most one."""
        # Two domains that work in different modules can neither fight nor help.
        return np.sqrt(self.energy_MD[:, :, None] * self.energy_MD[:, None, :])

    def _weighted(self, value_MDD: Floats) -> Floats:
        return np.nansum(self.weight_MDD * np.nan_to_num(value_MDD), axis=0)


def gradient_geometry(
    gradients: Mapping[str, npt.ArrayLike], *, seed: int | Sequence[int] = 0, draws: int = DRAWS
) -> GradientGeometry:
    """Geometry of the domains' mean gradients. `gradients`: module → D × B × P, gradients of B batches of each domain.

    The control is drawn in the span of the module's own D·B gradients with the mean of each domain kept in, each direction as
    strong as they make it. Raises BadInput for fewer than 2 domains, for shapes that disagree, and for values that are not finite.
    """
    arrays = _checked(gradients)
    rng = np.random.default_rng(seed)
    grams, controls, ranks = [], [], []
    for g_DBP in arrays.values():
        rows = g_DBP.reshape(-1, g_DBP.shape[2]).astype(float)
        grams.append(rows @ rows.T)
        strength = np.clip(np.linalg.eigvalsh(grams[-1]), 0, None)
        controls.append(np.quantile(np.abs(_random_cosines(strength, rng, draws)), 1 - CHANCE))
        ranks.append(_effective_rank(strength))
    d, b = next(iter(arrays.values())).shape[:2]
    gram_MDBDB = np.stack(grams).reshape(-1, d, b, d, b)
    cosine_MDD, energy_MD, whole_DD = _shape(gram_MDBDB.mean((2, 4)))
    found = GradientGeometry(
        tuple(arrays), cosine_MDD, energy_MD, np.array(controls), np.array(ranks), whole_DD,
        np.full(whole_DD.shape, np.nan), np.full(whole_DD.shape, np.nan),
    )  # fmt: skip
    errors = {}
    if b > 1:
        kept = [np.delete(np.arange(b), left) for left in range(b)]
        shapes = [_shape(gram_MDBDB[:, :, k][:, :, :, :, k].mean((2, 4))) for k in kept]
        without = [replace(found, cosine_MDD=c, energy_MD=e, whole_DD=w) for c, e, w in shapes]
        errors = {
            "conflict_error_DD": _jackknife([w.conflict_DD for w in without]),
            "synergy_error_DD": _jackknife([w.synergy_DD for w in without]),
        }
    return replace(found, **errors)


def _shape(dot_MDD: Floats) -> tuple[Floats, Floats, Floats]:
    """Cosines and energy shares by module, and the cosine over everything, from inner products of mean gradients."""
    norm_MD = np.sqrt(np.diagonal(dot_MDD, axis1=1, axis2=2))
    whole_DD = dot_MDD.sum(0)
    length_D = np.sqrt(np.diagonal(whole_DD))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine_MDD = np.clip(dot_MDD / (norm_MD[:, :, None] * norm_MD[:, None, :]), -1, 1)
        return cosine_MDD, norm_MD**2 / (norm_MD**2).sum(0), np.clip(whole_DD / np.outer(length_D, length_D), -1, 1)


def _jackknife(without: Sequence[Floats]) -> Floats:
    """Standard error from values that each leave one batch out."""
    values = np.stack(without)
    n = len(values)
    return np.sqrt((n - 1) / n * ((values - values.mean(0)) ** 2).sum(0))


def first_order_effects(gradients: Mapping[str, npt.ArrayLike]) -> Floats:
    """What a small step on one domain does to another, by Taylor's first term: D × D, trained on × evaluated on.

    Every parameter's gradient is divided by its root mean square over all domains and batches, as Adam divides by what it has seen in
    the base's training on all of them. In units of what a step on the evaluated domain does for it: 1 on the diagonal, below zero
    harm; NaN where a domain's own step does nothing. `gradients`: as for `gradient_geometry`, of what is to fall. Raises BadInput as
    it does.
    """
    effects = []
    for g_DBP in _checked(gradients).values():
        mean_DP = g_DBP.mean(1, dtype=float)
        scale_P = np.sqrt((g_DBP.astype(float) ** 2).mean((0, 1))) + TINY
        effects.append((mean_DP / scale_P) @ mean_DP.T)
    effect_DD = np.sum(effects, axis=0)
    own_D = np.diagonal(effect_DD)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(own_D > 0, effect_DD / own_D, np.nan)


def _checked(gradients: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[Any]]:
    arrays = {m: np.asarray(g) for m, g in gradients.items()}
    shapes = {g.shape[:2] for g in arrays.values() if g.ndim == 3}
    if len(shapes) != 1 or any(g.ndim != 3 for g in arrays.values()) or next(iter(shapes))[0] < 2:
        found = {m: g.shape for m, g in arrays.items()}
        raise BadInput(f"expected gradients of the same 2 or more domains as D × B × P in every module, got {found}")
    wrong = next((m for m, g in arrays.items() if not np.isfinite(g).all()), None)
    if wrong is not None:
        raise BadInput(f"gradients of module {wrong!r} are not finite; leave out the batch that overflowed")
    return arrays


def _random_cosines(strength: Floats, rng: np.random.Generator, draws: int) -> Floats:
    """Cosines of two independent Gaussian directions with these variances, one a draw; NaN when there are none."""
    if not strength.sum() > 0:
        return np.full(draws, np.nan)
    scale = np.sqrt(strength / strength.sum())
    a, b = (rng.standard_normal((draws, len(scale))) * scale for _ in range(2))
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def _effective_rank(strength: Floats) -> float:
    return float(strength.sum() ** 2 / (strength**2).sum()) if strength.sum() > 0 else 0.0


def auroc(score: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Chance that a positive scores above a negative, ties half; NaN without both kinds."""
    values: npt.NDArray[Any] = np.asarray(score, dtype=float)
    flags = np.asarray(positive, dtype=bool)
    yes, no = values[flags], values[~flags]
    if not len(yes) or not len(no):
        return float("nan")
    return float(((yes[:, None] > no).sum() + 0.5 * (yes[:, None] == no).sum()) / (len(yes) * len(no)))
