"""The chunked head: logits exist for a few positions at a time, never for all of them under all models.

Axis letters: M selected positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = 1 << 22
"""Logits held at once by one model (16 MiB in fp32): larger does not run faster, smaller pays per call."""

ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, dict[str, Tensor]]]
"""(logits_mV of a chunk, which of the M positions) → weighted losses [m], and detached values [m] to report."""


def chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    """Slices of the positions whose logits fit in `CHUNK_ELEMENTS`."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    for start in range(0, positions, size):
        yield slice(start, min(start + size, positions))


class _HeadLoss(torch.autograd.Function):
    """Sum of a loss over positions; gradients are made chunk by chunk in the forward pass and scaled in the backward."""

    @staticmethod
    def forward(ctx, hidden_MD: Tensor, head_VD: Tensor, loss: ChunkLoss, report: dict[str, list[Tensor]]) -> Tensor:  # noqa: ANN001
        grad_hidden = torch.zeros_like(hidden_MD)
        head = head_VD.detach().requires_grad_(ctx.needs_input_grad[1])
        total = hidden_MD.new_zeros(())
        for part in chunks(hidden_MD.shape[0], head_VD.shape[0]):
            with torch.enable_grad():
                hidden = hidden_MD[part].detach().requires_grad_()
                losses, values = loss(F.linear(hidden, head), part)
                value = losses.sum()
                value.backward()
            total += value.detach()
            if hidden.grad is not None:
                grad_hidden[part] = hidden.grad
            for name, each in values.items():
                report.setdefault(name, []).append(each)
        ctx.save_for_backward(grad_hidden, head.grad)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # noqa: ANN001  # type: ignore[override]
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad, None if grad_head is None else grad_head * grad, None, None


def head_loss(hidden_MD: Tensor, head_VD: Tensor, loss: ChunkLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ loss over the positions, with gradients to the hidden states and the head, and the reported values [M] by name.

    Peak memory is one chunk of logits and their gradient, whatever M (the idea of fused linear cross-entropy, 2410.10989).
    """
    report: dict[str, list[Tensor]] = {}
    total = _HeadLoss.apply(hidden_MD, head_VD, loss, report)
    return total, {name: torch.cat(parts) for name, parts in report.items()}
