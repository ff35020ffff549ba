"""Direct preference optimisation: the loss in closed form, the algorithm's gradients against autograd and TRL, what it learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from letters import LETTERS, accuracy, assert_same_weights, copy, ending, taught, weights
from tiny import TOKENIZER, assert_same_gradients, decoder, in_transformers, shifted
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.config import DPOStage, RewardModelStage
from mopd_diag.engines import head
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.scalar import ScalarDecoder
from mopd_diag.training import dpo, loop
from mopd_diag.training.dpo import DPO, dpo_loss
from mopd_diag.training.loop import Schedule, train
from mopd_diag.training.preference import Pairs
from mopd_diag.training.reward_model import RewardModel
from mopd_diag.worlds import World, load_world

MICRO = load_world("micro")
DOMAINS = ["addition", "two-turn", "sorting"]


def test_loss_in_closed_form() -> None:
    log_ratio_N = torch.tensor([0.0, 0.0, math.log(4), math.log(2), -1.0, 9.0])
    loss, margin = dpo_loss(log_ratio_N, 0.5)
    assert margin.tolist() == pytest.approx([0.0, 0.5 * math.log(2), -5.0])
    assert loss.tolist() == pytest.approx([math.log(2), math.log(1 + 2**-0.5), math.log(1 + math.exp(5))])


def drawn(
    monkeypatch: pytest.MonkeyPatch, shape: str, **options
) -> tuple[Decoder, Decoder, DPO, list, Pairs, DPOStage]:
    """A step of a model that is a little ahead of its reference, on answers with the world's replies in them."""
    monkeypatch.setattr(World, "score", lambda _, item, text: float(len(text) % 2 == 0))
    monkeypatch.setattr(World, "reply", lambda _, item, transcript: "7;")
    seen: list[Pairs] = []
    draw = dpo.draw_pairs
    monkeypatch.setattr(dpo, "draw_pairs", lambda *a: seen.append(draw(*a)) or seen[-1])
    stage = DPOStage(name="student", start="base", prompts=24, group=4, **options)
    reference = ending(decoder(shape))
    ours = shifted(reference, 5, 0.03)
    method = DPO(stage, TOKENIZER, MICRO, DOMAINS, 3, reference, reference)
    batch = method.batch(ours, 0)
    assert len(seen[0]) > 8
    return ours, reference, method, batch.parts, seen[0], stage


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", ["llama", "qwen3-grouped-untied"])
@pytest.mark.parametrize("nll", [0.0, 0.2])
def test_against_trl(shape: str, nll: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient; what the world wrote is in the context and not in the likelihood."""
    pytest.importorskip("trl", minversion="1.16")
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    ours, reference, method, parts, pairs, _ = drawn(monkeypatch, shape, beta=0.4, nll=nll)
    theirs = in_transformers(ours, tmp_path / "model")
    loss = sum(loop._backward(ours, method, part)[0] for part in parts)

    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
        beta=0.4, loss_type=["sigmoid", "sft"], loss_weights=[1.0, nll],
    )  # fmt: skip
    trainer = DPOTrainer(
        model=theirs, ref_model=in_transformers(reference, tmp_path / "reference"), args=arguments,
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "model"),
        train_dataset=Dataset.from_list([{"prompt": "x", "chosen": "a", "rejected": "b"}]),
    )  # fmt: skip
    rollouts = pairs.rollouts
    order = torch.cat((torch.arange(0, len(rollouts), 2), torch.arange(1, len(rollouts), 2)))
    place = torch.arange(rollouts.ids_NL.shape[1])
    assert rollouts.own_NL.sum() < ((place >= rollouts.prompt_N[:, None]) & (place < rollouts.length_N[:, None])).sum()
    inputs = {
        "input_ids": rollouts.ids_NL[order],
        "attention_mask": (place < rollouts.length_N[order, None]).long(),
        "completion_mask": rollouts.own_NL[order].long(),
    }
    expected = trainer.compute_loss(theirs, inputs)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(ours, theirs, rtol=5e-5)


@pytest.mark.parametrize("nll", [0.0, 0.2])
def test_the_two_passes_give_autograd_s_gradient(nll: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The push of each token is fixed in a first pass: value and gradient must be those of the loss written in one piece, also
    when logits are made a few rows at a time."""
    ours, reference, method, parts, pairs, stage = drawn(monkeypatch, "llama", beta=0.4, nll=nll)
    rollouts, whole = pairs.rollouts, copy(ours)

    def logp(model: Decoder) -> Tensor:
        table = torch.log_softmax(model(rollouts.ids_NL[:, :-1]), -1)
        picked = table.gather(2, rollouts.ids_NL[:, 1:, None]).squeeze(2)
        return torch.where(rollouts.own_NL[:, 1:], picked, 0.0)

    with torch.no_grad():
        known = logp(reference).sum(1)
    mine = logp(whole)
    ratio = mine.sum(1) - known
    value = -F.logsigmoid(stage.beta * (ratio[::2] - ratio[1::2])).mean() - nll * mine[::2].sum() / int(
        rollouts.own_NL[::2].sum()
    )
    value.backward()
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 99 * 8)
    losses = [loop._backward(ours, method, part) for part in parts]
    assert sum(loss for loss, _ in losses) == pytest.approx(value.item(), rel=1e-5)
    for p, q in zip(ours.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=3e-6 * float(q.grad.abs().max()), rtol=1e-3)  # type: ignore[union-attr]
    margins = torch.cat([values["margin"] for _, values in losses])
    assert sorted(margins.tolist()) == pytest.approx(
        sorted((stage.beta * (ratio[::2] - ratio[1::2])).tolist()), rel=1e-3, abs=1e-4
    )


