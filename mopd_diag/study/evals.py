"""`mopd-diag eval`: lm-eval over every model of a cast on our own engines, each answer kept, as lm-eval's files and as our records."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from mopd_diag.diagnostics.accuracy import accuracy
from mopd_diag.errors import BadInput, ResourceError, RunDirectoryError
from mopd_diag.records import lm_eval as samples_files
from mopd_diag.records.build import build
from mopd_diag.runs.directory import RECORD_COLUMNS, SCHEMA, RunDirectory, write_json, write_table
from mopd_diag.seeds import seed_of
from mopd_diag.study.eval_members import KIND, Member, members_of
from mopd_diag.study.eval_models import check_servers, opened
from mopd_diag.study.eval_tasks import Tasks, check_installed, is_generation, is_ours
from mopd_diag.types import Estimate

MARGIN = 0.05
BOOTSTRAPS = 1000
"""Of lm-eval's own error bars, for metrics that have no formula; ours are computed from the records."""
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How every model is asked. Some of it changes the answers; `rows` and `device` do not (beyond rounding)."""

    limit: int | None = None
    samples: int = 1
    temperature: float = 0.0
    few_shot: int | None = None
    chat: bool = False
    seed: int = 0
    rows: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature <= 0:
            raise BadInput(f"{self.samples} greedy answers would be the same; give a --temperature above 0")

    def identity(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("rows", "device")}


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
    network: bool = False, told: Told = lambda _: None, warn: Told = lambda _: None,
) -> Evaluation:  # fmt: skip
    """Ask every model of a cast (a cast file or a run directory) every task; what is done already is not done again.

    `out` becomes a directory that `compare OUT:base OUT:student`, `caps OUT` and `report OUT` read, with lm-eval's own files in
    `out/MODEL/`. Task names may be lm-eval's tasks, groups, tags or patterns, those of the folders in `include`, and
    `mopd_WORLD[_DOMAIN]`.

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
    missing = {m.name: [n for n in every.opened if _done(run, m, n, settings) is None] for m in members}
    scored = any(not is_generation(t) for t in every.opened.values())
    notes = [*_notes(every, settings), *check_servers([m for m in members if missing[m.name]], scored)]
    write_json(run.path / "manifest.json", manifest)
    # What a server's failure ends comes last.
    for member in sorted(members, key=lambda m: m.server is not None):
        if missing[member.name]:
            told(f"{member.name}: loading")
            _ask(run, member, missing[member.name], every, settings, told)
        notes += _write_records(run, member, settings)
    metrics = {m.name: {n: _mark(run, m, n)["metrics"] for n in every.opened} for m in members}
    _conclude(run, members)
    notes = list(dict.fromkeys(notes))
    for note in notes:
        warn(note)
    return Evaluation(run.path, accuracy(run.records(*(m.name for m in members))), metrics, tuple(notes))


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


def _mark_path(run: RunDirectory, member: Member, task: str) -> Path:
    return run.path / "done" / f"{member.name}--{re.sub(r'[^A-Za-z0-9._-]', '_', task)}.json"


def _mark(run: RunDirectory, member: Member, task: str) -> dict[str, Any]:
    return json.loads(_mark_path(run, member, task).read_text(encoding="utf-8"))


def _done(run: RunDirectory, member: Member, task: str, settings: Settings) -> Path | None:
    """The samples of a task that this very checkpoint has answered under these settings."""
    if not _mark_path(run, member, task).is_file():
        return None
    mark = _mark(run, member, task)
    samples = run.path / member.name / mark["samples"]
    same = mark["settings"] == settings.identity() and mark["checkpoint"] == _state(member)
    whole = samples.is_file() and _mark_path(run, member, task).with_suffix(".parquet").is_file()
    return samples if same and whole else None


def _state(member: Member) -> list[list[Any]]:
    """Which files a checkpoint is made of, and when they were written: another model under its name is asked anew. Of a server,
    its address and the model's name."""
    if member.server is not None:
        return [[member.server.url, member.server.model]]
    files = sorted(member.path.glob("*")) if member.path.is_dir() else [member.path]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]


# -- asking ---------------------------------------------------------------------------------------------------------------------


