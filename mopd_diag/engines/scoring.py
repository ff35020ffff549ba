"""Score given answers under many models at once: log-probabilities, divergences and the geometry attribution reads.

Last hidden states of all models exist for one batch of answers at a time; what leaves it is a few numbers a token.

Axis letters: N answers, L positions, T scored tokens, M members, K teachers, J vectors (see `Evidence`), V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

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


@dataclass(frozen=True, slots=True)
class Part:
    """Numbers of some of the scored tokens, which stand in the rows `row_T` of the whole; vectors J as in `Evidence`."""

    row_T: np.ndarray
    logp_TM: np.ndarray
    kl_TM: np.ndarray
    gram_TJJ: np.ndarray
    flops: int


def score(
    rollouts: Rollouts, models: Mapping[str, Decoder], subject: str, teachers: Sequence[str], *, base: str = "base"
) -> Scored:
    """Evidence on every answer token of `rollouts`, judged model `subject`, under all `models` (which must share a vocabulary and a
    device).

    Members come in the order subject, base, teachers, others. A subject that is the base is scored as its own shift of zero.

    Teachers whose logits hold NaN or infinity are left out and named; raises BadInput when subject or base are broken so.
    """
    return joined(
        rollouts, models, subject, teachers, score_parts(rollouts, models, subject, teachers, base=base), base=base
    )


@torch.inference_mode()
def score_parts(
    rollouts: Rollouts, models: Mapping[str, Decoder], subject: str, teachers: Sequence[str], *, base: str = "base",
    share: tuple[int, int] = (0, 1),
) -> Iterator[Part]:  # fmt: skip
    """What `score` computes, a batch at a time. With `share` (i, n) the i-th of every n batches: batches are formed of all answers
    before they are shared out, so that the shares of n processes together are the whole to the last bit."""
    order, vectors = _order(models, subject, teachers, base)
    columns = [vectors.index(n) for n in order]
    lengths, rows_of = rollouts.length_N.tolist(), _Rows.of(rollouts)
    rows = sorted(range(len(rollouts)), key=lengths.__getitem__)
    device = models[base].device
    batches = by_size(rows, lengths, _batch_tokens(models[base], len(order), sum(lengths)))
    for some in islice(batches, share[0], None, share[1]):
        index, width = torch.tensor(some), lengths[some[-1]]
        ids_NL = rollouts.ids_NL[index, : width - 1].to(device)  # what follows the last token is nobody's target
        where = rows_of.answer_NL[index, 1:width]
        at = where.flatten().nonzero().squeeze(-1).to(device)
        targets = rollouts.ids_NL[index, 1:width][where].to(device)
        with MODEL_TIME:
            hidden = {name: models[name].hidden_at(ids_NL, at) for name in order}
            logp, kl, gram = reduce_vocabulary(
                [hidden[n] for n in vectors], [models[n].head_VD for n in vectors], targets
            )
        into = (rows_of.first_N[index, None] + where.cumsum(1) - 1)[where]
        flops = sum(models[n].config.forward_flops(ids_NL.numel(), width / 2, len(at)) for n in order)
        row_T, logp_TM, kl_TM, gram_TJJ = (x.cpu().numpy() for x in (into, logp[:, columns], kl[:, columns], gram))
        yield Part(row_T, logp_TM, kl_TM, gram_TJJ, flops)


def joined(
    rollouts: Rollouts, members: Iterable[str], subject: str, teachers: Sequence[str], parts: Iterable[Part], *, base: str = "base",
) -> Scored:  # fmt: skip
    """All parts of a scoring by `members`, in any order, as one; raises as `score`."""
    order, vectors = _order(members, subject, teachers, base)
    rows = _Rows.of(rollouts)
    logp_TM, kl_TM = (np.full((rows.total, len(order)), np.nan, np.float32) for _ in range(2))
    gram_TJJ = np.full((rows.total, len(vectors), len(vectors)), np.nan, np.float32)
    flops = 0
    for part in parts:
        logp_TM[part.row_T], kl_TM[part.row_T], gram_TJJ[part.row_T] = part.logp_TM, part.kl_TM, part.gram_TJJ
        flops += part.flops
    answer_NL, counts_N = rows.answer_NL, rows.counts_N
    evidence, left_out = Evidence.of_finite(
        members=tuple(order), base=base, teachers=tuple(teachers), logp_TM=logp_TM, kl_TM=kl_TM, gram_TJJ=gram_TJJ,
        answer_T=np.repeat(np.arange(len(rollouts)), counts_N.numpy()),
        position_T=(torch.arange(rows.total) - rows.first_N.repeat_interleave(counts_N)).numpy(),
        own_T=rollouts.own_NL[answer_NL].numpy(), full_vocabulary=True,
    )  # fmt: skip
    return Scored(evidence, rollouts.ids_NL[answer_NL].numpy(), left_out, rows.total * len(order), flops)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which positions are scored, and the row of each answer's first token."""

    answer_NL: torch.Tensor
    counts_N: torch.Tensor
    first_N: torch.Tensor
    total: int

    @classmethod
    def of(cls, rollouts: Rollouts) -> _Rows:
        position_L = torch.arange(rollouts.ids_NL.shape[1])
        answer_NL = (position_L >= rollouts.prompt_N[:, None]) & (position_L < rollouts.length_N[:, None])
        counts_N = answer_NL.sum(1)
        return cls(answer_NL, counts_N, counts_N.cumsum(0) - counts_N, int(counts_N.sum()))


def _order(models: Iterable[str], subject: str, teachers: Sequence[str], base: str) -> tuple[list[str], list[str]]:
    """The members M, and the models that are reduced over the vocabulary J; one that stands there twice is reduced twice."""
    order = list(dict.fromkeys((subject, base, *teachers, *models)))
    return order, [base, subject, *teachers, *(n for n in order if n not in (subject, base, *teachers))]


def _batch_tokens(model: Decoder, members: int, tokens: int) -> int:
    """Padded tokens of one batch, so that the last hidden states of all members and one forward pass take no more memory
    than one forward pass with its logits takes over `BATCH_TOKENS`, or over all there is."""
    vocabulary, width = model.head_VD.shape
    alone = max(PASS_WIDTHS * width, vocabulary)
    return int(min(BATCH_TOKENS, tokens) * min(1.0, alone / ((PASS_WIDTHS + members) * width)))
