"""What servers answered, on disk: one SQLite file of token ids and log-probabilities, no text, no key.

Every answer is committed as it comes, so that a killed server, a killed process or a full disk loses nothing that was there.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mopd_diag.caches import VARIABLE, cache_folder
from mopd_diag.engines.served_http import Described
from mopd_diag.engines.top_tokens import TopTokens
from mopd_diag.errors import BadInput, writing

SCHEMA = 1


def default_path() -> Path:
    """The file that all casts share, among the user's caches."""
    return cache_folder() / "served.sqlite"


class Cache:
    """Answers by key. Used from one thread; several processes may share the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.execute("CREATE TABLE IF NOT EXISTS answer (key TEXT PRIMARY KEY, tokens INTEGER, body BLOB)")
            self._db.execute("CREATE TABLE IF NOT EXISTS server (key TEXT PRIMARY KEY, root TEXT, context INTEGER)")
        except sqlite3.DatabaseError as error:
            raise BadInput(
                f"{path} cannot be used as cache ({error}); delete it, or set {VARIABLE} elsewhere"
            ) from None

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def get(self, keys: Iterable[str], k: int) -> dict[str, TopTokens]:
        """The answers that are there."""
        found = {}
        for key in keys:
            row = self._read("SELECT tokens, body FROM answer WHERE key = ?", key)
            if row is not None:
                found[key] = self._unpacked(*row, k)
        return found

    def put(self, key: str, answer: TopTokens) -> None:
        """Keep one answer, for good when this returns."""
        body = zlib.compress(answer.ids_TK.astype("<i4").tobytes() + answer.logp_TK.astype("<f4").tobytes())
        with writing(self.path, sqlite3.Error):
            self._db.execute("INSERT OR REPLACE INTO answer VALUES (?, ?, ?)", (key, len(answer), body))

    def described(self, url: str, model: str) -> Described | None:
        """What the server said of its model when it was last asked."""
        row = self._read("SELECT root, context FROM server WHERE key = ?", _digest([url, model]))
        return None if row is None else Described(root=row[0], context=row[1])

    def describe(self, url: str, model: str, found: Described) -> None:
        with writing(self.path, sqlite3.Error):
            values = (_digest([url, model]), found.root, found.context)
            self._db.execute("INSERT OR REPLACE INTO server VALUES (?, ?, ?)", values)

    def _read(self, query: str, key: str) -> tuple[Any, Any] | None:
        try:
            return self._db.execute(query, (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise BadInput(f"{self.path} cannot be read ({error}); delete it") from None

    def _unpacked(self, tokens: int, body: bytes, k: int) -> TopTokens:
        try:
            ids, logp = np.split(np.frombuffer(zlib.decompress(body), "<i4"), 2)
            return TopTokens(ids.reshape(tokens, k + 1), logp.view("<f4").reshape(tokens, k + 1))
        except (zlib.error, ValueError) as error:
            raise BadInput(f"{self.path} holds a broken answer ({error}); delete it") from None


def key_of(
    url: str, model: str, root: str, tokenizer: str, k: int, prompt: Sequence[int], answer: Sequence[int]
) -> str:  # fmt: skip
    """The key of one answer: whatever its numbers depend on."""
    return _digest([SCHEMA, url, model, root, tokenizer, k, list(prompt), list(answer)])


def _digest(parts: Sequence[object]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=20).hexdigest()
