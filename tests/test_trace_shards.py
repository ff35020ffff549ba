"""Traces in shards: joined, they are the whole trace to the last bit; what a stopped run left of them is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_runs import Noted, tiny

from mopd_diag.engines import scoring
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.runs.scheduler import Job, run_jobs
from mopd_diag.study import trace_shards
from mopd_diag.study.run import is_done, ledger, make_jobs, run_study
from mopd_diag.study.shards import sharded
from mopd_diag.study.trace_shards import shard_count, shard_path

BATCH_TOKENS = 300
"""So that there are several batches to share out."""


def in_small_batches(call, *arguments) -> None:
    """Workers run this. They find this module where pytest found it."""
    scoring.BATCH_TOKENS = BATCH_TOKENS
    call(*arguments)


def small(job: Job) -> Job:
    return Job(job.name, in_small_batches, (job.call, *job.arguments), job.needs, job.weight)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run, its student traced in small batches in one piece."""
    run = run_study(tiny(), tmp_path_factory.mktemp("runs") / "whole", workers=2)
    forget(run)
    run_jobs([small(j) for j in left(run, cut=False)], 1, Noted())
    return run


@pytest.fixture
def untraced(whole: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A copy of the run that has lost one trace, of a plan so large that this is cut in three."""
    shutil.copytree(whole.path, tmp_path / "copy")
    copy = RunDirectory(tmp_path / "copy")
    forget(copy)
    monkeypatch.setattr(trace_shards, "SHARD_FLOPS", 1.0)
    monkeypatch.setattr(trace_shards, "MOST_SHARDS", 3)
    return copy


def forget(run: RunDirectory) -> None:
    for path in (run.trace_path("student"), run.attribution_path("student"), run.path / "done" / "trace-student.json"):
        path.unlink()


def left(run: RunDirectory, cut: bool = True) -> list[Job]:
    jobs = [j for j in make_jobs(run.path, tiny(), tiny().identity()) if not is_done(run.path, j.name)]
    return sharded(jobs) if cut else jobs


def same_trace(a: RunDirectory, b: RunDirectory) -> None:
    assert a.trace_path("student").read_bytes() == b.trace_path("student").read_bytes()
    assert a.attribution_path("student").read_bytes() == b.attribution_path("student").read_bytes()
    rows = [ledger(r).set_index("stage").loc["trace:student"] for r in (a, b)]
    counts = [
        "algorithm",
        "parents",
        "tokens_sampled",
        "tokens_trained",
        "tokens_scored",
        "rollouts",
        "flops",
        "device",
    ]
    assert rows[0][counts].equals(rows[1][counts])
    for run in (a, b):
        assert not list((run.path / "saved").glob("trace-*"))


def test_shards_joined_are_the_whole_trace(whole: RunDirectory, untraced: RunDirectory) -> None:
    jobs = left(untraced)
    assert [j.name for j in jobs] == [*(f"trace-student/{i}-of-3" for i in (1, 2, 3)), "trace-student"]
    assert sum(j.weight for j in jobs) == pytest.approx(10.0)
    run_jobs([small(j) for j in jobs[:-1]], 2, Noted())
    tokens = [json.loads(shard_path(untraced.path, "student", i, 3).read_text())["tokens"] for i in range(3)]
    assert min(tokens) > 0  # each had batches to score
    run_jobs([jobs[-1]], 1, Noted())  # joins, and scores nothing: in its one large batch numbers would be others
    same_trace(whole, untraced)


def test_a_shard_that_is_there_is_not_made_again(whole: RunDirectory, untraced: RunDirectory) -> None:
    first = shard_path(untraced.path, "student", 0, 3)
    run_jobs([small(left(untraced)[0])], 1, Noted())
    made = first.stat().st_mtime_ns
    jobs = left(untraced)
    assert [j.name for j in jobs] == ["trace-student/2-of-3", "trace-student/3-of-3", "trace-student"]
    run_jobs([small(j) for j in jobs[:-1]], 1, Noted())
    assert first.stat().st_mtime_ns == made
    run_jobs(jobs[-1:], 1, Noted())
    same_trace(whole, untraced)


def test_an_unsharded_job_scores_what_the_shards_of_a_stopped_run_lack(
    whole: RunDirectory, untraced: RunDirectory
) -> None:
    run_jobs([small(left(untraced)[1])], 1, Noted())
    run_jobs([small(j) for j in left(untraced, cut=False)], 1, Noted())
    same_trace(whole, untraced)


def test_a_trace_of_a_small_plan_is_not_cut(whole: RunDirectory) -> None:
    assert shard_count(tiny(), "student") == 1
    jobs = make_jobs(whole.path, tiny(), tiny().identity())
    assert [j.name for j in sharded(jobs) if j.name.startswith("trace-")] == ["trace-student", "trace-rival-mixed-rl"]
