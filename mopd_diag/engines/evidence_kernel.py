"""The numbers attribution reads, from last hidden states, in one pass over the vocabulary.

Logits of all members exist for a few tokens and a slice of the vocabulary at a time. Sums over slices are kept as mean and
covariance under softmax and merged as the slices come, so no logit is computed twice or kept, and nothing cancels.

Axis letters: T tokens, t tokens of a chunk, J members (base, subject, teachers, others), D hidden, V vocabulary, v a slice
of it, P = 2 weights: under the base and under the subject.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mopd_diag.models.linear import ENOUGH, QUANTUM, linear

WORKSPACE = 1 << 20
"""Logits held at once, of all members together; there are two such buffers, of 4 MiB each: larger does not run faster."""

WORKSPACE_ELSEWHERE = 1 << 26
"""The same off the CPU, where a slice costs some thirty launches however narrow it is. Not tuned yet: no GPU has run this."""

NARROW = 64
"""Columns below which a slice costs more in calls than in work."""

LOG2_E = math.log2(math.e)


def reduce_vocabulary(
    hidden_JTD: Sequence[Tensor], head_JVD: Sequence[Tensor], targets_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(token) [T, J] and KL(subject‖member) [T, J] in nats, and the Gram matrix [T, J, J] in nats², all fp32.

    Members come as base, subject, teachers, others. The rows of the Gram matrix stand as in `Evidence`: subject, teachers,
    others, base. Equal models give exact zeros. NaN and infinities stay in the rows of the member that gave them, unless
    it is the base or the subject, which weight all the others.
    """
    tokens, members, vocabulary, device = len(targets_T), len(hidden_JTD), head_JVD[0].shape[0], targets_T.device
    logp_TJ, kl_TJ = (torch.empty(tokens, members, device=device) for _ in range(2))
    gram_TJJ = torch.empty(tokens, members, members, device=device)
    rows, columns = chunk_shape(tokens, members, vocabulary, None if device.type == "cpu" else WORKSPACE_ELSEWHERE)
    buffers = torch.empty(2, _padded(members) * rows * columns, device=device)
    for start in range(0, tokens, rows):
        part = slice(start, min(start + rows, tokens))
        chunk = _Chunk(targets_T[part], members, buffers)
        for first in range(0, vocabulary, columns):
            v = slice(first, min(first + columns, vocabulary))
            chunk.add(v, (linear(h[part], head[v]) for h, head in zip(hidden_JTD, head_JVD, strict=True)))
        logp_TJ[part], kl_TJ[part], gram_TJJ[part] = chunk.result()
    return logp_TJ, kl_TJ, gram_TJJ


def _padded(members: int) -> int:
    """Rows for which MKL's small products are fast: 14 rows take twice as long as 16."""
    return members if members <= 4 else math.ceil(members / 8) * 8


