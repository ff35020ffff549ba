"""Rejection sampling: many answers a prompt, the best kept, supervised fine-tuning on what is kept.

Used by Llama 3 (2407.21783: ranked by the reward model) and DeepSeek-R1 (2501.12948: correct ones of the RL checkpoint, readable
ones, learned by another model); with one source a domain it is the distillation of specialists' traces.

Axis letters: G prompts, S answers a prompt, N = G·S rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mopd_diag.config import RejectionStage
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.scalar import ScalarDecoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.seeds import seed_of
from mopd_diag.training.algorithm import Part, StepBatch, make_parts, microbatch_tokens
from mopd_diag.training.explore import Answers, answer
from mopd_diag.training.reading import judged
from mopd_diag.training.sft import sft_loss
from mopd_diag.worlds.world import World

REPEATED = re.compile(r"(.{2,}?)\1{3,}", re.DOTALL)
"""Two characters or more, four times in a row."""


def passing(answers: Answers, group: int, filters: Sequence[str]) -> Tensor:
    """Which answers pass all the filters, [N].

    *finished*: ended by itself; *correct*: the verifier's full score; *unrepetitive*: nothing four times in a row; *distinct*:
    not the text of an earlier answer to the same prompt that passes the others.
    """
    passes = [True] * len(answers.texts)
    finished = answers.rollouts.finished_N.tolist()
    seen: set[tuple[int, str]] = set()
    for row, text in enumerate(answers.texts):
        passes[row] = (
            ("finished" not in filters or finished[row])
            and ("correct" not in filters or answers.scores[row] >= 1.0)
            and ("unrepetitive" not in filters or REPEATED.search(text) is None)
            and ("distinct" not in filters or (row // group, text) not in seen)
        )
        if passes[row]:
            seen.add((row // group, text))
    return torch.tensor(passes)


def best_rows(score_GS: Tensor, passes_GS: Tensor, keep: int) -> Tensor:
    """Rows (flat over G·S) of the `keep` best passing answers of each prompt, fewer where fewer pass; the first of equals."""
    ranked = torch.where(passes_GS, score_GS, -torch.inf).sort(dim=1, descending=True, stable=True)
    first_G1 = torch.arange(len(score_GS))[:, None] * score_GS.shape[1]
    return (first_G1 + ranked.indices)[:, :keep][passes_GS.gather(1, ranked.indices)[:, :keep]]


class Rejection:
    """Samples frozen models' answers, ranks them by the verifiers or a reward model, learns the tokens of the best."""

    def __init__(
        self,
        stage: RejectionStage,
        tokenizer: Tokenizer,
        world: World,
        domains: Sequence[str],
        seed: int,
        models: Mapping[str, Decoder],
        reward: ScalarDecoder | None = None,
    ) -> None:
        self.stage, self.tokenizer, self.world, self.domains, self.seed = stage, tokenizer, world, domains, seed
        self.models, self.reward = models, reward
        """Models by name; `stage.sources` says which is sampled on a domain, where it does not the stage's start."""

    def batch(self, model: Decoder, step: int) -> StepBatch:
        s, address = self.stage, (self.seed, self.stage.name, step)
        by_source: dict[str, list] = {}
        for item in self.world.draw_batch(self.domains, s.prompts, address):
            by_source.setdefault(s.sources.get(item.domain, s.start or ""), []).append(item)
        batch, kept, right, scores = StepBatch([]), 0, 0.0, list[float]()
        for name, items in by_source.items():
            answers = answer(
                self.models[name], self.tokenizer, self.world, items, seed=seed_of(*address, name), n=s.group,
                temperature=s.temperature,
            )  # fmt: skip
            score_GS = judged(answers, self.reward).view(-1, s.group)
            rows = best_rows(score_GS, passing(answers, s.group, s.filters).view_as(score_GS), s.keep)
            some = answers.rollouts.take(rows)
            ones_NL, most = torch.ones(some.own_NL.shape), microbatch_tokens(model)
            batch.parts += make_parts(
                some.ids_NL, some.length_N, some.own_NL, ones_NL, tokens=most, device=model.device
            )
            batch.work += answers.work
            scores += answers.scores
            kept, right = kept + len(rows), right + sum(answers.scores[r] for r in rows.tolist())
        tokens = sum(len(part.targets_M) for part in batch.parts)
        for part in batch.parts:
            part.weight_M = part.weight_M / tokens
        batch.metrics = {
            "reward": sum(scores) / len(scores),
            "kept": kept / s.prompts,
            "kept_reward": right / kept if kept else float("nan"),
        }
        return batch

    def token_loss(self, logits_MV: Tensor, part: Part, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return sft_loss(logits_MV, part.targets_M[where]), {}
