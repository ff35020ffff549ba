"""Studies: several recipes as one plan, what is the same trained once, and rivals that stop where the reference's count does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mopd_diag.config import MergeStage, Plan, parse
from mopd_diag.errors import BadInput, RunDirectoryError
from mopd_diag.study.check import check_target
from mopd_diag.study.counts import allowance, counted, path_count
from mopd_diag.study.jobs import run_job
from mopd_diag.study.joined import join, study_of
from mopd_diag.study.listing import listed
from mopd_diag.study.resolve import Study, find_plan, resolve, resolve_identity
from mopd_diag.study.run import make_jobs
from mopd_diag.study.studies import find_study, run_studies
from mopd_diag.study_plan import StudyPlan
from mopd_diag.training.loop import TrainingState, Until

FOUR = {"domains": ["addition", "stack", "lookup", "reversed"]}
MODEL = {"hidden": 16, "layers": 1, "heads": 2, "key_value_heads": 2, "head_width": 8, "feed_forward": 16}


def plan(*recipes: str, world: dict[str, Any] = FOUR, **section: Any) -> StudyPlan:
    table = {"study": {"name": "mine", "recipes": list(recipes), "budget": "smoke", **section}, "world": world}
    return parse(StudyPlan, table, "study.toml")


def test_the_built_in_study_compares_what_it_says_at_three_seeds() -> None:
    found = find_study("mopd-vs-rl")
    assert found is not None and found.study.seeds == (0, 1, 2)
    study = study_of(found, 1)
    assert study.plan.seed == 1
    rivals = {m for m, t in study.roles.items() if t["role"] == "rival"}
    named = ("mixed-rl", "sequential-rl", "mai-thinking-1", "seqkd", "average", "task-arithmetic", "ties")
    assert rivals == {f"rival-{recipe}" for recipe in named}
    assert len(study.teachers()) == 4 and set(study.route()) == set(study.world.domains)
    assert study.controls() == ["rival-mixed-rl", "rival-sequential-rl"]
    assert [d for _, d in study.sequence()] == list(study.world.domains)
    assert {
        "name": "mopd-vs-rl",
        "kind": "study",
        "teachers": 4,
        "domains": 12,
        "summary": found.study.summary,
    } in listed()


def test_base_and_specialists_that_are_the_same_are_trained_once() -> None:
    study = study_of(plan("seqkd", "average", "ties", "mixed-rl"), 0)
    names = [s.name for s in study.stages]
    teachers = [n for n in names if n.startswith("teacher-")]
    assert sorted(names) == sorted(
        ["base", *teachers, "student", "rival-seqkd", "rival-average", "rival-ties", "rival-mixed-rl"]
    )
    merged = study.stage("rival-ties")
    assert isinstance(merged, MergeStage) and set(merged.models) == set(teachers)


def test_what_differs_is_renamed_with_all_that_it_uses() -> None:
    study = study_of(
        plan("deepseek-v4", "nemotron-3-ultra", "deepseek-r1", "llama-3", "instructgpt", "mimo-flash-v2"), 0
    )
    for stage in study.stages:
        head = stage.name.split(".")[0]
        if head.startswith("rival-"):
            reached = set(study.ancestry(stage.name)) - {n.name for n in study.stages if n.name.startswith(f"{head}.")}
            assert reached <= {head, "base", *study.teachers()}, stage.name
    assert "rival-nemotron-3-ultra.teacher-addition-1" in study.roles
    assert study.roles["rival-nemotron-3-ultra.teacher-addition-1"]["role"] == "checkpoint"
    assert "rival-deepseek-r1.base" in study.roles  # a smaller model than the reference's base
    assert study.controls() == ["rival-llama-3", "rival-instructgpt"]  # the others learned from teachers of their own
    again = json.loads(json.dumps(study.identity()))
    assert resolve_identity(again).stages == study.stages


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"recipes": ["mixed-rl"], "seeds": [0, 1, 0]}, "seed 0 stands twice"),
        ({"recipes": ["mixed-rl", "mixed-rl"]}, "recipe 'mixed-rl' stands twice"),
        ({"recipes": ["mopd"]}, "recipe 'mopd' stands twice"),
        ({"recipes": ["mixed-lr"]}, "no recipe 'mixed-lr'; did you mean 'mixed-rl'"),
        ({"recipes": ["mixed-rl"], "match": "tokens"}, "'flops'"),
        ({"recipes": ["mixed-rl"], "sedes": [1]}, "did you mean 'seeds'"),
        ({"recipes": ["mixed-rl"], "seeds": []}, "seeds"),
    ],
)
def test_a_wrong_study_is_one_line(tmp_path: Path, section: dict[str, Any], said: str) -> None:
    path = tmp_path / "study.toml"
    rows = [f"{k} = {json.dumps(v)}" for k, v in {"name": "mine", **section}.items()]
    path.write_text("\n".join(["[study]", *rows, "[world]", 'domains = ["addition", "stack"]']))
    with pytest.raises(BadInput) as caught:
        find_study(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_that_the_world_does_not_fit_is_refused_before_anything_trains(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[study]\nname = "x"\nrecipes = ["ties"]\n[world]\ndomains = ["facts", "abstain"]\n')
    with pytest.raises(BadInput, match="needs at least 2 specialists"):
        find_study(str(path))


def test_a_plan_is_no_study(tmp_path: Path) -> None:
    assert find_study("quickstart") is None
    assert find_study("mopd") is None
    (tmp_path / "plan.toml").write_text('name = "x"\nrecipe = "mopd"\n')
    assert find_study(str(tmp_path / "plan.toml")) is None


def test_the_command_line_overrides_seed_budget_and_world() -> None:
    found = find_study("mopd-vs-rl", seeds=[7], budget="smoke", world="micro:addition,stack")
    assert found is not None
    assert (found.study.seeds, found.study.budget, found.world.domains) == ((7,), "smoke", ("addition", "stack"))


# --- matched ------------------------------------------------------------------------------------------------------------

STAGES = [
    {"name": "base", "algorithm": "sft", "steps": 8, "batch": 16},
    {"name": "teacher-a", "algorithm": "grpo", "start": "base", "steps": 6, "prompts": 4, "group": 4},
    {"name": "student", "algorithm": "mopd", "start": "base", "steps": 6, "prompts": 16,
     "teachers": {"stack": "teacher-a", "brackets": "teacher-a"}},
    {"name": "rival-mixed", "algorithm": "grpo", "start": "base", "steps": 2, "prompts": 4, "group": 4,
     "match": {"to": "student", "on": "rollouts"}},
    {"name": "rival-two.1", "algorithm": "grpo", "start": "base", "steps": 2, "prompts": 4, "group": 4,
     "match": {"to": "student", "on": "rollouts", "share": 0.25}},
    {"name": "rival-two", "algorithm": "ppo", "start": "rival-two.1", "steps": 8, "prompts": 8, "minibatches": 2,
     "match": {"to": "student", "on": "rollouts"}},
    {"name": "rival-own", "algorithm": "mopd", "start": "base", "steps": 90, "prompts": 8,
     "teachers": {"stack": "teacher-a", "brackets": "teacher-a"}, "match": {"to": "student", "on": "rollouts"}},
    {"name": "rival-small", "algorithm": "grpo", "start": "base", "steps": 90, "prompts": 4, "group": 4,
     "match": {"to": "student", "on": "rollouts", "scope": "stage"}},
    {"name": "rival-sft", "algorithm": "sft", "start": "base", "steps": 3, "batch": 4,
     "match": {"to": "student", "on": "tokens_sampled"}},
]  # fmt: skip


def small(stages: list[dict[str, Any]] = STAGES) -> Study:
    table = {"name": "x", "model": MODEL, "world": {"domains": ["stack", "brackets"]}, "stages": stages}
    return resolve(parse(Plan, table, "x.toml"))


def test_rivals_stop_where_the_reference_did_by_the_ledger(tmp_path: Path) -> None:
    study = small()
    identity = json.loads(json.dumps(study.identity()))
    for stage in study.stages:
        run_job(tmp_path, identity, "train", stage.name, time.time(), lambda *_: None)
    rows = counted(tmp_path)
    path = path_count(study, rows, "student", "rollouts")
    assert path == 6 * 16 + 6 * 16  # the teacher and the student; the cold start counts for nobody
    for rival in ("rival-mixed", "rival-two", "rival-own"):
        assert path_count(study, rows, rival, "rollouts") == path, rival
    assert rows["rival-two.1"]["rollouts"] == path / 4
    assert rows["rival-own"]["rollouts"] == 6 * 16  # its teacher is the reference's and is paid for by both
    assert path_count(study, rows, "rival-small", "rollouts", "student") == 6 * 16
    assert (
        json.loads((tmp_path / "done" / "train-rival-sft.json").read_text())["steps"] == 3
    )  # samples nothing to be matched


def test_what_is_counted_corrects_the_number_of_steps() -> None:
    until, state = Until("flops", 1000.0), TrainingState()
    assert until.total(state, 7, 1) == 7  # nothing is known yet
    state.step, state.work.flops = 2, 100
    assert until.total(state, 7, 1) == 20
    state.step, state.work.flops = 10, 960
    assert until.total(state, 20, 1) == 10  # half a step would be nearer to none than to one
    state.step, state.work.flops = 15, 500
    assert until.total(state, 40, 10) == 40  # within a block
    state.step = 20
    assert until.total(state, 40, 10) == 40
    state.work.flops = 2000
    assert until.total(state, 40, 10) == 20  # spent


def test_a_stopped_matched_training_goes_on_to_the_same_end(tmp_path: Path) -> None:
    study = small()
    identity, whole, halves = study.identity(), tmp_path / "whole", tmp_path / "halves"

    def train(run: Path, name: str, stop_at: int = 0) -> None:
        def progress(step: int, steps: int, metrics: dict[str, float]) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        run_job(run, identity, "train", name, time.time(), progress)

    for run in (whole, halves):
        for name in ("base", "teacher-a", "student"):
            train(run, name)
    train(whole, "rival-mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mopd_diag.training.loop.SAVE_EVERY_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            train(halves, "rival-mixed", stop_at=5)  # beyond the two steps of the plan
    train(halves, "rival-mixed")
    rows = [counted(run)["rival-mixed"] for run in (whole, halves)]
    assert rows[0]["rollouts"] == rows[1]["rollouts"] and rows[0]["flops"] == rows[1]["flops"]


def test_a_study_can_be_checked_before_it_runs() -> None:
    found = check_target("mopd-vs-rl", None, 0)
    assert found[0].verdict == "ready" and "rival-ties" in found[0].evidence["stages"]


def test_an_allowance_is_what_is_left_of_the_reference() -> None:
    study = small()
    rows = {s.name: {"rollouts": r} for s, r in zip(study.stages, (999, 100, 50, 0, 30, 0, 0, 0, 0), strict=True)}
    left = {s.name: allowance(study, s, rows) for s in study.stages if s.match and s.match.on == "rollouts"}
    assert left == {"rival-mixed": 150, "rival-two.1": 37.5, "rival-two": 120, "rival-own": 50, "rival-small": 50}


def test_a_rival_waits_for_the_model_that_it_is_matched_to(tmp_path: Path) -> None:
    study = small()
    jobs = {j.name: j for j in make_jobs(tmp_path, study, study.identity())}
    assert "train-student" in jobs["train-rival-mixed"].needs
    assert study.stage("rival-mixed").parents == ("base",)  # it is no parent: what it cost is not this path's cost


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "rival-x", "algorithm": "grpo", "start": "base", "match": {"to": "nobody"}}, "needs model 'nobody'"),
        ({"name": "rival-x", "algorithm": "sft", "match": {"to": "student"}}, "`match` is for stages that train on"),
        ({"name": "rival-x", "algorithm": "grpo", "start": "base", "match": {"to": "rival-x"}}, "in a circle"),
    ],
)
def test_a_match_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        small([*STAGES, change])


# --- a whole study ------------------------------------------------------------------------------------------------------


def test_a_study_runs_and_its_results_say_who_was_matched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mopd_diag.recipes import parts

    for steps, n in ((parts.SFT, 20), (parts.CLIMB, 2), (parts.DISTILL, 2)):
        monkeypatch.setitem(steps, "smoke", n)
    table = {
        "study": {"name": "mine", "recipes": ["mixed-rl", "average"], "seeds": [0, 3], "budget": "smoke", "match": "tokens_sampled"},
        "world": {"domains": ["stack", "lookup"]}, "model": MODEL, "evaluation": {"items": 12, "samples": 2},
        "diagnosis": {"attribution_items": 4},
    }  # fmt: skip
    out = tmp_path / "out"
    found = run_studies(parse(StudyPlan, table, "study.toml"), out, workers=2)
    assert json.loads((out / "results.json").read_text())["models"] == found["models"]
    rival = found["models"]["rival-mixed-rl"]
    assert rival["matched"] and len(rival["accuracy"]) == len(rival["cost"]) == 2
    assert all(r == pytest.approx(1, abs=found["matched_within"]) for r in rival["cost_ratio"])
    assert found["models"]["rival-average"]["matched"] is None  # trains nothing
    assert all(
        (Path(run) / "report.html").is_file() and (Path(run) / "findings.json").is_file() for run in found["runs"]
    )
    table["study"]["match"] = "flops"
    with pytest.raises(RunDirectoryError, match="belongs to another study"):
        run_studies(parse(StudyPlan, table, "study.toml"), out)


def test_a_recipe_on_several_seeds_is_a_study_of_itself_with_its_own_rivals(tmp_path: Path) -> None:
    found = find_study("quickstart", seeds=[3, 1], budget="smoke", world="micro:addition,stack")
    assert found is not None
    assert (found.study.seeds, found.study.reference, found.study.recipes) == ((3, 1), "mopd", ())
    study = study_of(found, 3)
    alone = find_plan("quickstart", seed=3, budget="smoke", world="micro:addition,stack")
    assert [s.name for s in study.stages] == [s.name for s in alone.stages]
    finals = join(found, study.world).finals
    assert finals["mopd"] == "student" and "rival-mixed-rl" in finals.values()
    with pytest.raises(BadInput, match="seed 2 stands twice"):
        find_study("mopd", seeds=[2, 2])
    (tmp_path / "own.toml").write_text(
        'name = "own"\n[[stages]]\nname = "base"\nalgorithm = "sft"\nsteps = 3\n[world]\nname = "micro"\ndomains = ["stack"]\n'
    )
    with pytest.raises(BadInput, match="has stages of its own; several seeds need a recipe or a study"):
        find_study(str(tmp_path / "own.toml"), seeds=[0, 1])