def test_at_the_reference_the_loss_is_ln_2() -> None:
    model = taught("abcd", steps=20)
    stage = DPOStage(name="student", start="base", prompts=8, group=4)
    state = train(copy(model), DPO(stage, TOKENIZER, LETTERS, ["letters"], 0, model, copy(model)), Schedule(1, 1e-3))
    assert state.log[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert state.log[0]["margin"] == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def letter_model() -> Decoder:
    return taught("abcd")


def test_it_learns_what_the_verifier_likes(letter_model: Decoder) -> None:
    stage = DPOStage(name="student", start="base", prompts=16, group=4, nll=0.2)
    student, before = copy(letter_model), weights(letter_model)
    state = train(
        student, DPO(stage, TOKENIZER, LETTERS, ["letters"], 0, letter_model, letter_model), Schedule(20, 2e-3, 2)
    )
    assert accuracy(letter_model) < 0.4 and accuracy(student) > 0.9
    assert state.log[-1]["accuracy"] == 1.0
    assert_same_weights(before, weights(letter_model))
    assert all(p.grad is None for p in letter_model.parameters())


def test_a_reward_model_can_rank(letter_model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on the verdicts, then asked without them: the verifier is made useless, the student still learns `a`."""
    judge = ScalarDecoder.of(letter_model)
    stage = RewardModelStage(name="student.judge", prompts=16, group=4)
    train(judge, RewardModel(stage, TOKENIZER, LETTERS, ["letters"], 0, letter_model), Schedule(20, 3e-3, 2))
    student = copy(letter_model)
    stage = DPOStage(name="student", start="base", prompts=16, group=4, reward="student.judge", nll=0.2)
    method = DPO(stage, TOKENIZER, LETTERS, ["letters"], 0, letter_model, letter_model, judge)
    with monkeypatch.context() as patch:
        patch.setattr(World, "score", lambda *_: 0.0)
        state = train(student, method, Schedule(20, 2e-3, 2))
    assert accuracy(letter_model) < 0.4 and accuracy(student) > 0.7
    assert state.work.tokens_scored > state.work.tokens_trained  # the judge read all answers, the reference the pairs


def test_prompts_without_contrast_teach_nothing(letter_model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "score", lambda *_: 1.0)
    student = copy(letter_model)
    stage = DPOStage(name="student", start="base", prompts=4, group=2)
    method = DPO(stage, TOKENIZER, LETTERS, ["letters"], 0, letter_model, letter_model)
    monkeypatch.setattr(method, "source", taught("a", copy(letter_model), 20))
    state = train(student, method, Schedule(2, 1e-3))
    assert state.work.tokens_trained == 0 and state.log[0]["paired"] == 0
    assert_same_weights(weights(student), weights(letter_model))
