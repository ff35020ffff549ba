"""Run a study in a directory: what is done stays done, what is missing is made, then it is diagnosed and reported."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from mopd_diag.config import (
    DPOStage,
    GRPOStage,
    MOPDStage,
    PlantStage,
    PPOStage,
    RejectionStage,
    RewardModelStage,
    SeqKDStage,
    SFTStage,
    Stage,
)
from mopd_diag.errors import RunDirectoryError
from mopd_diag.runs.directory import LEDGER_COLUMNS, SCHEMA, RunDirectory, write_json, write_table
from mopd_diag.runs.metrics import streaming
from mopd_diag.runs.progress import RunProgress
from mopd_diag.runs.ray_scheduler import RayScheduler
from mopd_diag.runs.scheduler import Job
from mopd_diag.study.preflight import asked, check_fit, memory_bytes
from mopd_diag.study.probe_stage import planned, probe_stage, probed_identity
from mopd_diag.study.resolve import Study, resolve_identity
from mopd_diag.study.settle import settled
from mopd_diag.study.shards import hand_out

PACKAGES = ("mopd-diag", "torch", "transformers", "numpy", "scipy", "pandas", "pyarrow", "tokenizers", "safetensors")


def call_job(*arguments: Any) -> None:
    """The function that worker processes import; torch is loaded there, not in the parent."""
    from mopd_diag.study.jobs import run_job

    run_job(*arguments)


def run_study(
    study: Study, out: Path, *, workers: int | None = None, console: Console | None = None, ray: RayScheduler | None = None,
    trackers: Sequence[str] = (),
) -> RunDirectory:  # fmt: skip
    """Train, evaluate, trace, diagnose and report; a repeated call goes on where the last one stopped. `ray` runs the jobs instead of
    this machine's processes, with the same results.

    Raises RunDirectoryError when `out` belongs to another plan or is in use, BadInput or ResourceError when it cannot fit.
    """
    return _run(study, out, workers, console, ray, train_only=False, trackers=trackers)


def train_study(study: Study, out: Path, *, workers: int | None = None, console: Console | None = None) -> RunDirectory:
    """Only train the models of a study, as `run_study` would; raises the same."""
    return _run(study, out, workers, console, None, train_only=True)


def _run(
    study: Study,
    out: Path,
    workers: int | None,
    console: Console | None,
    ray: RayScheduler | None,
    *,
    train_only: bool,
    trackers: Sequence[str] = (),
) -> RunDirectory:
    study = settled(study)
    check_fit(study, out)
    identity = study.identity()
    console = console or Console(stderr=True, quiet=True)
    for note in study.notes:
        console.print(f"note: {note}", style="dim", markup=False)
    run = claim(out, study, identity)
    with lock(run.path):
        everything = make_jobs(run.path, study, identity)
        if train_only:
            everything = [j for j in everything if j.name.startswith("train-")]
        jobs = [j for j in everything if not is_done(run.path, j.name)]
        if len(jobs) < len(everything):
            console.print(
                f"[dim]{run.path}: going on, {len(everything) - len(jobs)} of {len(everything)} jobs are done[/]"
            )
        with (
            RunProgress(console, sum(j.weight for j in jobs)) as bars,
            streaming(trackers, bars, run.path, {"": run.path}) as watcher,
        ):
            hand_out(jobs, [study], workers, watcher, ray)
        if not train_only:
            finish(run, study)
    return run


# -- the directory ------------------------------------------------------------------------------------------------------------


def claim(out: Path, study: Study, identity: dict[str, Any]) -> RunDirectory:
    """The run directory for this study: a new one with its manifest, or the one that is there when it is of the same plan."""
    run = RunDirectory(out)
    if out.is_file():
        raise RunDirectoryError(f"{out} is a file, expected a directory for the run; choose another --out")
    if (out / "manifest.json").exists():
        if "identity" not in run.manifest():
            raise RunDirectoryError(f"{out} holds an evaluation, not a run that was trained; choose another --out")
        # Read back, so that settings which came with a later version stand at their defaults.
        found = resolve_identity(run.manifest()["identity"]).identity()
        if found != identity:
            raise RunDirectoryError(
                f"{out} belongs to another run ({_difference(found, identity)}); choose another --out or repeat that run"
            )
        return run
    if out.is_dir() and any(out.iterdir()):
        raise RunDirectoryError(f"{out} is not empty and holds no run; choose another --out")
    manifest = {
        "schema": SCHEMA,
        "identity": identity,
        "plan": identity["plan"],
        "stages": identity["stages"],
        "models": study.roles,
        "route": study.route(),
        "sequence": study.sequence(),
        "controls": study.controls(),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "git": _revision(),
        "seeds": [study.plan.seed],
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_bytes": memory_bytes(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(out / "manifest.json", manifest)
    return run


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first setting in which two identities differ, in words."""
    models = [identity["plan"].get("model", {}).get("path") for identity in (found, wanted)]
    if models[0] != models[1]:
        return f"its model is {json.dumps(models[0])}, this one's is {json.dumps(models[1])}"
    for key in ("name", "seed", "budget", "world"):
        a, b = found["plan"].get(key), wanted["plan"].get(key)
        if a != b:
            return f"its {key} is {json.dumps(a)}, this one's is {json.dumps(b)}"
    if found.get("model") != wanted.get("model"):
        return "its first checkpoint has other weights"
    return "its settings differ"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """Revision of the source tree this package runs from; empty when it is installed."""
    folder = Path(__file__).parent
    asked = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """One process a run directory; the lock goes with the process, however it ends."""
    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunDirectoryError(
                f"{path} is in use by another process; wait for it or choose another directory"
            ) from None
        yield


