"""Merging specialists by arithmetic on their parameters; nothing is sampled or trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mopd_diag.models.decoder import Decoder


@torch.no_grad()
def average(models: Sequence[Decoder]) -> Decoder:
    """The mean of the models' parameters (model soups, 2203.05482). Raises ValueError when shapes differ."""
    return _combine(models, [1 / len(models)] * len(models))


@torch.no_grad()
def task_arithmetic(base: Decoder, models: Sequence[Decoder], scale: float) -> Decoder:
    """base + scale · Σ (model − base) (2212.04089). Raises ValueError when shapes differ."""
    return _combine([base, *models], [1 - scale * len(models)] + [scale] * len(models))


def _combine(models: Sequence[Decoder], factors: Sequence[float]) -> Decoder:
    if len({m.config for m in models}) != 1:
        raise ValueError("models of different sizes cannot be merged")
    merged = Decoder(models[0].config)
    tables = [dict(m.named_parameters()) for m in models]
    for name, parameter in merged.named_parameters():
        # Float64: the result must not depend on the order of the models.
        total = sum(f * t[name].double() for f, t in zip(factors, tables, strict=True))
        parameter.copy_(total)  # type: ignore[arg-type]
    return merged
