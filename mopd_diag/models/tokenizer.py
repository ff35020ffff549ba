"""Tokenizers without `transformers`: a thin face over the `tokenizers` library, and the micro world's character vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from mopd_diag.errors import CheckpointError

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "".join(chr(c) for c in range(0x20, 0x7F)) + "\n"


class Tokenizer:
    """Text to token ids and back. `eos_id` ends an answer, `pad_id` fills batches and is never read.

    `chat_template` (jinja) and `bos` only travel with a checkpoint: encoding looks at neither.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_id: int,
        pad_id: int,
        chat_template: str | None = None,
        bos: str | None = None,
    ) -> None:
        self.backend = backend
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.chat_template = chat_template
        self.bos = bos
        self._endings: dict[str, tuple[int, ...]] = {}
        self.backend.no_padding()
        self.backend.no_truncation()

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, merges and special tokens: models compare token by token only when it is equal."""
        text = json.dumps([self._sections, self.eos_id], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @cached_property
    def _sections(self) -> dict[str, Any]:
        """The parts of `tokenizer.json` that decide which ids a text gets and which text ids give."""
        state = json.loads(self.backend.to_str())
        # A post-processor only adds the special tokens that `encode` never asks for.
        return {k: v for k, v in state.items() if k not in ("padding", "truncation", "version", "post_processor")}

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for text the vocabulary lacks; None where every text has tokens."""
        model = self._sections["model"]
        name = model.get("unk_token")
        return model.get("unk_id") if name is None else self.backend.token_to_id(name)

    def lacks(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the ids of `text` hold the unknown token more often than the text spells it."""
        unknown = self.unknown_id
        name = self.backend.id_to_token(unknown) if unknown is not None else None
        return unknown is not None and name is not None and list(ids).count(unknown) > text.count(name)

    @cached_property
    def _untrimmed(self) -> tokenizers.Tokenizer:
        """The same tokenizer whose offsets keep the blanks: a byte-level post-processor would cut them off."""
        return tokenizers.Tokenizer.from_str(json.dumps({**json.loads(self.backend.to_str()), "post_processor": None}))

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_where(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each the characters [start, end) of `text` it stands for; a token that holds only a part of a
        character's bytes is given the whole character."""
        found = self._untrimmed.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def encode_turns(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """Token ids of an answer, and which of them the model chose: those outside the character spans [start, end).

        The pieces are encoded one by one, as they were written one by one, so no token reaches over a border of a span.
        """
        ids: list[int] = []
        own: list[bool] = []
        at = 0
        for start, end in (*spans, (len(text), len(text))):
            for piece, mine in ((text[at:start], True), (text[start:end], False)):
                found = self.encode(piece) if piece else []
                ids += found
                own += [mine] * len(found)
            at = end
        return ids, own

    def ending_in(self, text: str) -> tuple[int, ...]:
        """The tokens whose own text ends in `text`: after one of them, so does the transcript."""
        if text not in self._endings:
            found = (i for i in range(self.vocab_size) if self.backend.decode([i]).endswith(text))
            self._endings[text] = tuple(found)
        return self._endings[text]

    @property
    def special_names(self) -> dict[str, str]:
        """The special tokens that a chat template may spell."""
        names = {"eos_token": self.backend.id_to_token(self.eos_id), "bos_token": self.bos}
        return {key: name for key, name in names.items() if name is not None}

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
        if self.bos is not None:
            names["bos_token"] = self.bos
        if self.chat_template is not None:
            names["chat_template"] = self.chat_template
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


def difference(ours: Tokenizer, theirs: Tokenizer, names: tuple[str, str] = ("the first", "the second")) -> str:
    """What keeps two tokenizers from being one, in words; empty when they agree on everything.

    Says first whether ordinary text gets the same ids, because then a model goes on working and the mistake stays silent.
    """
    if ours.fingerprint == theirs.fingerprint:
        return ""
    said = [*_different_tokens(ours, theirs, names)]
    eos = [t.backend.id_to_token(t.eos_id) for t in (ours, theirs)]
    if eos[0] != eos[1] or ours.eos_id != theirs.eos_id:
        said.append(f"an answer ends with {eos[0]!r} for {names[0]} and with {eos[1]!r} for {names[1]}")
    special = {t["content"] for each in (ours, theirs) for t in each._sections["added_tokens"]}
    vocabularies = [{t: i for t, i in each.backend.get_vocab().items() if t not in special} for each in (ours, theirs)]
    rules = [
        name
        for name in ("normalizer", "pre_tokenizer", "decoder")
        if ours._sections[name] != theirs._sections[name]
    ]  # fmt: skip
    if ours._sections["model"].get("merges") != theirs._sections["model"].get("merges"):
        rules.append("merges")
    if rules:
        said.append(f"their {' and '.join(rules)} differ")
    alike = vocabularies[0] == vocabularies[1] and not rules
    how = "the same ids for ordinary text, but " if alike else ""
    return how + ("; ".join(said) or "special tokens are matched by other rules")


def _different_tokens(ours: Tokenizer, theirs: Tokenizer, names: tuple[str, str]) -> list[str]:
    """Sentences about tokens that only one has or that have two ids; the first three of each kind."""
    a, b = (t.backend.get_vocab(with_added_tokens=True) for t in (ours, theirs))
    said = []
    for mine, other, name in ((a, b, names[0]), (b, a, names[1])):
        only = sorted(mine.keys() - other.keys(), key=mine.__getitem__)
        if only:
            said.append(f"only {name} has {_listed([f'{t!r} (id {mine[t]})' for t in only])}")
    moved = [t for t in sorted(a.keys() & b.keys(), key=a.__getitem__) if a[t] != b[t]]
    if moved:
        listed = _listed([f"{t!r} ({a[t]} and {b[t]})" for t in moved])
        said.append(f"{names[0]} and {names[1]} give other ids to {listed}")
    return said


def _listed(words: Sequence[str], most: int = 3) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


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
    return Tokenizer(backend, eos, eos if pad is None else pad, _chat_template(folder), names.get("bos_token"))


def _chat_template(folder: Path) -> str | None:
    """A file of its own, or a text in `tokenizer_config.json`; of several, the one called default."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    table = _table(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(table, list):
        table = {t.get("name"): t.get("template") for t in table if isinstance(t, dict)}.get("default")
    return table if isinstance(table, str) else None


def _special_names(folder: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        table = _table(folder / file)
        for key in ("eos_token", "pad_token", "bos_token"):
            value = table.get(key)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                names[key] = value
    return names


def _table(path: Path) -> dict[str, Any]:
    """A JSON table; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); save the tokenizer again") from error
    return table if isinstance(table, dict) else {}


def _token_id(backend: tokenizers.Tokenizer, name: str | None) -> int | None:
    return None if name is None else backend.token_to_id(name)
