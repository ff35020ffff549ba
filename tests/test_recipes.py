"""Recipes: each resolves on every budget and world size, has the published stages, and shares its base and specialists with the others."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from mopd_diag.config import GRPOStage, MergeStage, MOPDStage, Plan, RejectionStage, SeqKDStage, SFTStage, parse
from mopd_diag.errors import BadInput
from mopd_diag.recipes import RECIPES
from mopd_diag.recipes.parts import by_number, slug
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.study.jobs import run_job
from mopd_diag.study.resolve import Study, find_plan, resolve
from mopd_diag.worlds.world import load_world

FOUR = "micro:addition,stack,lookup,reversed"
WORLDS = pytest.mark.parametrize("world", ["micro", FOUR], ids=["twelve", "four"])
MATCHED_WITHIN = 0.02
"""Rollouts of RL without teachers against those of the specialists and the student of `mopd`: whole steps a domain."""


def study(recipe: str, world: str = "micro", budget: str = "smoke") -> Study:
    return find_plan(recipe, world=world, budget=budget)  # type: ignore[arg-type]


def algorithms(found: Study, head: str = "student") -> list[str]:
    """The algorithms on one model's line, in order."""
    return [s.algorithm for s in found.stages if s.name.split(".")[0] == head]


def rollouts(found: Study) -> int:
    return sum(s.steps * s.prompts * s.group for s in found.stages if isinstance(s, GRPOStage | MOPDStage))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
@WORLDS
def test_every_recipe_resolves_with_parents_first_and_ends_in_a_student(recipe: str, budget: str, world: str) -> None:
    found = study(recipe, world, budget)
    done: set[str] = set()
    for stage in found.stages:
        assert set(stage.parents) <= done
        assert set(found.domains(stage)) <= set(found.world.domains)
        done.add(stage.name)
    assert {"base", "student"} <= done
    assert set(found.route()) == (set(found.world.domains) if found.teachers() else set())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_larger_budget_trains_more(recipe: str) -> None:
    steps = [sum(getattr(s, "steps", 0) for s in study(recipe, FOUR, b).stages) for b in ("smoke", "small", "full")]
    smoke, small, full = steps
    assert smoke < small < full


def test_six_specialists_and_the_outcome_for_mimo() -> None:
    found = study("mimo-flash-v2")
    student = found.stage("student")
    assert isinstance(student, MOPDStage)
    assert (student.form, len(found.teachers())) == ("sampled", 6)
    assert student.alpha > 0 and student.group >= 2
    assert Counter(found.route().values()) == dict.fromkeys(found.teachers(), 2)
    assert study("mimo-flash-v2", FOUR).notes == ["4 specialists, not 6 as published: the world has 4 domains"]
    assert not found.notes


def test_more_than_ten_specialists_and_the_whole_vocabulary_for_deepseek_v4() -> None:
    found = study("deepseek-v4")
    student = found.stage("student")
    assert isinstance(student, MOPDStage) and student.form == "full"
    assert len(found.teachers()) == len(student.teachers_used) == 12 > 10
    for name, domains in found.teachers().items():
        assert algorithms(found, name) == ["sft", "grpo"]
        assert [found.route()[d] for d in domains] == [name]


def test_two_rounds_of_distillation_for_nemotron_and_new_teachers_from_the_first_student() -> None:
    found = study("nemotron-3-ultra")
    assert algorithms(found) == ["grpo", "rejection", "mopd", "mopd"]
    first, second = (s for s in found.stages if isinstance(s, MOPDStage))
    assert len(first.teachers_used) == len(second.teachers_used) == 12 > 10
    assert not set(first.teachers_used) & set(second.teachers_used)
    assert second.start == first.name
    assert {found.stage(t).start for t in second.teachers_used} == {first.name}
    rlvr = found.stage("student.1-rlvr")
    assert {found.stage(t).start for t in first.teachers_used} == {rlvr.name}
    assert set(found.teachers()) == set(second.teachers_used)  # the first round's are checkpoints on the way


def test_three_climbs_their_traces_and_a_last_climb_for_mai() -> None:
    found = study("mai-thinking-1")
    assert algorithms(found) == ["rejection", "grpo"]
    assert len(found.teachers()) == 3
    traces = found.stage("student.1-traces")
    assert isinstance(traces, RejectionStage) and traces.start == "base"
    assert found.route() == traces.sources
    assert not any(isinstance(s, MOPDStage) for s in found.stages)


