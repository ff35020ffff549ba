"""Exports to trainers; TRL for real: its parser, a training, what it leaves behind, and the callback's numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from bridged import DOMAINS, lines, study, write_models
from tiny import decoder, in_transformers

import mopd_diag
from mopd_diag.bridges.distillation import distillation_of
from mopd_diag.bridges.write import export_plan
from mopd_diag.cli import main
from mopd_diag.config import WorldConfig, load_cast
from mopd_diag.errors import BadInput, RunDirectoryError
from mopd_diag.worlds import load_world


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints under the names of the plan's models."""
    return write_models(tmp_path_factory.mktemp("models"))


# -- the export itself --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["trl", "verl", "nemo-rl"])
def test_an_export_holds_what_the_trainer_and_the_diagnosis_need(trainer: Any, models: Path, tmp_path: Path) -> None:
    document = export_plan(study(), trainer, tmp_path / "out", models=models)
    out = tmp_path / "out"
    assert set(document["files"]) == {p.name for p in out.iterdir()}
    cast = load_cast(out / "cast.toml")
    assert {f"teacher-{n}": m.domains for n, m in cast.teachers.items()} == {f"teacher-{d}": (d,) for d in DOMAINS}
    assert cast.base.path == models / "base"
    assert {row["domain"] for row in lines(out / "eval.jsonl")} == set(DOMAINS)
    trained = {row["prompt"] for row in lines(out / "asked.jsonl")}
    assert trained and trained.isdisjoint(row["prompt"] for row in lines(out / "eval.jsonl"))
    text = (out / "README.md").read_text()
    for part in (*document["mapped"], *document["without_counterpart"], *document["commands"]):
        assert part.split("|")[0] in text


def test_the_prompts_are_those_of_our_own_trainer_in_its_order(models: Path) -> None:
    found = distillation_of(study(), models)
    world, stage = found.study.world, found.stage
    steps = [world.draw_batch(DOMAINS, stage.prompts, (found.study.plan.seed, "student", k)) for k in range(2)]
    assert found.items == [*steps[0], *steps[1]]


def test_a_number_in_yaml_stays_a_number(models: Path, tmp_path: Path) -> None:
    export_plan(study(learning_rate=1e-5), "trl", tmp_path / "out", models=models)
    assert yaml.safe_load((tmp_path / "out/mopd.yaml").read_text())["learning_rate"] == 1e-5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weighting": "token-balanced"}, "weighting"),
        ({"extrapolation": 1.25}, "extrapolation"),
        ({"form": "sampled", "baseline": "state"}, "baseline"),
        ({"form": "topk"}, 'form = "topk"'),
    ],
)
def test_what_has_no_counterpart_is_said(settings: dict[str, Any], said: str, models: Path, tmp_path: Path) -> None:
    for trainer in ("trl", "verl", "nemo-rl"):
        document = export_plan(study(**settings), trainer, tmp_path / trainer, models=models)
        assert any(said in setting for setting in document["without_counterpart"])


def test_replies_of_the_world_have_no_counterpart(tmp_path: Path) -> None:
    document = export_plan(study(("addition", "two-turn")), "verl", tmp_path / "out")
    assert any("two-turn" in setting for setting in document["without_counterpart"])


def test_a_plan_without_distillation_is_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "mixed-rl", "--to", "trl", "--out", str(tmp_path / "x")])
    assert ended.value.code == 2
    assert "no stage with algorithm 'mopd'" in capfd.readouterr().err


def test_missing_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"no checkpoint .*base: stage 'student' needs base, teacher-addition"):
        export_plan(study(), "trl", tmp_path / "out", models=tmp_path)


def test_a_full_folder_and_an_unknown_stage_are_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(RunDirectoryError, match="not empty"):
        export_plan(study(), "trl", tmp_path, models=models)
    with pytest.raises(BadInput, match="did you mean 'student'"):
        export_plan(study(), "trl", tmp_path / "out", models=models, stage="studnt")


# -- TRL ----------------------------------------------------------------------------------------------------------------------

pytest.importorskip("trl", minversion="1.16")


