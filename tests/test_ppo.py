"""PPO: rewards, advantages and both losses in closed form; a whole step against a slow definition on a `transformers` model.

TRL 1.16 has no PPO trainer any more, so the slow definition is written here: one answer at a time, double sums, no masks.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from letters import LETTERS, accuracy, assert_same_weights, copy, ending, taught, weights
from tiny import TOKENIZER, assert_same_gradients, decoder, in_transformers, shifted
from torch import Tensor

from mopd_diag.config import PPOStage, RewardModelStage
from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.scalar import ScalarDecoder
from mopd_diag.training import loop, ppo
from mopd_diag.training.explore import Answers
from mopd_diag.training.loop import Schedule, train
from mopd_diag.training.ppo import PPO, gae, token_rewards, value_loss, whitened
from mopd_diag.training.reward_model import RewardModel
from mopd_diag.worlds import World, load_world

MICRO = load_world("micro")
DOMAINS = ["addition", "two-turn", "sorting"]
OWN_NL = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)


# --- rewards and advantages ----------------------------------------------------------------------------------------


def test_token_rewards() -> None:
    log_ratio = torch.arange(18.0).view(3, 6)
    reward = token_rewards(log_ratio, torch.tensor([1.0, 2.0, 3.0]), OWN_NL, 0.1)
    expected = [[0, -0.1, -0.2, 0, -0.4 + 1, 0], [0, 0, -0.8, -0.9, -1.0, -1.1 + 2], [0] * 6]
    torch.testing.assert_close(reward, torch.tensor(expected))


def slow_advantages(reward: list[float], value: list[float], discount: float, trace: float) -> list[float]:
    """A_t = Σ_l (γλ)^l (r_{t+l} + γ·V_{t+l+1} − V_{t+l}), V behind the last token 0."""
    n, after = len(reward), [*value[1:], 0.0]
    deltas = [reward[t] + discount * after[t] - value[t] for t in range(n)]
    return [sum((discount * trace) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.9, 0.0)])
def test_gae_skips_what_the_world_wrote(discount: float, trace: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reward = torch.where(OWN_NL, torch.randn(OWN_NL.shape, generator=generator), 0.0)
    value = torch.randn(OWN_NL.shape, generator=generator)  # also where nothing is own: it must not be read
    advantage = gae(reward, value, OWN_NL, discount, trace)
    assert not advantage[~OWN_NL].any()
    for row, own in enumerate(OWN_NL):
        expected = slow_advantages(reward[row][own].tolist(), value[row][own].tolist(), discount, trace)
        assert advantage[row][own].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_gae_at_its_two_ends() -> None:
    """λ = γ = 1 is what came minus what was expected; λ = 0 looks one token ahead."""
    own = torch.ones(1, 3, dtype=torch.bool)
    reward, value = torch.tensor([[0.0, -0.5, 2.0]]), torch.tensor([[1.0, 0.25, 0.5]])
    torch.testing.assert_close(gae(reward, value, own, 1.0, 1.0), torch.tensor([[0.5, 1.25, 1.5]]))
    torch.testing.assert_close(gae(reward, value, own, 1.0, 0.0), torch.tensor([[-0.75, -0.25, 1.5]]))


def test_whitened_looks_at_own_tokens_only() -> None:
    table = torch.where(OWN_NL, torch.randn(OWN_NL.shape, generator=torch.Generator().manual_seed(1)), 1e6)
    white = whitened(table, OWN_NL)
    assert white[OWN_NL].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[OWN_NL].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert not white[~OWN_NL].any()
    assert not whitened(torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool)).any()  # no variance: no direction


# --- the value loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        (0.1, 0.5 * 0.81, -0.9),  # inside ±0.2 of the old value 0
        (0.2 + 1e-6, 0.5 * 0.64, 0.0),  # gone far enough toward the return 1: no more gain
        (0.7, 0.5 * 0.64, 0.0),
        (-0.7, 0.5 * 1.7**2, -1.7),  # gone away from it: never clipped
        (2.5, 0.5 * 1.5**2, 1.5),  # gone past it by more than stopping at the clip would cost
    ],
)
def test_value_loss(value: float, loss: float, slope: float) -> None:
    v = torch.tensor([value], requires_grad=True)
    got = value_loss(v, torch.tensor([0.0]), torch.tensor([1.0]), 0.2)
    got.sum().backward()
    assert got.item() == pytest.approx(loss, rel=1e-4)
    assert v.grad is not None and v.grad.item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


# --- a whole step --------------------------------------------------------------------------------------------------


class Slow:
    """PPO of one sampling on `transformers` models, one answer at a time."""

    def __init__(self, stage: PPOStage, policy, reference, score: Tensor, rollouts: Rollouts, verdicts: list[float]):
        self.stage, self.rollouts = stage, rollouts
        self.advantage: list[list[float]] = []
        self.returns: list[list[float]] = []
        self.value: list[list[float]] = []
        self.behaviour: list[list[float]] = []
        for row, verdict in enumerate(verdicts):
            with torch.no_grad():
                logp, value = self.read(policy, row, score)
                reference_logp, _ = self.read(reference, row, score)
            reward = [-stage.kl * (p - q) for p, q in zip(logp.tolist(), reference_logp.tolist(), strict=True)]
            reward[-1] += verdict
            advantage = slow_advantages(reward, value.tolist(), stage.discount, stage.trace)
            self.advantage.append(advantage)
            self.returns.append([a + v for a, v in zip(advantage, value.tolist(), strict=True)])
            self.value.append(value.tolist())
            self.behaviour.append(logp.tolist())
        everything = [a for row in self.advantage for a in row]
        self.mean = sum(everything) / len(everything)
        self.deviation = math.sqrt(sum((a - self.mean) ** 2 for a in everything) / len(everything) + 1e-8)

    def read(self, model, row: int, score: Tensor) -> tuple[Tensor, Tensor]:
        """log-probability of each own token at the sampling temperature, and the value before it."""
        n = int(self.rollouts.length_N[row])
        ids = self.rollouts.ids_NL[row, :n]
        out = model(ids[None], output_hidden_states=True)
        logp = torch.log_softmax(out.logits[0] / self.stage.temperature, -1)
        own = [t for t in range(1, n) if self.rollouts.own_NL[row, t]]
        picked = torch.stack([logp[t - 1, ids[t]] for t in own])
        return picked, torch.stack([out.hidden_states[-1][0, t - 1] @ score for t in own])

    def loss(self, policy, score: Tensor, rows: list[int]) -> Tensor:
        terms = []
        for row in rows:
            logp, value = self.read(policy, row, score)
            for t in range(len(logp)):
                ratio = torch.exp(logp[t] - self.behaviour[row][t])
                advantage = (self.advantage[row][t] - self.mean) / self.deviation
                clipped = ratio.clamp(1 - self.stage.clip, 1 + self.stage.clip)
                surrogate = -torch.min(ratio * advantage, clipped * advantage)
                old, target = self.value[row][t], self.returns[row][t]
                near = value[t].clamp(old - self.stage.value_clip, old + self.stage.value_clip)
                error = 0.5 * torch.max((value[t] - target) ** 2, (near - target) ** 2)
                terms.append(surrogate + self.stage.value_weight * error)
        return torch.stack(terms).mean()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("shape", "temperature"), [("llama", 1.0), ("qwen3-grouped-untied", 0.7)])
def test_a_step_against_the_slow_definition(
    shape: str, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both minibatches of a sampling, the second from a model that has moved, so that the clips bite; replies of the world inside."""
    monkeypatch.setattr(World, "score", lambda _, item, text: float(len(text) % 2 == 0))
    monkeypatch.setattr(World, "reply", lambda _, item, transcript: "7;")
    seen: list[Answers] = []
    sampled = ppo.answer
    monkeypatch.setattr(ppo, "answer", lambda *a, **k: seen.append(sampled(*a, **k)) or seen[-1])
    stage = PPOStage(
        name="student", start="base", prompts=9, group=2, minibatches=2, kl=0.3, trace=0.8, discount=0.95, value_weight=0.5,
        temperature=temperature,
    )  # fmt: skip
    old = ScalarDecoder.of(ending(decoder(shape)))
    with torch.no_grad():
        old.score.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
    reference = shifted(copy(old), 7, 0.02)
    method = PPO(stage, TOKENIZER, MICRO, DOMAINS, 3, reference)
    batches = [method.batch(old, 0)]
    batches.append(method.batch(decoder(shape, seed=9), 1))  # the second is cut from the same sampling, whoever asks
    rollouts = seen[0].rollouts
    assert len(seen) == 1 and batches[1].work.tokens_sampled == 0
    assert batches[0].work.tokens_scored == 2 * rollouts.sampled_tokens

    twin = in_transformers(old, tmp_path / "old")
    slow = Slow(
        stage, twin, in_transformers(reference, tmp_path / "reference"), old.score.detach(), rollouts, seen[0].scores
    )
    generator = torch.Generator().manual_seed(ppo.seed_of(3, "student", 0, "minibatches", 0))
    halves = [half.tolist() for half in torch.randperm(len(rollouts), generator=generator).tensor_split(2)]
    assert sum(len(p.targets_M) for b in batches for p in b.parts) == rollouts.sampled_tokens

    for update, ours in enumerate((old, shifted(old, 5, 0.02))):
        ours.zero_grad()
        results = [loop._backward(ours, method, part) for part in batches[update].parts]
        theirs, score = in_transformers(ours, tmp_path / f"now-{update}"), ours.score.detach().requires_grad_()
        expected = slow.loss(theirs, score, halves[update])
        expected.backward()
        assert sum(loss for loss, _ in results) == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        assert_same_gradients(ours, theirs, rtol=2e-4)
        torch.testing.assert_close(ours.score.grad, score.grad, rtol=1e-3, atol=1e-5)
        clipped = torch.cat([values["clipped"] for _, values in results]).mean().item()
        assert clipped == 0 if update == 0 else 0.05 < clipped < 0.95


