"""Preference and reinforcement stages from a plan: all of them train from a TOML file, and what cannot work is refused before."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pandas as pd
import pytest

from mopd_diag.config import DPOStage, PPOStage, RejectionStage, RewardModelStage
from mopd_diag.errors import BadInput
from mopd_diag.models.scalar import HEAD_FILE
from mopd_diag.study.jobs import run_job
from mopd_diag.study.preflight import batch_bytes
from mopd_diag.study.resolve import find_plan, resolve_identity
from mopd_diag.study.run import make_jobs

HEAD = """
name = "everything"
[world]
domains = ["addition", "sorting"]
[model]
hidden = 16
layers = 1
heads = 2
key_value_heads = 2
head_width = 8
feed_forward = 16
"""

STAGES = """
[[stages]]
name = "base"
algorithm = "sft"
steps = 4
batch = 8
[[stages]]
name = "teacher-math"
algorithm = "rejection"
start = "base"
filters = []
keep = 2
group = 2
prompts = 4
steps = 2
[[stages]]
name = "student.judge"
algorithm = "reward-model"
start = "base"
steps = 2
prompts = 4
group = 2
[[stages]]
name = "student.rejection"
algorithm = "rejection"
start = "base"
sources = { addition = "teacher-math" }
reward = "student.judge"
filters = ["distinct"]
prompts = 4
group = 2
steps = 2
[[stages]]
name = "student.dpo"
algorithm = "dpo"
start = "student.rejection"
reward = "student.judge"
reference = "base"
prompts = 4
group = 3
steps = 2
[[stages]]
name = "student"
algorithm = "ppo"
start = "student.dpo"
reward = "student.judge"
prompts = 8
minibatches = 2
steps = 4
[[stages]]
name = "rival-expd"
algorithm = "mopd"
start = "base"
teachers = { addition = "teacher-math", sorting = "student.dpo" }
extrapolation = 1.25
prompts = 4
steps = 2
[[stages]]
name = "rival-ties"
algorithm = "merge"
start = "base"
models = ["teacher-math", "student.dpo"]
method = "ties"
"""


def plan(folder: Path, stages: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(HEAD + stages)
    return path


def test_every_stage_trains_from_a_plan(tmp_path: Path) -> None:
    study = find_plan(str(plan(tmp_path, STAGES)))
    identity = json.loads(json.dumps(study.identity()))
    assert resolve_identity(identity).stages == study.stages
    rows = {}
    for stage in study.stages:
        run_job(tmp_path, identity, "train", stage.name, time.time(), lambda *_: None)
        rows[stage.name] = json.loads((tmp_path / "done" / f"train-{stage.name}.json").read_text())["ledger"]
        assert (tmp_path / "models" / stage.name / "model.safetensors").is_file()
        assert (tmp_path / "models" / stage.name / HEAD_FILE).is_file() == (stage.algorithm == "reward-model")
        assert batch_bytes(stage, study) > 0 or stage.algorithm == "merge"
    assert rows["student.rejection"]["parents"] == "base,teacher-math,student.judge"
    assert rows["student.dpo"]["parents"] == "student.rejection,base,student.judge"
    assert rows["student"]["parents"] == "student.dpo,student.judge"
    assert rows["student"]["rollouts"] == 16 and rows["student.judge"]["rollouts"] == 16
    # The judge, the reference and the policy's own values read each answer of PPO once.
    assert rows["student"]["tokens_scored"] == 3 * rows["student"]["tokens_sampled"]
    assert rows["student"]["tokens_trained"] == rows["student"]["tokens_sampled"]
    assert rows["rival-expd"]["tokens_scored"] == 2 * rows["rival-expd"]["tokens_sampled"]
    log = pd.read_parquet(tmp_path / "metrics" / "student.parquet")
    assert {"reward", "score", "kl", "clipped", "value_loss", "entropy"} <= set(log.columns)


def test_a_judge_is_not_evaluated(tmp_path: Path) -> None:
    study = find_plan(str(plan(tmp_path, STAGES)))
    names = {job.name for job in make_jobs(tmp_path, study, study.identity())}
    assert "train-student.judge" in names and "evaluate-student.judge" not in names
    assert {f"evaluate-{s.name}" for s in study.stages if s.algorithm != "reward-model"} <= names
    assert study.roles["student.judge"]["role"] == "checkpoint"
    renamed = find_plan(str(plan(tmp_path, STAGES.replace("student.judge", "control-judge"))))
    assert renamed.roles["control-judge"]["role"] == "checkpoint"  # it answers nothing, whatever it is called


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('reward = "student.judge"\nprompts = 8', 'reward = "base"\nprompts = 8', "'base' is not a reward model; valid: student.judge"),
        ('start = "student.dpo"\nreward', 'start = "student.judge"\nreward', "uses 'student.judge', a reward model, as one that answers"),
        ('start = "student.dpo"\nreward', 'start = "nobody"\nreward', "needs model 'nobody'"),
        ('sources = { addition =', 'sources = { additoin =', "no domain 'additoin'; did you mean 'addition'"),
        ("minibatches = 2\nsteps = 4", "minibatches = 2\nsteps = 5", "steps 5 is not a multiple of epochs"),
        ("keep = 2\ngroup = 2", "keep = 3\ngroup = 2", "keep 3 is above group 2"),
        ('reward = "student.judge"\nfilters = ["distinct"]', 'filters = ["distinct"]', "`filters` needs 'correct'"),
        ('start = "base"\nmodels', "models", "ties needs `start`"),
        ('start = "student.rejection"', 'start = "student"', "wait for one another in a circle"),
    ],
    ids=["no judge", "judge as model", "no parent", "no domain", "half a sampling", "too many", "wrong best", "no base", "circle"],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert STAGES.count(old) == 1
    with pytest.raises(BadInput, match=message) as caught:
        find_plan(str(plan(tmp_path, STAGES.replace(old, new))))
    assert "\n" not in str(caught.value)


def test_defaults() -> None:
    ppo = PPOStage(name="student", start="base")
    assert (ppo.updates, ppo.parents) == (4, ("base",))
    assert RejectionStage(name="student", start="base").filters == ("finished", "correct")


# --- the recipes made of them --------------------------------------------------------------------------------------


def test_instructgpt_is_fine_tuning_a_judge_and_ppo() -> None:
    base, judge, student = find_plan("instructgpt", world="micro:addition,stack", budget="smoke").stages
    assert [s.algorithm for s in (base, judge, student)] == ["sft", "reward-model", "ppo"]
    assert isinstance(student, PPOStage)
    assert (student.start, student.reward, student.reference) == ("base", judge.name, None)  # held to where it starts


def test_llama_3_feeds_the_best_model_of_a_round_to_the_next() -> None:
    stages = find_plan("llama-3", world="micro:addition,stack", budget="smoke").stages
    assert [s.algorithm for s in stages] == ["sft", *["reward-model", "rejection", "dpo"] * 6]
    best = "base"
    for judge, tuned, aligned in zip(stages[1::3], stages[2::3], stages[3::3], strict=True):
        assert isinstance(judge, RewardModelStage) and isinstance(tuned, RejectionStage)
        assert isinstance(aligned, DPOStage)
        assert judge.sampled_from == aligned.sampled_from == best
        assert set(tuned.sources.values()) == {best} and tuned.reward == judge.name
        assert aligned.start == tuned.name
        best = aligned.name
    assert best == "student"
