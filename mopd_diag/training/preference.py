"""Preference pairs: of one prompt's answers, the best against the worst; and their cut into microbatches of whole pairs.

Axis letters: G prompts, S answers a prompt, N = 2P rows of P pairs (better, worse, better, worse, …), L positions, M tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mopd_diag.config import PreferenceStage
from mopd_diag.engines.rollouts import Rollouts, by_size
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.scalar import ScalarDecoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.seeds import seed_of
from mopd_diag.training.algorithm import MICROBATCH_TOKENS, Work
from mopd_diag.training.explore import answer
from mopd_diag.training.reading import judged
from mopd_diag.worlds.world import World


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rollouts in rows better, worse, better, worse, …; what sampling and ranking them cost; values to log."""

    rollouts: Rollouts
    work: Work
    metrics: dict[str, float]

    def __len__(self) -> int:
        return len(self.rollouts) // 2


def best_against_worst(score_GS: Tensor) -> Tensor:
    """Rows (flat over G·S) of the best and the worst answer of each prompt, [2P]: the first of equals.

    A prompt whose answers all score alike makes no pair.
    """
    group = score_GS.shape[1]
    first_G = torch.arange(len(score_GS)) * group
    pair_G2 = torch.stack((first_G + score_GS.argmax(1), first_G + score_GS.argmin(1)), 1)
    return pair_G2[score_GS.amax(1) > score_GS.amin(1)].flatten()


def draw_pairs(
    stage: PreferenceStage,
    tokenizer: Tokenizer,
    world: World,
    domains: Sequence[str],
    address: tuple[int | str, ...],
    source: Decoder,
    reward: ScalarDecoder | None = None,
) -> Pairs:
    """Sample `source`'s answers to new prompts and rank them, by the verifiers or by a reward model."""
    items = world.draw_batch(domains, stage.prompts, address)
    answers = answer(
        source, tokenizer, world, items, seed=seed_of(*address), n=stage.group, temperature=stage.temperature
    )
    rows = best_against_worst(judged(answers, reward).view(-1, stage.group))
    metrics = {
        "reward": sum(answers.scores) / len(answers.scores),
        "paired": len(rows) / 2 / len(items),
        "answer_tokens": answers.rollouts.sampled_tokens / len(answers.rollouts),
    }
    return Pairs(answers.rollouts.take(rows), answers.work, metrics)


def whole_pairs(rollouts: Rollouts, tokens: int | None = None) -> Iterator[tuple[Tensor, int]]:
    """Microbatches of pairs of similar length: the rows [n], both of a pair together, and the width they are cut to."""
    longest_P = rollouts.length_N.view(-1, 2).amax(1)
    lengths = longest_P.tolist()
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for some in by_size(order, lengths, (tokens or MICROBATCH_TOKENS) // 2):
        first = 2 * torch.tensor(some)
        yield torch.stack((first, first + 1), 1).flatten(), lengths[some[-1]]