def test_minibatches_cover_a_sampling_once_an_epoch() -> None:
    stage = PPOStage(name="student", start="base", prompts=10, minibatches=3, epochs=2, steps=12)
    model = ScalarDecoder.of(ending(decoder()))
    method = PPO(stage, TOKENIZER, MICRO, DOMAINS, 0, copy(model))
    batches = [method.batch(model, step) for step in range(6)]
    tokens = [sum(len(p.targets_M) for p in b.parts) for b in batches]
    assert sum(tokens[:3]) == sum(tokens[3:]) == batches[0].work.tokens_sampled
    assert [b.work.rollouts for b in batches] == [10, 0, 0, 0, 0, 0]
    for batch in batches:
        assert sum(float(p.weight_M.sum()) for p in batch.parts) == pytest.approx(1)
    with pytest.raises(ValueError, match="inside sampling 1"):
        method.batch(model, 8)


# --- going on ------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def test_a_run_stopped_inside_a_sampling_goes_on_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = PPOStage(name="student", start="base", prompts=8, minibatches=3, steps=9)
    start, schedule = taught("abcd", steps=20), Schedule(9, 3e-3, 2)
    made = lambda: PPO(stage, TOKENIZER, LETTERS, ["letters"], 0, start)  # noqa: E731
    whole = ScalarDecoder.of(start)
    expected = train(whole, made(), schedule)

    def stop(step: int, *_) -> None:
        if step == 8:
            raise Stopped

    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    saved = tmp_path / "state.safetensors"
    with pytest.raises(Stopped):
        train(ScalarDecoder.of(start), made(), schedule, saved=saved, progress=stop)
    again, steps = ScalarDecoder.of(shifted(start, 1, 0.1)), list[int]()
    state = train(again, made(), schedule, saved=saved, progress=lambda step, *_: steps.append(step))
    assert steps == [7, 8, 9]  # back to where the sampling that was cut began
    assert_same_weights(weights(again), weights(whole))
    assert state.work == expected.work


