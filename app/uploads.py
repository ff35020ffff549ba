"""Record files that a reader uploads: checked for name, size and kind before anything parses them, and gone after it."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from mopd_diag.errors import BadInput
from mopd_diag.records.read import SUFFIXES, read_records
from mopd_diag.records.recordset import RecordSet

LIMIT_MB = 200
"""Of all files of one side together, and of one file as the browser sends it."""
UNPACKED_MB = 2_000
"""Of a zip or Parquet file when it is unpacked: a small file can hold a large one."""
MOST_FILES = 100
MB = 1 << 20
TYPES = sorted(s.removeprefix(".") for s in SUFFIXES)


@dataclass(frozen=True)
class Upload:
    """One file as it came; `name` is what the browser says, and not to be trusted."""

    name: str
    content: bytes


def checked(files: Sequence[Upload]) -> list[Upload]:
    """The same files under plain names. Raises BadInput for the first that is too large, misnamed or not of its kind."""
    if len(files) > MOST_FILES:
        raise BadInput(f"{len(files)} files uploaded, expected at most {MOST_FILES}; upload fewer at a time")
    total = sum(len(f.content) for f in files)
    if total > LIMIT_MB * MB:
        raise BadInput(
            f"{total / MB:,.0f} MB uploaded, expected at most {LIMIT_MB}; put the files into the folder and choose them there"
        )
    plain = [replace(f, name=_plain_name(f.name)) for f in files]
    for k, file in enumerate(plain):
        if file.name in {f.name for f in plain[:k]}:
            raise BadInput(f"{file.name} was uploaded twice; remove one of the two")
        _check_kind(file)
    return plain


def read_upload(files: Sequence[Upload], name: str, metric: str | None = None) -> RecordSet:
    """One record set from one file, or from several that belong together, such as the tasks of an lm-eval run.

    The files are on disk only while they are read. Raises BadInput as `checked` and `read_records` do.
    """
    plain = checked(files)
    if not plain:
        raise BadInput(f"no file uploaded for {name}; choose one")
    with tempfile.TemporaryDirectory(prefix="mopd-diag-") as folder:
        for file in plain:
            (Path(folder) / file.name).write_bytes(file.content)
        path = Path(folder) / plain[0].name if len(plain) == 1 else Path(folder)
        try:
            records = read_records(path, metric=metric)
        except BadInput as error:
            raise BadInput(str(error).replace(f"{folder}/", "").replace(folder, "the upload")) from None
    title = Path(plain[0].name).stem if len(plain) == 1 else name
    warnings = tuple(w.replace(f"{folder}/", "").replace(folder, "the upload") for w in records.warnings)
    return replace(records, name=title, source=title, warnings=warnings)


def _plain_name(name: str) -> str:
    plain = PurePosixPath(name.replace("\\", "/")).name
    if not plain or plain.startswith(".") or not plain.isprintable() or len(plain.encode()) > 200:
        raise BadInput(f"the file name {plain[:60]!r} cannot be used; rename the file and upload it again")
    if Path(plain).suffix.lower() not in SUFFIXES:
        raise BadInput(f"{plain} is of no supported kind; expected one of {', '.join(sorted(SUFFIXES))}")
    return plain


def _check_kind(file: Upload) -> None:
    """What is in the file is what its name says; `read_records` looks at the rest."""
    suffix, head = Path(file.name).suffix.lower(), file.content[:4]
    if (suffix == ".parquet") != (head == b"PAR1"):
        raise BadInput(f"{file.name} is {'no' if suffix == '.parquet' else 'a'} Parquet file, whatever its name says")
    zipped = head == b"PK\x03\x04"
    if zipped != (suffix == ".eval"):
        raise BadInput(f"{file.name} is {'a' if zipped else 'no'} zip file; only the .eval logs of inspect_ai are")
    unpacked = _zip_bytes(file) if zipped else _parquet_bytes(file) if suffix == ".parquet" else len(file.content)
    if unpacked > UNPACKED_MB * MB:
        raise BadInput(f"{file.name} holds {unpacked / MB:,.0f} MB unpacked, expected at most {UNPACKED_MB:,}")


def _zip_bytes(file: Upload) -> int:
    try:
        with zipfile.ZipFile(io.BytesIO(file.content)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise BadInput(f"{file.name} is a broken zip file ({error}); upload it again") from None


def _parquet_bytes(file: Upload) -> int:
    try:
        metadata = pq.read_metadata(pa.BufferReader(file.content))
    except pa.ArrowException as error:
        raise BadInput(
            f"{file.name} is a broken Parquet file ({str(error).splitlines()[0]}); upload it again"
        ) from None
    return sum(metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
