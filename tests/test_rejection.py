"""Rejection sampling: which answers pass, which are kept, who is sampled, and that only their tokens are learned."""

from __future__ import annotations

import math

import pytest
import torch
from letters import LETTERS, accuracy, assert_same_weights, copy, ending, taught, weights
from tiny import TOKENIZER, decoder, shifted
from torch.nn import functional as F

from mopd_diag.config import RejectionStage, RewardModelStage
from mopd_diag.engines.rollouts import pack
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.scalar import ScalarDecoder
from mopd_diag.training import loop, rejection
from mopd_diag.training.algorithm import Work
from mopd_diag.training.explore import Answers
from mopd_diag.training.loop import Schedule, train
from mopd_diag.training.rejection import REPEATED, Rejection, best_rows, passing
from mopd_diag.training.reward_model import RewardModel
from mopd_diag.worlds import World, load_world

MICRO = load_world("micro")
DOMAINS = ["addition", "two-turn", "sorting"]

# --- what is kept --------------------------------------------------------------------------------------------------


def test_best_rows() -> None:
    score_GS = torch.tensor([[1.0, 3.0, 2.0, 3.0], [9.0, 8.0, 7.0, 6.0], [0.0, 0.0, 0.0, 0.0]])
    everything = torch.ones(3, 4, dtype=torch.bool)
    assert best_rows(score_GS, everything, 1).tolist() == [1, 4, 8]  # the first of equals
    assert best_rows(score_GS, everything, 2).tolist() == [1, 3, 4, 5, 8, 9]
    some = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    assert best_rows(score_GS, some, 2).tolist() == [2, 0, 7]  # fewer where fewer pass
    assert best_rows(score_GS, ~everything, 4).tolist() == []


def test_filters() -> None:
    texts = ["12", "12", "xyxyxyxy", "9", "9", "12"]
    rollouts = pack([[1]] * 6, [[2]] * 6, 0)
    rollouts.finished_N[4] = False
    answers = Answers(rollouts, [], texts, [1.0, 1.0, 1.0, 0.5, 1.0, 1.0], Work())
    keeps = lambda *filters: passing(answers, 3, filters).tolist()  # noqa: E731
    assert keeps() == [True] * 6
    assert keeps("finished") == [True, True, True, True, False, True]
    assert keeps("correct") == [True, True, True, False, True, True]
    assert keeps("unrepetitive") == [True, True, False, True, True, True]
    assert keeps("distinct") == [True, False, True, True, False, True]  # the same text for another prompt is no double
    # What another filter drops does not count as seen.
    assert keeps("distinct", "correct") == [True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("text", "found"), [("abab", False), ("ababab", False), ("abababab", True), ("1111111", False), ("11111111", True)]
)
def test_repetition_is_four_times_in_a_row(text: str, found: bool) -> None:
    assert bool(REPEATED.search(f"start {text} end")) == found


# --- a step --------------------------------------------------------------------------------------------------------


