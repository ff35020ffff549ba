"""Adapters, several processes, gradient checkpointing and bf16 in a plan: the run is a run like any other."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch_engine import TorchEngine

from mopd_diag.engines import vllm_sampler
from mopd_diag.errors import BadInput
from mopd_diag.models.checkpoint import load_decoder
from mopd_diag.models.lora import is_adapter
from mopd_diag.study.jobs import run_job
from mopd_diag.study.preflight import check_fit
from mopd_diag.study.resolve import find_plan
from mopd_diag.study.run import is_done, run_study

PLAN = """
name = "compute"
[world]
domains = ["addition", "stack"]
[model]
hidden = 16
layers = 2
heads = 2
key_value_heads = 2
head_width = 8
feed_forward = 16
{model}
[evaluation]
items = 8
samples = 2
[diagnosis]
attribution_items = 8
[compute]
{compute}
[[stages]]
name = "base"
algorithm = "sft"
steps = 5
batch = 8
[[stages]]
name = "teacher-math"
algorithm = "grpo"
start = "base"
domains = ["addition"]
steps = 2
prompts = 4
group = 4
[[stages]]
name = "teacher-code"
algorithm = "sft"
start = "base"
domains = ["stack"]
steps = 4
batch = 4
[[stages]]
name = "student"
algorithm = "mopd"
start = "{start}"
teachers = {{ addition = "teacher-math", stack = "teacher-code" }}
steps = 3
prompts = 8
"""


def study_of(folder: Path, *, model: str = "", compute: str = "", start: str = "base"):
    (folder / "plan.toml").write_text(PLAN.format(model=model, compute=compute, start=start))
    return find_plan(str(folder / "plan.toml"))


def train(folder: Path, *stages: str, **settings: str) -> Path:
    folder.mkdir()
    study = study_of(folder, **settings)
    for name in stages or tuple(s.name for s in study.stages):
        run_job(folder, study.identity(), "train", name, time.time(), lambda *_: None)
    return folder


def test_a_run_with_adapters_is_trained_evaluated_traced_and_reported(tmp_path: Path):
    lora = "lora = { rank = 2, alpha = 4, targets = ['q_proj', 'v_proj', 'down_proj'] }"
    run = run_study(study_of(tmp_path, model=lora), tmp_path / "run", workers=1)
    models = run.path / "models"
    assert not is_adapter(models / "base")
    for name in ("teacher-math", "teacher-code", "student"):
        assert is_adapter(models / name) and is_done(run.path, f"train-{name}")
        table = json.loads((models / name / "adapter_config.json").read_text())
        assert (table["base_model_name_or_path"], table["r"]) == ("../base", 2)
        assert not (models / name / "model.safetensors").exists()
    base, student = load_decoder(models / "base"), load_decoder(models / "student")
    assert torch.equal(base.embed, student.embed) and torch.equal(base.blocks[0].out, student.blocks[0].out)
    assert not torch.equal(base.blocks[1].down, student.blocks[1].down)
    assert (run.path / "report.html").is_file() and run.trace_names() == ["student"]
    trace = pd.read_parquet(run.path / "traces" / "student.parquet")
    assert trace[["logp_teacher-math", "logp_teacher-code"]].notna().all().all()


def test_a_stage_that_starts_from_an_adapter_goes_on_with_it(tmp_path: Path):
    folder = train(tmp_path / "run", model="lora = { rank = 2 }", start="teacher-code")
    table = json.loads((folder / "models" / "student" / "adapter_config.json").read_text())
    assert table["base_model_name_or_path"] == "../base"
    models = {n: load_decoder(folder / "models" / n) for n in ("base", "teacher-code", "student")}
    moves = [models[n].blocks[0].qkv - models["base"].blocks[0].qkv for n in ("teacher-code", "student")]
    assert all(torch.linalg.matrix_rank(m.detach()) <= 3 * 2 for m in moves)
    assert torch.cosine_similarity(moves[0].flatten(), moves[1].flatten(), 0) > 0.5


@pytest.mark.parametrize("compute", ["recompute = true", "processes = 2"])
def test_how_a_stage_is_computed_changes_its_model_by_rounding_only(compute: str, tmp_path: Path):
    plain = train(tmp_path / "plain", "base", "teacher-code")
    other = train(tmp_path / "other", "base", "teacher-code", compute=compute)
    for name in ("base", "teacher-code"):
        one, two = (load_decoder(f / "models" / name) for f in (plain, other))
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=3e-4, rtol=1e-3)
        rows = [json.loads((f / "done" / f"train-{name}.json").read_text())["ledger"] for f in (plain, other)]
        assert all(rows[0][k] == rows[1][k] for k in ("flops", "tokens_trained"))
        logs = [pd.read_parquet(f / "metrics" / f"{name}.parquet") for f in (plain, other)]
        assert logs[0]["loss"].to_numpy() == pytest.approx(logs[1]["loss"].to_numpy(), rel=1e-3)


def test_bf16_trains_near_fp32_with_weights_in_fp32(tmp_path: Path):
    plain, half = (
        train(tmp_path / precision, "base", compute=f'precision = "{precision}"') for precision in ("fp32", "bf16")
    )
    losses = [pd.read_parquet(f / "metrics" / "base.parquet")["loss"].to_numpy() for f in (plain, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert load_decoder(half / "models" / "base").embed.dtype == torch.float32


def test_adapters_over_several_processes_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"`\[model\] lora` trains in one process"):
        study_of(tmp_path, model="lora = { rank = 2 }", compute="processes = 2")
    with pytest.raises(BadInput, match="targets"):
        study_of(tmp_path, model="lora = { targets = ['attention'] }")


def test_the_sampler_gets_the_weights_of_every_step_and_is_closed_after_the_job(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(vllm_sampler, "VLLMEngine", TorchEngine)
    monkeypatch.setattr(TorchEngine, "story", [])
    monkeypatch.setattr(TorchEngine, "made", [])
    folder = train(tmp_path / "run", "base", "teacher-math", "teacher-code", "student", compute='sampler = "vllm"')
    told = ["new", "reload", "close", "new", "reload", "reload", "close"]  # teacher-math: two steps; fine-tuning: none
    assert [what for what, _ in TorchEngine.story] == told
    assert {m["dtype"] for m in TorchEngine.made} == {"float32"}
    assert (folder / "models" / "student" / "model.safetensors").is_file()


def test_a_plan_that_vllm_cannot_sample_for_is_refused_before_anything_trains(tmp_path: Path, monkeypatch):
    with pytest.raises(BadInput, match=r"vLLM samples for a stage of one process"):
        study_of(tmp_path, compute='processes = 2\nsampler = "vllm"')
    study = study_of(tmp_path, compute='sampler = "vllm"')
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"sampler = 'vllm', but vLLM is not installed: pip install"):
        check_fit(study, tmp_path)
    talking = (tmp_path / "plan.toml").read_text().replace("stack", "two-turn")
    (tmp_path / "plan.toml").write_text(talking)
    with pytest.raises(BadInput, match="the world answers within the answers of 'two-turn'"):
        check_fit(find_plan(str(tmp_path / "plan.toml")), tmp_path)