# --- learning ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letter_model() -> Decoder:
    return taught("abcd")


def ppo_student(letter_model: Decoder, judge: ScalarDecoder | None = None, **options):
    stage = PPOStage(name="student", start="base", prompts=64, minibatches=4, steps=48, **options)
    student, before = ScalarDecoder.of(letter_model), weights(letter_model)
    method = PPO(stage, TOKENIZER, LETTERS, ["letters"], 0, letter_model, judge)
    state = train(student, method, Schedule(48, 2e-3, 2))
    assert_same_weights(before, weights(letter_model))
    return student, state


def test_it_raises_the_reward(letter_model: Decoder) -> None:
    student, state = ppo_student(letter_model)
    assert accuracy(letter_model) < 0.4 and accuracy(student) > 0.85
    assert student.score.abs().max() > 0 and state.log[-1]["value_loss"] < 0.5 * state.log[0]["value_loss"]
    assert state.log[0]["kl"] == pytest.approx(0, abs=1e-5) and state.log[-1]["kl"] > 0.1


def test_the_penalty_holds_it_to_the_reference(letter_model: Decoder) -> None:
    """The best policy is π_ref·e^(R/β)/Z. At β = 1 the odds of `a` are multiplied by e; the student comes near and stays."""
    student, _ = ppo_student(letter_model, kl=1.0)
    before, after = accuracy(letter_model), accuracy(student)
    best = before * math.e / (before * math.e + 1 - before)
    assert before + 0.05 < after < best + 0.12


def test_a_reward_model_can_judge(letter_model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ScalarDecoder.of(letter_model)
    stage = RewardModelStage(name="student.judge", prompts=16, group=4)
    train(judge, RewardModel(stage, TOKENIZER, LETTERS, ["letters"], 0, letter_model), Schedule(20, 3e-3, 2))
    before = weights(judge)
    with monkeypatch.context() as patch:
        patch.setattr(World, "score", lambda *_: 0.0)
        student, state = ppo_student(letter_model, judge, reward="student.judge")
    assert accuracy(student) > 0.85
    assert state.log[-1]["reward"] == 0 and state.log[-1]["score"] > state.log[0]["score"] + 1
    assert_same_weights(before, weights(judge))
