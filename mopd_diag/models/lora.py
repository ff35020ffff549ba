"""Low-rank adapters (LoRA, 2106.09685) of the fast decoder, in and out of peft's files.

The decoder always holds whole weights, base + adapter: sampling, scoring and training run on them unchanged. A backward pass turns the
gradient of each whole matrix into those of its two factors as soon as it is there, and drops it.

Axis letters: O outputs, I inputs of a projection, R rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mopd_diag.errors import BadInput, CheckpointError, writing
from mopd_diag.models.decoder import Decoder, half_split, interleave

PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",),
}  # fmt: skip
"""The decoder's fused matrices and the projections that stand in them, from top to bottom."""
TURNED = ("q_proj", "k_proj")
"""Projections whose rows stand in another order here than in Hugging Face's files."""
TARGETS = tuple(p.rpartition(".")[2] for parts in PARTS.values() for p in parts)
PREFIX, SUFFIX = "base_model.model.", ".weight"


@dataclass(frozen=True, slots=True)
class LowRank:
    """The size of an adapter: its update of a projection is alpha / rank · B A."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Adapter(nn.Module):
    """Factors A [R, I] and B [O, R] of every adapted projection, under Hugging Face's names and in its row order."""

    def __init__(self, size: LowRank, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.size = size
        # Parameter names allow no dots inside a ParameterDict's keys.
        self.down = nn.ParameterDict({_key(n): nn.Parameter(a) for n, (a, _) in factors.items()})
        self.up = nn.ParameterDict({_key(n): nn.Parameter(b) for n, (_, b) in factors.items()})

    @classmethod
    def fresh(cls, model: Decoder, size: LowRank, generator: torch.Generator) -> Adapter:
        """A as peft draws it (uniform, Kaiming with slope √5), B zero: the adapted model begins as the base. Drawn on the CPU, so alike
        for every device."""
        unknown = [t for t in size.targets if t not in TARGETS]
        if unknown or not size.targets:
            raise BadInput(
                f"no projection {', '.join(unknown) or '(none named)'}; expected some of {', '.join(TARGETS)}"
            )
        factors = {}
        for name, rows, columns in _projections(model):
            if name.rpartition(".")[2] in size.targets:
                bound = 1 / math.sqrt(columns)
                a = torch.empty(size.rank, columns).uniform_(-bound, bound, generator=generator)
                factors[name] = (a, torch.zeros(rows.stop - rows.start, size.rank))
        return cls(size, factors)

    def factors(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Projection, as in `model.layers.0.self_attn.q_proj` → (A, B)."""
        return {_name(k): (a, self.up[k]) for k, a in self.down.items()}


class Adapted:
    """A decoder with an adapter on it. The base's weights are kept beside, once for all adapters that share `kept`; `off` gives
    them back.

    Raises CheckpointError when the adapter was made for a decoder of other sizes.
    """

    def __init__(self, model: Decoder, adapter: Adapter, kept: dict[tuple[int, str], Tensor] | None = None) -> None:
        self.model, self.adapter = model, adapter.to(model.device)
        known = {name: (rows, columns) for name, rows, columns in _projections(model)}
        for name, (a, b) in adapter.factors().items():
            rows, columns = known.get(name, (slice(0, 0), 0))
            if (len(b), a.shape[1]) != (rows.stop - rows.start, columns):
                raise CheckpointError(
                    f"the adapter belongs to another base: its update of {name} is {len(b)} × {a.shape[1]}, "
                    + (f"this base's is {rows.stop - rows.start} × {columns}" if columns else "which this base lacks")
                    + "; name the base that it was trained on"
                )
        touched = {_home(name) for name in adapter.factors()}
        self._whole = {home: _matrix(model, home) for home in sorted(touched)}
        self._base = {} if kept is None else kept
        for home, whole in self._whole.items():
            if home not in self._base:
                self._base[home] = whole.detach().clone()
        self.on()

    @torch.no_grad()
    def on(self) -> None:
        """Weights = base + adapter, as the factors are now."""
        for home, whole in self._whole.items():
            whole.copy_(self._base[home])
            for name, rows in _inside(self.model, home):
                factors = self.adapter.factors().get(name)
                if factors is not None:
                    a, b = factors
                    update = (b @ a).mul_(self.adapter.size.scale).to(whole.dtype)
                    whole[rows] += interleave(update, self.model.config.head_dim) if _turned(name) else update

    @torch.no_grad()
    def off(self) -> None:
        """Weights = base."""
        for home, whole in self._whole.items():
            whole.copy_(self._base[home])

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within it a backward pass through the model leaves gradients on the factors, and on nothing else."""
        asked = {name: p.requires_grad for name, p in self.model.named_parameters()}
        handles = []
        for p in self.model.parameters():
            p.requires_grad_(False)
        for home, whole in self._whole.items():
            whole.requires_grad_(True)
            handles.append(whole.register_post_accumulate_grad_hook(lambda p, h=home: self._project(h, p)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, p in self.model.named_parameters():
                p.requires_grad_(asked[name])

    @torch.no_grad()
    def _project(self, home: tuple[int, str], whole: Tensor) -> None:
        grad, scale, factors = whole.grad, self.adapter.size.scale, self.adapter.factors()
        whole.grad = None
        assert grad is not None
        for name, rows in _inside(self.model, home):
            if name not in factors:
                continue
            a, b = factors[name]
            part = half_split(grad[rows], self.model.config.head_dim) if _turned(name) else grad[rows]
            for factor, update in ((a, b.t() @ part.to(b.dtype)), (b, part.to(a.dtype) @ a.t())):
                factor.grad = update * scale if factor.grad is None else factor.grad.add_(update, alpha=scale)


class Shared(Mapping[str, "Worn"]):
    """Several adapters over one base in memory: `shared[name]` is a model that puts its adapter on when it is asked something.

    A name without an adapter is the base itself. Between two members the weights change hands, so ask one model at a time.
    """

    def __init__(self, base: Decoder, adapters: Mapping[str, Adapter | None]) -> None:
        self._base, self._wearing = base, ""
        self._adapted: dict[str, Adapted | None] = {}
        kept: dict[tuple[int, str], Tensor] = {}
        for name, adapter in adapters.items():
            each = self._adapted[name] = None if adapter is None else Adapted(base, adapter, kept)
            if each is not None:
                each.off()  # the next one reads what it keeps from the base

    def __getitem__(self, name: str) -> Worn:
        if name not in self._adapted:
            raise KeyError(name)
        return Worn(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapted)

    def __len__(self) -> int:
        return len(self._adapted)

    @property
    def device(self) -> torch.device:
        return self._base.device

    def factors(self, name: str) -> dict[str, Tensor]:
        """The factors of a member's adapter; empty for the base."""
        each = self._adapted[name]
        return {} if each is None else dict(each.adapter.named_parameters())

    def wear(self, name: str) -> Decoder:
        """The base with this member's adapter on it, and no other's."""
        if name != self._wearing:
            before, now = self._adapted.get(self._wearing), self._adapted[name]
            if before is not None:
                before.off()
            if now is not None:
                now.on()
            self._wearing = name
        return self._base


@dataclass(frozen=True, slots=True)
class Worn:
    """One member of `Shared`, with what scoring asks of a model."""

    shared: Shared
    name: str

    @property
    def config(self) -> Any:
        return self.shared.wear(self.name).config

    @property
    def device(self) -> torch.device:
        return self.shared.device

    @property
    def head_VD(self) -> Tensor:
        return self.shared.wear(self.name).head_VD

    def hidden(self, ids_NL: Tensor) -> Tensor:
        return self.shared.wear(self.name).hidden(ids_NL)

    def hidden_at(self, ids_NL: Tensor, at_M: Tensor) -> Tensor:
        return self.shared.wear(self.name).hidden_at(ids_NL, at_M)


# -- files --------------------------------------------------------------------------------------------------------------------


def is_adapter(folder: Path) -> bool:
    """Does the folder hold an adapter in peft's format?"""
    return (folder / "adapter_config.json").is_file()


def base_of(folder: Path) -> Path | None:
    """The base's folder as the adapter names it, from the adapter's own folder; None when there is no such folder here."""
    named = folder / str(read_adapter_config(folder).get("base_model_name_or_path") or ".")
    return named.resolve() if named.is_dir() and named.resolve() != folder.resolve() else None


def save_adapter(adapter: Adapter, folder: Path, base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, as peft reads them. `base`: path or name of the base.

    Raises ResourceError when it cannot be written.
    """
    size = adapter.size
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": size.rank, "lora_alpha": size.alpha,
        "target_modules": list(size.targets), "lora_dropout": 0.0, "bias": "none", "inference_mode": True, "use_rslora": False,
    }  # fmt: skip
    tensors = {}
    for name, (a, b) in adapter.factors().items():
        tensors[f"{PREFIX}{name}.lora_A{SUFFIX}"] = a.detach().cpu().contiguous().clone()
        tensors[f"{PREFIX}{name}.lora_B{SUFFIX}"] = b.detach().cpu().contiguous().clone()
    with writing(folder, SafetensorError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`. Raises CheckpointError for what is not a plain LoRA of linear projections."""
    path = folder / "adapter_config.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); save the adapter again") from error
    if table.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder}: peft_type {table.get('peft_type')!r}, expected LORA; merge it into its base first"
        )
    strange = [k for k in ("use_dora", "use_rslora", "modules_to_save", "alpha_pattern", "lora_bias", "fan_in_fan_out",
                           "target_parameters", "trainable_token_indices", "layer_replication") if table.get(k)]  # fmt: skip
    if strange or table.get("bias", "none") != "none":
        raise CheckpointError(
            f"{folder}: the adapter uses {', '.join(strange) or 'bias'}, which is not read here; merge it into its base "
            "(peft: merge_and_unload) and give the merged checkpoint"
        )
    return table


def load_adapter(folder: Path) -> Adapter:
    """An adapter that peft (or `save_adapter`) wrote. Raises CheckpointError when it is damaged or of another kind."""
    table, path = read_adapter_config(folder), folder / "adapter_model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}); save the adapter again") from error
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, dot, factor = name.removeprefix(PREFIX).removesuffix(SUFFIX).rpartition(".")
        if not dot or factor not in ("lora_A", "lora_B"):
            raise CheckpointError(
                f"{path}: {name} is no factor of a linear projection; merge the adapter into its base first"
            )
        factors.setdefault(module, {})[factor] = tensor.float()
    broken = next((n for n, f in factors.items() if len(f) != 2 or len(f["lora_A"]) != f["lora_B"].shape[-1]), None)
    if broken is not None or not factors:
        raise CheckpointError(
            f"{path}: the factors of {broken or 'everything'} do not fit together; save the adapter again"
        )
    ranks = {len(f["lora_A"]) for f in factors.values()}
    if len(ranks) > 1:
        raise CheckpointError(f"{path}: ranks {sorted(ranks)} in one adapter; merge it into its base first")
    size = LowRank(ranks.pop(), float(table["lora_alpha"]), tuple(dict.fromkeys(n.rpartition(".")[2] for n in factors)))
    return Adapter(size, {n: (f["lora_A"], f["lora_B"]) for n, f in factors.items()})


# -- where a projection stands ------------------------------------------------------------------------------------------------


def _projections(model: Decoder) -> Iterator[tuple[str, slice, int]]:
    """Every projection: its name, its rows in the fused matrix, its inputs."""
    for layer in range(model.config.num_hidden_layers):
        for part in PARTS:
            for name, rows in _inside(model, (layer, part)):
                yield name, rows, _matrix(model, (layer, part)).shape[1]


def _inside(model: Decoder, home: tuple[int, str]) -> list[tuple[str, slice]]:
    """The projections in a fused matrix with their rows."""
    layer, part = home
    c = model.config
    q, k = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    sizes = {
        "qkv": (q, k, k),
        "out": (c.hidden_size,),
        "gate_up": (c.intermediate_size,) * 2,
        "down": (c.hidden_size,),
    }[part]
    found, start = [], 0
    for name, size in zip(PARTS[part], sizes, strict=True):
        found.append((f"model.layers.{layer}.{name}", slice(start, start + size)))
        start += size
    return found


def _home(name: str) -> tuple[int, str]:
    """The fused matrix in which a projection stands."""
    _, _, layer, rest = name.split(".", 3)
    return int(layer), next(part for part, names in PARTS.items() if rest in names)


def _matrix(model: Decoder, home: tuple[int, str]) -> nn.Parameter:
    layer, part = home
    return getattr(model.blocks[layer], part)


def _turned(name: str) -> bool:
    return name.endswith(TURNED)


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
