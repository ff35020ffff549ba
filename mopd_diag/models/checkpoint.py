"""Hugging Face checkpoints in and out of the fast decoder; safetensors only, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mopd_diag.errors import CheckpointError, writing
from mopd_diag.models.decoder import Decoder, DecoderConfig, half_split, interleave
from mopd_diag.models.lora import Adapted, Adapter, base_of, is_adapter, load_adapter, read_adapter_config, save_adapter
from mopd_diag.models.tokenizer import Tokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def to_hf(model: Decoder) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names and in its rotary layout, on the CPU."""
    c = model.config
    q_rows, k_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    state = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm}
    if model.head is not None:
        state["lm_head.weight"] = model.head
    for i, layer in enumerate(model.blocks):
        at = f"model.layers.{i}."
        q, k, v = layer.qkv.split((q_rows, k_rows, k_rows))
        gate, up = layer.gate_up.chunk(2)
        state |= {
            at + "input_layernorm.weight": layer.norm_attention,
            at + "self_attn.q_proj.weight": half_split(q, c.head_dim),
            at + "self_attn.k_proj.weight": half_split(k, c.head_dim),
            at + "self_attn.v_proj.weight": v,
            at + "self_attn.o_proj.weight": layer.out,
            at + "post_attention_layernorm.weight": layer.norm_mlp,
            at + "mlp.gate_proj.weight": gate,
            at + "mlp.up_proj.weight": up,
            at + "mlp.down_proj.weight": layer.down,
        }
        if c.qk_norm:
            state[at + "self_attn.q_norm.weight"] = half_split(layer.norm_q, c.head_dim)
            state[at + "self_attn.k_norm.weight"] = half_split(layer.norm_k, c.head_dim)
    return {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}


def from_hf(config: DecoderConfig, state: dict[str, Tensor]) -> Decoder:
    """A decoder holding a Hugging Face state dict. Raises KeyError for a missing weight, RuntimeError for a wrong shape."""
    model = Decoder(config)
    e = config.head_dim
    with torch.no_grad():
        _fill(model.embed, state["model.embed_tokens.weight"])
        _fill(model.norm, state["model.norm.weight"])
        if model.head is not None:
            _fill(model.head, state["lm_head.weight"])
        for i, layer in enumerate(model.blocks):
            get = lambda name, at=f"model.layers.{i}.": state[f"{at}{name}.weight"]  # noqa: E731
            q, k = interleave(get("self_attn.q_proj"), e), interleave(get("self_attn.k_proj"), e)
            _fill(layer.norm_attention, get("input_layernorm"))
            _fill(layer.qkv, torch.cat((q, k, get("self_attn.v_proj"))))
            _fill(layer.out, get("self_attn.o_proj"))
            _fill(layer.norm_mlp, get("post_attention_layernorm"))
            _fill(layer.gate_up, torch.cat((get("mlp.gate_proj"), get("mlp.up_proj"))))
            _fill(layer.down, get("mlp.down_proj"))
            if config.qk_norm:
                _fill(layer.norm_q, interleave(get("self_attn.q_norm"), e))
                _fill(layer.norm_k, interleave(get("self_attn.k_norm"), e))
    return model


def _fill(parameter: Tensor, weight: Tensor) -> None:
    if parameter.shape != weight.shape:  # `copy_` alone would broadcast
        raise RuntimeError(f"got shape {list(weight.shape)}, expected {list(parameter.shape)}")
    parameter.copy_(weight)


