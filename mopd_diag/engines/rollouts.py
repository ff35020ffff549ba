"""Sampled answers as tensors: the form in which sampling hands them to training and scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.models.linear import QUANTUM


@dataclass(frozen=True, slots=True)
class Rollouts:
    """N answers, right-padded, on the CPU whatever sampled them. Token ids `ids_NL` hold prompt, then answer.

    `own_NL` marks the tokens the model chose itself (its end-of-sequence included): prompt, padding and the world's
    replies are False. `logp_NL` is log μ(token) in nats under the sampling distribution (temperature applied), 0 where
    not own. `length_N` counts prompt and answer. `finished_N` is False for an answer cut by its token limit.
    """

    ids_NL: Tensor
    prompt_N: Tensor
    length_N: Tensor
    own_NL: Tensor
    logp_NL: Tensor
    finished_N: Tensor

    def __len__(self) -> int:
        return self.ids_NL.shape[0]

    @property
    def sampled_tokens(self) -> int:
        return int(self.own_NL.sum())

    def responses(self) -> list[list[int]]:
        """Token ids of each answer, the world's replies and the end-of-sequence included."""
        rows = self.ids_NL.tolist()
        return [row[p:n] for row, p, n in zip(rows, self.prompt_N.tolist(), self.length_N.tolist(), strict=True)]

    def take(self, rows: Tensor) -> Rollouts:
        """The chosen rows, cut to their longest."""
        length = self.length_N[rows]
        cut = int(length.max()) if len(length) else 0
        return Rollouts(
            self.ids_NL[rows, :cut], self.prompt_N[rows], length, self.own_NL[rows, :cut], self.logp_NL[rows, :cut], self.finished_N[rows]
        )  # fmt: skip


def pack(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int) -> Rollouts:
    """Given answers as rollouts: every answer token counts as the model's own, log-probabilities are NaN (unknown)."""
    prompt = torch.tensor([len(p) for p in prompts])
    length = prompt + torch.tensor([len(a) for a in answers])
    width = int(length.max()) if len(prompts) else 0
    ids = torch.tensor([[*p, *a] + [pad_id] * (width - len(p) - len(a)) for p, a in zip(prompts, answers, strict=True)])
    at = torch.arange(width)
    own = (at >= prompt[:, None]) & (at < length[:, None])
    unknown, finished = torch.full(own.shape, torch.nan), torch.ones(len(prompts), dtype=torch.bool)
    return Rollouts(ids.reshape(len(prompts), width), prompt, length, own, unknown, finished)


def join(parts: Sequence[Rollouts], pad_id: int) -> Rollouts:
    """Rollouts one below the other, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    width = max(p.ids_NL.shape[1] for p in parts)
    columns = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("prompt_N", "length_N", "finished_N")}
    tables = {
        name: torch.cat([F.pad(table := getattr(p, name), (0, width - table.shape[1]), value=fill) for p in parts])
        for name, fill in (("ids_NL", pad_id), ("own_NL", False), ("logp_NL", 0.0))
    }
    return Rollouts(**tables, **columns)


def by_size(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[Sequence[int]]:
    """Runs of rows (given from short to long) whose padded size stays within `tokens`, where it can a multiple of `QUANTUM`
    rows, for which the matrix products are fast."""
    start = 0
    while start < len(rows):
        size = 1
        while start + size < len(rows) and (size + 1) * lengths[rows[start + size]] <= tokens:
            size += 1
        if start + size < len(rows) and size > QUANTUM:
            size -= size % QUANTUM
        yield rows[start : start + size]
        start += size