def test_deepseek_r1_climbs_on_reasoning_first_and_ends_in_a_smaller_model() -> None:
    found = study("deepseek-r1")
    assert algorithms(found, "teacher-r1") == ["sft", "grpo", "rejection", "grpo"]
    reasoner = found.stage("teacher-r1.2-reasoning")
    assert {found.world.domains[d].family for d in reasoner.domains} == {"math", "code"}
    student, base = found.stage("student"), found.stage("base")
    assert isinstance(student, SeqKDStage) and student.start == "base" and student.teachers_used == ("teacher-r1",)
    assert isinstance(base, SFTStage) and base.shrink is not None
    small = found.plan.model.shrunk(base.shrink)
    assert small.hidden < found.plan.model.hidden and small.feed_forward < found.plan.model.feed_forward
    assert small.shrunk(None) == small


def test_the_other_paths() -> None:
    assert algorithms(study("mixed-rl")) == ["grpo"]
    assert algorithms(study("sequential-rl")) == ["grpo"] * 12
    assert list(study("single-teacher").teachers().values()) == [list(load_world("micro").domains)]
    assert algorithms(study("seqkd")) == ["seqkd"]
    for method in ("average", "task-arithmetic", "ties"):
        student = study(method).stage("student")
        assert isinstance(student, MergeStage) and (student.method, len(student.models)) == (method, 4)
    student = study("expd").stage("student")
    assert isinstance(student, MOPDStage) and student.extrapolation > 1


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "deepseek-r1"])
@WORLDS
def test_all_recipes_start_from_one_base(recipe: str, world: str) -> None:
    assert study(recipe, world).stage("base") == study("mixed-rl", world).stage("base")


