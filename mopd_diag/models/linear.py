"""x · Wᵀ on the faster of torch's two matrix libraries.

In fp32 on a CPU torch asks MKL, which falls back to AVX2 on processors that are not Intel's; oneDNN, in the same wheel, goes
by what the processor can do. On an AMD EPYC it is 1.3 to 2.4 times as fast from some hundred rows on (`bench training` prints
both rates), 1.4 to 2.1 times on the matrices of SmolLM2-135M with 1 to 64 rows, and it computes in the same precision.

Axis letters: M rows, K inner, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ENOUGH = 256
"""Rows from which oneDNN is clearly ahead on small weights."""

LARGE = 1 << 18
"""Entries of a weight with which a product takes so long that oneDNN is ahead for any number of rows, a new kernel included."""

QUANTUM = 16
"""oneDNN builds and keeps a kernel for every number of rows, in 0.4 ms each: only multiples of this are given to it
where weights are small. The rule looks at shapes alone, because a resumed run must choose as the interrupted one did."""

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight_OK: Tensor) -> Tensor:
    """x[..., K] · Wᵀ, differentiable in both; `F.linear` wherever oneDNN is absent, not faster or not meant for the tensor."""
    rows = x.numel() // x.shape[-1]
    if weight_OK.numel() < LARGE and (rows < ENOUGH or rows % QUANTUM):
        return F.linear(x, weight_OK)
    if not _ONEDNN or x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight_OK)
    if torch.is_grad_enabled() and (x.requires_grad or weight_OK.requires_grad):
        return _Linear.apply(x, weight_OK)
    return _onednn(x, weight_OK)


def _onednn(x: Tensor, weight_OK: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight_OK, None, "none", [], "")


class _Linear(torch.autograd.Function):
    """The same product with the derivative that torch has only for its own."""

    @staticmethod
    def forward(ctx, x: Tensor, weight_OK: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(x, weight_OK)
        return _onednn(x, weight_OK)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN001  # type: ignore[override]
        x, weight_OK = ctx.saved_tensors
        grad_x = _onednn(grad, weight_OK.t()) if ctx.needs_input_grad[0] else None
        grad_MO, x_MK = grad.flatten(0, -2), x.flatten(0, -2)
        grad_weight = _onednn(grad_MO.t(), x_MK.t()) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight
