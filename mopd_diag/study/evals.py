"""`mopd-diag eval`: lm-eval over every model of a cast on our own engines, each answer kept, as lm-eval's files and as our records."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from mopd_diag.diagnostics.accuracy import accuracy
from mopd_diag.errors import BadInput, RunDirectoryError
from mopd_diag.runs.directory import SCHEMA, RunDirectory, write_json, write_table
from mopd_diag.runs.ray_scheduler import RayScheduler
from mopd_diag.runs.scheduler import Job, run_jobs
from mopd_diag.study.eval_asking import Settings, Told, answered, ask, ask_in_job, read_mark, state_of
from mopd_diag.study.eval_members import KIND, Member, members_of
from mopd_diag.study.eval_models import check_servers
from mopd_diag.study.eval_tasks import Tasks, check_installed, is_generation, is_ours
from mopd_diag.study.preflight import asked
from mopd_diag.types import Estimate

MARGIN = 0.05


@dataclass(frozen=True)
class Evaluation:
    """`accuracy`: model → task or domain → estimate; `metrics`: model → task → what lm-eval says."""

    path: Path
    accuracy: dict[str, dict[str, Estimate]]
    metrics: dict[str, dict[str, dict[str, Any]]]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        table = {m: {d: e.to_dict() for d, e in row.items()} for m, row in self.accuracy.items()}
        return {"out": str(self.path), "accuracy": table, "metrics": self.metrics, "notes": list(self.notes)}


def evaluate(
    cast: Path | str, tasks: Sequence[str], out: Path | str, settings: Settings | None = None, *, include: Sequence[Path] = (),
    network: bool = False, told: Told = lambda _: None, warn: Told = lambda _: None, workers: int | None = None,
    ray: RayScheduler | None = None,
) -> Evaluation:  # fmt: skip
    """Ask every model of a cast (a cast file or a run directory) every task; what is done already is not done again.

    `out` becomes a directory that `compare OUT:base OUT:student`, `caps OUT` and `report OUT` read, with lm-eval's own files in
    `out/MODEL/`. Task names may be lm-eval's tasks, groups, tags or patterns, those of the folders in `include`, and
    `mopd_WORLD[_DOMAIN]`. Local members are asked one after the other in this process, with `workers` so many side by side, each in a
    process of its own, and with `ray` as tasks of a cluster; servers are asked from here.

    Raises BadInput for what cannot be used, before any model is loaded where that is possible; ResourceError for a full disk.
    """
    settings, run = settings or Settings(), RunDirectory(out)
    members = members_of(Path(cast))
    check_installed()
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's many bars; `told` hears of the progress
    told("opening tasks")
    every = Tasks(tasks, include, network=network)
    manifest = _claim(run, members, list(every.opened), settings)
    if settings.chat:
        _check_templates(members)
    missing = {m.name: [n for n in every.opened if answered(run, m, n, settings) is None] for m in members}
    scored = any(not is_generation(t) for t in every.opened.values())
    notes = [*_notes(every, settings), *check_servers([m for m in members if missing[m.name]], scored)]
    write_json(run.path / "manifest.json", manifest)
    beside = [m for m in members if missing[m.name] and m.server is None]
    jobs = [_job(m, run, Path(cast), tasks, include, network, settings) for m in beside]
    if ray is not None:
        ray(jobs, workers, _Telling(told))
    elif (workers or 1) > 1 and len(jobs) > 1:
        run_jobs(jobs, workers or 1, _Telling(told))
    else:
        beside = []
    missing |= {m.name: [] for m in beside}
    # What a server's failure ends comes last.
    for member in sorted(members, key=lambda m: m.server is not None):
        if missing[member.name]:
            told(f"{member.name}: loading")
            ask(run, member, missing[member.name], every, settings, told)
        notes += _write_records(run, member, settings)
    metrics = {m.name: {n: read_mark(run, m, n)["metrics"] for n in every.opened} for m in members}
    _conclude(run, members)
    notes = list(dict.fromkeys(notes))
    for note in notes:
        warn(note)
    return Evaluation(run.path, accuracy(run.records(*(m.name for m in members))), metrics, tuple(notes))


def _job(
    member: Member, run: RunDirectory, cast: Path, tasks: Sequence[str], include: Sequence[Path], network: bool, settings: Settings
) -> Job:  # fmt: skip
    asked_for = asked({"plan": {"model": {"path": str(member.path)}, "compute": {"device": settings.device}}})
    folders = tuple(p.absolute() for p in include)
    arguments = (run.path.absolute(), cast.absolute(), member.name, tuple(tasks), folders, network, asdict(settings))
    return Job(f"eval-{member.name}", ask_in_job, arguments, **asked_for)


@dataclass(frozen=True)
class _Telling:
    """A `Watcher` that says in words which members are being asked."""

    told: Told

    def started(self, job: Job) -> None:
        self.told(f"{job.name}: begun")

    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        self.told(f"{name}: {step} of {steps} tasks")

    def finished(self, job: Job) -> None:
        self.told(f"{job.name}: done")


# -- the directory ------------------------------------------------------------------------------------------------------------


def _claim(run: RunDirectory, members: Sequence[Member], tasks: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The manifest of an evaluation of these models, begun or gone on with. Raises RunDirectoryError for a directory of something else."""
    models = {m.name: {"role": m.role, "domains": list(m.domains), **m.place()} for m in members}
    if run.path.is_file():
        raise RunDirectoryError(f"{run.path} is a file, expected a directory for the results; choose another --out")
    if (run.path / "manifest.json").exists():
        found = run.manifest()
        if found.get("kind") != KIND:
            raise RunDirectoryError(f"{run.path} holds a run that was trained, no evaluation; choose another --out")
        if found["models"] != models:
            raise RunDirectoryError(f"{run.path} is the evaluation of another cast; choose another --out")
    elif run.path.is_dir() and any(run.path.iterdir()):
        raise RunDirectoryError(f"{run.path} is not empty and holds no evaluation; choose another --out")
    route = {d: m.name for m in members if m.role == "teacher" for d in m.domains}
    plan = {
        "name": "evaluation",
        "summary": f"lm-eval over {len(members)} models: {', '.join(tasks)}",
        "world": {"name": "lm-eval", "domains": list(tasks)},
        "evaluation": settings.identity(),
        "diagnosis": {"margin": MARGIN},
        "seed": settings.seed,
    }
    return {
        "schema": SCHEMA, "kind": KIND, "plan": plan, "stages": [], "models": models, "route": route, "sequence": [],
        "controls": [m.name for m in members if m.role == "control"], "seeds": [settings.seed],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _check_templates(members: Sequence[Member]) -> None:
    from mopd_diag.engines.harness import load_words

    for member in members:
        if not load_words(member.path, member.base).chat_template:
            raise BadInput(f"{member.name} has no chat template ({member.path}); leave --apply-chat-template out")


def _notes(tasks: Tasks, settings: Settings) -> list[str]:
    ours = [n for n, t in tasks.opened.items() if is_ours(t)]
    found = []
    if settings.samples > 1 and len(ours) < len(tasks.opened):
        others = ", ".join(n for n in tasks.opened if n not in ours)
        found.append(f"one answer an item to {others}: only the worlds' own tasks are judged on several")
    return found


# -- records --------------------------------------------------------------------------------------------------------------------


def _write_records(run: RunDirectory, member: Member, settings: Settings) -> list[str]:
    """All that this model has answered under these settings, in this call and before, as one file; returns what to keep in mind."""
    marks = {
        p: json.loads(p.read_text(encoding="utf-8")) for p in sorted((run.path / "done").glob(f"{member.name}--*.json"))
    }
    same = {
        p: m for p, m in marks.items() if m["settings"] == settings.identity() and m["checkpoint"] == state_of(member)
    }
    frames = [f for f in (pd.read_parquet(p.with_suffix(".parquet")) for p in same) if len(f)]
    if not frames:
        raise BadInput(
            "; ".join(["no task has a score for single items", *(n for m in same.values() for n in m["notes"])])
        )
    write_table(run.record_path(member.name), pd.concat(frames, ignore_index=True))
    notes = [n for m in same.values() for n in m["notes"]]
    if others := [m["task"] for p, m in marks.items() if p not in same]:
        notes.append(f"{', '.join(sorted(others))}: asked before under other settings, no part of the records now")
    return notes


def _conclude(run: RunDirectory, members: Sequence[Member]) -> None:
    """Findings, for the report. What the domains did to one another is only asked where the tasks are the teachers' domains."""
    from mopd_diag.diagnostics.study import caps_of, diagnose

    domains = set(run.records("student")["domain"])
    taught = [set(m.domains) for m in members if m.role == "teacher"]
    if not taught:
        run.write_findings([])
    elif all(each and each <= domains for each in taught):
        # The gate for a base is about sampled answers.
        run.write_findings(f for f in diagnose(run) if f.kind != "preflight")
    else:
        run.write_findings(caps_of(run).findings())
