"""Where a run stands, read from its directory: which jobs are done, which can be in work, and at which step.

`done/JOB.json` marks a finished job, `saved/STAGE.safetensors` holds a stage in training, and a running `mopd-diag run` keeps
`.lock` locked. Nothing is locked here to find that out: a run that starts meanwhile would think it is in use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.data import RunCard
from mopd_diag.errors import MopdDiagError, RunDirectoryError
from mopd_diag.runs.directory import RunDirectory

FRESH = 120.0
"""Seconds without a new file after which a run counts as stopped, where the system does not tell who holds a lock."""
HEADER = 64 << 20
"""A safetensors header longer than this is none."""


def card_of(path: Path, name: str) -> RunCard:
    """What the list says about one run; a manifest that cannot be read becomes a card that says so."""
    try:
        manifest = RunDirectory(path).manifest()
    except (MopdDiagError, OSError) as error:
        said = (
            error if isinstance(error, MopdDiagError) else RunDirectoryError(f"{name} cannot be read: {error.strerror}")
        )
        return RunCard(name, path.name, "–", "–", "–", "–", "broken", note=str(said))
    found = manifest.get("plan")
    plan = found if isinstance(found, Mapping) else {}
    jobs = jobs_of(manifest)
    done = {p.stem for p in (path / "done").glob("*.json")}
    finished = (path / "findings.json").is_file()
    state = "done" if finished else "running" if in_use(path) else "stopped"
    working = (
        ()
        if state != "running"
        else tuple(_at(path, j) for j, needs in jobs.items() if j not in done and needs <= done)
    )
    return RunCard(
        name,
        str(plan.get("name") or path.name),
        str(plan.get("recipe") or "–"),
        str(plan.get("budget") or "–"),
        str(plan.get("seed", "–")),
        str(manifest.get("created") or "–")[:16].replace("T", " "),
        state,
        len(done & set(jobs)) if not finished else len(jobs),
        len(jobs),
        working,
    )


def jobs_of(manifest: Mapping[str, Any]) -> dict[str, set[str]]:
    """Job -> the jobs it waits for, as `study.run.make_jobs` plans them; none for a manifest without a plan that can be resolved."""
    identity = manifest.get("identity")
    if not isinstance(identity, dict):
        return {}
    from mopd_diag.study.resolve import resolve_identity
    from mopd_diag.study.run import make_jobs

    try:
        return {j.name: set(j.needs) for j in make_jobs(Path(), resolve_identity(identity), identity)}
    except MopdDiagError:  # a plan of a later version: its run can still be read
        return {}


def in_use(path: Path) -> bool:
    """Whether a process holds the run's lock; without a list of locks, whether the run has changed lately."""
    lock, table = path / ".lock", Path("/proc/locks")
    if not lock.exists():
        return False
    if table.is_file():
        inode = str(lock.stat().st_ino)
        lines = [line.split() for line in table.read_text().splitlines()]
        return any(
            "FLOCK" in line and any(w.rpartition(":")[2] == inode for w in line if w.count(":") == 2) for line in lines
        )
    newest = max(
        (p.stat().st_mtime for f in ("done", "saved", "metrics", ".") for p in (path / f).glob("*")), default=0.0
    )
    return time.time() - newest < FRESH


def _at(path: Path, job: str) -> str:
    """A job with the step at which it was last saved."""
    kind, _, name = job.partition("-")
    step = saved_step(path / "saved" / f"{name}.safetensors") if kind == "train" else None
    return job if step is None else f"{job}, step {step}"


def saved_step(path: Path) -> int | None:
    """The step in the header of a training that was saved on the way; None when there is none or it is being replaced."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length < HEADER else {}
        return int(json.loads(header["__metadata__"]["state"])["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
