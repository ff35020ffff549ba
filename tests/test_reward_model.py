"""The reward model: its loss in closed form and against TRL, who is paired with whom, what it learns, its file on disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from letters import LETTERS, assert_same_weights, copy, ending, taught, weights
from safetensors.torch import load_file, save_file
from tiny import TOKENIZER, decoder, gradients_hf
from torch import Tensor

from mopd_diag.config import RewardModelStage
from mopd_diag.errors import CheckpointError
from mopd_diag.models.checkpoint import load_decoder, save_checkpoint
from mopd_diag.models.scalar import HEAD_FILE, ScalarDecoder, load_scalar, save_scalar
from mopd_diag.training import loop
from mopd_diag.training.loop import Schedule, train
from mopd_diag.training.preference import best_against_worst, draw_pairs, whole_pairs
from mopd_diag.training.reading import text_scores
from mopd_diag.training.reward_model import RewardModel, bradley_terry_loss, pair_parts
from mopd_diag.worlds import World, load_world

MICRO = load_world("micro")
DOMAINS = ["addition", "two-turn", "sorting"]


def with_head(model, seed: int = 0, size: float = 0.3) -> ScalarDecoder:
    scalar = ScalarDecoder.of(model)
    with torch.no_grad():
        scalar.score.normal_(0.0, size, generator=torch.Generator().manual_seed(seed))
    return scalar


def liking_even_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts that random models can win, and a world that always replies."""
    monkeypatch.setattr(World, "score", lambda _, item, text: float(len(text) % 2 == 0))
    monkeypatch.setattr(World, "reply", lambda _, item, transcript: "7;")


# --- the loss ------------------------------------------------------------------------------------------------------


def test_loss_in_closed_form() -> None:
    better, worse = torch.tensor([0.0, math.log(3), 5.0]), torch.tensor([0.0, 0.0, 5.0 + math.log(3)])
    assert bradley_terry_loss(better, worse).tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)])
    centred = bradley_terry_loss(better, worse, 0.01)
    assert centred.tolist() == pytest.approx(
        [math.log(2), math.log(4 / 3) + 0.01 * math.log(3) ** 2, math.log(4) + 0.01 * (10 + math.log(3)) ** 2]
    )


def test_gradient_is_the_chance_of_being_wrong() -> None:
    better, worse = torch.tensor([0.3, -2.0], requires_grad=True), torch.tensor([1.0, 0.5], requires_grad=True)
    bradley_terry_loss(better, worse).sum().backward()
    wrong = torch.sigmoid(worse - better).detach()
    torch.testing.assert_close(better.grad, -wrong)
    torch.testing.assert_close(worse.grad, wrong)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", ["llama", "qwen3-grouped-untied"])
def test_against_trl(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient; the twin is read from our own files, head included."""
    pytest.importorskip("trl", minversion="1.16")
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    liking_even_lengths(monkeypatch)
    stage = RewardModelStage(name="student.judge", prompts=24, group=4, centre=0.05)
    source = ending(decoder(shape))
    pairs = draw_pairs(stage, TOKENIZER, MICRO, DOMAINS, (3, "j", 0), source)
    ours = with_head(source)
    method = RewardModel(stage, TOKENIZER, MICRO, DOMAINS, 3, source)
    loss = sum(loop._backward(ours, method, part)[0] for part in pair_parts(pairs))

    save_scalar(ours, TOKENIZER, tmp_path / "judge")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge", num_labels=1, dtype=torch.float32)
    theirs.load_state_dict(load_file(tmp_path / "judge" / HEAD_FILE), strict=False)
    arguments = RewardConfig(
        output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
        center_rewards_coefficient=0.05,
    )  # fmt: skip
    trainer = RewardTrainer(
        model=theirs, args=arguments, processing_class=AutoTokenizer.from_pretrained(tmp_path / "judge"),
        train_dataset=Dataset.from_list([{"chosen": "a", "rejected": "b"}]),
    )  # fmt: skip
    order = torch.cat((torch.arange(0, len(pairs.rollouts), 2), torch.arange(1, len(pairs.rollouts), 2)))
    length_N = pairs.rollouts.length_N[order]
    ids_NL = pairs.rollouts.ids_NL[order]
    assert len(pairs) > 8 and (ids_NL[torch.arange(len(ids_NL)), length_N - 1] != TOKENIZER.pad_id).all()
    mask = (torch.arange(ids_NL.shape[1]) < length_N[:, None]).long()
    expected = trainer.compute_loss(theirs, {"input_ids": ids_NL, "attention_mask": mask})
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    mine = gradients_hf(ours) | {"score.weight": ours.score.grad[None]}  # type: ignore[index]
    for name, p in theirs.named_parameters():
        gradient, scale = mine[name].clone(), float(p.grad.abs().max())
        if name == "model.embed_tokens.weight":  # `transformers` gives the pad token none
            gradient[TOKENIZER.pad_id] = p.grad[TOKENIZER.pad_id]
        assert scale > 0, name
        assert float((gradient - p.grad).abs().max()) <= 3e-5 * scale, name


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_the_best_is_paired_with_the_worst() -> None:
    score_GS = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.2, -3.0, 0.1], [0.0, 0.0, 0.0]])
    assert best_against_worst(score_GS).tolist() == [1, 0, 6, 7]
    assert best_against_worst(torch.zeros(3, 4)).tolist() == []


def test_pairs_hold_what_the_verifier_likes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    liking_even_lengths(monkeypatch)
    stage = RewardModelStage(name="student.judge", prompts=24, group=4)
    pairs = draw_pairs(stage, TOKENIZER, MICRO, DOMAINS, (0, "j", 0), ending(decoder()))
    texts = TOKENIZER.decode_all(pairs.rollouts.responses())
    finished = pairs.rollouts.finished_N.tolist()
    likes = [f and len(t) % 2 == 0 for t, f in zip(texts, finished, strict=True)]
    assert likes == [True, False] * len(pairs) and 8 < len(pairs) <= 24
    prompts = [tuple(row[:p].tolist()) for row, p in zip(pairs.rollouts.ids_NL, pairs.rollouts.prompt_N, strict=True)]
    assert prompts[::2] == prompts[1::2]
    assert pairs.metrics["paired"] == len(pairs) / 24
    assert pairs.work.rollouts == 96 and pairs.work.tokens_sampled >= pairs.rollouts.sampled_tokens


def test_microbatches_hold_whole_pairs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    liking_even_lengths(monkeypatch)
    stage = RewardModelStage(name="student.judge", prompts=24, group=4)
    pairs = draw_pairs(stage, TOKENIZER, MICRO, DOMAINS, (0, "j", 0), ending(decoder()))
    monkeypatch.setattr("mopd_diag.training.preference.MICROBATCH_TOKENS", 160)
    cuts = list(whole_pairs(pairs.rollouts))
    assert len(cuts) >= 3
    rows = torch.cat([r for r, _ in cuts])
    assert sorted(rows.tolist()) == list(range(len(pairs.rollouts)))
    assert torch.equal(rows[::2] + 1, rows[1::2]) and (rows[::2] % 2 == 0).all()
    for some, width in cuts:
        assert width == int(pairs.rollouts.length_N[some].max())
    # A cut of the step changes nothing but the order of sums.
    method = RewardModel(stage, TOKENIZER, MICRO, DOMAINS, 0, decoder())
    gradients: list[Tensor] = []
    for size in (160, 100_000):
        monkeypatch.setattr("mopd_diag.training.preference.MICROBATCH_TOKENS", size)
        model = with_head(decoder())
        for part in pair_parts(pairs):
            loop._backward(model, method, part)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


# --- learning ------------------------------------------------------------------------------------------------------


def test_it_learns_what_the_verifier_likes() -> None:
    source = taught("abcd")
    stage = RewardModelStage(name="student.judge", prompts=16, group=4)
    judge = ScalarDecoder.of(source)
    before = weights(source)
    method = RewardModel(stage, TOKENIZER, LETTERS, ["letters"], 0, source)
    state = train(judge, method, Schedule(20, 3e-3, 2))
    assert state.log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # a head of nought knows nothing
    assert state.log[-1]["accuracy"] == 1.0 and state.log[-1]["loss"] < 0.4
    assert state.work.tokens_trained > 20 * 8 * 2 * 2  # both answers of a pair, end-of-sequence included
    assert_same_weights(before, weights(source))
    pairs = draw_pairs(stage, TOKENIZER, LETTERS, ["letters"], ("held out",), source)
    scores = text_scores(judge, pairs.rollouts).view(-1, 2)
    assert (scores[:, 0] > scores[:, 1]).all()


def test_scores_do_not_depend_on_the_company(monkeypatch: pytest.MonkeyPatch) -> None:
    liking_even_lengths(monkeypatch)
    judge = with_head(ending(decoder()))
    pairs = draw_pairs(RewardModelStage(name="j", prompts=12, group=4), TOKENIZER, MICRO, DOMAINS, (0,), copy(judge))
    together = text_scores(judge, pairs.rollouts)
    for row, n in enumerate(pairs.rollouts.length_N.tolist()):
        with torch.no_grad():
            alone = judge.hidden(pairs.rollouts.ids_NL[row : row + 1, :n])[0, -1] @ judge.score
        assert together[row].item() == pytest.approx(alone.item(), rel=1e-4, abs=1e-5)


# --- on disk -------------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    judge = with_head(decoder("qwen3-grouped-untied"))
    save_scalar(judge, TOKENIZER, tmp_path / "judge")
    assert_same_weights(weights(load_scalar(tmp_path / "judge")), weights(judge))
    plain = load_decoder(tmp_path / "judge")  # still an ordinary checkpoint
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(plain(ids), judge(ids))
    assert_same_weights(weights(ScalarDecoder.of(judge)), weights(judge))


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(decoder(), TOKENIZER, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="expected a reward model"):
        load_scalar(tmp_path / "plain")
    save_file({"score.weight": torch.zeros(1, 7)}, tmp_path / "plain" / HEAD_FILE)
    with pytest.raises(CheckpointError, match=r"shape \[1, 7\], expected \[1, 24\]"):
        load_scalar(tmp_path / "plain")
    save_file({"other": torch.zeros(1, 24)}, tmp_path / "plain" / HEAD_FILE)
    with pytest.raises(CheckpointError, match="lacks score.weight"):
        load_scalar(tmp_path / "plain")
    (tmp_path / "plain" / HEAD_FILE).write_bytes(b"half")
    with pytest.raises(CheckpointError, match="damaged"):
        load_scalar(tmp_path / "plain")