@pytest.mark.filterwarnings("ignore")
def test_trl_loads_both_configs(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import DatasetMixtureConfig, DistillationConfig, ModelConfig, ScriptArguments, TrlParser
    from trl.experimental.async_distillation import AsyncDistillationConfig

    monkeypatch.chdir(tmp_path)
    export_plan(study(group=2, temperature=0.7), "trl", tmp_path / "out", models=models)
    parser = TrlParser(
        (ScriptArguments, DistillationConfig, ModelConfig, DatasetMixtureConfig)
    )  # as `trl distillation` does
    _, one, model, data = parser.parse_args_and_config(
        ["--config", "out/teacher-stack.yaml"], fail_with_unknown_args=True
    )
    assert one.teacher_model_name_or_path == str(models / "teacher-stack")
    assert (one.beta, one.learning_rate, one.temperature, one.adam_beta2, one.warmup_steps) == (
        1.0,
        3e-4,
        0.7,
        0.95,
        10,
    )
    assert (
        one.per_device_train_batch_size == 16 and one.max_steps == 1
    )  # 2 steps of 8 prompts, half of them of this teacher, twice each
    assert model.model_name_or_path == str(models / "base")
    assert data.datasets[0].data_files == "prompts-teacher-stack.jsonl"
    assert {row["domain"] for row in lines(tmp_path / "out/prompts-teacher-stack.jsonl")} == {"stack"}
    (several,) = TrlParser((AsyncDistillationConfig,)).parse_args_and_config(
        ["--config", "out/mopd.yaml"], fail_with_unknown_args=True
    )
    assert list(several.teacher_server_urls) == ["teacher-addition", "teacher-stack"]
    assert several.beta == 1.0 and several.max_steps == 2
    routed = {(row["domain"], row["teacher_id"]) for row in lines(tmp_path / "out/prompts.jsonl")}
    assert routed == {(d, f"teacher-{d}") for d in DOMAINS}


@pytest.fixture(scope="module")
def trained(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """A real training with TRL from an exported config, watched by the callback: the export, and what was logged."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import (
        DatasetMixtureConfig,
        DistillationConfig,
        DistillationTrainer,
        ModelConfig,
        ScriptArguments,
        TrlParser,
    )

    from mopd_diag.bridges.callback import RecoveryCallback, held_out

    out = tmp_path_factory.mktemp("trl") / "out"
    export_plan(study(steps=6), "trl", out, models=models)
    parser = TrlParser((ScriptArguments, DistillationConfig, ModelConfig, DatasetMixtureConfig))
    _, args, model, data = parser.parse_args_and_config(
        [
            "--config",
            str(out / "teacher-stack.yaml"),
            "--output_dir",
            str(out / "out"),
            "--use_cpu",
            "true",
            "--disable_tqdm",
            "true",
        ]
    )
    prompts = load_dataset("json", data_files=str(out / data.datasets[0].data_files), split="train")
    trainer = DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(model.model_name_or_path, dtype="float32"),
        teacher_model=AutoModelForCausalLM.from_pretrained(args.teacher_model_name_or_path, dtype="float32"),
        args=args, train_dataset=prompts, processing_class=AutoTokenizer.from_pretrained(model.model_name_or_path, padding_side="left"),
    )  # fmt: skip
    world = load_world("micro", DOMAINS)
    callback = RecoveryCallback(
        trainer, held_out(out / "eval.jsonl"), world.score, {t: models / t for t in ("teacher-addition", "teacher-stack")},
        {d: f"teacher-{d}" for d in DOMAINS}, every=2, max_new_tokens=12, prompts={"stack": 3, "addition": 1},
    )  # fmt: skip
    trainer.add_callback(callback)
    trainer.train()
    trainer.save_model(str(out / "student"))
    return out, trainer.state.log_history


@pytest.mark.filterwarnings("ignore")
def test_the_callback_logs_during_a_real_training(trained: tuple[Path, list[dict[str, float]]]) -> None:
    _, history = trained
    ours = [row for row in history if "kl/teacher-stack" in row]
    assert [row["step"] for row in ours] == [2, 3]  # every second step, and the last
    for row in ours:
        assert row["kl/teacher-stack"] > 0 and row["kl/teacher-addition"] > 0
        assert row["token_share/addition"] + row["token_share/stack"] == pytest.approx(1)
        assert row["accuracy/stack"] == 0  # random models solve nothing …
        assert not any(
            key.startswith("recovery") for key in row
        )  # … so there is no headroom to recover, and nothing is made up
    trainers_own = [row for row in history if "loss" in row and "kl/teacher-stack" not in row]
    assert len(trainers_own) == 3, "the trainer's own lines are all there"


@pytest.mark.filterwarnings("ignore")
def test_the_callback_leaves_the_trainers_random_numbers_alone(models: Path, tmp_path: Path) -> None:
    import torch

    callback, _ = watcher(models, tmp_path, decoder("llama", std=0.5), "teacher-stack")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    callback.on_train_begin(None, None, None)
    callback.measure(1)
    assert torch.equal(before, torch.get_rng_state())


def watcher(models: Path, tmp_path: Path, student: Any, teacher: str) -> tuple[Any, Any]:
    """The callback around a student that nobody trains."""
    from types import SimpleNamespace

    from transformers import AutoTokenizer

    from mopd_diag.bridges.callback import RecoveryCallback

    model = in_transformers(student, tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    accelerator = SimpleNamespace(unwrap_model=lambda m: m)
    trainer: Any = SimpleNamespace(model=model, accelerator=accelerator, processing_class=tokenizer)
    items = load_world("micro", ["stack"]).evaluation_items("stack", 24, ("evaluation",))
    judge = lambda item, answer: float("1" in answer)  # noqa: E731 (something that random models do now and then)
    return RecoveryCallback(
        trainer, items, judge, {teacher: models / teacher}, {"stack": teacher}, max_new_tokens=8
    ), model


@pytest.mark.filterwarnings("ignore")
def test_the_callbacks_kl_is_the_exact_divergence_on_the_students_answers(models: Path, tmp_path: Path) -> None:
    """Against the same number from our own scorer, on the answers that the callback sampled."""
    import torch

    from mopd_diag.models.checkpoint import load_decoder

    student = decoder("llama", seed=3, std=0.5)
    callback, model = watcher(models, tmp_path, student, "teacher-stack")
    answered = callback._answer(model, callback.items, 1)
    teacher = load_decoder(models / "teacher-stack")
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(m(answered.ids_NL)[:, :-1], -1) for m in (student, teacher))
        expected = (ours.exp() * (ours - theirs)).sum(-1)[answered.own_NL[:, 1:]].mean()
        callback.on_train_begin(None, None, None)
        assert callback._kl(model, "teacher-stack", answered) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_recovery_is_zero_at_the_start_and_one_at_the_teacher(models: Path, tmp_path: Path) -> None:
    callback, _ = watcher(models, tmp_path, decoder("llama", std=0.5), "teacher-stack")
    callback.on_train_begin(None, None, None)
    n = len(callback.items)
    callback.start_N, callback.taught_N = [0.0] * n, [1.0] * n
    score = np.array(callback._answer(callback._student(), callback.items, 7).score_N)
    row = callback.measure(7)
    assert row["recovery/stack"] == pytest.approx(score.mean()) == pytest.approx(row["accuracy/stack"])
    assert row["recovery_low/stack"] <= row["recovery/stack"] <= row["recovery_high/stack"]


def test_a_domain_without_a_teacher_is_refused(models: Path, tmp_path: Path) -> None:
    from mopd_diag.bridges.callback import RecoveryCallback

    items = load_world("micro", ["stack"]).evaluation_items("stack", 4, ("evaluation",))
    with pytest.raises(BadInput, match="domain 'stack' has no teacher"):
        RecoveryCallback(None, items, lambda *_: 0.0, {}, {})  # type: ignore[arg-type]


# -- what trainers log is read back -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_what_trl_logged_and_saved_is_attributed(trained: tuple[Path, list[dict[str, float]]]) -> None:
    """The completions of a real training and its checkpoint, through the cast that the export wrote."""
    out, _ = trained
    (logged, *_) = sorted((out / "out/completions").glob("*.parquet"))
    assert "advantage" not in pq.read_schema(logged).names  # the distillation trainer has no rewards
    found = mopd_diag.attribute(out / "cast.toml", rollouts=logged, domains=out / "asked.jsonl", warn=lambda _: None)
    assert len(found.answers) == pq.read_metadata(logged).num_rows
    assert set(found.answers["domain"]) == {"stack"}


# -- the command --------------------------------------------------------------------------------------------------------------


def test_the_command_writes_and_prints_one_document(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mopd_diag.cli", "export", "mopd", "--to", "verl", "--budget", "smoke"]
    done = subprocess.run(
        [*command, "--world", "micro:addition,stack", "--out", str(tmp_path / "out"), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["stage"] == "student" and "mopd.yaml" in document["files"]
    assert WorldConfig().name == "micro"  # the default that the reward function is given by name, even so
    assert document["mapped"] and document["without_counterpart"]