def test_a_step_learns_the_kept_tokens_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a step are those of cross-entropy over the kept answers, written on the whole table."""
    monkeypatch.setattr(World, "score", lambda _, item, text: float(len(text) % 2 == 0))
    monkeypatch.setattr(World, "reply", lambda _, item, transcript: "7;")
    seen: list[Answers] = []
    sampled = rejection.answer
    monkeypatch.setattr(rejection, "answer", lambda *a, **k: seen.append(sampled(*a, **k)) or seen[-1])
    source = ending(decoder())
    stage = RejectionStage(name="student", start="base", prompts=12, group=4)
    method = Rejection(stage, TOKENIZER, MICRO, DOMAINS, 3, {"base": source})
    ours, whole = shifted(source, 5, 0.03), shifted(source, 5, 0.03)
    batch = method.batch(ours, 0)
    answers, finished = seen[0], seen[0].rollouts.finished_N.tolist()
    rows = []
    for first in range(0, 48, 4):
        good = [r for r in range(first, first + 4) if finished[r] and len(answers.texts[r]) % 2 == 0]
        rows += good[:1]
    kept = answers.rollouts.take(torch.tensor(rows))
    assert 4 < len(rows) < 12
    assert batch.metrics["kept"] == pytest.approx(len(rows) / 12) and batch.metrics["kept_reward"] == 1.0
    assert sum(len(p.targets_M) for p in batch.parts) == kept.sampled_tokens
    assert batch.work.rollouts == 48 and batch.work.tokens_sampled == answers.rollouts.sampled_tokens

    logits = whole(kept.ids_NL[:, :-1])[kept.own_NL[:, 1:]]
    expected = F.cross_entropy(logits, kept.ids_NL[:, 1:][kept.own_NL[:, 1:]])
    expected.backward()
    assert sum(loop._backward(ours, method, part)[0] for part in batch.parts) == pytest.approx(
        expected.item(), rel=1e-5
    )
    for p, q in zip(ours.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=3e-6 * float(q.grad.abs().max()), rtol=1e-3)  # type: ignore[union-attr]


def test_nothing_kept_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "score", lambda *_: 0.0)
    model = decoder(std=0.1)
    before = weights(model)
    stage = RejectionStage(name="student", start="base", prompts=6, group=2)
    state = train(model, Rejection(stage, TOKENIZER, MICRO, DOMAINS, 0, {"base": copy(model)}), Schedule(2, 1e-2))
    assert_same_weights(before, weights(model))
    assert state.work.tokens_trained == 0 and state.log[0]["kept"] == 0 and math.isnan(state.log[0]["kept_reward"])


def test_each_domain_has_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, set[str]] = {}
    sampled = rejection.answer

    def answer(model: Decoder, tokenizer, world, items, **more) -> Answers:
        asked.setdefault(id(model), set()).update(i.domain for i in items)
        return sampled(model, tokenizer, world, items, **more)

    monkeypatch.setattr(rejection, "answer", answer)
    models = {name: decoder(seed=i, std=0.1) for i, name in enumerate(("base", "one", "two"))}
    stage = RejectionStage(
        name="student", start="base", prompts=9, group=2, sources={"addition": "one", "sorting": "two"}
    )
    Rejection(stage, TOKENIZER, MICRO, DOMAINS, 0, models).batch(models["base"], 0)
    names = {id(m): name for name, m in models.items()}
    assert {names[k]: v for k, v in asked.items()} == {"base": {"two-turn"}, "one": {"addition"}, "two": {"sorting"}}
    assert stage.teachers_used == ("one", "two") and stage.parents == ("base", "one", "two")


# --- learning ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letter_model() -> Decoder:
    return taught("abcd")


def test_it_learns_the_right_answers(letter_model: Decoder) -> None:
    stage = RejectionStage(name="student", start="base", prompts=16, group=8)
    student, before = copy(letter_model), weights(letter_model)
    train(student, Rejection(stage, TOKENIZER, LETTERS, ["letters"], 0, {"base": letter_model}), Schedule(20, 3e-3, 2))
    assert accuracy(letter_model) < 0.4 and accuracy(student) > 0.9
    assert_same_weights(before, weights(letter_model))


def test_a_reward_model_can_rank(letter_model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ScalarDecoder.of(letter_model)
    stage = RewardModelStage(name="student.judge", prompts=16, group=4)
    train(judge, RewardModel(stage, TOKENIZER, LETTERS, ["letters"], 0, letter_model), Schedule(20, 3e-3, 2))
    stage = RejectionStage(
        name="student", start="base", prompts=16, group=8, reward="student.judge", filters=("finished",)
    )
    student = copy(letter_model)
    with monkeypatch.context() as patch:
        patch.setattr(World, "score", lambda *_: 0.0)
        method = Rejection(stage, TOKENIZER, LETTERS, ["letters"], 0, {"base": letter_model}, judge)
        state = train(student, method, Schedule(20, 3e-3, 2))
    assert accuracy(student) > 0.9
    assert state.work.tokens_scored == state.work.tokens_sampled  # the judge reads every answer