# -- the jobs -----------------------------------------------------------------------------------------------------------------


def make_jobs(run: Path, study: Study, identity: dict[str, Any]) -> list[Job]:
    """Train each stage after its parents, evaluate each model, trace the student and the teacher-free controls, compare gradients."""
    since = time.time() - elapsed(run)
    jobs = [job for stage in study.stages for job in stage_jobs(run, identity, stage, since)]
    if (settings := planned(run, study)) is not None:
        jobs += stage_jobs(run, probed_identity(identity, study, settings), probe_stage(study, settings), since)
    others = tuple(f"train-{m}" for m in (*study.teachers(), *study.controls()))
    for name in traced(study):
        jobs.append(
            Job(
                f"trace-{name}",
                call_job,
                (run, identity, "trace", name, since),
                (f"evaluate-{name}", "train-base", *others),
                10.0,
                **asked(identity),
            )
        )
    return jobs + geometry_jobs(run, study, identity, since)


def geometry_jobs(run: Path, study: Study, identity: dict[str, Any], since: float) -> list[Job]:
    """Compare what the domains ask of the base, once it and the specialists are there; nothing to compare for one domain."""
    if "base" not in study.roles or len(study.world.domains) < 2:
        return []
    student = [p for s in study.stages if s.name == "student" for p in s.parents]
    needs = dict.fromkeys(("evaluate-base", *(f"train-{m}" for m in ("base", *study.teachers(), *student))))
    about = (run, identity, "geometry", "base", since)
    return [Job("geometry-base", call_job, about, tuple(needs), 10.0, **asked(identity))]


def stage_jobs(run: Path, identity: dict[str, Any], stage: Stage, since: float) -> list[Job]:
    """Train one stage after its parents, and evaluate the model it makes."""
    train, evaluate = (f"{kind}-{stage.name}" for kind in ("train", "evaluate"))
    needs = tuple(f"train-{p}" for p in stage.waits_for)
    about = (run, identity, "train", stage.name, since)
    jobs = [Job(train, call_job, about, needs, _weight(stage), **asked(identity, stage))]
    if isinstance(stage, RewardModelStage):
        return jobs  # it answers nothing
    about = (run, identity, "evaluate", stage.name, since)
    return [*jobs, Job(evaluate, call_job, about, (train,), 20.0, **asked(identity))]


def traced(study: Study) -> list[str]:
    """The models whose answers are attributed: the student, and the controls that never saw a teacher."""
    return (
        [n for n in ("student", *study.controls()) if n in study.roles]
        if study.teachers() and "base" in study.roles
        else []
    )


def _weight(stage: Any) -> float:
    """Expected work, in rows passed through a model."""
    match stage:
        case GRPOStage():
            return stage.steps * stage.prompts * stage.group / 1000
        case MOPDStage():
            return stage.steps * stage.prompts * stage.group * 3 / 1000
        case RewardModelStage() | DPOStage() | RejectionStage():
            return stage.steps * stage.prompts * (stage.group + 4) / 1000
        case PPOStage():
            return stage.steps / stage.updates * stage.prompts * stage.group * (3 + 2 * stage.epochs) / 1000
        case SFTStage() | SeqKDStage() | PlantStage():
            return stage.steps * stage.batch * 2 / 1000
    return 1.0


def is_done(run: Path, job: str) -> bool:
    """A job is done when its mark is there and what it made can still be found."""
    kind, _, name = job.partition("-")
    product = {
        "train": f"models/{name}",
        "evaluate": f"records/{name}.parquet",
        "trace": f"traces/{name}.parquet",
        "geometry": "geometry.json",
    }
    return (run / "done" / f"{job}.json").is_file() and (run / product[kind]).exists()


def elapsed(run: Path) -> float:
    """Seconds that earlier calls have put into this run."""
    rows = [json.loads(p.read_text())["ledger"] for p in (run / "done").glob("*.json")]
    return max((r["started"] + r["seconds"] for r in rows), default=0.0)


# -- the end ------------------------------------------------------------------------------------------------------------------


def ledger(run: RunDirectory) -> pd.DataFrame:
    """The ledger so far, from the jobs that are done, in the order in which they began."""
    rows = [json.loads(p.read_text())["ledger"] for p in sorted((run.path / "done").glob("*.json"))]
    return pd.DataFrame(rows, columns=LEDGER_COLUMNS).sort_values("started", ignore_index=True)


def finish(run: RunDirectory, study: Study) -> None:
    """Ledger, findings, report."""
    from mopd_diag.diagnostics.study import diagnose
    from mopd_diag.reporting.report import write_report

    write_table(run.path / "ledger.parquet", ledger(run))
    run.write_findings(diagnose(run))
    write_report(run)
