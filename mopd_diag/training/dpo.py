"""Direct preference optimisation (2305.18290): the reward model and the RL on it in one loss on preference pairs.

−log σ(β·[log π(better)/π_ref(better) − log π(worse)/π_ref(worse)]), log π of an answer the sum over its own tokens. The optional
cross-entropy of the better answer keeps its likelihood from falling with the worse one's (2404.19733; Llama 3, 2407.21783).

Axis letters: P pairs, N = 2P rows, L positions, M tokens with loss, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.config import DPOStage
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.scalar import ScalarDecoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.training.algorithm import Part, StepBatch, microbatch_tokens, token_losses
from mopd_diag.training.preference import Pairs, draw_pairs, whole_pairs
from mopd_diag.training.reading import part_logp, target_logp
from mopd_diag.training.sft import sft_loss
from mopd_diag.worlds.world import World


def dpo_loss(log_ratio_N: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """−log σ(β·(ratio better − ratio worse)) a pair, and β·(ratio better − ratio worse), both [P].

    `log_ratio_N` holds log π/π_ref of whole answers in nats, rows better, worse, better, worse, …
    """
    better_P, worse_P = log_ratio_N.view(-1, 2).unbind(1)
    margin_P = beta * (better_P - worse_P)
    return -F.logsigmoid(margin_P), margin_P


class DPO:
    """Samples a frozen model's answers, pairs the best of a prompt with the worst, scores both under a frozen reference."""

    resumes_every = 1

    def __init__(
        self,
        stage: DPOStage,
        tokenizer: Tokenizer,
        world: World,
        domains: Sequence[str],
        seed: int,
        source: Decoder,
        reference: Decoder,
        reward: ScalarDecoder | None = None,
    ) -> None:
        self.stage, self.tokenizer, self.world, self.domains, self.seed = stage, tokenizer, world, domains, seed
        self.source, self.reference, self.reward = source, reference, reward

    def batch(self, model: Decoder, step: int) -> StepBatch:
        address = (self.seed, self.stage.name, step)
        pairs = draw_pairs(self.stage, self.tokenizer, self.world, self.domains, address, self.source, self.reward)
        parts = [part.to(model.device) for part in self._parts(pairs, microbatch_tokens(model))]
        for part in parts:
            part.fields["reference"] = part_logp(self.reference, part)
            n, length = part.ids_NL.shape
            pairs.work.tokens_scored += len(part.targets_M)
            pairs.work.flops += self.reference.config.forward_flops(n * length, length / 2, len(part.targets_M))
        return StepBatch(parts, pairs.work, pairs.metrics)

    def _parts(self, pairs: Pairs, tokens: int) -> list[Part]:
        """Whole pairs of one weight. `row`: a token's row; `nll`: its weight in the cross-entropy, next to the pair's."""
        rollouts, parts = pairs.rollouts, []
        # The cross-entropy is a mean over the step's better tokens; `weight_M` divides by the pairs, so multiply by them here.
        nll = self.stage.nll * len(pairs) / max(1, int(rollouts.own_NL[::2].sum()))
        for rows, width in whole_pairs(rollouts, tokens):
            own_NL = rollouts.own_NL[rows, 1:width]
            row_M = own_NL.nonzero()[:, 0]
            fields = {"row": row_M, "nll": torch.where(row_M % 2 == 0, nll, 0.0)}
            at_M, targets_M = own_NL.flatten().nonzero().squeeze(-1), rollouts.ids_NL[rows, 1:width][own_NL]
            weight_M = torch.full((len(row_M),), 1 / len(pairs))
            parts.append(Part(rollouts.ids_NL[rows, : width - 1], at_M, targets_M, weight_M, fields))
        return parts

    def part_loss(self, model: Decoder, hidden_MD: Tensor, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """First the pairs' margins without gradient; they fix how hard each token is pushed, and the push is linear in log π.

        So no more logits exist at once than for a loss of single tokens, and the gradient is the exact one.
        """
        row_M, nll_M = part.fields["row"], part.fields["nll"]
        logp_M = target_logp(hidden_MD, model.head_VD, part.targets_M)
        log_ratio_M = logp_M - part.fields["reference"]
        log_ratio_N = log_ratio_M.new_zeros(len(part.ids_NL)).index_add_(0, row_M, log_ratio_M)
        loss_P, margin_P = dpo_loss(log_ratio_N, self.stage.beta)
        push_P = self.stage.beta * torch.sigmoid(-margin_P)
        part.fields["push"] = push_P[row_M // 2] * (1 - 2 * (row_M % 2)) + nll_M
        pushed, _ = token_losses(model, hidden_MD, part, self._push)
        loss = (loss_P * part.weight_M[0]).sum() - (nll_M * logp_M * part.weight_M).sum()
        values = {"accuracy": (margin_P > 0).float(), "margin": margin_P, "better": log_ratio_N[::2]}
        return pushed + (loss - pushed.detach()), values

    def _push(self, logits_MV: Tensor, part: Part, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return part.fields["push"][where] * sft_loss(logits_MV, part.targets_M[where]), {}
