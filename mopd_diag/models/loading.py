"""A cast member from disk: the fast decoder where it computes the architecture, `transformers` otherwise; GGUF files too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mopd_diag.errors import CheckpointError
from mopd_diag.models.checkpoint import decoder_config, from_hf, load_decoder, read_config
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.foreign import ForeignModel, load_foreign
from mopd_diag.models.tokenizer import Tokenizer, load_tokenizer

Model = Decoder | ForeignModel


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer, and where both came from."""

    model: Model
    tokenizer: Tokenizer
    path: Path


def load(path: Path) -> Loaded:
    """Load a checkpoint directory or a GGUF file. Raises CheckpointError with what to do when it cannot be used."""
    if path.suffix == ".gguf":
        return _load_gguf(path)
    table = read_config(path)
    tokenizer = load_tokenizer(path)
    model = load_decoder(path) if decoder_config(table) is not None else ForeignModel(load_foreign(path), str(path))
    _check_vocabulary(model, tokenizer, path)
    return Loaded(model, tokenizer, path)


def _load_gguf(path: Path) -> Loaded:
    if not path.is_file():
        raise CheckpointError(f"no file {path}: expected a GGUF model; check the path")
    from transformers import AutoTokenizer

    hf = load_foreign(path.parent, path.name)
    fast = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    eos = fast.eos_token_id
    if eos is None:
        raise CheckpointError(f"{path}: its tokenizer names no end-of-sequence token; an answer could never end")
    tokenizer = Tokenizer(fast.backend_tokenizer, eos, eos if fast.pad_token_id is None else fast.pad_token_id)
    config = decoder_config(hf.config.to_dict())
    model = ForeignModel(hf, str(path)) if config is None else from_hf(config, hf.state_dict())
    _check_vocabulary(model, tokenizer, path)
    return Loaded(model, tokenizer, path)


def _check_vocabulary(model: Model, tokenizer: Tokenizer, path: Path) -> None:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}; "
            "they do not belong together"
        )
