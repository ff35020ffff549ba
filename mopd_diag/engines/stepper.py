"""One decoder read column by column: the forward pass over a key/value cache, without modules and without autograd.

Prompts are left-padded so that all rows write the same column of the cache: rotary scores depend on differences of positions
only, so a row's padding shifts nothing.

Axis letters: N prompts, B rows (N · n at first), P prompt columns, T cache columns, W columns that are looked at, L columns
of one call, D hidden, H query heads, K key/value heads, E head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.models.decoder import NARROW, SHORT, Decoder
from mopd_diag.models.linear import linear


@dataclass(slots=True)
class _Block:
    """One layer for inference: the norms' weights and the attention's scale folded into the matrices, and its cache."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    norm_q: Tensor | None
    norm_k: Tensor | None
    cache_2BKTE: Tensor
    """Keys, then values."""


class Stepper:
    """The decoder's forward pass over a cache: `read` the prompts once, then `step` column by column.

    Prompts are left-padded by `padding_N`; each gets `n` rows. Batched products beat the fused attention kernel here, which
    is made for many queries at a time; it takes over for long prompts.
    """

    def __init__(self, model: Decoder, padding_N: Tensor, n: int, width: int, steps: int) -> None:
        c = self.c = model.config
        self.heads, self.groups, self.n = c.num_attention_heads, c.num_key_value_heads, n
        columns = max(width + steps, NARROW)
        self.column_T = torch.arange(columns, device=padding_N.device)
        self.padding_NT = self.column_T < padding_N[:, None]
        self.ragged = bool(padding_N.any())
        self.embed, self.head = model.embed, model.head_VD * model.norm
        self.bias_BT = self._bias((self.padding_NT | (self.column_T >= width)).repeat_interleave(n, 0))
        self.rotary = model.rotary_to(columns, model.embed.device)
        scale = model.embed.new_ones(len(model.blocks[0].qkv), 1)
        if not c.qk_norm:
            scale[: self.heads * c.head_dim] = c.head_dim**-0.5
        self.blocks = [
            _Block(
                layer.qkv * layer.norm_attention * scale,
                layer.out,
                layer.gate_up * layer.norm_mlp,
                layer.down,
                layer.norm_q * c.head_dim**-0.5 if c.qk_norm else None,
                layer.norm_k if c.qk_norm else None,
                model.embed.new_empty(2, len(padding_N) * n, self.groups, columns, c.head_dim),
            )
            for layer in model.blocks
        ]

    def read(self, ids_NP: Tensor) -> Tensor:
        """Logits [B, V] after the prompts, whose keys and values become the first columns of the cache."""
        rows, width = ids_NP.shape
        end = max(width, NARROW)
        at_P1, at_W = self.column_T[:width, None], self.column_T[:end]
        padding = self.padding_NT[:, None, :end] if self.ragged else self.padding_NT[:1, None, :end]
        # A padding query sees itself, or its softmax would be empty; nobody reads what it computes.
        bias = self._bias((at_W > at_P1) | (padding & (at_W != at_P1)))
        x = F.embedding(ids_NP, self.embed)
        for block in self.blocks:
            qkv = self._heads(block, x, 0)
            kept = block.cache_2BKTE[:, :rows, :, :end]
            kept[:, :, :, :width] = qkv[:, :, self.heads :].unflatten(2, (2, -1)).permute(2, 0, 3, 1, 4)
            kept[:, :, :, width:] = 0.0  # hidden, but what is there must be finite
            q = qkv[:, :, : self.heads]
            if block is self.blocks[-1]:  # only the last column is asked for
                x, q, bias = x[:, -1:], q[:, -1:], bias[:, -1:]
            x = self._mix(block, x, self._attend(q, kept, bias))
            if self.n > 1:
                block.cache_2BKTE[:, :, :, :end] = kept.repeat_interleave(self.n, 1)
        return self._logits(x[:, 0]).repeat_interleave(self.n, 0)

    def step(self, ids_B: Tensor, at: int) -> Tensor:
        """Logits [B, V] after one more token a row, written to column `at`."""
        self.bias_BT[:, at] = 0.0
        end = max(at + 1, NARROW)
        bias = self.bias_BT[:, None, :end] if self.ragged or end > at + 1 else None
        x = F.embedding(ids_B[:, None], self.embed)
        for block in self.blocks:
            qkv = self._heads(block, x, at)
            block.cache_2BKTE[:, :, :, at] = qkv[:, 0, self.heads :].unflatten(1, (2, -1)).transpose(0, 1)
            x = self._mix(block, x, self._attend(qkv[:, :, : self.heads], block.cache_2BKTE[:, :, :, :end], bias))
        return self._logits(x[:, 0])

    def _attend(self, q_BLHE: Tensor, cache_2BKWE: Tensor, bias_BLW: Tensor | None) -> Tensor:
        """[B, L, H·E]. Queries are scaled already."""
        rows, length, _, width = q_BLHE.shape
        q = q_BLHE.transpose(1, 2)
        if length > SHORT:
            keys, values = cache_2BKWE.unbind()
            mask = None if bias_BLW is None else bias_BLW[:, None]
            out = F.scaled_dot_product_attention(q, keys, values, mask, scale=1.0, enable_gqa=True)
        else:
            keys, values = cache_2BKWE.flatten(1, 2).unbind()
            score = torch.bmm(q.reshape(len(keys), -1, width), keys.transpose(1, 2))
            if bias_BLW is not None:
                score.view(rows, self.heads, length, -1).add_(bias_BLW[:, None])
            out = torch.bmm(score.softmax(-1), values).view(rows, self.heads, length, width)
        return out.transpose(1, 2).flatten(2)

    def _heads(self, block: _Block, x: Tensor, at: int) -> Tensor:
        """Scaled and rotated queries, rotated keys, then values, of the columns from `at` on: [B, L, H + 2K, E]."""
        c = self.c
        qkv = linear(F.rms_norm(x, (c.hidden_size,), None, c.rms_norm_eps), block.qkv).unflatten(-1, (-1, c.head_dim))
        if block.norm_q is not None:
            for part, weight in zip(
                qkv.split((self.heads, self.groups, self.groups), 2), (block.norm_q, block.norm_k), strict=False
            ):
                part.copy_(F.rms_norm(part, (c.head_dim,), weight, c.rms_norm_eps))
        turning = torch.view_as_complex(qkv[:, :, : self.heads + self.groups].unflatten(-1, (-1, 2)))
        turning.mul_(self.rotary[at : at + x.shape[1], None])
        return qkv

    def _mix(self, block: _Block, x: Tensor, attended: Tensor) -> Tensor:
        c = self.c
        x = linear(attended, block.out).add_(x)
        gate, up = linear(F.rms_norm(x, (c.hidden_size,), None, c.rms_norm_eps), block.gate_up).chunk(2, -1)
        return linear(F.silu(gate).mul_(up), block.down).add_(x)

    def _logits(self, x_BD: Tensor) -> Tensor:
        return linear(F.rms_norm(x_BD, (self.c.hidden_size,), None, self.c.rms_norm_eps), self.head)

    def keep(self, order: Tensor, columns: int) -> None:
        """Shrink to the rows named, in that order. Only those that do not stand there yet are moved."""
        to = (order != torch.arange(len(order), device=order.device)).nonzero().squeeze(-1)
        source = order[to]
        for block in self.blocks:
            block.cache_2BKTE[:, to, :, :columns] = block.cache_2BKTE[:, source, :, :columns]
            block.cache_2BKTE = block.cache_2BKTE[:, : len(order)]
        self.bias_BT[to] = self.bias_BT[source]
        self.bias_BT = self.bias_BT[: len(order)]

    def _bias(self, hidden: Tensor) -> Tensor:
        return self.embed.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
