"""Evidence from each distribution's top k tokens and a tail bucket: what remains of it when a teacher is served, not loaded.

Axis letters: T answer tokens of a batch, M members, J vectors (see `Evidence`), V vocabulary, k chosen tokens, B = k + 1 buckets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.head import CHUNK_ELEMENTS
from mopd_diag.engines.rollouts import Rollouts, by_size
from mopd_diag.engines.scoring import BATCH_TOKENS, Scored
from mopd_diag.errors import BadInput
from mopd_diag.estimators.divergences import centred_gram, kl
from mopd_diag.estimators.evidence import Evidence

LEAST = float(np.log(np.finfo(float).tiny))
"""Log-probability of a tail that holds nothing."""


@torch.inference_mode()
def score_topk(
    rollouts: Rollouts, models: Mapping[str, Any], subject: str, teachers: Sequence[str], k: int, *, base: str = "base"
) -> Scored:
    """As `scoring.score`, with every distribution reduced to the subject's k likeliest tokens and one bucket for the rest.

    The definition is `estimators.divergences.evidence_from_logp(top_k=k)`. Divergences are never larger than those over the whole
    vocabulary. Raises BadInput when k is not below the vocabulary, and as `score` does for broken members.
    """
    vocabulary = models[base].config.vocab_size
    if not 1 <= k < vocabulary:
        raise BadInput(
            f"top-k {k} is not between 1 and {vocabulary - 1}, one less than the vocabulary; choose a smaller k"
        )
    order = list(dict.fromkeys((subject, base, *teachers, *models)))
    lengths = rollouts.length_N.tolist()
    column = torch.arange(rollouts.ids_NL.shape[1])
    answer_NL = (column >= rollouts.prompt_N[:, None]) & (column < rollouts.length_N[:, None])
    found: dict[int, tuple[np.ndarray, ...]] = {}
    tokens = flops = 0
    for some in by_size(sorted(range(len(rollouts)), key=lengths.__getitem__), lengths, BATCH_TOKENS):
        index, width = torch.tensor(some), lengths[some[-1]]
        ids_NL, where = rollouts.ids_NL[index, : width - 1], answer_NL[index, 1:width]
        at, targets_T = where.flatten().nonzero().squeeze(-1), rollouts.ids_NL[index, 1:width][where]
        with MODEL_TIME:
            hidden = {name: models[name].hidden_at(ids_NL, at) for name in order}
            picked_TM, bucket_TMB = _reduced(hidden, models, order, targets_T, k)
        numbers = picked_TM.numpy(), *_geometry(bucket_TMB.double().numpy(), order, base)
        cuts = np.cumsum(where.sum(1).numpy())[:-1]
        found |= dict(zip(some, zip(*(np.split(n, cuts) for n in numbers), strict=True), strict=True))
        tokens += len(at) * len(order)
        flops += sum(models[n].config.forward_flops(ids_NL.numel(), width / 2, len(at)) for n in order)
    logp_TM, kl_TM, gram_TJJ = (np.concatenate([found[r][i] for r in range(len(rollouts))]) for i in range(3))
    counts_N = answer_NL.sum(1).numpy()
    evidence, left_out = Evidence.of_finite(
        members=tuple(order), base=base, teachers=tuple(teachers), logp_TM=logp_TM, kl_TM=kl_TM, gram_TJJ=gram_TJJ,
        answer_T=np.repeat(np.arange(len(rollouts)), counts_N), position_T=np.concatenate([np.arange(c) for c in counts_N]),
        own_T=rollouts.own_NL[answer_NL].numpy(), full_vocabulary=False,
    )  # fmt: skip
    return Scored(evidence, rollouts.ids_NL[answer_NL].numpy(), left_out, tokens, flops)


def _reduced(
    hidden: Mapping[str, Tensor], models: Mapping[str, Any], order: Sequence[str], targets_T: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """log p(token) [T, M], and log p of the subject's k likeliest tokens, then of all others together [T, M, B]."""
    size = max(1, CHUNK_ELEMENTS // models[order[0]].config.vocab_size)
    picked, buckets = [], []
    for start in range(0, len(targets_T), size):
        part = slice(start, start + size)
        top_tk = torch.zeros(0)
        chosen, reduced = [], []
        for name in order:  # the subject comes first and chooses
            logp_tV = torch.log_softmax(F.linear(hidden[name][part], models[name].head_VD).float(), -1)
            top_tk = logp_tV.topk(k, dim=-1).indices if name == order[0] else top_tk
            chosen.append(logp_tV.gather(1, targets_T[part, None]))
            kept = logp_tV.gather(1, top_tk)
            # Summed from the rest itself: one minus the kept mass would lose a thin tail to rounding.
            tail = logp_tV.scatter_(1, top_tk, -torch.inf).logsumexp(-1, keepdim=True).clamp_min(LEAST)
            reduced.append(torch.cat((kept, tail), 1))
        picked.append(torch.cat(chosen, 1))
        buckets.append(torch.stack(reduced, 1))
    return torch.cat(picked), torch.cat(buckets)


def _geometry(bucket_TMB: np.ndarray, order: Sequence[str], base: str) -> tuple[np.ndarray, np.ndarray]:
    """KL(subject ‖ member) [T, M] and the centred Gram [T, J, J] over the buckets."""
    s, b = bucket_TMB[:, 0], bucket_TMB[:, order.index(base)]
    with np.errstate(invalid="ignore"):  # a broken member's NaN is looked for by the evidence
        kl_TM = np.stack([kl(s, bucket_TMB[:, m]) for m in range(len(order))], 1)
        others = [n for n in order if n not in (order[0], base)]
        shifts = [bucket_TMB[:, order.index(m)] - b for m in (order[0], *others)]
        return kl_TM, centred_gram(np.stack([*shifts, b], 1), (np.exp(s) + np.exp(b)) / 2)
