"""Is the cap binding? Train the probe of a finished run at a stated cost, evaluate it, and write findings and report anew."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mopd_diag.config import Counted, GRPOStage
from mopd_diag.errors import BadInput, RunDirectoryError
from mopd_diag.reporting import text
from mopd_diag.runs.directory import PROBE, RunDirectory, write_json
from mopd_diag.runs.progress import RunProgress
from mopd_diag.runs.ray_scheduler import RayScheduler
from mopd_diag.runs.scheduler import Job
from mopd_diag.study.counts import counted, path_count
from mopd_diag.study.preflight import check_fit
from mopd_diag.study.probe_stage import (
    Settings,
    default_steps,
    document,
    kept,
    planned,
    probe_stage,
    probed_identity,
    settings_path,
)
from mopd_diag.study.resolve import Study, resolve_identity
from mopd_diag.study.run import elapsed, finish, is_done, lock, make_jobs, stage_jobs
from mopd_diag.study.shards import hand_out

SAID: dict[Counted, str] = {
    "rollouts": "rollouts", "tokens_sampled": "tokens sampled", "tokens_trained": "trained", "flops": "FLOPs", "seconds": "",
}  # fmt: skip
JOBS = (f"train-{PROBE}", f"evaluate-{PROBE}")


@dataclass(frozen=True)
class _Task:
    """A run, its study with and without the probe, and what the probe is."""

    run: RunDirectory
    study: Study
    identity: dict[str, Any]
    settings: Settings

    @property
    def jobs(self) -> list[Job]:
        identity = probed_identity(self.identity, self.study, self.settings)
        return stage_jobs(self.run.path, identity, self.stage, time.time() - elapsed(self.run.path))

    @property
    def stage(self) -> GRPOStage:
        return probe_stage(self.study, self.settings)


def probe(
    path: Path, *, steps: int | None = None, seed: int | None = None, workers: int | None = None, console: Console | None = None,
    ray: RayScheduler | None = None,
) -> RunDirectory:  # fmt: skip
    """Train a short RL run from the student of the run in `path`, unless it is there; a repeated call goes on where the last stopped.

    `steps` and `seed`: None takes those of the probe that the run has or has begun, else a tenth of the student's rollouts and the plan's
    seed. Another probe takes the place of the one that is there. `ray` runs the jobs, as in `run_study`. Raises BadInput for `steps` below
    1, RunDirectoryError for a run without student or teachers, unfinished or in use.
    """
    if steps is not None and steps < 1:
        raise BadInput(f"a probe of {steps} steps trains nothing; give --steps of 1 or more, or leave it out")
    console = console or Console(stderr=True, quiet=True)
    run = RunDirectory.open(path)
    study, identity = _study(run)
    with lock(run.path):
        _require_finished(run, study, identity)
        task = _Task(run, study, identity, _settings(run, study, steps, seed))
        _claim(task, console)
        left = [j for j in task.jobs if not is_done(run.path, j.name)]
        if left:
            check_fit(replace(study, stages=(*study.stages, task.stage)), run.path)
            console.print(_price(task), highlight=False, markup=False)
            if (run.path / "saved" / f"{PROBE}.safetensors").is_file() or len(left) < len(JOBS):
                console.print("part of it is done; going on from there", style="dim")
        else:
            console.print(f"the probe of {task.settings.steps} steps is there; --steps or --seed ask for another")
        with RunProgress(console, sum(j.weight for j in left)) as watcher:
            hand_out(left, [study], workers if ray else workers or 1, watcher, ray)
        finish(run, study)
        console.print(_spent(task), highlight=False, markup=False)
    return run


def _study(run: RunDirectory) -> tuple[Study, dict[str, Any]]:
    manifest = run.manifest()
    if "identity" not in manifest:
        raise BadInput(f"{run.path}/manifest.json has no `identity`: expected a run made by `mopd-diag run`")
    study = resolve_identity(manifest["identity"])
    lacking = [] if "student" in study.roles else ["student"]
    lacking += [] if study.teachers() else ["teachers"]
    if lacking:
        raise RunDirectoryError(
            f"{run.path} has no {lacking[0]}; the probe asks whether RL from a student passes its teachers: "
            "run a plan that distils, such as quickstart"
        )
    return study, manifest["identity"]


def _require_finished(run: RunDirectory, study: Study, identity: dict[str, Any]) -> None:
    """What the probe is compared with must be there, and the run diagnosed once: a job that a later version added may be missing."""
    needed = [j.name for j in make_jobs(run.path, study, identity) if j.name not in JOBS]
    missing = [n for n in needed if n.startswith(("train-", "evaluate-")) and not is_done(run.path, n)]
    if missing or not (run.path / "findings.json").is_file():
        what = (
            f"{text.plural(len(missing), 'job')} missing, first {missing[0]}"
            if missing
            else "nothing was diagnosed yet"
        )
        raise RunDirectoryError(f"{run.path} is not finished: {what}; repeat `mopd-diag run` before the probe")


def _settings(run: RunDirectory, study: Study, steps: int | None, seed: int | None) -> Settings:
    found = kept(run.path) or planned(run.path, study)
    if found is None:
        found = Settings(steps or default_steps(study, counted(run.path)), study.plan.seed)
    return Settings(steps or found.steps, found.seed if seed is None else seed)


def _claim(task: _Task, console: Console) -> None:
    """Say what is trained here from now on; what belongs to a probe of other settings is removed."""
    run, before = task.run.path, kept(task.run.path) or planned(task.run.path, task.study)
    if before not in (None, task.settings):
        made = [run / "done" / f"{job}.json" for job in JOBS]
        made += [task.run.record_path(PROBE), run / "saved" / f"{PROBE}.safetensors"]
        if any(p.is_file() for p in made):
            console.print(
                f"the probe of {before.steps} steps, seed {before.seed}, makes room for this one", markup=False
            )
        for path in made:
            path.unlink(missing_ok=True)
        shutil.rmtree(run / "saved" / f"evaluate-{PROBE}", ignore_errors=True)
    if before != task.settings or kept(run) is None:
        write_json(settings_path(run), document(task.study, task.settings))


# -- the cost, said before and after ------------------------------------------------------------------------------------------


def _price(task: _Task) -> str:
    """What it will cost, from what the run's own RL cost a rollout."""
    rows, study = counted(task.run.path), task.study
    rollouts = task.settings.steps * task.stage.prompts * task.stage.group
    climbs = [r for r in rows.values() if r["algorithm"] == "grpo" and r["rollouts"]]
    sampled = sum(r["rollouts"] for r in climbs)
    counts: tuple[Counted, ...] = ("tokens_sampled", "flops", "seconds")
    about: dict[Counted, float] = {}
    if sampled:
        about = {on: rollouts * sum(float(r[on]) for r in climbs) / sampled for on in counts}
    path = path_count(study, rows, "student", "rollouts")
    share = f", {text.percent(rollouts / path)} of the student's path" if path else ""
    domains, evaluation = len(study.world.domains), study.plan.evaluation
    answers = domains * evaluation.items * evaluation.samples
    return (
        f"about to train the probe: {task.settings.steps} GRPO steps from the student on {text.plural(domains, 'domain')}, "
        f"{text.count(rollouts)} rollouts{share}; {_counts(about) or 'tokens and time unknown'}, by what RL cost in this run; "
        f"then at most {text.count(answers)} answers to evaluate it"
    )


def _spent(task: _Task) -> str:
    """What its training cost by the ledger, each count as a share of the student's path."""
    rows = counted(task.run.path)
    counts: dict[Counted, float] = {on: float(rows[PROBE][on]) for on in SAID}
    shares: dict[Counted, str] = {}
    for on, count in counts.items():
        path = path_count(task.study, rows, "student", on)
        shares[on] = f" ({text.percent(count / path)})" if path else ""
    return f"the probe's training cost {_counts(counts, shares)}; in brackets: of the student's whole path"


def _counts(table: Mapping[Counted, float], shares: Mapping[Counted, str] | None = None) -> str:
    said = []
    for on, value in table.items():
        told = text.duration(value) if on == "seconds" else f"{text.count(value)} {SAID[on]}"
        said.append(told + (shares or {}).get(on, ""))
    return ", ".join(said)
