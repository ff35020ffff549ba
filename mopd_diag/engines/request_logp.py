"""Log-probabilities of many given continuations under one model, batched by length; equal inputs are read once.

Axis letters: N inputs of one batch, L positions, M asked positions, Q (request, position) pairs, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from mopd_diag.engines.head import chunks
from mopd_diag.engines.rollouts import by_size
from mopd_diag.engines.scoring import BATCH_TOKENS
from mopd_diag.models.linear import linear
from mopd_diag.models.loading import Model


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a context and of what continues it; both hold at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@torch.inference_mode()
def pair_logp(model: Model, pairs: Sequence[Pair], rows: int | None = None) -> list[tuple[float, bool]]:
    """Σ log p(continuation token), nats, of each pair, and whether each of its tokens is the likeliest one.

    Pairs that differ in the last token only, as the answers of a multiple choice do, share one forward pass. At most `rows` inputs are
    read at once.
    """
    asked: dict[tuple[int, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        asked.setdefault((*pair.context, *pair.continuation)[:-1], []).append(number)
    inputs = sorted(asked, key=len)
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for some in _batches([len(i) for i in inputs], rows):
        batch = [inputs[k] for k in some]
        numbers = [asked[i] for i in batch]
        for number, answer in _read(model, batch, numbers, pairs):
            found[number] = answer
    return found


def _batches(lengths: Sequence[int], rows: int | None) -> Iterator[Sequence[int]]:
    for some in by_size(range(len(lengths)), lengths, BATCH_TOKENS):
        left = iter(some)
        while part := list(islice(left, rows)):
            yield part


def _read(
    model: Model, batch: Sequence[tuple[int, ...]], numbers: Sequence[Sequence[int]], pairs: Sequence[Pair]
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """The requests of one batch, each with its answer."""
    device = model.device
    width = len(batch[-1])
    longest = [max(len(pairs[q].continuation) for q in asked) for asked in numbers]
    starts = torch.tensor([len(i) - n for i, n in zip(batch, longest, strict=True)])
    ends = torch.tensor([len(i) for i in batch])
    column = torch.arange(width)
    where_NL = (column >= starts[:, None]) & (column < ends[:, None])
    ids_NL = torch.tensor([[*i, *[0] * (width - len(i))] for i in batch], device=device)
    hidden_MD = model.hidden_at(ids_NL, where_NL.flatten().nonzero().squeeze(-1).to(device))
    after = where_NL.sum(1).cumsum(0).tolist()  # where the positions of an input end among the M
    rows = [(q, after[n]) for n, asked in enumerate(numbers) for q in asked]
    at_Q = torch.cat([torch.arange(end - len(pairs[q].continuation), end) for q, end in rows])
    target_Q = torch.tensor([t for q, _ in rows for t in pairs[q].continuation])
    logp_Q, greedy_Q = _picked(hidden_MD, model.head_VD, at_Q.to(device), target_Q.to(device))
    counts = [len(pairs[q].continuation) for q, _ in rows]
    for (q, _), logp, greedy in zip(rows, logp_Q.split(counts), greedy_Q.split(counts), strict=True):
        yield q, (float(logp.sum()), bool(greedy.all()))


def _picked(hidden_MD: Tensor, head_VD: Tensor, at_Q: Tensor, target_Q: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each target at its position, and whether it is the likeliest; logits exist for one chunk of positions at a time."""
    logp_Q = torch.empty(len(at_Q), dtype=torch.float64)
    greedy_Q = torch.empty(len(at_Q), dtype=torch.bool)
    for part in chunks(len(hidden_MD), head_VD.shape[0], head_VD.device):
        mine = ((at_Q >= part.start) & (at_Q < part.stop)).nonzero().squeeze(-1)
        row, target = at_Q[mine] - part.start, target_Q[mine]
        logits_mV = linear(hidden_MD[part], head_VD).float()
        logp_Q[mine.cpu()] = torch.log_softmax(logits_mV, -1)[row, target].double().cpu()
        greedy_Q[mine.cpu()] = (logits_mV.argmax(-1)[row] == target).cpu()
    return logp_Q, greedy_Q
