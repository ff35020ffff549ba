"""What frozen models make of given answers: log-probabilities and values of their tokens, scores of the whole.

Axis letters: N answers, L positions, M tokens with loss, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.head import chunks
from mopd_diag.engines.rollouts import Rollouts, by_size
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.linear import linear
from mopd_diag.models.scalar import ScalarDecoder
from mopd_diag.training.algorithm import Part, make_parts, microbatch_tokens
from mopd_diag.training.explore import Answers


@torch.no_grad()
def target_logp(hidden_MD: Tensor, head_VD: Tensor, targets_M: Tensor, temperature: float = 1.0) -> Tensor:
    """log π(target) in nats at a temperature, [M]; without gradient, its logits a chunk at a time."""
    picked = [
        torch.log_softmax(linear(hidden_MD[c], head_VD) / temperature, -1).gather(1, targets_M[c, None])
        for c in chunks(len(hidden_MD), len(head_VD), hidden_MD.device)
    ]
    return torch.cat(picked).squeeze(1)


@torch.no_grad()
def part_logp(model: Decoder, part: Part, temperature: float = 1.0) -> Tensor:
    """log π(target) of a part's tokens under a model, [M]."""
    with MODEL_TIME:
        return target_logp(model.hidden_at(part.ids_NL, part.at_M), model.head_VD, part.targets_M, temperature)


@torch.no_grad()
def part_values(model: ScalarDecoder, part: Part) -> Tensor:
    """The model's scalar where a part's tokens are predicted, that is before each token, [M]."""
    with MODEL_TIME:
        return model.scores(model.hidden_at(part.ids_NL, part.at_M))


@torch.no_grad()
def over_own(model: Decoder, rollouts: Rollouts, read: Callable[[Part], Tensor]) -> Tensor:
    """A table [N, L] of what `read(part)` [M] finds with a model at the tokens that the sampled model chose itself, 0 elsewhere; on the
    CPU, where the answers are."""
    own_NL = rollouts.own_NL
    cell_NL = torch.arange(own_NL.numel()).view(own_NL.shape)
    table = torch.zeros(own_NL.numel())
    ones_NL, cells = torch.ones(own_NL.shape), {"cell": cell_NL}
    parts = make_parts(
        rollouts.ids_NL, rollouts.length_N, own_NL, ones_NL, cells, tokens=microbatch_tokens(model), device=model.device
    )
    for part in parts:
        table[part.fields["cell"].cpu()] = read(part).cpu()
    return table.view(own_NL.shape)


@torch.no_grad()
def text_scores(model: ScalarDecoder, rollouts: Rollouts) -> Tensor:
    """A reward model's score of each prompt with its answer, [N]."""
    lengths = rollouts.length_N.tolist()
    found = torch.zeros(len(rollouts))
    for some in by_size(sorted(range(len(rollouts)), key=lengths.__getitem__), lengths, microbatch_tokens(model)):
        rows = torch.tensor(some)
        ids_NL = rollouts.ids_NL[rows, : lengths[some[-1]]].to(model.device)
        with MODEL_TIME:
            found[rows] = model.score_texts(ids_NL, rollouts.length_N[rows].to(model.device)).cpu()
    return found


def judged(answers: Answers, reward: ScalarDecoder | None) -> Tensor:
    """How good each answer is, [N]: the verifiers' reward, or the reward model's score. Its reading is added to the answers' work."""
    if reward is None:
        return torch.tensor(answers.rewards)
    count_reading(answers, reward, 0)
    return text_scores(reward, answers.rollouts)


def count_reading(answers: Answers, model: Decoder, heads: int) -> None:
    """Add one reading of the answers by a model to their work; `heads` positions pass the vocabulary head."""
    rollouts = answers.rollouts
    answers.work.tokens_scored += rollouts.sampled_tokens
    context = float(rollouts.length_N.float().mean()) / 2
    answers.work.flops += model.config.forward_flops(int(rollouts.length_N.sum()), context, heads)