def _ask(
    run: RunDirectory, member: Member, names: Sequence[str], tasks: Tasks, settings: Settings, told: Told
) -> None:  # fmt: skip
    with opened(member, settings.rows, settings.device) as ways:
        for number, name in enumerate(names, 1):
            saying = f"{member.name}: {name} ({number} of {len(names)})"
            seed = seed_of(settings.seed, "eval", member.name, name) % 2**63
            path = _mark_path(run, member, name)
            kept = path.with_suffix(".asked.jsonl")
            model = ways.model(kept, seed, lambda done, of, s=saying: told(f"{s}, {done} of {of}"))
            told(saying)
            results, samples = _asked(model, member, tasks, name, settings, run)
            frame, notes = records_of(samples, member.name, ways.count)
            numbers = {k: v for k, v in results["results"][name].items() if isinstance(v, int | float)}
            mark = {
                "task": name, "settings": settings.identity(), "checkpoint": _state(member), "samples": samples.name,
                "metrics": {k: v for k, v in numbers.items() if math.isfinite(v)}, "version": str(results["versions"].get(name)),
                "notes": list(notes),
            }  # fmt: skip
            write_table(path.with_suffix(".parquet"), frame)
            write_json(path, mark)
            kept.unlink(missing_ok=True)  # a server's answers are in the samples now


def _asked(
    model: Any, member: Member, tasks: Tasks, name: str, settings: Settings, run: RunDirectory
) -> tuple[dict[str, Any], Path]:
    """One task under one model, by lm-eval itself, written where and as it writes. Raises ResourceError when it could not."""
    import lm_eval.evaluator
    from lm_eval.loggers import EvaluationTracker

    task, sampled = tasks.opened[name], {"do_sample": True, "temperature": settings.temperature}
    if is_ours(task):  # the others would draw several answers and look at the first
        task.set_config("repeats", settings.samples)
    tracker = EvaluationTracker(output_path=str(run.path))
    run_it: Any = lm_eval.evaluator.simple_evaluate  # its decorator hides what it takes
    with _no_git(lm_eval.evaluator):
        results: dict[str, Any] = run_it(
            model=model, model_args={"model": member.name, **member.place()}, tasks=[task], task_manager=tasks.manager,
            num_fewshot=settings.few_shot, limit=settings.limit, apply_chat_template=settings.chat, log_samples=True,
            gen_kwargs=sampled if settings.temperature > 0 and is_generation(task) else None, bootstrap_iters=BOOTSTRAPS,
            evaluation_tracker=tracker, random_seed=settings.seed, numpy_random_seed=settings.seed, torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )  # fmt: skip  # type: ignore[assignment]
    folder = run.path / member.name
    for old in folder.glob("samples_*.jsonl"):
        if samples_files.task_of(old) == name:
            old.unlink()
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name=name, samples=samples[name])
    written = [f for f in folder.glob("samples_*.jsonl") if samples_files.task_of(f) == name]
    # lm-eval only logs it when it could not write.
    whole = len(written) == 1 and sum(1 for _ in written[0].open(encoding="utf-8")) == len(samples[name])
    if not whole:
        raise ResourceError(f"lm-eval could not write the samples of {name} into {folder}; free some space and repeat")
    return results, written[0]


@contextmanager
def _no_git(evaluator: Any) -> Iterator[None]:
    """lm-eval asks git about the folder it is called in, which is not the models', and outside a repository git complains on stderr."""
    asking = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asking


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


def records_of(
    samples: Path, model: str, count: Callable[[list[str]], list[int]]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One task's samples as our records, and what was left out. `count`: how many tokens each answer has."""
    rows = samples_files.read_samples(samples, samples_files.task_of(samples))
    if not len(rows.lines):
        return pd.DataFrame(columns=RECORD_COLUMNS), rows.warnings
    found = build([rows], name=model, source=str(samples))
    tokens = pd.Series(count(found.frame["response"].tolist()), dtype="int64")
    limit = max((n for n in rows.columns["limit"] if n is not None), default=None)
    cut = pd.Series(False, tokens.index) if limit is None else tokens >= limit
    ended = 0 if limit is None else (~cut).astype("int64")  # a run's records count the end-of-sequence
    frame = found.frame.rename(columns={"group": "domain"}).assign(model=model, n_tokens=tokens + ended, truncated=cut)
    if "group" in rows.columns:  # a world's items: as in a run, an answer that was cut is wrong
        frame["score"] = frame["score"].where(~cut, 0.0)
    return frame[RECORD_COLUMNS], found.warnings


def _write_records(run: RunDirectory, member: Member, settings: Settings) -> list[str]:
    """All that this model has answered under these settings, in this call and before, as one file; returns what to keep in mind."""
    marks = {
        p: json.loads(p.read_text(encoding="utf-8")) for p in sorted((run.path / "done").glob(f"{member.name}--*.json"))
    }
    same = {
        p: m for p, m in marks.items() if m["settings"] == settings.identity() and m["checkpoint"] == _state(member)
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
