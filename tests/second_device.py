"""A second device for tests: its tensors hold CPU memory, say that they lie elsewhere, and refuse to meet tensors of the CPU.

What runs here without a `Mixed` error names its devices right; which kernels a GPU would choose, it cannot tell.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils import _foreach_utils, backend_registration
from torch.utils._pytree import tree_flatten, tree_map

NAME = "second"


class Mixed(RuntimeError):
    """Two devices met in one operation."""


class Elsewhere(torch.Tensor):
    """A tensor of the second device; `raw` is its memory."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=torch.device(NAME, 0)
        )  # fmt: skip
        made.raw = raw
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.raw!r})"

    def tolist(self) -> Any:
        return self.raw.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise Mixed("numpy reads the CPU's memory only")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """On the memory of the operands; what was an operand comes back as that operand."""
    operands = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    copies = func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._copy_from)
    # As on a GPU, a number of the CPU may meet a tensor of any device.
    plain = [t for t in operands if not isinstance(t, Elsewhere) and t.dim()]
    if plain and len(plain) < len(operands) and not copies:
        raise Mixed(f"{func} was given tensors of {sorted({str(t.device) for t in operands})}")
    named = [d for d in tree_flatten((args, kwargs))[0] if isinstance(d, torch.device)]
    here = named[0].type == NAME if named else any(isinstance(t, Elsewhere) for t in operands)
    if func is torch.ops.aten._copy_from.default:  # (from, to): how torch.tensor(…, device=…) fills what it made
        _raw(args[1]).copy_(_raw(args[0]))
        return args[1]
    if func is torch.ops.aten._conj.default:  # a lazy conjugate would be forgotten: its mark stands on the outer tensor
        func = torch.ops.aten.conj_physical.default
    known = {id(_raw(t)): t for t in operands}

    def back(t: Any) -> Any:
        if not isinstance(t, Tensor) or (not here and id(t) not in known):
            return t
        return (
            (known[id(t)] if id(t) in known else Elsewhere(t)) if here else t.clone()
        )  # `to` may give back what it was given

    with torch.inference_mode(False):  # torch cannot wrap what it makes in that mode
        return tree_map(back, func(*tree_map(_raw, args), **tree_map(_raw, kwargs)))


def _raw(each: Any) -> Any:
    if isinstance(each, torch.device):
        return torch.device("cpu")
    return each.raw if isinstance(each, Elsewhere) else each


LOWERED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
RAISED = (
    "rms_norm", "softmax.int", "log_softmax.int", "nll_loss", "logsumexp", "exp", "expm1", "log", "log1p", "pow.Tensor_Scalar",
    "rsqrt", "reciprocal", "cumsum", "sum", "sum.dim_IntList",
)  # fmt: skip
"""What torch.autocast makes of the operators used here on CUDA: products in the lower precision, these in fp32."""


def _autocast(library: torch.library.Library) -> None:
    for names, dtype in ((LOWERED, torch.bfloat16), (RAISED, torch.float32)):
        for name in names:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA"), name
            packet, _, overload = name.partition(".")
            call = _cast(getattr(getattr(torch.ops.aten, packet), overload or "default"), dtype)
            library.impl(name, call, "AutocastPrivateUse1")


def _cast(op: Any, dtype: torch.dtype) -> Any:
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, "AutocastPrivateUse1"))  # noqa: B009
    cast = lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t  # noqa: E731

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            return op(*tree_map(cast, args), **tree_map(cast, kwargs))

    return call


class _Module:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_LIBRARIES: list[torch.library.Library] = []


def register() -> torch.device:
    """Make the device known to torch, once a process."""
    if not _LIBRARIES:
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        library = torch.library.Library("aten", "IMPL")
        # Tensors answer for themselves; what makes one of nothing, or fills one below autograd, has none to ask.
        for op in (*_factories(), torch.ops.aten._copy_from.default):
            call = lambda *args, op=op, **kwargs: _run(op, args, kwargs)  # noqa: E731
            library.impl(op.name().removeprefix("aten::"), call, "PrivateUse1")
        _autocast(library)
        others = torch.library.Library("_", "IMPL")
        others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        _LIBRARIES.extend((library, others))
        _foreach_utils._foreach_supported_types.append(Elsewhere)  # else torch would not clip norms here
    return torch.device(NAME, 0)


ASKED = "MOPD_DIAG_SECOND_DEVICE"
"""Environment variable of the process in which `test_device.py` runs what needs the device: torch does not forget one again."""


def registered() -> Any:
    """The device, in a process that is there for it."""
    return register() if ASKED in os.environ else None


def _factories() -> list[Any]:
    """Every operator that is told a device and given no tensor."""
    found = []
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if not full.startswith("aten::") or not hasattr(torch.ops.aten, name):
            continue
        op = getattr(getattr(torch.ops.aten, name), overload or "default", None)
        kinds = [(a.name, str(a.type)) for a in op._schema.arguments] if op else []
        composite = op is not None and torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd")
        if any(n == "device" for n, _ in kinds) and not any("Tensor" in t for _, t in kinds) and not composite:
            found.append(op)
    return found
