"""The student's own answers to a world's prompts: draw, sample (the world replying in turn), decode, score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.engines.sampling import sample
from mopd_diag.engines.vllm_sampler import sampler
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.training.algorithm import Work
from mopd_diag.types import Item
from mopd_diag.worlds.domain import TURN
from mopd_diag.worlds.world import World


@dataclass(frozen=True, slots=True)
class Answers:
    """Sampled answers: rollouts, the item of each row, its text, its score and its reward (both 0 when it never ended).

    The score is the verdict that reports show; the reward is what training may learn from, the same unless the world shapes it.
    """

    rollouts: Rollouts
    items: list[Item]
    texts: list[str]
    scores: list[float]
    work: Work
    shaped: list[float] | None = None

    @property
    def rewards(self) -> list[float]:
        return self.scores if self.shaped is None else self.shaped


def answer(
    model: Decoder,
    tokenizer: Tokenizer,
    world: World,
    items: Sequence[Item],
    *,
    seed: int,
    n: int = 1,
    temperature: float = 1.0,
) -> Answers:
    """`n` answers of `model` to each item, rows of one item together. An answer cut by its token limit scores 0."""
    prompts = tokenizer.encode_all([i.prompt for i in items])

    def reply(row: int, transcript: list[int]) -> list[int] | None:
        text = world.reply(items[row // n], tokenizer.decode(transcript))
        return None if text is None else tokenizer.encode(text)

    limits, engine = [world.domains[i.domain].max_new_tokens for i in items], sampler()
    with MODEL_TIME:
        if engine is not None:
            rollouts = engine.sample(
                model, tokenizer, prompts, max_new_tokens=limits, temperature=temperature, n=n, seed=seed
            )
        else:
            rollouts = sample(
                model, prompts, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, max_new_tokens=limits,
                generator=torch.Generator().manual_seed(seed), temperature=temperature, n=n,
                turn_id=tokenizer.ending_in(TURN), reply=reply,
            )  # fmt: skip
    repeated = [i for i in items for _ in range(n)]
    texts = tokenizer.decode_all(rollouts.responses())
    finished = rollouts.finished_N.tolist()
    verdicts = [world.judge(i, t) if f else (0.0, 0.0) for i, t, f in zip(repeated, texts, finished, strict=True)]
    scores, rewards = [s for s, _ in verdicts], [r for _, r in verdicts]
    answered = rollouts.length_N - rollouts.prompt_N
    read = int(rollouts.prompt_N[::n].sum()) + int(answered.sum())
    context = float(rollouts.length_N.float().mean()) / 2
    flops = model.config.forward_flops(read, context, int(answered.sum()))
    work = Work(rollouts.sampled_tokens, 0, 0, len(rollouts), flops)
    return Answers(rollouts, repeated, texts, scores, work, rewards)
