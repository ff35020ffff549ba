"""How far the sampler is from the trainer: statistics of the importance weights of sampled tokens.

An engine that samples (other kernels, another precision) draws from μ, the trainer computes π for the same weights of the model. The
weight w = π(y) / μ(y) of a drawn token is 1 where they agree, and its expectation under μ is 1 whatever they are. MOPD's truncated
weight (2606.30406) exists for what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mopd_diag.errors import BadInput

OUTSIDE = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class ImportanceWeights:
    """`mean` and `largest` of w; `outside`: share of tokens with w outside [0.5, 2]; `effective`: (Σw)² / (n Σw²), the share of an
    independent sample that is left, 1 where all weights are equal; `gap`: mean and largest |log w|, nats. NaN without tokens."""

    tokens: int
    mean: float
    largest: float
    outside: float
    effective: float
    gap_mean: float
    gap_largest: float


def importance_weights(
    trainer_logp: npt.ArrayLike, sampler_logp: npt.ArrayLike, own: npt.ArrayLike | None = None
) -> ImportanceWeights:
    """Weight statistics of tokens that the sampler drew, from log π and log μ of the same tokens, nats, arrays of one shape.

    Both must be at the temperature that was sampled with. `own` is False for tokens that were not drawn; they may hold anything.
    Raises BadInput for shapes that differ, or numbers on drawn tokens that are not finite.
    """
    trainer, sampler = np.asarray(trainer_logp, dtype=float), np.asarray(sampler_logp, dtype=float)
    drawn = np.ones(trainer.shape, dtype=bool) if own is None else np.asarray(own, dtype=bool)
    if trainer.shape != sampler.shape or drawn.shape != trainer.shape:
        raise BadInput(
            f"expected one log-probability of each token from both, got shapes {trainer.shape}, {sampler.shape} and {drawn.shape}"
        )
    log_w = (trainer[drawn] - sampler[drawn]).ravel()
    if not np.isfinite(log_w).all():
        raise BadInput(
            f"{int((~np.isfinite(log_w)).sum())} of {len(log_w)} tokens have no finite log-probability; were they sampled with them?"
        )
    if not len(log_w):
        return ImportanceWeights(0, *[math.nan] * 6)
    w = np.exp(log_w)
    # Relative to the largest, so that no square overflows.
    relative = np.exp(log_w - log_w.max())
    return ImportanceWeights(
        len(w), float(w.mean()), float(w.max()), float(np.mean((w < OUTSIDE[0]) | (w > OUTSIDE[1]))),
        float(relative.sum() ** 2 / (len(w) * (relative**2).sum())), float(np.abs(log_w).mean()), float(np.abs(log_w).max()),
    )  # fmt: skip
