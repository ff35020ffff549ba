"""Off-policy distillation (sequence-level, 1606.07947): supervised fine-tuning on answers sampled from the teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mopd_diag.config import SeqKDStage
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.seeds import seed_of
from mopd_diag.training.algorithm import Part, StepBatch, Work, make_parts, microbatch_tokens
from mopd_diag.training.explore import answer
from mopd_diag.training.sft import sft_loss
from mopd_diag.worlds.world import World

BLOCK = 10
"""Steps whose answers are sampled at once: teachers do not change, and large batches sample faster."""


class SeqKD:
    """Samples the teachers' answers, right or wrong, scores nothing, learns their tokens by cross-entropy."""

    def __init__(
        self,
        stage: SeqKDStage,
        tokenizer: Tokenizer,
        world: World,
        domains: Sequence[str],
        seed: int,
        teachers: Mapping[str, Decoder],
    ) -> None:
        self.stage, self.tokenizer, self.world, self.domains, self.seed = stage, tokenizer, world, domains, seed
        self.teachers = teachers
        self.counts_every = BLOCK
        """A block's answers are counted at its first step."""
        self._block: tuple[int, list[StepBatch]] = (-1, [])

    def batch(self, model: Decoder, step: int) -> StepBatch:
        block, within = divmod(step, BLOCK)
        if self._block[0] != block:
            self._block = (block, self._sample(block, microbatch_tokens(model), model.device))
        return self._block[1][within]

    def _sample(self, block: int, tokens_a_part: int, device: torch.device) -> list[StepBatch]:
        s = self.stage
        first = block * BLOCK
        count = BLOCK if s.match else min(BLOCK, s.steps - first)
        drawn = [
            (first + b, i)
            for b in range(count)
            for i in self.world.draw_batch(self.domains, s.batch, (self.seed, s.name, first + b))
        ]
        batches = [StepBatch([]) for _ in range(count)]
        for name, teacher in self.teachers.items():
            mine = [(step, item) for step, item in drawn if s.teachers[item.domain] == name]
            if not mine:
                continue
            seed = seed_of(self.seed, s.name, block, name)
            answers = answer(
                teacher, self.tokenizer, self.world, [i for _, i in mine], seed=seed, temperature=s.temperature
            )
            for step in range(first, first + count):
                rows = torch.tensor([r for r, (at, _) in enumerate(mine) if at == step], dtype=torch.long)
                if len(rows):
                    taken = answers.rollouts.take(rows)
                    uniform = torch.ones(taken.own_NL.shape)
                    batches[step - first].parts += make_parts(
                        taken.ids_NL, taken.length_N, taken.own_NL, uniform, tokens=tokens_a_part, device=device
                    )
            batches[0].work += Work(answers.work.tokens_sampled, 0, 0, answers.work.rollouts, answers.work.flops)
            batches[0].metrics[f"reward_{name}"] = sum(answers.scores) / len(answers.scores)
        for each in batches:
            tokens = sum(len(p.targets_M) for p in each.parts)
            for part in each.parts:
                part.weight_M = part.weight_M / tokens
        return batches

    def token_loss(self, logits_MV: Tensor, part: Part, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return sft_loss(logits_MV, part.targets_M[where]), {}
