"""A cast member from disk: the fast decoder where it computes the architecture, `transformers` otherwise; GGUF files too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mopd_diag.errors import CheckpointError
from mopd_diag.models.checkpoint import base_folder, decoder_config, from_hf, load_decoder, read_config
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.foreign import ForeignModel, load_foreign
from mopd_diag.models.lora import Adapted, Shared, Worn, base_of, is_adapter, load_adapter
from mopd_diag.models.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch

Model = Decoder | ForeignModel | Worn


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer, and where both came from."""

    model: Model
    tokenizer: Tokenizer
    path: Path


def load(path: Path, base: Path | None = None, device: torch.device | str = "cpu") -> Loaded:
    """Load a checkpoint directory, a GGUF file, or an adapter on the base that it names, or else on `base`; the model on `device`.

    Raises CheckpointError with what to do when it cannot be used.
    """
    if path.suffix == ".gguf":
        return _load_gguf(path, device)
    if is_adapter(path):
        return _load_adapter(path, base, device)
    table = read_config(path)
    tokenizer = load_tokenizer(path)
    model: Model
    if decoder_config(table) is not None:
        model = load_decoder(path, device=device)
    else:
        model = ForeignModel(load_foreign(path, device=device), str(path))
    _check_vocabulary(model, tokenizer, path)
    return Loaded(model, tokenizer, path)


def _load_adapter(path: Path, base: Path | None, device: torch.device | str) -> Loaded:
    beneath = load(base if base_of(path) is None and base is not None else base_folder(path), device=device)
    if not isinstance(beneath.model, Decoder):
        raise CheckpointError(
            f"{path}: adapters are read on Llama and Qwen3 only; merge it into its base (peft: merge_and_unload)"
        )
    Adapted(beneath.model, load_adapter(path))
    return Loaded(beneath.model, _tokenizer(path, beneath.tokenizer), path)


def adapters_on_one_base(
    paths: Mapping[str, Path], base: Path | None = None, told: Callable[[str], None] = lambda _: None,
    device: torch.device | str = "cpu",
) -> dict[str, Loaded]:  # fmt: skip
    """Of these members, those that are adapters on a base that another one has too: the base is loaded once for all of them.

    `base`: where an adapter belongs whose own base is not here. Raises CheckpointError as `load` does.
    """
    homes: dict[Path, list[str]] = {}
    for name, path in paths.items():
        if is_adapter(path):
            homes.setdefault((base_of(path) or base or base_folder(path)).resolve(), []).append(name)
    found: dict[str, Loaded] = {}
    for home, names in homes.items():
        if len(names) < 2:
            continue
        told(f"loading {home.name} for {len(names)} adapters")
        beneath = load(home, device=device)
        if isinstance(beneath.model, Decoder):
            shared = Shared(beneath.model, {n: load_adapter(paths[n]) for n in names})
            found |= {n: Loaded(shared[n], _tokenizer(paths[n], beneath.tokenizer), paths[n]) for n in names}
    return found


def _tokenizer(path: Path, otherwise: Tokenizer) -> Tokenizer:
    """An adapter's own tokenizer, where it brought one."""
    return load_tokenizer(path) if (path / "tokenizer.json").is_file() else otherwise


def _load_gguf(path: Path, device: torch.device | str) -> Loaded:
    if not path.is_file():
        raise CheckpointError(f"no file {path}: expected a GGUF model; check the path")
    from transformers import AutoTokenizer

    hf = load_foreign(path.parent, path.name, device)
    fast = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    eos = fast.eos_token_id
    if eos is None:
        raise CheckpointError(f"{path}: its tokenizer names no end-of-sequence token; an answer could never end")
    pad = eos if fast.pad_token_id is None else fast.pad_token_id
    template = fast.chat_template if isinstance(fast.chat_template, str) else None
    tokenizer = Tokenizer(fast.backend_tokenizer, eos, pad, template, fast.bos_token)
    config = decoder_config(hf.config.to_dict())
    model = ForeignModel(hf, str(path)) if config is None else from_hf(config, hf.state_dict()).to(device)
    _check_vocabulary(model, tokenizer, path)
    return Loaded(model, tokenizer, path)


def _check_vocabulary(model: Model, tokenizer: Tokenizer, path: Path) -> None:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}; "
            "they do not belong together"
        )
