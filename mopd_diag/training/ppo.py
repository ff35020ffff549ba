"""Proximal policy optimisation (1707.06347) as InstructGPT (2203.02155) ran it, with the value head on the policy's own trunk.

The reward of a token is −β·log π_old/π_ref; the last token's holds the answer's score besides. Advantages by GAE (1506.02438),
made zero-mean and unit-variance over a sampling's tokens; the clipped surrogate; a value loss clipped alike. One sampling is cut
into minibatches, so that after the first the policy has moved from what sampled.

Axis letters: N answers, L positions, M tokens with loss, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mopd_diag.config import PPOStage
from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.scalar import ScalarDecoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.seeds import seed_of
from mopd_diag.training.algorithm import Part, StepBatch, Work, make_parts, microbatch_tokens, token_losses
from mopd_diag.training.explore import answer
from mopd_diag.training.grpo import entropy, grpo_loss
from mopd_diag.training.reading import count_reading, judged, over_own, part_logp, part_values
from mopd_diag.worlds.world import World


def token_rewards(log_ratio_NL: Tensor, score_N: Tensor, own_NL: Tensor, kl: float) -> Tensor:
    """−kl·log π_old/π_ref at each own token, and the answer's score at the last of them, [N, L]; 0 elsewhere.

    An answer without an own token has no reward.
    """
    reward_NL = torch.where(own_NL, -kl * log_ratio_NL, 0.0)
    place = torch.arange(own_NL.shape[1])
    last_N = torch.where(own_NL, place, -1).amax(1)
    return reward_NL + torch.where((place == last_N[:, None]) & own_NL, score_N[:, None], 0.0)


def gae(reward_NL: Tensor, value_NL: Tensor, own_NL: Tensor, discount: float, trace: float) -> Tensor:
    """Generalised advantage estimates [N, L]: A_t = δ_t + γλ·A_{t+1}, δ_t = r_t + γ·V_{t+1} − V_t over the own tokens.

    V_t is the value *before* token t; after the last own token it is 0. What the world wrote is part of the state, not a step.
    """
    advantage_NL = torch.zeros_like(reward_NL)
    value_N = advantage_N = torch.zeros(len(reward_NL))
    for t in reversed(range(reward_NL.shape[1])):
        own_N, now_N = own_NL[:, t], value_NL[:, t]
        estimate_N = reward_NL[:, t] + discount * value_N - now_N + discount * trace * advantage_N
        advantage_NL[:, t] = torch.where(own_N, estimate_N, 0.0)
        value_N, advantage_N = torch.where(own_N, now_N, value_N), torch.where(own_N, estimate_N, advantage_N)
    return advantage_NL


def whitened(table_NL: Tensor, own_NL: Tensor) -> Tensor:
    """Shifted and scaled so that the own tokens have mean 0 and variance 1; 0 elsewhere."""
    own = table_NL[own_NL]
    return torch.where(own_NL, (table_NL - own.mean()) * torch.rsqrt(own.var(correction=0) + 1e-8), 0.0)


def value_loss(value_M: Tensor, old_value_M: Tensor, return_M: Tensor, clip: float) -> Tensor:
    """½·max[(V − R)², (clip(V, V_old ± clip) − R)²] a token, [M]: no gain from moving the value further than `clip`."""
    clipped_M = old_value_M + (value_M - old_value_M).clamp(-clip, clip)
    return 0.5 * torch.maximum((value_M - return_M).square(), (clipped_M - return_M).square())


@dataclass(slots=True)
class _Sampling:
    """One sampling, the rows of each of its updates, and tables [N, L] for the loss."""

    number: int
    rollouts: Rollouts
    rows: list[Tensor]
    tables: dict[str, Tensor]
    work: Work
    metrics: dict[str, float]


class PPO:
    """Samples its own answers, scores them with the verifiers or a reward model, and every token under a frozen reference."""

    def __init__(
        self,
        stage: PPOStage,
        tokenizer: Tokenizer,
        world: World,
        domains: Sequence[str],
        seed: int,
        reference: Decoder,
        reward: ScalarDecoder | None = None,
    ) -> None:
        self.stage, self.tokenizer, self.world, self.domains, self.seed = stage, tokenizer, world, domains, seed
        self.reference, self.reward = reference, reward
        self.resumes_every = stage.updates
        self._held: _Sampling | None = None

    def batch(self, model: Decoder, step: int) -> StepBatch:
        number, update = divmod(step, self.stage.updates)
        held = self._held
        if held is None or held.number != number:
            if update:
                raise ValueError(
                    f"step {step} is inside sampling {number}, which an earlier model made: start at {step - update}"
                )
            held = self._held = self._sample(model, number)
        rows = held.rows[update]
        some = held.rollouts.take(rows)
        tables = {name: table[rows, : some.ids_NL.shape[1]] for name, table in held.tables.items()}
        weight_NL = torch.full(some.own_NL.shape, 1.0 / max(1, some.sampled_tokens))
        parts = make_parts(
            some.ids_NL, some.length_N, some.own_NL, weight_NL, tables, tokens=microbatch_tokens(model), device=model.device
        )  # fmt: skip
        return StepBatch(parts, held.work if update == 0 else Work(), held.metrics)

    def _sample(self, model: Decoder, number: int) -> _Sampling:
        assert isinstance(model, ScalarDecoder)
        s, address = self.stage, (self.seed, self.stage.name, number)
        items = self.world.draw_batch(self.domains, s.prompts, address)
        answers = answer(
            model, self.tokenizer, self.world, items, seed=seed_of(*address), n=s.group, temperature=s.temperature
        )
        rollouts, own_NL = answers.rollouts, answers.rollouts.own_NL
        score_N = judged(answers, self.reward)
        reference_NL = over_own(self.reference, rollouts, lambda part: part_logp(self.reference, part, s.temperature))
        value_NL = over_own(model, rollouts, lambda part: part_values(model, part))
        count_reading(answers, self.reference, rollouts.sampled_tokens)
        count_reading(answers, model, 0)
        log_ratio_NL = torch.where(own_NL, rollouts.logp_NL - reference_NL, 0.0)
        reward_NL = token_rewards(log_ratio_NL, score_N, own_NL, s.kl)
        advantage_NL = gae(reward_NL, value_NL, own_NL, s.discount, s.trace)
        tables = {
            "behaviour": rollouts.logp_NL,
            "advantage": whitened(advantage_NL, own_NL),
            "value": value_NL,
            "return": advantage_NL + value_NL,
        }
        metrics = {
            "reward": sum(answers.scores) / len(answers.scores),
            "score": float(score_N.mean()),
            "kl": float(log_ratio_NL.sum()) / rollouts.sampled_tokens,
            "answer_tokens": rollouts.sampled_tokens / len(rollouts),
            "truncated": 1.0 - float(rollouts.finished_N.float().mean()),
        }
        rows = []
        for epoch in range(s.epochs):
            generator = torch.Generator().manual_seed(seed_of(*address, "minibatches", epoch))
            rows += torch.randperm(len(rollouts), generator=generator).tensor_split(s.minibatches)
        return _Sampling(number, rollouts, rows, tables, answers.work, metrics)

    def part_loss(self, model: Decoder, hidden_MD: Tensor, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, ScalarDecoder)
        s = self.stage
        policy, values = token_losses(model, hidden_MD, part, self._surrogate)
        value_M = model.scores(hidden_MD)
        error_M = value_loss(value_M, part.fields["value"], part.fields["return"], s.value_clip)
        return policy + s.value_weight * (error_M * part.weight_M).sum(), values | {"value_loss": error_M.detach()}

    def _surrogate(self, logits_MV: Tensor, part: Part, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        fields, targets = part.cut(where), part.targets_M[where]
        logp_MV = torch.log_softmax(logits_MV / self.stage.temperature, -1)
        logp = logp_MV.gather(1, targets[:, None]).squeeze(1)
        loss = grpo_loss(logp, fields["behaviour"], fields["advantage"], self.stage.clip, self.stage.clip)
        far = ((logp.detach() - fields["behaviour"]).exp() - 1).abs() > self.stage.clip
        return loss, {"entropy": entropy(logp_MV.detach()), "clipped": far.float()}
