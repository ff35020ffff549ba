"""Ask one model of a cast its tasks, by lm-eval itself; each task that is done has a mark, and is not asked again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mopd_diag.errors import BadInput, ResourceError
from mopd_diag.records import lm_eval as samples_files
from mopd_diag.records.build import build
from mopd_diag.runs.directory import RECORD_COLUMNS, RunDirectory, write_json, write_table
from mopd_diag.seeds import seed_of
from mopd_diag.study.eval_members import Member, members_of
from mopd_diag.study.eval_models import opened
from mopd_diag.study.eval_tasks import Tasks, is_generation, is_ours

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


# -- marks ---------------------------------------------------------------------------------------------------------------------


def mark_path(run: RunDirectory, member: Member, task: str) -> Path:
    return run.path / "done" / f"{member.name}--{re.sub(r'[^A-Za-z0-9._-]', '_', task)}.json"


def read_mark(run: RunDirectory, member: Member, task: str) -> dict[str, Any]:
    return json.loads(mark_path(run, member, task).read_text(encoding="utf-8"))


def answered(run: RunDirectory, member: Member, task: str, settings: Settings) -> Path | None:
    """The samples of a task that this very checkpoint has answered under these settings."""
    if not mark_path(run, member, task).is_file():
        return None
    mark = read_mark(run, member, task)
    samples = run.path / member.name / mark["samples"]
    same = mark["settings"] == settings.identity() and mark["checkpoint"] == state_of(member)
    whole = samples.is_file() and mark_path(run, member, task).with_suffix(".parquet").is_file()
    return samples if same and whole else None


def state_of(member: Member) -> list[list[Any]]:
    """Which files a checkpoint is made of, and when they were written: another model under its name is asked anew. Of a server,
    its address and the model's name."""
    if member.server is not None:
        return [[member.server.url, member.server.model]]
    files = sorted(member.path.glob("*")) if member.path.is_dir() else [member.path]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]


# -- asking ---------------------------------------------------------------------------------------------------------------------


def ask_in_job(
    out: Path, cast: Path, name: str, tasks: tuple[str, ...], include: tuple[Path, ...], network: bool, settings: dict[str, Any],
    progress: Callable[[int, int, dict[str, float]], None],
) -> None:  # fmt: skip
    """All tasks of one member that are not done, in a process of their own. `settings`: those of `Settings`."""
    run, chosen = RunDirectory(out), Settings(**settings)
    member = next(m for m in members_of(cast) if m.name == name)
    every = Tasks(tasks, include, network=network)
    left = [n for n in every.opened if answered(run, member, n, chosen) is None]
    ask(run, member, left, every, chosen, lambda _: None, lambda number: progress(number, len(left), {}))


def ask(
    run: RunDirectory, member: Member, names: Sequence[str], tasks: Tasks, settings: Settings, told: Told,
    finished: Callable[[int], object] = lambda _: None,
) -> None:  # fmt: skip
    """Ask one member these tasks. `told` hears of each step, `finished` how many are done."""
    with opened(member, settings.rows, settings.device) as ways:
        for number, name in enumerate(names, 1):
            saying = f"{member.name}: {name} ({number} of {len(names)})"
            seed = seed_of(settings.seed, "eval", member.name, name) % 2**63
            path = mark_path(run, member, name)
            kept = path.with_suffix(".asked.jsonl")
            model = ways.model(kept, seed, lambda done, of, s=saying: told(f"{s}, {done} of {of}"))
            told(saying)
            results, samples = _asked(model, member, tasks, name, settings, run)
            frame, notes = records_of(samples, member.name, ways.count)
            numbers = {k: v for k, v in results["results"][name].items() if isinstance(v, int | float)}
            mark = {
                "task": name, "settings": settings.identity(), "checkpoint": state_of(member), "samples": samples.name,
                "metrics": {k: v for k, v in numbers.items() if math.isfinite(v)}, "version": str(results["versions"].get(name)),
                "notes": list(notes),
            }  # fmt: skip
            write_table(path.with_suffix(".parquet"), frame)
            write_json(path, mark)
            kept.unlink(missing_ok=True)  # a server's answers are in the samples now
            finished(number)


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
