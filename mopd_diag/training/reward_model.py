"""A reward model: a scalar head on preference pairs, as in InstructGPT (2203.02155): −log σ(score better − score worse).

The pairs are sampled answers that the world's verifiers ranked: the verifiers stand in for people. The likelihood of pairs
(Bradley-Terry) leaves the level of the scores open; a small term pulls the two scores of a pair to sum to nought (2312.09244).

Axis letters: P pairs, N = 2P rows, M = N scored positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.config import RewardModelStage
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.scalar import ScalarDecoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.training.algorithm import Part, StepBatch, microbatch_tokens
from mopd_diag.training.preference import Pairs, draw_pairs, whole_pairs
from mopd_diag.worlds.world import World


def bradley_terry_loss(better_P: Tensor, worse_P: Tensor, centre: float = 0.0) -> Tensor:
    """−log σ(better − worse) + centre · (better + worse)², [P]; scores in nats (log-odds of being preferred)."""
    return -F.logsigmoid(better_P - worse_P) + centre * (better_P + worse_P).square()


class RewardModel:
    """Samples a frozen model's answers, pairs the best of a prompt with the worst, learns which is which from the last token."""

    resumes_every = 1

    def __init__(
        self,
        stage: RewardModelStage,
        tokenizer: Tokenizer,
        world: World,
        domains: Sequence[str],
        seed: int,
        source: Decoder,
    ) -> None:
        self.stage, self.tokenizer, self.world, self.domains, self.seed = stage, tokenizer, world, domains, seed
        self.source = source

    def batch(self, model: Decoder, step: int) -> StepBatch:
        address = (self.seed, self.stage.name, step)
        pairs = draw_pairs(self.stage, self.tokenizer, self.world, self.domains, address, self.source)
        # A pair is learned from at two positions only; what the model reads for it are all tokens of both answers.
        pairs.work.tokens_trained += pairs.rollouts.sampled_tokens - 2 * len(pairs)
        parts = [part.to(model.device) for part in pair_parts(pairs, microbatch_tokens(model))]
        return StepBatch(parts, pairs.work, pairs.metrics)

    def part_loss(self, model: Decoder, hidden_MD: Tensor, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, ScalarDecoder)
        better_P, worse_P = model.scores(hidden_MD).view(-1, 2).unbind(1)
        loss_P = bradley_terry_loss(better_P, worse_P, self.stage.centre)
        margin_P = (better_P - worse_P).detach()
        values = {"accuracy": (margin_P > 0).float(), "margin": margin_P}
        return (loss_P * part.weight_M[::2]).sum(), values


def pair_parts(pairs: Pairs, tokens: int | None = None) -> list[Part]:
    """Microbatches whose positions are the last tokens of the rows; every pair weighs the same. Nothing is predicted there:
    `targets_M` repeats the last token."""
    rollouts, parts = pairs.rollouts, []
    for rows, width in whole_pairs(rollouts, tokens):
        ids_NL, last_N = rollouts.ids_NL[rows, :width], rollouts.length_N[rows] - 1
        at_M = torch.arange(len(rows)) * width + last_N
        parts.append(Part(ids_NL, at_M, ids_NL.flatten()[at_M], torch.full((len(rows),), 1 / len(pairs))))
    return parts
