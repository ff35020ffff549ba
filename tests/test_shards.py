"""Evaluations in shards: joined, they are the whole evaluation; what a stopped run left of them is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_runs import Noted, tiny

from mopd_diag.runs.directory import RunDirectory
from mopd_diag.runs.scheduler import run_jobs
from mopd_diag.study.run import is_done, ledger, make_jobs, run_study
from mopd_diag.study.shards import shard_path, sharded


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_study(tiny(), tmp_path_factory.mktemp("runs") / "whole", workers=2)


@pytest.fixture
def unevaluated(whole: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the run that has lost one evaluation."""
    shutil.copytree(whole.path, tmp_path / "copy")
    copy = RunDirectory(tmp_path / "copy")
    copy.record_path("student").unlink()
    (copy.path / "done" / "evaluate-student.json").unlink()
    return copy


def left(run: RunDirectory):
    jobs = make_jobs(run.path, tiny(), tiny().identity())
    return sharded([j for j in jobs if not is_done(run.path, j.name)])


def test_shards_joined_are_the_whole_evaluation(whole: RunDirectory, unevaluated: RunDirectory) -> None:
    jobs = left(unevaluated)
    assert [j.name for j in jobs] == [
        "evaluate-student/stack",
        "evaluate-student/brackets",
        "evaluate-student",
    ]
    assert sum(j.weight for j in jobs) == 20.0
    noted = Noted()
    run_jobs(jobs, 2, noted)
    assert noted.order[-1] == "end evaluate-student"
    assert unevaluated.record_path("student").read_bytes() == whole.record_path("student").read_bytes()
    rows = [ledger(r).set_index("stage").loc["evaluate:student"] for r in (unevaluated, whole)]
    counts = ["algorithm", "parents", "tokens_sampled", "tokens_trained", "tokens_scored", "rollouts", "flops"]
    assert rows[0][counts].equals(rows[1][counts])
    assert rows[0]["seconds"] > 0
    assert not list((unevaluated.path / "saved").glob("evaluate-*"))


def test_a_shard_that_is_there_is_not_made_again(whole: RunDirectory, unevaluated: RunDirectory) -> None:
    first = left(unevaluated)[0]
    run_jobs([first], 1, Noted())
    made = shard_path(unevaluated.path, "student", 0).stat().st_mtime_ns
    jobs = left(unevaluated)
    assert [j.name for j in jobs] == ["evaluate-student/brackets", "evaluate-student"]
    run_jobs(jobs[:1], 1, Noted())
    assert shard_path(unevaluated.path, "student", 0).stat().st_mtime_ns == made
    run_jobs(jobs[1:], 1, Noted())
    assert unevaluated.record_path("student").read_bytes() == whole.record_path("student").read_bytes()


def test_an_unsharded_run_uses_the_shards_of_a_stopped_one(whole: RunDirectory, unevaluated: RunDirectory) -> None:
    run_jobs(left(unevaluated)[:1], 1, Noted())
    run_study(tiny(), unevaluated.path, workers=1)
    assert unevaluated.record_path("student").read_bytes() == whole.record_path("student").read_bytes()
    assert not list((unevaluated.path / "saved").glob("evaluate-*"))


def test_other_jobs_are_left_as_they_are(whole: RunDirectory) -> None:
    jobs = make_jobs(whole.path, tiny(), tiny().identity())
    kept = [j for j in jobs if not j.name.startswith("evaluate-")]
    assert [j for j in sharded(jobs) if not j.name.startswith("evaluate-")] == kept
