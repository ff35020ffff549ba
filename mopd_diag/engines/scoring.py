"""Score given answers under many models at once: log-probabilities, divergences and the geometry attribution reads.

Logits of all models exist for one chunk of positions at a time; what leaves the chunk is a few numbers a token.

Axis letters: N answers, L positions, T scored tokens, M members, K teachers, J = K + 2 vectors, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.head import CHUNK_ELEMENTS
from mopd_diag.engines.rollouts import Rollouts, by_size
from mopd_diag.estimators.evidence import Evidence
from mopd_diag.models.decoder import Decoder

BATCH_TOKENS = 4096
"""Padded tokens of one forward pass."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Evidence, with the token of each row, the members left out for NaN or infinite logits, and what it cost."""

    evidence: Evidence
    token_T: np.ndarray
    left_out: tuple[str, ...]
    tokens_scored: int
    flops: int


@torch.inference_mode()
def score(
    rollouts: Rollouts, models: Mapping[str, Decoder], subject: str, teachers: Sequence[str], *, base: str = "base"
) -> Scored:
    """Evidence on every answer token of `rollouts`, judged model `subject`, under all `models` (which must share a vocabulary).

    Members come in the order subject, base, teachers, others. A subject that is the base is scored as its own shift of zero.

    Teachers whose logits hold NaN or infinity are left out and named; raises BadInput when subject or base are broken so.
    """
    order = list(dict.fromkeys((subject, base, *teachers, *models)))
    lengths = rollouts.length_N.tolist()
    rows = sorted(range(len(rollouts)), key=lengths.__getitem__)
    answer_NL = (torch.arange(rollouts.ids_NL.shape[1]) >= rollouts.prompt_N[:, None]) & (
        torch.arange(rollouts.ids_NL.shape[1]) < rollouts.length_N[:, None]
    )
    found: dict[int, tuple[Tensor, ...]] = {}
    tokens = flops = 0
    for some in by_size(rows, lengths, BATCH_TOKENS):
        index, width = torch.tensor(some), lengths[some[-1]]
        ids_NL = rollouts.ids_NL[index, : width - 1]  # what follows the last token is nobody's target
        where = answer_NL[index, 1:width]
        at = where.flatten().nonzero().squeeze(-1)
        targets = rollouts.ids_NL[index, 1:width][where]
        hidden = {}
        with MODEL_TIME:
            for name in order:
                hidden[name] = models[name].hidden_at(ids_NL, at)
            logp_TM, kl_TM, gram_TJJ = _evidence(hidden, models, order, subject, base, teachers, targets)
        tokens += len(at) * len(order)
        flops += sum(models[n].config.forward_flops(ids_NL.numel(), width / 2, len(at)) for n in order)
        counts = where.sum(1).tolist()
        for row, logp, kl, gram in zip(
            some, logp_TM.split(counts), kl_TM.split(counts), gram_TJJ.split(counts), strict=True
        ):
            found[row] = (logp, kl, gram)
    ordered = [found[r] for r in range(len(rollouts))]
    logp, kl, gram = (torch.cat([o[i] for o in ordered]).numpy() for i in range(3))
    counts_N = answer_NL.sum(1)
    evidence, left_out = Evidence.of_finite(
        members=tuple(order), base=base, teachers=tuple(teachers), logp_TM=logp, kl_TM=kl, gram_TJJ=gram,
        answer_T=np.repeat(np.arange(len(rollouts)), counts_N.numpy()),
        position_T=np.concatenate([np.arange(c) for c in counts_N.tolist()]) if len(rollouts) else np.zeros(0, int),
        own_T=rollouts.own_NL[answer_NL].numpy(), full_vocabulary=True,
    )  # fmt: skip
    return Scored(evidence, rollouts.ids_NL[answer_NL].numpy(), left_out, tokens, flops)


def _evidence(
    hidden: Mapping[str, Tensor],
    models: Mapping[str, Decoder],
    order: Sequence[str],
    subject: str,
    base: str,
    teachers: Sequence[str],
    targets_T: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(token) [T, M], KL(subject‖member) [T, M], centred Gram [T, J, J]; chunked over tokens."""
    vocabulary = models[base].config.vocab_size
    size = max(1, CHUNK_ELEMENTS // (vocabulary * len(order)))
    logp_parts, kl_parts, gram_parts = [], [], []
    for start in range(0, len(targets_T), size):
        part = slice(start, start + size)
        logp = {n: torch.log_softmax(F.linear(hidden[n][part], models[n].head_VD), -1) for n in order}
        subject_logp, base_logp = logp[subject], logp[base]
        p = subject_logp.exp()
        picked = [logp[n].gather(1, targets_T[part, None]).squeeze(1) for n in order]
        logp_parts.append(torch.stack(picked, 1))
        kl_parts.append(torch.stack([(p * (subject_logp - logp[n])).sum(-1) for n in order], 1))
        weight = 0.5 * (p + base_logp.exp())
        vectors = torch.stack([*(logp[n] - base_logp for n in (subject, *teachers)), base_logp], 1)  # [t, J, V]
        centred = vectors - (vectors * weight[:, None]).sum(-1, keepdim=True)
        gram_parts.append(torch.bmm(centred * weight[:, None], centred.transpose(1, 2)))
    return torch.cat(logp_parts), torch.cat(kl_parts), torch.cat(gram_parts)
