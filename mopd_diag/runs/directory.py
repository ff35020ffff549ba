"""The run directory: what is where, written atomically, read lazily. No model and no torch in here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mopd_diag.errors import RunDirectoryError, writing
from mopd_diag.types import Estimate, Finding, Record

SCHEMA = 1
PROBE = "probe-student"
"""The short RL run from the student that asks whether its cap binds; no member of the cast, left out wherever all models are read."""
RECORD_COLUMNS = [f.name for f in fields(Record)]
LEDGER_COLUMNS = [
    "stage", "algorithm", "parents", "tokens_sampled", "tokens_trained", "tokens_scored", "rollouts", "flops", "seconds",
    "seconds_model", "started", "device", "matched_to", "matched_on",
]  # fmt: skip


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all: a draft beside it, flushed to disk, then renamed over it. Raises ResourceError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_table(path: Path, frame: pd.DataFrame | pa.Table) -> None:
    """Write a Parquet file whole or not at all. Raises ResourceError."""
    table = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, draft, compression="zstd")
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


class RunDirectory:
    """A run on disk. Reading a part that is not there raises RunDirectoryError with the command that makes it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """An existing run. Raises RunDirectoryError when there is no readable manifest of this schema."""
        run = cls(path)
        run.manifest()
        return run

    def _require(self, name: str, made_by: str) -> Path:
        path = self.path / name
        if not path.exists():
            raise RunDirectoryError(f"{self.path} has no {name}: {made_by}")
        return path

    # -- manifest -------------------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """The manifest: plan, stages, versions, seeds, hardware."""
        path = self._require("manifest.json", "expected a run directory; `mopd-diag run PLAN --out DIR` makes one")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunDirectoryError(
                f"{path} is not JSON ({error}); restore it or start a run in a new directory"
            ) from error
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else type(document).__name__
            raise RunDirectoryError(f"{path} has schema {found!r}, expected {SCHEMA}; use the version that wrote it")
        return document

    # -- records --------------------------------------------------------------------------------------------------------

    def record_path(self, model: str) -> Path:
        return self.path / "records" / f"{model}.parquet"

    def write_records(self, model: str, records: Iterable[Record]) -> None:
        frame = pd.DataFrame([asdict(r) for r in records], columns=RECORD_COLUMNS)
        write_table(self.record_path(model), frame)

    def records(self, *models: str) -> pd.DataFrame:
        """Records of the named models, or of all but the probe: the contract's columns, one row a sampled answer."""
        folder = self._require("records", "the run has evaluated no model yet; repeat `mopd-diag run`")
        found = sorted(p for p in folder.glob("*.parquet") if p.stem != PROBE)
        paths = [self.record_path(m) for m in models] if models else found
        missing = [p for p in paths if not p.is_file()]
        if missing or not paths:
            raise RunDirectoryError(
                f"{folder} lacks {missing[0].name if missing else 'records'}; repeat `mopd-diag run`"
            )
        return pd.concat([pd.read_parquet(p) for p in paths], ignore_index=True)

    # -- traces, metrics, ledger ----------------------------------------------------------------------------------------

    def trace_path(self, name: str) -> Path:
        return self.path / "traces" / f"{name}.parquet"

    def trace_names(self) -> list[str]:
        return sorted(p.stem for p in (self.path / "traces").glob("*.parquet"))

    def trace(self, name: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Token-level rows of one model's answers under the cast (the contract's trace columns)."""
        path = self._require(f"traces/{name}.parquet", "no attribution of that model yet; repeat `mopd-diag run`")
        return pd.read_parquet(path, columns=columns)

    def attribution_path(self, name: str) -> Path:
        return self.path / "attribution" / f"{name}.parquet"

    def attribution(self, name: str) -> pd.DataFrame:
        """Attributed answers of one model, one row an answer; `drawn` marks those that shares are estimated from."""
        return pd.read_parquet(
            self._require(f"attribution/{name}.parquet", "no attribution of that model yet; repeat `mopd-diag run`")
        )

    def metrics(self, stage: str) -> pd.DataFrame:
        """Training curves of a stage, one row a logged step; empty when the stage logs none."""
        path = self.path / "metrics" / f"{stage}.parquet"
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame()

    def ledger(self) -> pd.DataFrame:
        """What each stage sampled, trained, scored and took, in order of completion."""
        return pd.read_parquet(self._require("ledger.parquet", "the run is not finished; repeat `mopd-diag run`"))

    def geometry(self) -> dict[str, Any]:
        """Gradients, task vectors, disagreement and shares of the domains at the base, as docs/run-directory.md lists them."""
        path = self._require("geometry.json", "domains were not compared in this run; repeat `mopd-diag run`")
        return json.loads(path.read_text(encoding="utf-8"))

    # -- findings -------------------------------------------------------------------------------------------------------

    def write_findings(self, findings: Iterable[Finding]) -> None:
        write_json(self.path / "findings.json", {"schema": SCHEMA, "findings": [f.to_dict() for f in findings]})

    def findings(self) -> list[Finding]:
        path = self._require("findings.json", "nothing was diagnosed yet; repeat `mopd-diag run`")
        return [_finding(f) for f in json.loads(path.read_text(encoding="utf-8"))["findings"]]


def _finding(table: dict[str, Any]) -> Finding:
    estimate = table["estimate"]
    if estimate is not None:
        numbers: dict[str, Any] = {k: math.nan if v is None else v for k, v in estimate.items()}
        estimate = Estimate(**numbers)
    return Finding(**{**table, "estimate": estimate})
