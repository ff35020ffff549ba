"""Which modules do domains pull in opposite directions? Cosines of gradients, module by module, against random directions.

One cosine over all parameters hides conflict: modules that agree and modules that fight cancel (2606.02398). So each module has its
own, beside the share of the gradients' energy that lies in it, and beside the cosine that random directions of equal rank would have.

Axis letters: M modules, D domains, B batches, P parameters of a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mopd_diag.errors import BadInput
from mopd_diag.estimators.draws import Floats

DRAWS = 2000


@dataclass(frozen=True, eq=False)
class GradientGeometry:
    """Pairs of domains in every module.

    `cosine_MDD`: of the mean gradients, in [−1, 1]; NaN where one is zero. `energy_MD`: share of a domain's squared gradient norm
    that lies in a module; sums to one over modules. `control_M`: |cosine| that two random directions with the spectrum of the
    module's own gradients exceed in 5 % of draws. `rank_M`: effective rank of that spectrum, (Σλ)²/Σλ². `whole_DD`: the cosine
    over all parameters together.
    """

    modules: tuple[str, ...]
    cosine_MDD: Floats
    energy_MD: Floats
    control_M: Floats
    rank_M: Floats
    whole_DD: Floats

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

    def _weighted(self, value_MDD: Floats) -> Floats:
        # Σ_m √(a_m b_m) ≤ 1: two domains that work in different modules can neither fight nor help.
        weight = np.sqrt(self.energy_MD[:, :, None] * self.energy_MD[:, None, :])
        return np.nansum(weight * np.nan_to_num(value_MDD), axis=0)


def gradient_geometry(
    gradients: Mapping[str, npt.ArrayLike], *, seed: int | Sequence[int] = 0, draws: int = DRAWS
) -> GradientGeometry:
    """Geometry of the domains' mean gradients. `gradients`: module → D × B × P, gradients of B batches of each domain.

    The control is drawn in the span of the module's own D·B gradients with the mean of each domain kept in, each direction as
    strong as they make it. Raises BadInput for fewer than 2 domains, for shapes that disagree, and for values that are not finite.
    """
    arrays = {m: np.asarray(g, dtype=float) for m, g in gradients.items()}
    shapes = {g.shape[:2] for g in arrays.values() if g.ndim == 3}
    if len(shapes) != 1 or any(g.ndim != 3 for g in arrays.values()) or next(iter(shapes))[0] < 2:
        found = {m: g.shape for m, g in arrays.items()}
        raise BadInput(f"expected gradients of the same 2 or more domains as D × B × P in every module, got {found}")
    wrong = next((m for m, g in arrays.items() if not np.isfinite(g).all()), None)
    if wrong is not None:
        raise BadInput(f"gradients of module {wrong!r} are not finite; leave out the batch that overflowed")
    rng = np.random.default_rng(seed)
    dots, controls, ranks = [], [], []
    for g_DBP in arrays.values():
        mean_DP = g_DBP.mean(1)
        dots.append(mean_DP @ mean_DP.T)
        rows = g_DBP.reshape(-1, g_DBP.shape[2])
        strength = np.clip(np.linalg.eigvalsh(rows @ rows.T), 0, None)
        controls.append(_random_cosine(strength, rng, draws))
        ranks.append(_effective_rank(strength))
    dot_MDD = np.stack(dots)
    norm_MD = np.sqrt(np.diagonal(dot_MDD, axis1=1, axis2=2))
    whole = dot_MDD.sum(0)
    length = np.sqrt(np.diagonal(whole))
    with np.errstate(divide="ignore", invalid="ignore"):
        return GradientGeometry(
            tuple(arrays),
            np.clip(dot_MDD / (norm_MD[:, :, None] * norm_MD[:, None, :]), -1, 1),
            norm_MD**2 / (norm_MD**2).sum(0),
            np.array(controls),
            np.array(ranks),
            np.clip(whole / np.outer(length, length), -1, 1),
        )


def _random_cosine(strength: Floats, rng: np.random.Generator, draws: int) -> float:
    """95 % quantile of |cosine| of two independent Gaussian directions with these variances; NaN when there are none."""
    if not strength.sum() > 0:
        return float("nan")
    scale = np.sqrt(strength / strength.sum())
    a, b = (rng.standard_normal((draws, len(scale))) * scale for _ in range(2))
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.quantile(np.abs(cosine), 0.95))


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
