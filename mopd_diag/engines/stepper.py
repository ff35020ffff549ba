"""One decoder read column by column: the forward pass over a key/value cache, without modules and without autograd.

Prompts are left-padded so that all rows write the same column of the cache: rotary scores depend on differences of positions
only, so a row's padding shifts nothing.

Axis letters: B rows, P prompt columns, T cache columns, L columns of one call, D hidden, H query heads, K key/value heads,
E head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.models.decoder import Decoder
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
    """The decoder's forward pass over a cache: `read` the prompts once, then `step` column by column."""

    def __init__(self, model: Decoder, rows: int, columns: int) -> None:
        c = self.c = model.config
        self.heads, self.groups = c.num_attention_heads, c.num_key_value_heads
        self.embed, self.head = model.embed, model.head_VD * model.norm
        self.rotary = model.rotary_to(columns, model.embed.device)
        self.bias_BT: Tensor | None = None
        scale = model.embed.new_ones(len(model.layers[0].qkv), 1)  # type: ignore[arg-type]
        if not c.qk_norm:
            scale[: self.heads * c.head_dim] = c.head_dim**-0.5
        self.blocks = [
            _Block(
                layer.qkv * layer.norm_attention * scale,  # type: ignore[operator]
                layer.out,  # type: ignore[arg-type]
                layer.gate_up * layer.norm_mlp,  # type: ignore[operator]
                layer.down,  # type: ignore[arg-type]
                layer.norm_q * c.head_dim**-0.5 if c.qk_norm else None,  # type: ignore[operator]
                layer.norm_k if c.qk_norm else None,  # type: ignore[arg-type]
                model.embed.new_empty(2, rows, self.groups, columns, c.head_dim),
            )
            for layer in model.layers
        ]

    def read(self, ids_BP: Tensor, mask_BPP: Tensor | None) -> Tensor:
        """Logits [B, V] after the prompts, whose keys and values become the first columns of the cache."""
        rows, width = ids_BP.shape
        x = F.embedding(ids_BP, self.embed)
        mask, causal = None if mask_BPP is None else mask_BPP[:, None], mask_BPP is None
        for block in self.blocks:
            qkv = self._heads(block, x, 0)
            kept = block.cache_2BKTE[:, :rows, :, :width]
            kept.copy_(qkv[:, :, self.heads :].unflatten(2, (2, -1)).permute(2, 0, 3, 1, 4))
            q = qkv[:, :, : self.heads].transpose(1, 2)
            if block is self.blocks[-1]:  # only the last column is asked for
                x, q, mask, causal = x[:, -1:], q[:, :, -1:], None if mask is None else mask[:, :, -1:], False
            attended = F.scaled_dot_product_attention(
                q, kept[0], kept[1], mask, is_causal=causal, scale=1.0, enable_gqa=self.heads != self.groups
            )
            x = self._mix(block, x, attended.transpose(1, 2).flatten(2))
        return self._logits(x[:, 0])

    def hide(self, padding_BT: Tensor) -> None:
        """Columns of the cache that no step may look at."""
        self.bias_BT = self.embed.new_zeros(padding_BT.shape).masked_fill_(padding_BT, -torch.inf)

    def step(self, ids_B: Tensor, at: int) -> Tensor:
        """Logits [B, V] after one more token a row, written to column `at`."""
        rows, end = len(ids_B), at + 1
        bias = None if self.bias_BT is None else self.bias_BT[:, None, None, :end]
        x = F.embedding(ids_B[:, None], self.embed)
        for block in self.blocks:
            qkv = self._heads(block, x, at)[:, 0]
            block.cache_2BKTE[:, :, :, at] = qkv[:, self.heads :].unflatten(1, (2, -1)).transpose(0, 1)
            keys, values = block.cache_2BKTE.flatten(1, 2)[:, :, :end].unbind()
            # For one query a head, plain batched products beat the fused kernel, which is made for many.
            score = torch.bmm(qkv[:, : self.heads].reshape(len(keys), -1, self.c.head_dim), keys.transpose(1, 2))
            if bias is not None:
                score.view(rows, self.groups, -1, end).add_(bias)
            x = self._mix(block, x, torch.bmm(score.softmax(-1), values).view(rows, 1, -1))
        return self._logits(x[:, 0])

    def _heads(self, block: _Block, x: Tensor, at: int) -> Tensor:
        """Scaled and rotated queries, rotated keys, then values, of the columns from `at` on: [B, L, H + 2K, E]."""
        c = self.c
        qkv = linear(F.rms_norm(x, (c.hidden_size,), None, c.rms_norm_eps), block.qkv).unflatten(-1, (-1, c.head_dim))
        if block.norm_q is not None:
            for part, weight in zip(qkv.split((self.heads, self.groups, self.groups), 2), (block.norm_q, block.norm_k), strict=False):
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

    def repeat(self, rows: int, n: int, width: int) -> None:
        """Every row of the prompts n times, side by side."""
        for block in self.blocks:
            read = block.cache_2BKTE[:, :rows, :, :width]
            block.cache_2BKTE[:, : rows * n, :, :width] = read.repeat_interleave(n, 1)

    def keep(self, order: Tensor, columns: int) -> None:
        """Shrink to the rows named, in that order. Only those that do not stand there yet are moved."""
        to = (order != torch.arange(len(order), device=order.device)).nonzero().squeeze(-1)
        source = order[to]
        for block in self.blocks:
            block.cache_2BKTE[:, to, :, :columns] = block.cache_2BKTE[:, source, :, :columns]
            block.cache_2BKTE = block.cache_2BKTE[:, : len(order)]
        if self.bias_BT is not None:
            self.bias_BT[to] = self.bias_BT[source]
            self.bias_BT = self.bias_BT[: len(order)]
