"""Supervised fine-tuning: cross-entropy of a demonstration's tokens, the prompt's and the world's left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.config import SFTStage
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.training.algorithm import Part, StepBatch, make_parts, microbatch_tokens
from mopd_diag.types import Item
from mopd_diag.worlds.world import World


def sft_loss(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """−log π(target) in nats a token, [M]."""
    return F.cross_entropy(logits_MV, targets_M, reduction="none")


def demonstration_batch(
    tokenizer: Tokenizer, world: World, shown: Sequence[tuple[Item, str]], tokens: int | None = None,
    device: torch.device | str = "cpu",
) -> StepBatch:  # fmt: skip
    """Demonstrations as microbatches: every token of an answer the same weight, the end-of-sequence included."""
    prompts = tokenizer.encode_all([item.prompt for item, _ in shown])
    answers = [tokenizer.encode_turns(text, world.world_spans(item, text)) for item, text in shown]
    width = max(len(p) + len(a) + 1 for p, (a, _) in zip(prompts, answers, strict=True))
    ids, loss, lengths = [], [], []
    for prompt, (reply, own) in zip(prompts, answers, strict=True):
        row = [*prompt, *reply, tokenizer.eos_id]
        ids.append(row + [tokenizer.pad_id] * (width - len(row)))
        loss.append([False] * len(prompt) + own + [True] + [False] * (width - len(row)))
        lengths.append(len(row))
    loss_NL = torch.tensor(loss)
    weight_NL = torch.full(loss_NL.shape, 1.0 / int(loss_NL.sum()))
    parts = make_parts(torch.tensor(ids), torch.tensor(lengths), loss_NL, weight_NL, tokens=tokens, device=device)
    return StepBatch(parts)


class SFT:
    """Samples nothing, scores nothing; learns from the domains' imperfect demonstrations."""

    def __init__(self, stage: SFTStage, tokenizer: Tokenizer, world: World, domains: Sequence[str], seed: int) -> None:
        self.stage, self.tokenizer, self.world, self.domains, self.seed = stage, tokenizer, world, domains, seed

    def batch(self, model: Decoder, step: int) -> StepBatch:
        shown = self.world.demonstrations(self.domains, self.stage.batch, (self.seed, self.stage.name, step))
        return demonstration_batch(self.tokenizer, self.world, shown, microbatch_tokens(model), model.device)

    def token_loss(self, logits_MV: Tensor, part: Part, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return sft_loss(logits_MV, part.targets_M[where]), {}