@pytest.mark.parametrize("recipe", ["seqkd", "average", "task-arithmetic", "ties", "expd"])
def test_paths_with_the_specialists_of_mopd_have_the_same_ones(recipe: str) -> None:
    ours, theirs = study(recipe), study("mopd")
    assert ours.teachers() == theirs.teachers()
    assert all(ours.stage(t) == theirs.stage(t) for t in ours.teachers())


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
@WORLDS
def test_budgets_are_matched(budget: str, world: str) -> None:
    """In rollouts, before a study matches them on what is counted."""
    mopd = study("mopd", world, budget)
    path = sum(s.steps * s.prompts * s.group for s in mopd.stages if s.name.startswith(("teacher-", "student")))  # type: ignore[union-attr]
    for recipe in ("mixed-rl", "sequential-rl", "single-teacher"):
        assert rollouts(study(recipe, world, budget)) == pytest.approx(path, rel=MATCHED_WITHIN), recipe


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "world", "said"),
    [
        ("average", "micro:facts,abstain", "needs at least 2 specialists, one a family"),
        ("ties", "micro:addition", "needs at least 2 specialists"),
        ("deepseek-r1", "micro:facts,abstain", "families math and code"),
    ],
)
def test_a_world_that_lacks_what_a_recipe_needs_is_refused_in_one_line(recipe: str, world: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        study(recipe, world)
    assert "\n" not in str(caught.value)


def test_one_family_is_enough_for_mopd_without_the_average() -> None:
    found = study("mopd", "micro:addition,sorting")
    assert found.notes == ["one family of domains: one teacher, and no average"]
    assert "rival-average" not in found.roles


def test_models_of_two_sizes_cannot_be_merged() -> None:
    base = {"name": "base", "algorithm": "sft", "steps": 2}
    small = {**base, "name": "teacher-small", "shrink": 0.5}
    merge = {"name": "student", "algorithm": "merge", "models": ["base", "teacher-small"]}
    with pytest.raises(BadInput, match="merges 'base' and 'teacher-small', which are of different sizes"):
        resolve(parse(Plan, {"name": "x", "stages": [base, small, merge]}, "x.toml"))
    with pytest.raises(BadInput, match="sizes a fresh model"):
        resolve(parse(Plan, {"name": "x", "stages": [base, {**small, "start": "base"}]}, "x.toml"))


def test_a_smaller_model_that_cannot_hold_the_vocabulary_is_refused() -> None:
    base = {"name": "base", "algorithm": "sft", "steps": 2, "shrink": 0.1}
    with pytest.raises(BadInput, match="leaves 4 of 64 hidden dimensions, too few to hold the vocabulary"):
        resolve(parse(Plan, {"name": "x", "stages": [base]}, "x.toml"))


def test_specialists_by_number_cover_every_domain_once() -> None:
    world = load_world("micro")
    for n in range(1, 15):
        groups = by_number(world, n)
        assert len(groups) == min(n, 12)
        assert [d for g in groups.values() for d in g] == list(world.domains)
        assert max(map(len, groups.values())) - min(map(len, groups.values())) <= 1


def test_any_domain_gives_a_name_of_a_model() -> None:
    assert slug("GSM8K v1.2") == "gsm8k-v1-2"


# --- controls and routes ----------------------------------------------------------------------------------------------

STAGES = [
    {"name": "base", "algorithm": "sft", "steps": 2},
    {"name": "teacher-a", "algorithm": "grpo", "start": "base"},
    {"name": "student", "algorithm": "mopd", "start": "base", "teachers": {"addition": "teacher-a"}},
    {"name": "rival-ppo.judge", "algorithm": "reward-model", "start": "base"},
    {"name": "rival-ppo", "algorithm": "ppo", "start": "base", "reward": "rival-ppo.judge"},
    {"name": "rival-dpo", "algorithm": "dpo", "start": "base"},
    {"name": "rival-self.1", "algorithm": "rejection", "start": "base"},
    {"name": "rival-self", "algorithm": "rejection", "start": "base", "sources": {"addition": "rival-self.1"}},
    {"name": "rival-traces.1", "algorithm": "rejection", "start": "base", "sources": {"addition": "teacher-a"}},
    {"name": "rival-traces", "algorithm": "grpo", "start": "rival-traces.1"},
    {"name": "rival-on", "algorithm": "grpo", "start": "teacher-a"},
    {"name": "rival-copy", "algorithm": "seqkd", "start": "base", "teachers": {"addition": "rival-dpo"}},
    {"name": "rival-more-sft", "algorithm": "sft", "start": "base", "steps": 2},
]


def test_what_learned_from_itself_alone_is_a_control_and_what_saw_a_teacher_is_not() -> None:
    found = resolve(parse(Plan, {"name": "x", "world": {"domains": ["addition"]}, "stages": STAGES}, "x.toml"))
    assert found.controls() == ["rival-ppo", "rival-dpo", "rival-self"]


def test_a_student_that_climbed_after_learning_traces_is_routed_by_the_traces() -> None:
    stages = [s for s in STAGES if s["name"] in ("base", "teacher-a")]
    other = {"name": "teacher-b", "algorithm": "grpo", "start": "base"}
    traces = {"name": "student.1", "algorithm": "rejection", "start": "base", "sources": {"addition": "teacher-b"}}
    last = {"name": "student", "algorithm": "grpo", "start": "student.1"}
    table = {"name": "x", "world": {"domains": ["addition"]}, "stages": [*stages, other, traces, last]}
    assert resolve(parse(Plan, table, "x.toml")).route() == {"addition": "teacher-b"}


# --- in earnest, but tiny -----------------------------------------------------------------------------------------------

TINY = {"hidden": 16, "layers": 1, "heads": 2, "key_value_heads": 2, "head_width": 8, "feed_forward": 16}


def tiny(recipe: str) -> Study:
    """The recipe's stages with two steps each and few answers, on a tiny model."""
    stages = []
    for stage in study(recipe, "micro:addition,stack,lookup").stages:
        small = {"steps": 2 * getattr(stage, "updates", 1), "prompts": 8, "batch": 8, "warmup": 1, "decay": 1}
        stages.append(stage.model_copy(update={k: v for k, v in small.items() if hasattr(stage, k)}))
    table = {
        "name": "tiny", "world": {"domains": ["addition", "stack", "lookup"]}, "model": TINY,
        "evaluation": {"items": 8, "samples": 1}, "diagnosis": {"attribution_items": 4},
        "stages": [s.model_dump(mode="json") for s in stages],
    }  # fmt: skip
    return resolve(parse(Plan, table, "tiny.toml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_from_end_to_end(recipe: str, tmp_path: Path) -> None:
    found = tiny(recipe)
    identity = found.identity()
    for stage in found.stages:
        run_job(tmp_path, identity, "train", stage.name, time.time(), lambda *_: None)
    run_job(tmp_path, identity, "evaluate", "student", time.time(), lambda *_: None)
    assert set(RunDirectory(tmp_path).records("student")["domain"]) == set(found.world.domains)
    if found.teachers():
        run_job(tmp_path, identity, "trace", "student", time.time(), lambda *_: None)
        assert len(RunDirectory(tmp_path).attribution("student"))
