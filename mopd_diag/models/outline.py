"""A checkpoint without its weights: what can be known of a model that another engine loads."""

from __future__ import annotations

import filecmp
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.models.checkpoint import decoder_config, read_config, read_table, to_hf
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.lora import is_adapter
from mopd_diag.models.tokenizer import Tokenizer, load_tokenizer

ABOUT_FILES = ("_name_or_path", "transformers_version")
"""Keys of a `config.json` that say nothing of the model."""

NARROW = {
    "vocab_size": 2, "hidden_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 2,
}  # fmt: skip
"""The narrowest decoder: it has the weights' names of any width."""


@dataclass(frozen=True, slots=True)
class Outline:
    """Where a checkpoint is, its tokenizer, and its `config.json` (the text model's part first)."""

    path: Path
    tokenizer: Tokenizer
    config: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """How many logits the model gives. Raises CheckpointError where the configuration does not say."""
        size = self.config.get("vocab_size")
        if not isinstance(size, int):
            raise CheckpointError(f"{self.path / 'config.json'} lacks 'vocab_size'; save the checkpoint again")
        return size

    @property
    def context(self) -> int | None:
        """How many positions the model was made for; None where its configuration sets no bound."""
        return self.config.get("max_position_embeddings")

    @property
    def single_precision(self) -> bool:
        """Whether the weights are fp32, which is what a configuration that names no type means."""
        return self.config.get("dtype", self.config.get("torch_dtype")) in (None, "float32")

    def settings(self) -> dict[str, Any]:
        """What two checkpoints share when one's weights fit into the other's model."""
        return {k: v for k, v in self.config.items() if k not in ABOUT_FILES}


def read_outline(path: Path) -> Outline:
    """Tokenizer and settings of a Hugging Face checkpoint directory.

    Raises BadInput for a GGUF file or an adapter, CheckpointError for what is broken or missing.
    """
    if path.suffix == ".gguf":
        raise BadInput(
            f"{path} is a GGUF file, but vLLM is given checkpoint directories here; convert it, or leave --engine vllm out"
        )
    if is_adapter(path):
        raise BadInput(
            f"{path} is an adapter, but vLLM is given whole models here; merge it into its base (peft: merge_and_unload, then "
            "save_pretrained, tokenizer beside it), or leave --engine vllm out"
        )
    config = read_config(path)
    check_weights(path)
    return Outline(path, load_tokenizer(path), {**config, **(config.get("text_config") or {})})


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same safetensors files, byte by byte (files that differ do so after a few blocks)."""
    a, b = (sorted(p.name for p in folder.glob("*.safetensors")) for folder in (one, other))
    return one == other or (bool(a) and a == b and all(filecmp.cmp(one / n, other / n, shallow=False) for n in a))


def check_weights(folder: Path) -> None:
    """Look for weights that a checkpoint lacks: those of its architecture for Llama and Qwen3, those of its index for others.

    vLLM 0.32 says nothing of them: what lay in memory, or in a running engine the last model's weight, stays in their place. Raises
    CheckpointError when some lack or a file is damaged.
    """
    index = folder / "model.safetensors.index.json"
    expected = set(read_table(index).get("weight_map", {})) if index.is_file() else set()
    config = read_config(folder)
    sizes = decoder_config(config)
    if sizes is not None and "quantization_config" not in config:  # whose weights have other names
        expected |= to_hf(Decoder(replace(sizes, **NARROW))).keys()
    lacks = sorted(expected - _weight_names(folder))
    if lacks:
        more = f" and {len(lacks) - 1} more" if len(lacks) > 1 else ""
        raise CheckpointError(f"{folder} lacks the weight {lacks[0]}{more}; save the checkpoint again")


def _weight_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                names.update(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or half-written ({error}); save it again") from error
    return names
