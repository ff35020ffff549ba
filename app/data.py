"""The served folder: its runs, their tables through DuckDB, and what is worked out once a run.

Tables are Parquet files that DuckDB reads with filters and columns pushed down, so that a trace never is in memory as a whole.
Everything is kept by what the files are (name, time, size): a run that goes on is read anew, one that rests is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import streamlit as st

from mopd_diag.diagnostics import explained
from mopd_diag.errors import BadInput, RunDirectoryError
from mopd_diag.reporting import text
from mopd_diag.reporting.look import Cast
from mopd_diag.reporting.reading import Reading
from mopd_diag.reporting.view import View, view_of
from mopd_diag.reporting.words import answers
from mopd_diag.runs.directory import RunDirectory

DEEP = 3
"""Folders below the served one in which runs are looked for."""
MOST = 500
VIEWS = ("records", "traces", "attribution")
Files = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class ServedFolder:
    """A folder of runs and comparisons. Names are paths below it; whatever leads out of it is refused."""

    root: Path

    # -- names ------------------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """A file or folder below the served one. Raises BadInput for a name that leads elsewhere, by `..`, `/` or a link."""
        try:
            found = (self.root / name).resolve()
            inside = found.is_relative_to(self.root.resolve())
        except (OSError, ValueError, RuntimeError):  # a name with a zero byte, or links in a circle
            inside = False
        if not inside or "\\" in name or Path(name).is_absolute():
            raise BadInput("got a path outside the served folder, expected a name below it; choose one in the list")
        return self.root / name

    def run_names(self) -> list[str]:
        """Folders with a manifest, `.` for the served one itself, the newest first."""
        return self._folders("manifest.json")

    def studies(self) -> list[str]:
        """Folders of studies, whose seeds are runs below them, the newest first."""
        return self._folders("study.json")

    def comparisons(self) -> list[str]:
        """Folders with the output of `mopd-diag compare --out`, the newest first."""
        return self._folders("comparison.json")

    def _folders(self, mark: str) -> list[str]:
        found: list[tuple[float, str]] = []
        waiting = [(self.root, 0)]
        while waiting and len(found) < MOST:
            folder, depth = waiting.pop(0)
            file, name = folder / mark, folder.relative_to(self.root).as_posix()
            if file.is_file() and self._inside(file):
                found.append((file.stat().st_mtime, name))
            elif depth < DEEP and folder.is_dir():
                inner = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and self._inside(p)]
                waiting += [(p, depth + 1) for p in sorted(inner)[:MOST]]
        return [name for _, name in sorted(found, reverse=True)]

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root.resolve())

    # -- runs -------------------------------------------------------------------------------------------------------------

    def runs(self) -> list[RunCard]:
        """A card for each run of the folder."""
        from app.live import card_of

        return [card_of(self.path(name), name) for name in self.run_names()]

    def open(self, name: str) -> RunDirectory:
        """A run by its name. Raises BadInput for a path outside the folder, RunDirectoryError for no run."""
        return RunDirectory.open(self.path(name))

    def files(self, run: RunDirectory) -> Files:
        """Name, time and size of every file of a run that pages read. Raises BadInput for a link that leads out."""
        paths = [run.path / n for n in ("manifest.json", "findings.json", "ledger.parquet", "geometry.json")]
        for folder, kind in (
            ("records", "parquet"),
            ("traces", "parquet"),
            ("attribution", "parquet"),
            ("metrics", "parquet"),
            ("explain", "json"),
        ):
            paths += sorted((run.path / folder).glob(f"[!.]*.{kind}"))
        told = []
        for path in paths:
            if path.is_file():
                if not self._inside(path):
                    raise BadInput(
                        f"{path.relative_to(self.root)} is a link out of the served folder; put the file there"
                    )
                state = path.stat()
                told.append((str(path), state.st_mtime_ns, state.st_size))
        return tuple(told)

    def query(self, run: RunDirectory, sql: str, params: Sequence[Any] = ()) -> pd.DataFrame:
        """The rows of a query over the views `records`, `traces` and `attribution` of a run.

        `traces` and `attribution` have a column `model`: whose answers they are. `params` fill the `?` of `sql`; values never are
        put into `sql`. Raises RunDirectoryError when the run lacks a view that is asked for.
        """
        files = tuple(f for f in self.files(run) if Path(f[0]).parent.name in VIEWS)
        present = {Path(f[0]).parent.name for f in files}
        missing = [v for v in VIEWS if v in sql.split() and v not in present]
        if missing:
            raise RunDirectoryError(f"the run has no {missing[0]} yet; repeat `mopd-diag run`")
        return _query(files, str(run.path), sql, tuple(params))

    # -- worked out once ----------------------------------------------------------------------------------------------------

    def view(self, run: RunDirectory) -> View:
        """What the report says about a run, without the token-level evidence."""
        return _view(str(run.path), self.files(run))

    def figures(self, name: str) -> tuple[str, ...]:
        """The three answers as figures with intervals, then time worked and FLOPs, from the findings and the ledger alone."""
        run = self.open(name)
        return _figures(str(run.path), tuple(f for f in self.files(run) if Path(f[0]).parent == run.path))

    def failures(self, run: RunDirectory) -> explained.FailureReport:
        """Every failed answer of the student by class, domain and teacher."""
        return _failures(str(run.path), self.files(run))


@dataclass(frozen=True)
class RunCard:
    """A run in a list. `done` and `total` count jobs; `working` are the jobs that can be in work, with their step."""

    name: str
    plan: str
    recipe: str
    budget: str
    seed: str
    created: str
    state: str
    done: int = 0
    total: int = 0
    working: tuple[str, ...] = ()
    note: str = ""


@st.cache_data(show_spinner=False, max_entries=200)
def _query(files: Files, folder: str, sql: str, params: tuple[Any, ...]) -> pd.DataFrame:
    with duckdb.connect(config={"threads": 2, "memory_limit": "400MB", "autoinstall_known_extensions": False}) as base:
        base.execute("SET allowed_directories = [?]", [folder])
        base.execute("SET enable_external_access = false")
        for view in VIEWS:
            paths = [f[0] for f in files if Path(f[0]).parent.name == view]
            parts = [_part(view, Path(p)) for p in paths]
            if parts:
                base.execute(f"CREATE VIEW {view} AS {' UNION ALL BY NAME '.join(parts)}")
        return base.execute(sql, list(params)).df()


def _part(view: str, path: Path) -> str:
    """One file of a view; a constant `model` lets DuckDB skip the files of the others."""
    own = "" if view == "records" else f"{_quoted(path.stem)} AS model, "
    return f"SELECT {own}* FROM read_parquet({_quoted(str(path))})"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


@st.cache_resource(show_spinner=False, max_entries=8)
def _view(path: str, files: Files) -> View:
    return view_of(RunDirectory(path), tokens=False)


@st.cache_resource(show_spinner=False, max_entries=4)
def _failures(path: str, files: Files) -> explained.FailureReport:
    return explained.report(RunDirectory(path))


@st.cache_data(show_spinner=False, max_entries=500)
def _figures(path: str, files: Files) -> tuple[str, ...]:
    run = RunDirectory(path)
    manifest = run.manifest()
    cast = Cast.of(manifest)
    told = [answer.figure for answer in answers(Reading.of(run.findings(), cast.domains), cast)]
    if not any(f[0].endswith("ledger.parquet") for f in files):
        return (*told, text.UNKNOWN, text.UNKNOWN)
    ledger = run.ledger()
    return (*told, text.duration(float(ledger["seconds"].sum())), text.count(float(ledger["flops"].sum())))
