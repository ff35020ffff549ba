"""Evidence from a few tokens of each distribution and a tail bucket: what remains of it when members are served, or scored by vLLM.

Axis letters: T answer tokens of a batch, M members, J vectors (see `Evidence`), V vocabulary, C chosen tokens, B = C + 1 buckets.
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
from mopd_diag.engines.top_tokens import UNUSED, TopTokens, shared
from mopd_diag.errors import BadInput
from mopd_diag.estimators.divergences import centred_gram, kl
from mopd_diag.estimators.evidence import Evidence

LEAST = float(np.log(np.finfo(float).tiny))
"""Log-probability of a bucket that holds nothing."""

RESOLVED = float(np.log(1e-6))
"""Log of the least tail that one minus a sum of single-precision probabilities can tell from nothing."""

CHUNK_ROWS = 1 << 14
"""Tokens whose buckets of all members exist at a time."""


@torch.inference_mode()
def score_topk(
    rollouts: Rollouts, models: Mapping[str, Any], subject: str, teachers: Sequence[str], k: int, *, base: str = "base",
    served: Mapping[str, TopTokens] | None = None,
) -> Scored:  # fmt: skip
    """As `scoring.score`, with every distribution reduced to a few tokens and one bucket for the rest.

    Without `served` members these are the subject's k likeliest tokens: `estimators.divergences.evidence_from_logp(top_k=k)`. With them
    (their numbers on all answer tokens in order, from their own k) they are the tokens that every served member gave, among them always
    the written one; then no tail counts as less than 1e-6, for nobody. All members of a token are reduced to one partition, so that none
    looks nearer because less of it is seen. Divergences are never larger than those over the whole vocabulary (data processing; with
    served members to within 1e-6 nats).

    Raises BadInput when k is not below the vocabulary, and as `score` does for broken members.
    """
    served = served or {}
    vocabulary = models[base].config.vocab_size
    if not 1 <= k < vocabulary:
        raise BadInput(
            f"top-k {k} is not between 1 and {vocabulary - 1}, one less than the vocabulary; choose a smaller k"
        )
    order = list(dict.fromkeys((subject, base, *teachers, *models, *served)))
    local = [n for n in order if n in models]  # subject and base come first
    lengths = rollouts.length_N.tolist()
    column = torch.arange(rollouts.ids_NL.shape[1])
    answer_NL = (column >= rollouts.prompt_N[:, None]) & (column < rollouts.length_N[:, None])
    counts_N = answer_NL.sum(1)
    first_N, total = counts_N.cumsum(0) - counts_N, int(counts_N.sum())
    known_TC = shared(list(served.values())) if served else None
    logp_TM, kl_TM = (np.empty((total, len(order))) for _ in range(2))
    vectors = len(set(order) - {subject, base}) + 2
    gram_TJJ = np.empty((total, vectors, vectors))
    flops, device = 0, models[base].device
    for some in by_size(sorted(range(len(rollouts)), key=lengths.__getitem__), lengths, BATCH_TOKENS):
        index, width = torch.tensor(some), lengths[some[-1]]
        ids_NL, where = rollouts.ids_NL[index, : width - 1].to(device), answer_NL[index, 1:width]
        at, targets_T = (
            where.flatten().nonzero().squeeze(-1).to(device),
            rollouts.ids_NL[index, 1:width][where].to(device),
        )
        into = (first_N[index, None] + where.cumsum(1) - 1)[where].numpy()
        chosen_TC = None if known_TC is None else known_TC[into]
        with MODEL_TIME:
            hidden = {name: models[name].hidden_at(ids_NL, at) for name in local}
            picked_TM, bucket_TMB = _reduced(hidden, models, local, targets_T, k, chosen_TC)
        picked = dict(zip(local, picked_TM.cpu().numpy().T, strict=True))
        bucket = dict(zip(local, bucket_TMB.cpu().double().numpy().swapaxes(0, 1), strict=True))
        if chosen_TC is not None:
            for name, given in served.items():
                mine = given.take(into)
                picked[name], bucket[name] = mine.logp_TK[:, 0], _served_buckets(mine, chosen_TC)
            for each in bucket.values():
                each[:, -1].clip(min=RESOLVED, out=each[:, -1])
        logp_TM[into] = np.stack([picked[n] for n in order], 1)
        kl_TM[into], gram_TJJ[into] = _geometry(np.stack([bucket[n] for n in order], 1), order, base)
        flops += sum(models[n].config.forward_flops(ids_NL.numel(), width / 2, len(at)) for n in local)
    evidence, left_out = Evidence.of_finite(
        members=tuple(order), base=base, teachers=tuple(teachers), logp_TM=logp_TM, kl_TM=kl_TM, gram_TJJ=gram_TJJ,
        answer_T=np.repeat(np.arange(len(rollouts)), counts_N.numpy()),
        position_T=(torch.arange(total) - first_N.repeat_interleave(counts_N)).numpy(),
        own_T=rollouts.own_NL[answer_NL].numpy(), full_vocabulary=False,
    )  # fmt: skip
    return Scored(evidence, rollouts.ids_NL[answer_NL].numpy(), left_out, total * len(order), flops)


def score_given(
    rollouts: Rollouts, given: Mapping[str, TopTokens], subject: str, teachers: Sequence[str], *, base: str = "base"
) -> Scored:
    """As `score_topk(served=given)` where every member was scored elsewhere, subject and base too (`given`: all answer tokens in order).

    A member with NaN or infinite log-probabilities on the subject's own tokens is left out before the others are reduced to what all of
    them gave; raises BadInput when it is subject or base. The cost in FLOPs is not known here, and 0.
    """
    order = list(dict.fromkeys((subject, base, *teachers, *given)))
    column = torch.arange(rollouts.ids_NL.shape[1])
    answer_NL = (column >= rollouts.prompt_N[:, None]) & (column < rollouts.length_N[:, None])
    counts_N, own_T = answer_NL.sum(1), rollouts.own_NL[answer_NL].numpy()
    whole = [n for n in order if given[n].finite(own_T)]
    total = int(counts_N.sum())
    vectors = len(set(order) - {subject, base}) + 2
    logp_TM, kl_TM = (np.full((total, len(order)), np.nan) for _ in range(2))
    gram_TJJ = np.full((total, vectors, vectors), np.nan)
    for start in range(0, total if whole else 0, CHUNK_ROWS):
        rows = np.arange(start, min(start + CHUNK_ROWS, total))
        mine = {n: given[n].take(rows) for n in order}
        chosen_TC = shared([mine[n] for n in whole])
        buckets = [
            _served_buckets(mine[n], chosen_TC) if n in whole else np.full((len(rows), chosen_TC.shape[1] + 1), np.nan)
            for n in order
        ]
        for each in buckets:
            each[:, -1].clip(min=RESOLVED, out=each[:, -1])
        logp_TM[rows] = np.stack(
            [mine[n].logp_TK[:, 0] if n in whole else np.full(len(rows), np.nan) for n in order], 1
        )
        kl_TM[rows], gram_TJJ[rows] = _geometry(np.stack(buckets, 1), order, base)
    evidence, left_out = Evidence.of_finite(
        members=tuple(order), base=base, teachers=tuple(teachers), logp_TM=logp_TM, kl_TM=kl_TM, gram_TJJ=gram_TJJ,
        answer_T=np.repeat(np.arange(len(rollouts)), counts_N.numpy()),
        position_T=np.concatenate([np.arange(n) for n in counts_N.tolist()] or [np.arange(0)]), own_T=own_T, full_vocabulary=False,
    )  # fmt: skip
    return Scored(evidence, rollouts.ids_NL[answer_NL].numpy(), left_out, total * len(order), 0)


def _reduced(
    hidden: Mapping[str, Tensor], models: Mapping[str, Any], order: Sequence[str], targets_T: Tensor, k: int,
    chosen_TC: np.ndarray | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """log p(token) [T, M], and log p of the chosen tokens, then of all others together [T, M, B].

    Without a choice, the subject's k likeliest. Unused places of a choice hold `LEAST`.
    """
    size = max(1, CHUNK_ELEMENTS // models[order[0]].config.vocab_size)
    choice_TC = None if chosen_TC is None else torch.from_numpy(chosen_TC).to(targets_T.device)
    picked, buckets = [], []
    for start in range(0, len(targets_T), size):
        part = slice(start, start + size)
        top_tc = targets_T[:0]
        unused_tc = None
        if choice_TC is not None:
            unused_tc = choice_TC[part] == UNUSED
            top_tc = torch.where(
                unused_tc, targets_T[part, None], choice_TC[part]
            )  # the written token is chosen anyway
        chosen, reduced = [], []
        for name in order:  # the subject comes first and chooses
            logp_tV = torch.log_softmax(F.linear(hidden[name][part], models[name].head_VD).float(), -1)
            if choice_TC is None and name == order[0]:
                top_tc = logp_tV.topk(k, dim=-1).indices
            chosen.append(logp_tV.gather(1, targets_T[part, None]))
            kept = logp_tV.gather(1, top_tc)
            if unused_tc is not None:
                kept = kept.masked_fill(unused_tc, LEAST)
            # Summed from the rest itself: one minus the kept mass would lose a thin tail to rounding.
            tail = logp_tV.scatter_(1, top_tc, -torch.inf).logsumexp(-1, keepdim=True).clamp_min(LEAST)
            reduced.append(torch.cat((kept, tail), 1))
        picked.append(torch.cat(chosen, 1))
        buckets.append(torch.stack(reduced, 1))
    return torch.cat(picked), torch.cat(buckets)


def _served_buckets(given: TopTokens, chosen_TC: np.ndarray) -> np.ndarray:
    """As one member's part of `_reduced`, [T, B], of a member that gave all chosen tokens; the tail is what they leave of 1."""
    kept_TC = np.where(chosen_TC == UNUSED, LEAST, given.at(chosen_TC))
    rest_T = np.maximum(1 - np.exp(kept_TC).sum(1), np.finfo(float).tiny)
    return np.concatenate((kept_TC, np.log(rest_T)[:, None]), 1)


def _geometry(bucket_TMB: np.ndarray, order: Sequence[str], base: str) -> tuple[np.ndarray, np.ndarray]:
    """KL(subject ‖ member) [T, M] and the centred Gram [T, J, J] over the buckets."""
    s, b = bucket_TMB[:, 0], bucket_TMB[:, order.index(base)]
    with np.errstate(invalid="ignore"):  # a broken member's NaN is looked for by the evidence
        kl_TM = np.stack([kl(s, bucket_TMB[:, m]) for m in range(len(order))], 1)
        others = [n for n in order if n not in (order[0], base)]
        shifts = [bucket_TMB[:, order.index(m)] - b for m in (order[0], *others)]
        return kl_TM, centred_gram(np.stack([*shifts, b], 1), (np.exp(s) + np.exp(b)) / 2)
