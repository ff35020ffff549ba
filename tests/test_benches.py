"""The benches that stand beside other tools run, and what they compare is the same work: figures are not judged here."""

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from bench import gpu, loglikelihood, sampling, scoring, training


@pytest.fixture(autouse=True)
def _quiet(capsys):
    yield
    capsys.readouterr()


def shown(bench, result) -> str:
    out = io.StringIO()
    bench.show(result, Console(file=out, width=200))
    return out.getvalue()


def test_sampling_is_timed_beside_generate_and_lm_eval():
    result = sampling.run(batches=(4,), rounds=1, vllm=False, smollm2=False)
    found = result["models"]["micro"]["4"]
    assert list(found["tokens_per_second"]) == ["ours", "transformers", "lm-eval hf"]
    assert all(rate > 0 for rate in found["tokens_per_second"].values())
    assert "lm-eval hf" in shown(sampling, result)


def test_a_step_is_timed_beside_trls():
    result = training.run(rounds=1, warmup=1, smollm2=False, memory=False)
    found = result["models"]["micro"]
    assert set(found["tokens_per_second"]) == {"ours", "trl"} and found["ours_over"]["trl"]["rounds"] == 1
    # 64 prompts of twelve characters with at most 24 new tokens, 0.1 M parameters: sampled, read twice, and pulled back once.
    assert 1e8 < found["step_flops"] < 1e11
    assert "the floor" in shown(training, result)


def test_scoring_is_timed_beside_all_others_and_they_agree():
    result = scoring.run(rounds=1, teachers=(2,), smollm2=False, vllm=False)
    for found in result["one_model"].values():
        assert {"ours", "transformers", "TRL"} < set(found["tokens_per_second"])
        assert max(found["largest_difference"].values()) < 1e-3  # the sum of 24 tokens
    for cast in result["casts"].values():
        assert math.isfinite(cast["teachers"]["2"]["time_ratio"]["median"])
    assert "TRL" in shown(scoring, result)


def test_requests_are_timed_beside_lm_evals_own():
    result = loglikelihood.run(rounds=1, smollm2=False)
    for found in result["models"]["micro"].values():
        assert found["same_greedy"] and found["largest_difference"] < 1e-4
    assert "hf" in shown(loglikelihood, result)


def test_the_bench_for_gpus_runs_without_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "pick", lambda asked: torch.device("cpu"))
    narrow = replace(
        gpu.QWEN3,
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    result = gpu.run(gpu.Size(prompts=4, new_tokens=6, steps=1, square=64), narrow, smollm2=False)
    found = result["models"]["Qwen3, random"]
    assert (
        found["ours"]["tokens_per_second"] > 0
        and found["trl"]["tokens_per_second"] > 0
        and found["scored_per_second"] > 0
    )
    assert found["share_of_peak"] > 0 and found["kernels"] and sum(k["share"] for k in found["kernels"]) <= 1
    assert "share of peak" in shown(gpu, result)
