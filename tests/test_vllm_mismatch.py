"""The finding on sampler and trainer: what it says of exact, slightly and far different log-probabilities."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from cast_models import PROMPTS, paths, save_models

from mopd_diag.config import Cast
from mopd_diag.errors import BadInput
from mopd_diag.estimators.importance import importance_weights
from mopd_diag.prompts import Prompt
from mopd_diag.study.check import check_cast, check_target
from mopd_diag.study.vllm_cast import mismatch_finding, room_for

ANSWER = np.repeat(np.arange(40), 10)


@pytest.mark.parametrize(("noise", "verdict"), [(1e-5, "agrees"), (0.03, "agrees"), (1.0, "differs")])
def test_the_verdict_follows_the_gap(noise: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    sampler = -rng.exponential(1, 400)
    trainer = sampler + noise * rng.standard_normal(400)
    found = mismatch_finding(trainer, sampler, ANSWER, 0, sampler="vLLM 0.32.0 in bfloat16")
    assert found.evidence["note"].startswith("mean gap of vLLM 0.32.0 in bfloat16 and the trainer")
    assert found.evidence["sampler"] == "vLLM 0.32.0 in bfloat16"
    plain = importance_weights(trainer, sampler)
    assert found.verdict == verdict and found.estimate is not None
    assert (found.severity == "warning") == (verdict == "differs")
    assert found.estimate.value == pytest.approx(plain.gap_mean)
    assert found.evidence["effective"]["value"] == pytest.approx(plain.effective)
    assert found.evidence["outside"]["value"] == pytest.approx(plain.outside)
    assert found.evidence["outside"]["high"] > plain.outside, "no token outside is no proof that there is none"
    assert found.evidence["kl"]["value"] == pytest.approx(np.mean(sampler - trainer))


def test_one_answer_says_nothing() -> None:
    found = mismatch_finding(np.full(5, -1.0), np.full(5, -1.1), np.zeros(5, int), 0)
    assert found.verdict == "undetermined" and found.estimate is not None and "at least 2" in found.estimate.note


@pytest.mark.parametrize("trainer", [[], [np.nan, -1.0]])
def test_numbers_that_cannot_be_used_are_one_line(trainer: list[float]) -> None:
    with pytest.raises(BadInput, match="sampled tokens"):
        mismatch_finding(np.array(trainer), np.full(len(trainer), -1.0), np.zeros(len(trainer), int), 0)


def test_answers_end_with_the_context_and_a_prompt_that_fills_it_is_refused() -> None:
    prompts = [Prompt(id=n, prompt=n) for n in ("short", "long", "full")]
    ids = [[5] * n for n in (3, 126, 127)]
    assert room_for(prompts[:2], ids[:2], 128, 20) == [20, 1]
    assert room_for(prompts, ids, None, 20) == [20] * 3
    with pytest.raises(
        BadInput, match="prompt 'full' has 127 tokens, .* the student's context of 128; leave the prompt out"
    ):
        room_for(prompts, ids, 128, 20)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_check_without_vllm_is_one_line(tmp_path: Path) -> None:
    table = paths(save_models(tmp_path))
    table |= {n: {"path": table[n]} for n in ("base", "student")}
    cast = Cast.model_validate(table)
    with pytest.raises(BadInput, match="vLLM is not installed: pip install"):
        check_cast(cast, [Prompt(**p) for p in PROMPTS], 0, engine="vllm")
    with pytest.raises(BadInput, match="needs prompts"):
        check_cast(cast, None, 0, engine="vllm")


def test_a_plan_has_no_engine_to_check() -> None:
    with pytest.raises(BadInput, match="--engine vllm belongs to a cast"):
        check_target("quickstart", None, 0, engine="vllm")
