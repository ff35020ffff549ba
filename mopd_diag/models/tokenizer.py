"""Tokenizers without `transformers`: a thin face over the `tokenizers` library, and the micro world's character vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from mopd_diag.errors import CheckpointError

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "".join(chr(c) for c in range(0x20, 0x7F)) + "\n"


class Tokenizer:
    """Text to token ids and back. `eos_id` ends an answer, `pad_id` fills batches and is never read."""

    def __init__(self, backend: tokenizers.Tokenizer, eos_id: int, pad_id: int) -> None:
        self.backend = backend
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.backend.no_padding()
        self.backend.no_truncation()

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, merges and special tokens: models compare token by token only when it is equal."""
        state = json.loads(self.backend.to_str())
        for key in ("padding", "truncation", "version"):
            state.pop(key, None)
        text = json.dumps([state, self.eos_id], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of the ids; special tokens (the end of sequence) are left out unless `special`."""
        return self.backend.decode(list(ids), skip_special_tokens=not special)

    def decode_all(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.backend.decode_batch([list(r) for r in rows], skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """How one token is shown: its decoded text, or its name when it decodes to nothing."""
        return self.backend.decode([token_id], skip_special_tokens=False) or str(self.backend.id_to_token(token_id))

    def save(self, folder: Path) -> None:
        """Write the files that `AutoTokenizer.from_pretrained` reads."""
        self.backend.save(str(folder / "tokenizer.json"))
        names = {"eos_token": self.backend.id_to_token(self.eos_id), "pad_token": self.backend.id_to_token(self.pad_id)}
        if self.backend.token_to_id(UNKNOWN) is not None:
            names["unk_token"] = UNKNOWN
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def character_tokenizer(characters: str = CHARACTERS) -> Tokenizer:
    """One token a character; what is outside the alphabet becomes `<unk>`."""
    vocabulary = {t: i for i, t in enumerate([PAD, EOS, UNKNOWN, *characters])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([PAD, EOS, UNKNOWN])
    return Tokenizer(backend, eos_id=1, pad_id=0)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the fast tokenizer of a Hugging Face checkpoint.

    Raises CheckpointError when `tokenizer.json` is missing or broken, or when no end-of-sequence token is named.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"no tokenizer in {folder}: expected tokenizer.json; save the tokenizer beside the model")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise CheckpointError(f"{path} cannot be read ({error}); save the tokenizer again") from error
    names = _special_names(folder)
    eos = _token_id(backend, names.get("eos_token"))
    if eos is None:
        raise CheckpointError(f"{folder}: no eos_token in tokenizer_config.json; an answer could never end")
    pad = _token_id(backend, names.get("pad_token"))
    return Tokenizer(backend, eos, eos if pad is None else pad)


def _special_names(folder: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            continue
        try:
            table = json.loads((folder / file).read_text())
        except ValueError as error:
            raise CheckpointError(f"{folder / file} is not JSON ({error}); save the tokenizer again") from error
        for key in ("eos_token", "pad_token"):
            value = table.get(key)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                names[key] = value
    return names


def _token_id(backend: tokenizers.Tokenizer, name: str | None) -> int | None:
    return None if name is None else backend.token_to_id(name)
