"""Our own records: a run directory, a Parquet file of records, and data frames with the same columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mopd_diag.errors import BadInput, nearest
from mopd_diag.records.build import Rows
from mopd_diag.records.recordset import UNNAMED, text_of

TAKEN = ("sample", "prompt_hash", "target_hash", "prompt", "response")
CLUSTERS = ("cluster", "document", "seed")


def is_run(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def read_run(path: Path, model: str, metric: str | None = None) -> Rows:
    """The records of one model of a run directory; groups are the domains."""
    folder = path / "records"
    models = sorted(p.stem for p in folder.glob("*.parquet"))
    if not models:
        raise BadInput(f"{path} is a run without records; repeat `mopd-diag run` until its models are evaluated")
    if model not in models:
        raise BadInput(f"{path} has no records of '{model}'; {nearest(model, models)}")
    return read_parquet(folder / f"{model}.parquet", "", model, metric, form="mopd-diag run")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path} is not a whole Parquet file ({reason}); was the run cut off? write it again") from None


def columns_of(path: Path) -> list[str]:
    with reading(path):
        return pq.read_schema(path).names


def read_frame(path: Path) -> pd.DataFrame:
    with reading(path):
        return pq.read_table(path).to_pandas()


def read_parquet(path: Path, group: str, model: str, metric: str | None = None, *, form: str = "parquet") -> Rows:
    """A Parquet file of records; a file with several models gives those of `model`."""
    frame = read_frame(path)
    if "model" in frame and frame["model"].nunique() > 1:
        models = sorted(map(str, frame["model"].unique()))
        if model not in models:
            raise BadInput(f"{path} has no records of '{model}'; {nearest(model, models)}")
        frame = frame[frame["model"] == model]
    return rows_of(frame, str(path), form, group, metric)


def rows_of(
    frame: pd.DataFrame, source: str, form: str = "data frame", group: str = UNNAMED, metric: str | None = None
) -> Rows:
    """A frame with `item_id` (or `id`) and `score`, and optionally `domain`, `sample`, hashes, `prompt` and `response`."""
    score, item = metric or "score", "item_id" if "item_id" in frame else "id"
    for name in (item, score):
        if name not in frame:
            hint = nearest(name, map(str, frame.columns)) if len(frame.columns) else "it has no columns"
            raise BadInput(f"{source} has no column '{'item_id' if name == 'id' else name}'; {hint}")
    lines = np.arange(1, len(frame) + 1)
    columns: dict[str, Any] = {"score": frame[score]}
    columns["item_id"] = _texts(frame[item])
    columns |= {name: frame[name] if name == "sample" else _texts(frame[name]) for name in TAKEN if name in frame}
    named = next((n for n in ("domain", "group") if n in frame), None)
    if named is not None:
        columns["group"] = _texts(frame[named])
    cluster = next((n for n in CLUSTERS if n in frame), None)
    if cluster is not None:
        columns["cluster"] = _texts(frame[cluster])
    if "sample" in frame and frame["sample"].isna().any():
        row = int(frame["sample"].isna().to_numpy().argmax())
        raise BadInput(f"{source}:{row + 1}: sample is missing, expected a whole number")
    return Rows(source, form, columns, lines, group, named=named is not None)


def _texts(column: pd.Series) -> pd.Series | list[str]:
    """Numbers as their digits, without a trailing ".0" that a missing value elsewhere would bring."""
    if column.dtype == "str":
        return column
    if column.dtype.kind in "iu":
        return column.astype("str")
    values = column.tolist()
    return [
        ""
        if v is None or v is pd.NA or v != v
        else str(int(v))
        if isinstance(v, float) and v.is_integer()
        else text_of(v)
        for v in values
    ]
