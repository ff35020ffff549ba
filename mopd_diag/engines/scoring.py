"""Score given answers under many models at once: log-probabilities, divergences and the geometry attribution reads.

Last hidden states of all models exist for one batch of answers at a time; what leaves it is a few numbers a token.

Axis letters: N answers, L positions, T scored tokens, M members, K teachers, J vectors (see `Evidence`), V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.evidence_kernel import reduce_vocabulary
from mopd_diag.engines.rollouts import Rollouts, by_size
from mopd_diag.estimators.evidence import Evidence
from mopd_diag.models.decoder import Decoder

BATCH_TOKENS = 4096
"""Padded tokens of one forward pass of one model."""

PASS_WIDTHS = 12
"""Numbers that one forward pass of a decoder holds for each token at its peak, in hidden widths D (measured: 11 to 16)."""


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
    shifted = [*teachers, *(n for n in order if n not in (subject, base, *teachers))]
    vectors = [base, subject, *shifted]  # a model that stands here twice is reduced twice
    columns = [vectors.index(n) for n in order]
    lengths = rollouts.length_N.tolist()
    rows = sorted(range(len(rollouts)), key=lengths.__getitem__)
    position_L = torch.arange(rollouts.ids_NL.shape[1])
    answer_NL = (position_L >= rollouts.prompt_N[:, None]) & (position_L < rollouts.length_N[:, None])
    counts_N = answer_NL.sum(1)
    first_N = counts_N.cumsum(0) - counts_N
    total = int(counts_N.sum())
    logp_TM, kl_TM = (torch.empty(total, len(order)) for _ in range(2))
    gram_TJJ = torch.empty(total, len(vectors), len(vectors))
    flops = 0
    for some in by_size(rows, lengths, _batch_tokens(models[base], len(order), sum(lengths))):
        index, width = torch.tensor(some), lengths[some[-1]]
        ids_NL = rollouts.ids_NL[index, : width - 1]  # what follows the last token is nobody's target
        where = answer_NL[index, 1:width]
        at = where.flatten().nonzero().squeeze(-1)
        targets = rollouts.ids_NL[index, 1:width][where]
        with MODEL_TIME:
            hidden = {name: models[name].hidden_at(ids_NL, at) for name in order}
            logp, kl, gram = reduce_vocabulary(
                [hidden[n] for n in vectors], [models[n].head_VD for n in vectors], targets
            )
        into = (first_N[index, None] + where.cumsum(1) - 1)[where]
        logp_TM[into], kl_TM[into], gram_TJJ[into] = logp[:, columns], kl[:, columns], gram
        flops += sum(models[n].config.forward_flops(ids_NL.numel(), width / 2, len(at)) for n in order)
    evidence, left_out = Evidence.of_finite(
        members=tuple(order), base=base, teachers=tuple(teachers),
        logp_TM=logp_TM.numpy(), kl_TM=kl_TM.numpy(), gram_TJJ=gram_TJJ.numpy(),
        answer_T=np.repeat(np.arange(len(rollouts)), counts_N.numpy()),
        position_T=(torch.arange(total) - first_N.repeat_interleave(counts_N)).numpy(),
        own_T=rollouts.own_NL[answer_NL].numpy(), full_vocabulary=True,
    )  # fmt: skip
    return Scored(evidence, rollouts.ids_NL[answer_NL].numpy(), left_out, total * len(order), flops)


def _batch_tokens(model: Decoder, members: int, tokens: int) -> int:
    """Padded tokens of one batch, so that the last hidden states of all members and one forward pass take no more memory
    than one forward pass with its logits takes over `BATCH_TOKENS`, or over all there is."""
    vocabulary, width = model.head_VD.shape
    alone = max(PASS_WIDTHS * width, vocabulary)
    return int(min(BATCH_TOKENS, tokens) * min(1.0, alone / ((PASS_WIDTHS + members) * width)))
