"""Group-relative policy optimisation (2402.03300) with the token-level loss of DAPO (2503.14476) and no KL term.

Axis letters: G prompts, S answers a prompt, M tokens with loss, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mopd_diag.config import GRPOStage
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.seeds import seed_of
from mopd_diag.training.algorithm import Part, StepBatch, make_parts, microbatch_tokens
from mopd_diag.training.explore import answer
from mopd_diag.worlds.world import World

STD_FLOOR = 1e-4


def group_advantages(reward_GS: Tensor) -> tuple[Tensor, Tensor]:
    """(reward − group mean)/(group standard deviation + 1e-4), and which groups inform, [G].

    The deviation is the unbiased one (n − 1), as in TRL. A group whose answers all score alike has advantage 0 and
    informs nobody; the loss leaves it out instead of dividing by noise.
    """
    mean, std = reward_GS.mean(1, keepdim=True), reward_GS.std(1, keepdim=True)
    return (reward_GS - mean) / (std + STD_FLOOR), std.squeeze(1) > 0


def grpo_loss(
    logp_M: Tensor, behaviour_logp_M: Tensor, advantage_M: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """−min(r·A, clip(r, 1−clip_low, 1+clip_high)·A) a token, r = π/μ: the clipped surrogate of PPO (1707.06347)."""
    ratio = torch.exp(logp_M - behaviour_logp_M)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantage_M, clipped * advantage_M)


def entropy(logp_MV: Tensor) -> Tensor:
    """Entropy of each next-token distribution in nats, [M], from its log-probabilities."""
    return -(logp_MV.exp() * logp_MV).sum(-1)


class GRPO:
    """Samples groups of its own answers, scores them with the verifiers, leaves out groups that all score alike."""

    def __init__(self, stage: GRPOStage, tokenizer: Tokenizer, world: World, domains: Sequence[str], seed: int) -> None:
        self.stage, self.tokenizer, self.world, self.domains, self.seed = stage, tokenizer, world, domains, seed

    def batch(self, model: Decoder, step: int) -> StepBatch:
        s = self.stage
        items = self.world.draw_batch(self.domains, s.prompts, (self.seed, s.name, step))
        seed = seed_of(self.seed, s.name, step)
        answers = answer(model, self.tokenizer, self.world, items, seed=seed, n=s.group, temperature=s.temperature)
        rollouts = answers.rollouts
        reward_GS = torch.tensor(answers.rewards).view(-1, s.group)
        advantage_GS, informs_G = group_advantages(reward_GS)
        loss_NL = rollouts.own_NL & informs_G.repeat_interleave(s.group)[:, None]
        # Zero-variance groups keep their share of the denominator: dropping them must not raise the step size.
        weight_NL = torch.full(loss_NL.shape, 1.0 / max(1, rollouts.sampled_tokens))
        fields = {"behaviour": rollouts.logp_NL, "advantage": advantage_GS.reshape(-1, 1).expand(loss_NL.shape)}
        metrics = {
            "reward": float(torch.tensor(answers.scores).mean()),
            **({"score": float(reward_GS.mean())} if self.world.shapes(self.domains) else {}),
            "zero_variance": 1.0 - float(informs_G.float().mean()),
            "answer_tokens": rollouts.sampled_tokens / len(rollouts),
            "truncated": 1.0 - float(rollouts.finished_N.float().mean()),
        }
        parts = make_parts(
            rollouts.ids_NL, rollouts.length_N, loss_NL, weight_NL, fields, tokens=microbatch_tokens(model),
            device=model.device,
        )  # fmt: skip
        return StepBatch(parts, answers.work, metrics)

    def token_loss(self, logits_MV: Tensor, part: Part, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        fields, targets = part.cut(where), part.targets_M[where]
        logp_MV = torch.log_softmax(logits_MV / self.stage.temperature, -1)
        logp = logp_MV.gather(1, targets[:, None]).squeeze(1)
        loss = grpo_loss(logp, fields["behaviour"], fields["advantage"], self.stage.clip_low, self.stage.clip_high)
        return loss, {"entropy": entropy(logp_MV.detach())}
