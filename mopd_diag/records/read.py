"""Records of any supported format, recognised by what is in them, never by their name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mopd_diag.errors import BadInput
from mopd_diag.records import inspect_ai, jsonl, lm_eval, ours, rollouts
from mopd_diag.records.build import Rows, build
from mopd_diag.records.recordset import RecordSet

SUFFIXES = {".jsonl", ".ndjson", ".json", ".parquet", ".eval"}
SUPPORTED = "a run directory, Parquet, lm-eval samples, inspect_ai logs, verl, TRL or NeMo-RL rollouts, or JSON lines"
HEAD = 1 << 16


def read_records(path: Path | str, *, model: str = "student", metric: str | None = None) -> RecordSet:
    """The records at `path`: a file, a results directory of a known tool, or a directory of files, one group a file.

    `model` picks one of the models of a run directory. `metric` picks among several scores: a metric or filter of lm-eval
    (`exact_match`, `strict-match`, or `exact_match,strict-match`), a scorer of inspect_ai, a reward of a rollout dump, or
    another field of a plain file.

    Raises BadInput, in one line, for anything that cannot be read as scored answers.
    """
    source, path = str(path), Path(path)
    try:
        if path.is_dir():
            parts = _directory(path, model, metric)
        elif path.exists():
            parts = [_file(path, model, metric)]
        else:
            raise BadInput(f"no file or directory {source}: expected {SUPPORTED}; check the path")
    except OSError as error:
        raise BadInput(
            f"cannot read {error.filename or source} ({error.strerror or error}); check it and repeat"
        ) from None
    return build(parts, name=path.resolve().name if path.is_dir() else path.stem, source=source)


def from_frame(frame: pd.DataFrame, name: str = "data frame", *, metric: str | None = None) -> RecordSet:
    """A data frame with `item_id` and `score`, and optionally `domain`, `sample`, `prompt_hash`, `target_hash`, `cluster`,
    `prompt`, `response`; one row a scored answer. Raises BadInput as `read_records` does."""
    return build([ours.rows_of(frame, name, metric=metric)], name=name, source="data frame")


def _directory(path: Path, model: str, metric: str | None) -> Sequence[Rows]:
    if path.name == "records" and ours.is_run(path.parent):
        path = path.parent
    if ours.is_run(path):
        return [ours.read_run(path, model, metric)]
    if lm_eval.is_results(path):
        return lm_eval.read_results(path, metric)
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise BadInput(f"{path} holds no records; expected {SUPPORTED}, or a directory of such files")
    parts = [_file(p, model, metric) for p in files]
    rollouts.refuse_steps(path, parts)
    # One group a file: also where the records name none, the file does.
    return [replace(p, named=True) for p in parts]


def _file(path: Path, model: str, metric: str | None) -> Rows:
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head.strip():
        raise BadInput(f"{path} is empty; expected {SUPPORTED}")
    if head.startswith(b"PAR1"):
        return _parquet(path, model, metric)
    if head.startswith(b"PK\x03\x04") or _inspect_json(head):
        return inspect_ai.read_log(path, metric)
    return _lines(path, head)(path, path.stem, metric)


def _parquet(path: Path, model: str, metric: str | None) -> Rows:
    if rollouts.is_trl(ours.columns_of(path)):
        return rollouts.read_trl(path, path.stem, metric)
    return ours.read_parquet(path, path.stem, model, metric)


def _inspect_json(head: bytes) -> bool:
    return bool(re.match(rb'(\xef\xbb\xbf)?\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:', head))


def _lines(path: Path, head: bytes) -> Callable[[Path, str, str | None], Rows]:
    """The reader for a file of JSON lines, by the keys of its first object."""
    if b"\0" in head:
        raise BadInput(f"{path} is neither text, nor Parquet, nor an inspect_ai log; expected {SUPPORTED}")
    first = re.match(rb"\s*\{\s*\n", head)
    if first and b'"results"' in head and b'"configs"' in path.read_bytes():
        raise BadInput(f"{path} holds lm-eval's averages, no samples; give the directory, written with --log_samples")
    if head.lstrip().startswith(b"["):
        raise BadInput(f"{path} is one JSON array; expected one object a line (`jq -c '.[]'` makes that of it)")
    keys = next(jsonl.objects(path))[1].keys()
    if "doc_id" in keys:
        return lm_eval.read_samples
    if {"input", "output", "score"} <= keys:
        return rollouts.read_verl
    if {"content", "rewards"} <= keys:
        return rollouts.read_nemo
    return jsonl.read_plain
