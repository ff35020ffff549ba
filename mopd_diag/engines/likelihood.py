"""Log-probabilities of given answers under one model: all that can be compared between models of different tokenizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mopd_diag.engines.head import chunks
from mopd_diag.engines.rollouts import Rollouts, by_size
from mopd_diag.engines.scoring import BATCH_TOKENS
from mopd_diag.models.linear import linear


@torch.inference_mode()
def answer_logp(rollouts: Rollouts, model: Any) -> list[Tensor]:
    """log p(token), nats, of each answer's tokens, in the order of the answers, on the CPU; empty where an answer has no token.

    `model` is a Decoder or a ForeignModel; logits exist for one chunk of positions at a time.
    """
    lengths, starts = rollouts.length_N.tolist(), rollouts.prompt_N.tolist()
    rows = sorted((r for r in range(len(rollouts)) if lengths[r] > starts[r]), key=lengths.__getitem__)
    found = [torch.zeros(0)] * len(rollouts)
    for some in by_size(rows, lengths, BATCH_TOKENS):
        width = lengths[some[-1]]
        ids_NL = rollouts.ids_NL[torch.tensor(some), :width].to(model.device)
        column = torch.arange(1, width)
        where = torch.stack([(column >= starts[r]) & (column < lengths[r]) for r in some])
        counts, where = where.sum(1).tolist(), where.to(model.device)
        targets_M = ids_NL[:, 1:][where]
        hidden_MD = model.hidden_at(ids_NL[:, :-1], where.flatten().nonzero().squeeze(-1))
        picked = [
            torch.log_softmax(linear(hidden_MD[part], model.head_VD).float(), -1).gather(1, targets_M[part, None])
            for part in chunks(len(targets_M), model.head_VD.shape[0], model.device)
        ]
        for row, logp in zip(some, torch.cat(picked).squeeze(1).cpu().split(counts), strict=True):
            found[row] = logp
    return found
