"""The record set: scored answers of one checkpoint, whatever tool wrote them, checked once and in one shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

COLUMNS = ("group", "item_id", "sample", "score", "prompt_hash", "target_hash", "cluster", "prompt", "response")
UNNAMED = "all"


@dataclass(frozen=True, slots=True, eq=False)
class RecordSet:
    """Scored answers of one checkpoint.

    `frame` has COLUMNS, one row per (group, item_id, sample) and sorted by them. Texts are "" where unknown, `score` is
    float64 in the records' own scale, `sample` int64. `named` is False when the only group is called after the file because
    the records name none: such a group may be paired with another of a different name (see `aligned`).
    """

    name: str
    source: str
    format: str
    frame: pd.DataFrame
    warnings: tuple[str, ...] = ()
    named: bool = True

    @property
    def groups(self) -> list[str]:
        return sorted(self.frame["group"].unique())


def aligned(*sets: RecordSet) -> tuple[tuple[RecordSet, ...], tuple[str, ...]]:
    """The sets under common group names, and what had to be assumed.

    Files without a `domain` are one group called after the file, so `before.jsonl` and `after.jsonl` would share no group.
    When every set has one group and at most one name was given by records, all take that name, or "all".
    """
    groups = [s.groups for s in sets]
    if any(len(g) != 1 for g in groups) or len({g[0] for g in groups}) == 1:
        return sets, ()
    given = {g[0] for g, s in zip(groups, sets, strict=True) if s.named}
    if len(given) > 1:
        return sets, ()
    common = given.pop() if given else UNNAMED
    names = list(dict.fromkeys(g[0] for g, s in zip(groups, sets, strict=True) if not s.named))
    changed = tuple(replace(s, frame=s.frame.assign(group=common), named=True) for s in sets)
    if set(names) == {UNNAMED}:
        return changed, ()
    return changed, (f"records name no domain: {', '.join(names)} are taken as one group, '{common}'",)


def text_of(value: Any) -> str:
    """A field as text: messages and other structures become JSON, None becomes ""."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def digest(*texts: str) -> str:
    """A short content hash, for records that come without one."""
    whole = hashlib.blake2b(digest_size=8)
    for text in texts:
        whole.update(text.encode("utf-8", "replace"))
        whole.update(b"\0")
    return whole.hexdigest()


def text_column(values: Iterable[Any]) -> pd.Series:
    """Texts as a column. A lone surrogate, which models write and UTF-8 cannot hold, becomes "?"."""
    values = list(values)
    try:
        return pd.Series(values, dtype="str")
    except UnicodeEncodeError:
        return pd.Series([v.encode("utf-8", "replace").decode("utf-8") for v in values], dtype="str")


def disagreement(frame: pd.DataFrame) -> tuple[int, str] | None:
    """The first row, and the column, where an item's sample has another prompt or target than the sample before it."""
    same = (frame["item_id"].eq(frame["item_id"].shift()) & frame["group"].eq(frame["group"].shift())).to_numpy(bool)
    for column in ("prompt_hash", "target_hash", "prompt"):
        changes = frame[column].ne(frame[column].shift()).to_numpy(bool) & same
        if changes.any():
            return int(changes.argmax()), column
    return None
