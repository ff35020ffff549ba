"""Merging specialists by arithmetic on their parameters; nothing is sampled or trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mopd_diag.models.decoder import Decoder


@torch.no_grad()
def average(models: Sequence[Decoder]) -> Decoder:
    """The mean of the models' parameters (model soups, 2203.05482). Raises ValueError when shapes differ."""
    return _combine(models, [1 / len(models)] * len(models))


@torch.no_grad()
def task_arithmetic(base: Decoder, models: Sequence[Decoder], scale: float) -> Decoder:
    """base + scale · Σ (model − base) (2212.04089). Raises ValueError when shapes differ."""
    return _combine([base, *models], [1 - scale * len(models)] + [scale] * len(models))


@torch.no_grad()
def ties(base: Decoder, models: Sequence[Decoder], scale: float, density: float) -> Decoder:
    """base + scale · the models' shifts, merged by trimming, electing signs and averaging the agreeing ones (TIES, 2306.01708).

    Raises ValueError when shapes differ.
    """
    _check_sizes([base, *models])
    flat = lambda m: torch.cat([p.detach().flatten().double() for p in m.parameters()])  # noqa: E731
    start_P = flat(base)
    shift_P = ties_shift(torch.stack([flat(m) - start_P for m in models]), density)
    merged, at = Decoder(base.config), 0
    for parameter in merged.parameters():
        end = at + parameter.numel()
        parameter.copy_((start_P[at:end] + scale * shift_P[at:end]).view(parameter.shape))
        at = end
    return merged


def ties_shift(shift_KP: Tensor, density: float) -> Tensor:
    """One shift [P] from those of K models: of each keep the `density` largest entries over all its parameters, elect the sign of
    each parameter's sum, average the kept entries of that sign. A parameter whose kept entries cancel, or are none, stays."""
    keep = max(1, round(density * shift_KP.shape[1]))
    top_KT = shift_KP.abs().topk(keep, 1).indices
    trimmed_KP = torch.zeros_like(shift_KP).scatter_(1, top_KT, shift_KP.gather(1, top_KT))
    agrees_KP = (trimmed_KP.sign() == trimmed_KP.sum(0).sign()) & (trimmed_KP != 0)
    return torch.where(agrees_KP, trimmed_KP, 0.0).sum(0) / agrees_KP.sum(0).clamp(min=1)


def _check_sizes(models: Sequence[Decoder]) -> None:
    if len({m.config for m in models}) != 1:
        raise ValueError("models of different sizes cannot be merged")


def _combine(models: Sequence[Decoder], factors: Sequence[float]) -> Decoder:
    _check_sizes(models)
    merged = Decoder(models[0].config)
    tables = [dict(m.named_parameters()) for m in models]
    for name, parameter in merged.named_parameters():
        # Float64: the result must not depend on the order of the models.
        total = sum(f * t[name].double() for f, t in zip(factors, tables, strict=True))
        parameter.copy_(total)  # type: ignore[arg-type]
    return merged
