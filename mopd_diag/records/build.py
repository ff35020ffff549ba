"""From a reader's columns to a record set: every check that all formats share, with the place of what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mopd_diag.errors import BadInput
from mopd_diag.records.recordset import COLUMNS, UNNAMED, RecordSet, disagreement, text_column

TEXTS = ("group", "item_id", "prompt_hash", "target_hash", "cluster", "prompt", "response")


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a reader hands over: the unchecked columns of one file.

    `columns` holds lists or arrays under names of COLUMNS; `item_id` and `score` must be there. `lines` says where each
    row stands in `path`, counted from 1. `named` says that the group's name is given by the records or by a suite's
    file, not just by the name of the one file that was read.
    """

    path: str
    format: str
    columns: dict[str, Any]
    lines: Sequence[int] | np.ndarray
    group: str = UNNAMED
    warnings: tuple[str, ...] = ()
    named: bool = False


def build(parts: Sequence[Rows], *, name: str, source: str) -> RecordSet:
    """Check the rows of one or more files and put them into one set.

    Raises BadInput, with file and line, for a score that is no finite number, an item without an id, two rows with one
    key, and an item whose samples disagree about its prompt or target.
    """
    warnings = dict.fromkeys(w for p in parts for w in p.warnings)
    parts = [p for p in parts if len(p.lines)]
    if not parts:
        raise BadInput("; ".join([f"{source} holds no scored answers; expected at least one record", *warnings]))
    frames = [_checked(p) for p in parts]
    frame = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    places = _Places(parts)
    order, first = _order(frame)
    frame, rank = frame.take(order).reset_index(drop=True), order
    _refuse_duplicates(frame, first, rank, places)
    clash = disagreement(frame)
    if clash:
        row, column = clash
        raise BadInput(
            f"{places.at(int(rank[row]))}: item '{frame['item_id'].iloc[row]}' has samples with different "
            f"{column.replace('_hash', '')}s; samples of one item must answer the same question"
        )
    warnings |= dict.fromkeys(_shape_warnings(frame))
    formats = dict.fromkeys(p.format for p in parts)
    return RecordSet(name, source, ", ".join(formats), frame, tuple(warnings), any(p.named for p in parts))