def chunk_shape(tokens: int, members: int, vocabulary: int, workspace: int | None = None) -> tuple[int, int]:
    """Tokens and columns of the vocabulary of one chunk: tokens enough for a fast product first, then what fits."""
    room = (workspace or WORKSPACE) // _padded(members)
    fit = max(1, room // vocabulary)
    parts = max(1, min(math.ceil(tokens / fit), tokens // ENOUGH))
    rows = max(1, math.ceil(tokens / parts / QUANTUM)) * QUANTUM
    slices = max(1, round(vocabulary / max(NARROW, room // rows)))
    return rows, min(vocabulary, math.ceil(vocabulary / slices / QUANTUM) * QUANTUM)


class _Chunk:
    """Running results for t tokens: log-normalisers, and means and covariances under the base and under the subject."""

    def __init__(self, targets_t: Tensor, members: int, buffers: Tensor) -> None:
        t, device = len(targets_t), targets_t.device
        self.targets_t, self.members, self.buffers = targets_t, members, buffers
        self.picked_Jt = torch.empty(members, t, device=device)
        self.lse_Jt = torch.full((members, t), -torch.inf, dtype=torch.float64, device=device)
        self.mean_tPJ = torch.zeros(t, 2, members, dtype=torch.float64, device=device)
        self.cov_tPJJ = torch.zeros(t, 2, members, members, device=device)

    def add(self, v: slice, logits: Iterator[Tensor]) -> None:
        """Take in the logits [t, v] of every member on one slice of the vocabulary."""
        shape = (_padded(self.members), len(self.targets_t), v.stop - v.start)
        padded, weighted = self.buffers[:, : math.prod(shape)].view(2, *shape)
        padded[self.members :] = 0
        x_Jtv, spare_Jtv = padded[: self.members], weighted[: self.members]
        for row, given in zip(x_Jtv, logits, strict=True):
            row.copy_(given)
        self._pick(v, x_Jtv)
        top_Jt1 = x_Jtv.amax(-1, keepdim=True)
        # torch's exp2 is four times as fast as its exp on a CPU.
        sum_Jt = torch.sub(x_Jtv, top_Jt1, out=spare_Jtv).mul_(LOG2_E).exp2_().sum(-1)
        lse_Jt = top_Jt1.squeeze(-1).double() + sum_Jt.double().log()
        p_Ptv = spare_Jtv[:2] / sum_Jt[:2, :, None]
        total_Jt = torch.logaddexp(self.lse_Jt, lse_Jt)
        new_Pt = (lse_Jt - total_Jt)[:2]

        x_Jtv[1:] -= x_Jtv[0]
        # Not as a matrix product: its rounding depends on the row, and equal models must give equal means.
        mean_tPJ = torch.stack([torch.mul(x_Jtv, p_tv, out=spare_Jtv).sum(-1).t() for p_tv in p_Ptv], 1)
        centre_tJ = (new_Pt.softmax(0).float().t()[:, :, None] * mean_tPJ).sum(1)
        x_Jtv -= centre_tJ.t()[:, :, None]
        off_tPJ = mean_tPJ - centre_tJ[:, None]
        cov_tPJJ = self._second_moments(padded, weighted, p_Ptv).sub_(off_tPJ[..., :, None] * off_tPJ[..., None, :])
        self.mean_tPJ, self.cov_tPJJ = _merge(
            self.mean_tPJ, self.cov_tPJJ, mean_tPJ.double(), cov_tPJJ, new_Pt.t().exp()
        )
        self.lse_Jt = total_Jt

    def _pick(self, v: slice, x_Jtv: Tensor) -> None:
        """Keep the logits of the written tokens that lie in this slice."""
        here_t = ((self.targets_t >= v.start) & (self.targets_t < v.stop)).nonzero().squeeze(-1)
        self.picked_Jt[:, here_t] = x_Jtv[:, here_t, self.targets_t[here_t] - v.start]

    def _second_moments(self, padded: Tensor, weighted: Tensor, p_Ptv: Tensor) -> Tensor:
        """Products of all rows with each other, summed over the slice under both weights, [t, P, J, J]."""
        products = []
        for p_tv in p_Ptv:
            torch.mul(padded, p_tv, out=weighted)
            products.append(torch.bmm(weighted.transpose(0, 1), padded.permute(1, 2, 0)))
        return torch.stack(products, 1)[..., : self.members, : self.members]

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """log p [t, J], KL [t, J] and Gram [t, J, J] of these tokens."""
        under_subject_tJ = self.mean_tPJ[:, 1].clone()
        under_subject_tJ[:, 0] = 0  # rows are log-ratios to the base, but for the base's own
        shift_tJ = under_subject_tJ - (self.lse_Jt - self.lse_Jt[0]).t()
        half = torch.full((len(shift_tJ),), 0.5, dtype=torch.float64, device=shift_tJ.device)
        (mean_a, mean_b), (cov_a, cov_b) = self.mean_tPJ.unbind(1), self.cov_tPJJ.unbind(1)
        _, gram_tJJ = _merge(mean_a, cov_a, mean_b, cov_b, half)
        return (self.picked_Jt - self.lse_Jt).t(), shift_tJ[:, 1:2] - shift_tJ, gram_tJJ.roll((-1, -1), (1, 2))


def _merge(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor, share_b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [..., J] and covariance [..., J, J] of a mixture, from those of its parts and the share [...] of the second.

    The pairwise update of Chan, Golub & LeVeque (1983): no square of a mean is ever subtracted from a mean of squares.
    """
    between = mean_b - mean_a
    mean = mean_a + share_b[..., None] * between
    between = between.to(cov_a.dtype)
    share = share_b.to(cov_a.dtype)[..., None, None]
    cov = cov_a.lerp(cov_b, share).add_((share * (1 - share)) * between[..., :, None] * between[..., None, :])
    return mean, cov
