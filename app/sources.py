"""The record sets a reader can compare: models of the folder's runs, record files lying in it, and what was uploaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from app.data import ServedFolder
from app.uploads import LIMIT_MB, TYPES, Upload, read_upload
from mopd_diag.diagnostics.regression import MARGIN
from mopd_diag.diagnostics.trend import Trend
from mopd_diag.errors import BadInput
from mopd_diag.records.read import SUFFIXES
from mopd_diag.records.recordset import RecordSet
from mopd_diag.study.compare import Comparison
from mopd_diag.study.compare import compare as compare_records
from mopd_diag.study.compare import trend as trend_of

DEEP = 2
"""Folders below the served one in which record files are looked for."""
MOST = 300
NAMED = SUFFIXES - {".json"}  # a .json file in a folder of results is rarely records
STAMP = tuple[str, int, int]


@dataclass(frozen=True)
class Picked:
    """One side of a comparison. `stamp` changes with the records; `records` is a path as `compare` takes it, or a set."""

    label: str
    stamp: STAMP
    records: str | RecordSet


def choices(folder: ServedFolder) -> dict[str, str]:
    """What the folder offers, as it stands in the URL, with the words under which it is shown."""
    told: dict[str, str] = {}
    for run in folder.run_names():
        for path in sorted((folder.path(run) / "records").glob("[!.]*.parquet")):
            told[f"{run}:{path.stem}"] = path.stem if run == "." else f"{path.stem} · {run}"
    return told | {name: name for name in _loose(folder)}


def picked(folder: ServedFolder, choice: str) -> Picked:
    """A choice, checked again: it came from the URL. Raises BadInput for a path outside the folder."""
    run, colon, model = choice.rpartition(":")
    path = folder.path(f"{run}/records/{model}.parquet") if colon else folder.path(choice)
    if not path.resolve().is_relative_to(folder.root.resolve()) or not path.exists():
        raise BadInput("these records are not in the served folder; choose some in the list")
    state = path.stat()
    given = f"{folder.path(run)}:{model}" if colon else str(path)
    return Picked(choice, (given, state.st_mtime_ns, state.st_size), given)


def uploaded(label: str, side: str) -> Picked | None:
    """An upload box and what is in it. Raises BadInput for files that cannot be read as records."""
    files = st.file_uploader(
        label, type=TYPES, accept_multiple_files=True, max_upload_size=LIMIT_MB, key=f"upload-{side}",
        help="One file, or the files of one lm-eval run together. They are read once and not kept.",
    )  # fmt: skip
    if not files:
        return None
    stamp = (" ".join(f.file_id for f in files), 0, sum(f.size for f in files))
    return Picked(f"upload {side}", stamp, _read(stamp, side, files))


@st.cache_resource(show_spinner="Reading the upload …", max_entries=4)
def _read(stamp: STAMP, side: str, _files: Sequence) -> RecordSet:
    return read_upload([Upload(f.name, f.getvalue()) for f in _files], side)


def compared(before: Picked, after: Picked, margin: float = MARGIN) -> Comparison:
    """The two sides compared, worked out once. Raises BadInput for records that cannot be joined."""
    return _compared(before.stamp, after.stamp, margin, before.records, after.records)


@st.cache_resource(show_spinner="Comparing …", max_entries=6)
def _compared(before: STAMP, after: STAMP, margin: float, _before: str | RecordSet, _after: str | RecordSet) -> Comparison:  # fmt: skip
    return compare_records(_before, _after, margin=margin)


def followed(sets: Sequence[Picked], margin: float = MARGIN) -> Trend:
    """Checkpoints in order, worked out once. Raises BadInput for records that cannot be joined."""
    return _followed(tuple(s.stamp for s in sets), margin, [s.records for s in sets])


@st.cache_resource(show_spinner="Following the checkpoints …", max_entries=3)
def _followed(stamps: tuple[STAMP, ...], margin: float, _records: Sequence[str | RecordSet]) -> Trend:
    return trend_of(_records, margin=margin)


def _loose(folder: ServedFolder) -> list[str]:
    """Record files outside of runs, and folders of lm-eval samples."""
    found: list[str] = []
    waiting = [(folder.root, 0)]
    while waiting and len(found) < MOST:
        place, depth = waiting.pop(0)
        if (place / "manifest.json").is_file():
            continue
        inside = [p for p in sorted(place.iterdir())[:MOST] if not p.name.startswith(".") and _within(folder, p)]
        samples = [p for p in inside if p.name.startswith("samples_") and p.suffix == ".jsonl"]
        name = place.relative_to(folder.root).as_posix()
        found += (
            [name]
            if samples
            else [p.relative_to(folder.root).as_posix() for p in inside if p.is_file() and p.suffix in NAMED]
        )
        waiting += [(p, depth + 1) for p in inside if p.is_dir() and depth < DEEP]
    return found


def _within(folder: ServedFolder, path: Path) -> bool:
    return path.resolve().is_relative_to(folder.root.resolve())
