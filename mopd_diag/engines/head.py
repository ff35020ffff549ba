"""The chunked head: logits exist for a few positions at a time, never for all of them under all models.

Axis letters: M selected positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mopd_diag.models.device import room
from mopd_diag.models.linear import QUANTUM, linear

CHUNK_ELEMENTS = 1 << 22
"""Logits held at once by one model (16 MiB in fp32): larger does not run faster, smaller pays per call."""

ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, dict[str, Tensor]]]
"""(logits_mV of a chunk, which of the M positions) → weighted losses [m], and detached values [m] to report."""


def chunks(positions: int, vocabulary: int, device: torch.device | None = None) -> Iterator[slice]:
    """Slices of the positions whose logits fit in `CHUNK_ELEMENTS`, or on a device in as many times that as it has room for."""
    size = max(1, CHUNK_ELEMENTS * (1 if device is None else room(device)) // vocabulary)
    for start in range(0, positions, size):
        yield slice(start, min(start + size, positions))


class _HeadLoss(torch.autograd.Function):
    """Sum of a loss over positions; gradients are made chunk by chunk in the forward pass and scaled in the backward."""

    @staticmethod
    def forward(ctx, hidden_MD: Tensor, head_VD: Tensor, loss: ChunkLoss, report: dict[str, list[Tensor]]) -> Tensor:  # noqa: ANN001
        grad_hidden = torch.zeros_like(hidden_MD)
        grad_head = torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None
        total = hidden_MD.new_zeros(())
        for part in chunks(hidden_MD.shape[0], head_VD.shape[0], hidden_MD.device):
            logits = linear(hidden_MD[part], head_VD).requires_grad_()
            with torch.enable_grad():
                losses, values = loss(logits, part)
                value = losses.sum()
                value.backward()
            total += value.detach()
            if logits.grad is not None:
                grad_hidden[part] = linear(logits.grad, head_VD.t())
                if grad_head is not None:
                    _add_product(grad_head, logits.grad, hidden_MD[part])
            for name, each in values.items():
                report.setdefault(name, []).append(each)
        ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # noqa: ANN001  # type: ignore[override]
        grad_hidden, grad_head = ctx.saved_tensors
        # In place, because a large head's gradient is the largest tensor there is: so one forward pass allows one backward pass.
        return grad_hidden.mul_(grad), None if grad_head is None else grad_head.mul_(grad), None, None


def _add_product(into_VD: Tensor, left_MV: Tensor, right_MD: Tensor) -> None:
    """into += leftᵀ·right, some rows at a time: no second tensor of its size."""
    size = max(QUANTUM, CHUNK_ELEMENTS // into_VD.shape[1] // QUANTUM * QUANTUM)
    for start in range(0, into_VD.shape[0], size):
        rows = slice(start, start + size)
        into_VD[rows] += linear(left_MV[:, rows].t(), right_MD.t())


def head_loss(hidden_MD: Tensor, head_VD: Tensor, loss: ChunkLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ loss over the positions, with gradients to the hidden states and the head, and the reported values [M] by name.

    Peak memory is one chunk of logits and their gradient, whatever M (the idea of fused linear cross-entropy, 2410.10989).
    """
    report: dict[str, list[Tensor]] = {}
    total = _HeadLoss.apply(hidden_MD, head_VD, loss, report)
    return total, {name: torch.cat(parts) for name, parts in report.items()}