def hf_config(config: DecoderConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The `config.json` that `transformers`, vLLM and lm-eval read."""
    kind = "qwen3" if config.qk_norm else "llama"
    fields = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    fields += ("intermediate_size", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        **{f: getattr(config, f) for f in fields},
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "dtype": "float32",
    }


def decoder_config(table: dict[str, Any]) -> DecoderConfig | None:
    """The decoder's sizes from a `config.json`; None when this decoder does not compute that architecture exactly."""
    kind = table.get("model_type")
    rope = table.get("rope_parameters") or table.get("rope_scaling") or {}
    plain = rope.get("rope_type", rope.get("type", "default")) == "default"
    biased = table.get("attention_bias") or table.get("mlp_bias") or table.get("use_sliding_window")
    if kind not in ARCHITECTURES or not plain or biased or table.get("hidden_act", "silu") != "silu":
        return None
    heads = table["num_attention_heads"]
    return DecoderConfig(
        vocab_size=table["vocab_size"],
        hidden_size=table["hidden_size"],
        num_hidden_layers=table["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=table.get("num_key_value_heads") or heads,
        head_dim=table.get("head_dim") or table["hidden_size"] // heads,
        intermediate_size=table["intermediate_size"],
        rope_theta=rope.get("rope_theta") or table.get("rope_theta") or 10_000.0,
        rms_norm_eps=table.get("rms_norm_eps", 1e-6),
        max_position_embeddings=table.get("max_position_embeddings", 2048),
        tie_word_embeddings=table.get("tie_word_embeddings", False),
        qk_norm=kind == "qwen3",
    )


def save_checkpoint(
    model: Decoder, tokenizer: Tokenizer, folder: Path, beside: Mapping[str, dict[str, Tensor]] | None = None
) -> None:
    """Write a Hugging Face checkpoint. A reader sees the old folder or the whole new one, never a half.

    `beside`: further safetensors files of the folder, by file name. Raises ResourceError when it cannot be written.
    """
    with writing(folder, SafetensorError):
        _save_checkpoint(model, tokenizer, folder, beside or {})


def _save_checkpoint(
    model: Decoder, tokenizer: Tokenizer, folder: Path, beside: Mapping[str, dict[str, Tensor]]
) -> None:
    with _draft_of(folder) as draft:
        config = hf_config(model.config, tokenizer)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        (draft / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        for name, tensors in {"model.safetensors": to_hf(model), **beside}.items():
            save_file(tensors, draft / name, metadata={"format": "pt"})
        tokenizer.save(draft)


def save_adapted(adapter: Adapter, tokenizer: Tokenizer, folder: Path, base: Path) -> None:
    """Write an adapter in peft's format with its tokenizer, whole or not at all; its base is named by the way from one to the other.

    Raises ResourceError when it cannot be written.
    """
    with writing(folder, SafetensorError), _draft_of(folder) as draft:
        save_adapter(adapter, draft, os.path.relpath(base, folder))
        tokenizer.save(draft)


@contextmanager
def _draft_of(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` once all is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    draft.mkdir()
    try:
        yield draft
        _put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _put_in_place(draft: Path, folder: Path) -> None:
    """Swap by two renames; what was there before comes back when the second one fails."""
    old = draft.with_name(f"{draft.name}.old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(draft, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def base_folder(folder: Path) -> Path:
    """Where an adapter's base is. Raises CheckpointError when what it names is no folder here."""
    found = base_of(folder)
    if found is None:
        named = read_adapter_config(folder).get("base_model_name_or_path")
        raise CheckpointError(
            f"{folder} is an adapter of {named!r}, which is no folder here; put the base's folder into its adapter_config.json, or in a "
            "cast make that base the [base]"
        )
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder. Raises CheckpointError with what to do when there is none."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: expected a Hugging Face model directory; check the path")
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint: expected config.json; it may be half-written, save it again"
        )
    return read_table(path)


def read_table(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint. Raises CheckpointError when it is no table."""
    try:
        table = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); save the checkpoint again") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} holds a {type(table).__name__}, expected a table; save the checkpoint again")
    return table


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint folder, one file or sharded. Raises CheckpointError when a file is missing or cut short."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(read_table(index).get("weight_map", {}).values()))
    state: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            raise CheckpointError(f"{folder} lacks {name} (found: {found}); only safetensors weights are read")
        try:
            state |= load_file(folder / name)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{folder / name} is damaged or half-written ({error}); save it again") from error
    return state


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """Load a Llama or Qwen3 checkpoint into the fast decoder on a device; an adapter on the base that it names.

    Raises CheckpointError when the folder is missing, half-written, of another architecture, or lacks a weight, or when an adapter's
    base is not here or another one.
    """
    if is_adapter(folder):
        model = load_decoder(base_folder(folder), dtype, device)
        Adapted(model, load_adapter(folder))
        return model
    table = read_config(folder)
    try:
        config = decoder_config(table)
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks {error}; save the checkpoint again") from error
    if config is None:
        raise CheckpointError(f"{folder}: model_type {table.get('model_type')!r} is not one the fast decoder computes")
    state = {name: t.to(dtype) for name, t in read_weights(folder).items()}
    if not config.tie_word_embeddings and "lm_head.weight" not in state:
        config = replace(config, tie_word_embeddings=True)
    try:
        return from_hf(config, state).to(device, dtype)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: weights do not fit config.json ({error}); save the checkpoint again"
        ) from error