class _Places:
    """Row numbers of the joined parts back to "file:line"."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(p.lines) for p in parts])

    def at(self, row: int) -> str:
        part = int(np.searchsorted(self.ends, row, side="right"))
        start = int(self.ends[part - 1]) if part else 0
        return f"{self.parts[part].path}:{int(self.parts[part].lines[row - start])}"


def _checked(rows: Rows) -> pd.DataFrame:
    n = len(rows.lines)
    columns: dict[str, Any] = {}
    for name in TEXTS:
        given = rows.columns.get(name)
        if given is None:
            columns[name] = pd.Series([rows.group if name == "group" else ""], dtype="str").repeat(n).array
        elif isinstance(given, pd.Series) and given.dtype == "str" and not given.hasnans:
            columns[name] = given.array
        else:
            columns[name] = text_column(given).fillna("").array
    for name in ("group", "item_id"):
        empty = np.asarray(columns[name] == "", bool)
        if empty.any():
            raise BadInput(
                f"{rows.path}:{rows.lines[int(empty.argmax())]}: the {name} is empty; every record needs one"
            )
    columns["score"] = scores(rows.columns["score"], rows)
    sample = rows.columns.get("sample")
    columns["sample"] = np.zeros(n, np.int64) if sample is None else _samples(sample, rows)
    return pd.DataFrame(columns, columns=list(COLUMNS))


def scores(values: Any, rows: Rows) -> np.ndarray:
    """Scores as float64 [N]. Texts are refused, not parsed; NaN is refused because a missing score is not a wrong answer."""
    if isinstance(values, pd.Series):
        values = values.to_numpy() if values.dtype.kind in "fiub" else values.tolist()
    if not isinstance(values, np.ndarray):
        wrong = [t for t in set(map(type, values)) if not issubclass(t, int | float | np.number | np.bool_)]
        if wrong:
            row = next(i for i, v in enumerate(values) if type(v) in wrong)
            raise BadInput(f"{rows.path}:{rows.lines[row]}: score is {_short(values[row])}, expected a number")
    try:
        score = np.asarray(values, dtype=np.float64)
    except OverflowError:  # an integer with hundreds of digits
        score = np.array([float(v) if abs(v) < 1e300 else np.inf for v in values])
    bad = ~np.isfinite(score)
    if bad.any():
        row = int(bad.argmax())
        raise BadInput(
            f"{rows.path}:{rows.lines[row]}: score is {score[row]} ({int(bad.sum())} such), expected a finite number; "
            "score the answer or remove the record"
        )
    return score


def _samples(values: Any, rows: Rows) -> np.ndarray:
    array = np.asarray(values) if isinstance(values, np.ndarray | pd.Series) else np.asarray(values, dtype=object)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    numbers = array.tolist()
    wrong = [
        i
        for i, v in enumerate(numbers)
        if not ((type(v) is int and abs(v) < 2**63) or (isinstance(v, float) and v.is_integer()))
    ]
    if wrong:
        at = f"{rows.path}:{rows.lines[wrong[0]]}"
        raise BadInput(f"{at}: sample is {_short(numbers[wrong[0]])}, expected a whole number")
    return np.asarray(numbers, dtype=np.int64)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _order(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The sorting order [N], and, in that order, whether a row's key equals that of the row before it [N]."""
    group = pd.factorize(frame["group"], sort=True)[0]
    item = pd.factorize(frame["item_id"], sort=True)[0]
    sample = frame["sample"].to_numpy()
    order = np.lexsort((sample, item, group))
    repeated = np.zeros(len(order), bool)
    repeated[1:] = np.logical_and.reduce([np.diff(key[order]) == 0 for key in (group, item, sample)])
    return order, repeated


def _refuse_duplicates(frame: pd.DataFrame, repeated: np.ndarray, rank: np.ndarray, places: _Places) -> None:
    if not repeated.any():
        return
    row = int(repeated.argmax())
    same = frame["score"].iloc[row] == frame["score"].iloc[row - 1]
    earlier, later = sorted((int(rank[row - 1]), int(rank[row])))
    raise BadInput(
        f"{places.at(later)}: item '{frame['item_id'].iloc[row]}', sample {frame['sample'].iloc[row]}, came before at "
        f"{places.at(earlier)} with {'the same' if same else 'another'} score ({int(repeated.sum())} such); "
        "number several answers to one item with `sample`, and keep one record of each"
    )


def _shape_warnings(frame: pd.DataFrame) -> list[str]:
    """What is usable but should be seen: unequal sample counts, and scores on different scales."""
    warnings = []
    grouped = frame.groupby("group", sort=True)["score"]
    for name, n in frame.groupby(["group", "item_id"], sort=True).size().groupby(level=0, sort=True):
        if n.min() != n.max():
            warnings.append(f"{name}: items have {n.min()} to {n.max()} samples; each item counts once, by its mean")
    low, high = grouped.min(), grouped.max()
    if (high <= 1).any() and (high > 10).any():
        small, large = high[high <= 1].index[0], high.idxmax()
        warnings.append(
            f"groups are on different scales: {small} up to {high[small]:g}, {large} up to {high[large]:g}; `overall` mixes them"
        )
    for name, values in grouped:
        inside = ((values > 0) & (values <= 1)).mean()
        if low[name] >= 0 and 10 < high[name] <= 100 and inside > 0.1 and ((values > 0) & (values < 1)).any():
            warnings.append(
                f"{name}: scores between 0 and 1 stand beside scores up to {high[name]:g}; are two scales mixed?"
            )
    return warnings
