"""What an algorithm gives the shared loop: a step's token batch, cut in microbatches, and a loss for each token.

Axis letters: N sequences, L positions, M positions whose next token carries loss, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mopd_diag.engines.head import head_loss
from mopd_diag.engines.rollouts import by_size
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.device import room

MICROBATCH_TOKENS = 2048
"""Padded tokens of one forward and backward pass: on CPUs, larger leaves the cache and smaller pays per call."""
ACTIVATION_BYTES = 1 << 30
"""What a microbatch may keep for its backward pass; models for which `MICROBATCH_TOKENS` would keep more get fewer."""


def microbatch_tokens(model: Decoder) -> int:
    """Padded tokens of one microbatch of a model: `MICROBATCH_TOKENS`, or what keeps its activations within their bound.

    A block keeps 10.5 hidden and 4 feed-forward widths a token (counted at SmolLM2's sizes); 14 leave room for gradients.
    """
    c = model.config
    a_token = c.num_hidden_layers * (14 * c.hidden_size + 4 * c.intermediate_size) * model.embed.element_size()
    return max(1, room(model.device) * min(MICROBATCH_TOKENS, ACTIVATION_BYTES // a_token))


@dataclass(slots=True)
class Part:
    """One microbatch. Row-major over its sequences, `at_M` are the flat positions that predict `targets_M`.

    `weight_M` holds each token's weight in the step's loss; over all parts of a step they sum to one unless an algorithm
    says otherwise. `fields` are further tensors with first axis M; `teacher` is the model that teaches all its rows.
    """

    ids_NL: Tensor
    at_M: Tensor
    targets_M: Tensor
    weight_M: Tensor
    fields: dict[str, Tensor] = field(default_factory=dict)
    teacher: str | None = None

    def to(self, device: torch.device | str) -> Part:
        """The same on a device."""
        there = lambda t: t.to(device, non_blocking=True)  # noqa: E731  # kernels wait for it, the host need not
        fields = {name: there(value) for name, value in self.fields.items()}
        return Part(
            there(self.ids_NL), there(self.at_M), there(self.targets_M), there(self.weight_M), fields, self.teacher
        )

    def cut(self, part: slice) -> dict[str, Tensor]:
        """The fields of some of the positions."""
        return {name: value[part] for name, value in self.fields.items()}


@dataclass(slots=True)
class Work:
    """What was done, for the ledger. Tokens count what a model chose or learned from; FLOPs count every position read."""

    tokens_sampled: int = 0
    tokens_trained: int = 0
    tokens_scored: int = 0
    rollouts: int = 0
    flops: int = 0

    def __iadd__(self, other: Work) -> Work:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass(slots=True)
class StepBatch:
    """The microbatches of one step, what making them cost, and values to log."""

    parts: list[Part]
    work: Work = field(default_factory=Work)
    metrics: dict[str, float] = field(default_factory=dict)


class Algorithm(Protocol):
    """One file each. `batch` must be a pure function of the model and the step, so that a stopped run can go on."""

    def batch(self, model: Decoder, step: int) -> StepBatch: ...

    def token_loss(self, logits_MV: Tensor, part: Part, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Unweighted losses [M] of the positions `where` of a part, and detached values [M] to report."""
        ...


@runtime_checkable
class PartAlgorithm(Protocol):
    """An algorithm whose loss is no sum over single tokens, or needs more of the model than its logits."""

    resumes_every: int
    """A stopped run goes on from a multiple of this step: between them batches depend on an earlier model."""

    def batch(self, model: Decoder, step: int) -> StepBatch: ...

    def part_loss(self, model: Decoder, hidden_MD: Tensor, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """A part's weighted share of the step's loss, to be summed over parts, and detached values to report the mean of."""
        ...


TokenLoss = Callable[[Tensor, Part, slice], tuple[Tensor, dict[str, Tensor]]]


def token_losses(model: Decoder, hidden_MD: Tensor, part: Part, loss: TokenLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ weight · loss over a part's tokens, its logits made a chunk at a time; and the values the loss reports."""

    def weighted(logits: Tensor, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        losses, values = loss(logits, part, where)
        return losses * part.weight_M[where], values

    return head_loss(hidden_MD, model.head_VD, weighted)


def make_parts(
    ids_NL: Tensor,
    length_N: Tensor,
    loss_NL: Tensor,
    weight_NL: Tensor,
    fields_NL: Mapping[str, Tensor] | None = None,
    group_N: list[str] | None = None,
    tokens: int | None = None,
    device: torch.device | str = "cpu",
) -> list[Part]:
    """Cut a right-padded batch of the CPU into microbatches of similar length and at most `tokens` (by default `MICROBATCH_TOKENS`),
    one group (a teacher, say) each, and put them on a device.

    `loss_NL` marks the tokens that carry loss; rows without any are left out, so nothing is computed for them. The first
    token of a row cannot carry loss: nothing predicts it.
    """
    alive = loss_NL.any(-1)
    rows_by_group: dict[str | None, list[int]] = {}
    for row in alive.nonzero().squeeze(-1).tolist():
        rows_by_group.setdefault(None if group_N is None else group_N[row], []).append(row)
    lengths = length_N.tolist()
    parts = []
    for group, rows in rows_by_group.items():
        rows.sort(key=lengths.__getitem__)
        for some in by_size(rows, lengths, tokens or MICROBATCH_TOKENS):
            width = lengths[some[-1]]
            index = torch.tensor(some)
            where = loss_NL[index, 1:width]
            at = where.flatten().nonzero().squeeze(-1)
            cut = lambda table, i=index, w=width, m=where: table[i, 1:w][m]  # noqa: E731
            fields = {name: cut(table) for name, table in (fields_NL or {}).items()}
            ids = ids_NL[index, : width - 1]  # what follows the last token is nobody's target
            parts.append(Part(ids, at, cut(ids_NL), cut(weight_NL), fields, group).to(device))
    return parts


def training_flops(model: Decoder, ids_NL: Tensor, heads: int) -> int:
    """Forward and backward FLOPs of one microbatch: three forward passes (a backward pass costs two)."""
    n, length = ids_NL.shape
    return 3 * model.config.forward_flops(n * length, length / 2, heads)
