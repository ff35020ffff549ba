"""Budgets too small for what a plan asks are refused in one line before anything trains."""

from __future__ import annotations

from typing import Any

import pytest

from mopd_diag.config import Plan, parse
from mopd_diag.errors import BadInput
from mopd_diag.study.affordable import rollouts
from mopd_diag.study.joined import study_of
from mopd_diag.study.resolve import find_plan, resolve
from mopd_diag.study_plan import StudyPlan

BASE = {"name": "base", "algorithm": "sft", "steps": 8, "batch": 16}
STUDENT = {"name": "student", "algorithm": "grpo", "start": "base", "steps": 4, "prompts": 4, "group": 4}


def plan(*stages: dict[str, Any]) -> Any:
    return resolve(parse(Plan, {"name": "x", "world": {"domains": ["stack"]}, "stages": list(stages)}, "x.toml"))


def test_a_schedule_longer_than_its_stage_is_refused_where_the_plan_writes_it() -> None:
    with pytest.raises(
        BadInput, match="stage 'student' has 4 steps, fewer than its warmup 6: .* raise steps or lower"
    ) as caught:
        plan(BASE, {**STUDENT, "warmup": 6})
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="fewer than its warmup 5 and decay 4"):
        plan({**BASE, "warmup": 5, "decay": 4}, STUDENT)
    plan({**BASE, "warmup": 4, "decay": 4}, STUDENT)  # defaults and what just fits pass


def test_a_matched_stage_that_cannot_take_one_step_is_refused_where_the_plan_knows() -> None:
    rival = {"name": "rival-x", "algorithm": "grpo", "start": "base", "prompts": 16, "group": 5}
    said = (
        "stage 'rival-x' may sample 64 answers to match 'student' on rollouts, and one step takes 80; raise the budget"
    )
    with pytest.raises(BadInput, match=said):
        plan(BASE, STUDENT, {**rival, "match": {"to": "student", "on": "rollouts"}})
    plan(BASE, STUDENT, {**rival, "match": {"to": "student", "on": "flops"}})  # known only when the student has trained
    plan(BASE, STUDENT, {**rival, "prompts": 8, "match": {"to": "student", "on": "rollouts"}})


def test_what_a_path_has_spent_before_is_no_longer_there() -> None:
    first = {"name": "rival-x.1", "algorithm": "grpo", "start": "base", "steps": 3, "prompts": 4, "group": 4}
    last = {"name": "rival-x", "algorithm": "ppo", "start": "rival-x.1", "steps": 4, "prompts": 20, "minibatches": 2}
    match = {"to": "student", "on": "rollouts"}
    with pytest.raises(BadInput, match="'rival-x' may sample 16 answers .* one step takes 20"):
        plan(BASE, STUDENT, first, {**last, "match": match})
    plan(BASE, STUDENT, first, {**last, "prompts": 16, "match": match})


def test_a_study_whose_reference_spends_nothing_leaves_its_rivals_nothing() -> None:
    def study(scope: str) -> Any:
        section = {"reference": "average", "recipes": ["mixed-rl"], "match": "rollouts", "scope": scope}
        table = {"study": {"name": "x", "budget": "smoke", **section}, "world": {"domains": ["stack", "lookup"]}}
        return study_of(parse(StudyPlan, table, "x.toml"), 0)

    with pytest.raises(BadInput, match="'rival-mixed-rl' may sample 0 answers to match 'student' on rollouts"):
        study("student")  # the average trains nothing of its own
    study("path")


def test_planned_rollouts_are_those_of_the_recipe() -> None:
    study = find_plan("mopd", budget="smoke", world="micro:stack,lookup")
    told = {s.name: rollouts(s) for s in study.stages}
    assert told["base"] == told["rival-average"] == 0
    assert told["teacher-code"] == 60 * 256 and told["student"] == told["rival-seqkd"] == 60 * 128
    paths = told["teacher-code"] + told["teacher-agent"] + told["student"]
    assert told["rival-mixed-rl"] == paths  # what the recipe says of it
