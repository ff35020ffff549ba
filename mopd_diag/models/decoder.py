"""A small, fast Llama/Qwen3 decoder: the harness trains it, samples from it and scores under it.

It computes what `transformers` computes for the same checkpoint (a test holds them together), with less work a step:
fused projections, rotary embedding as one complex product, right-padded batches that need no mask, and a head that is
applied only to the positions that are asked for.

Axis letters: N sequences, L positions, D hidden, H query heads, K key/value heads, E head width, F feed-forward,
V vocabulary, M selected positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mopd_diag.models.linear import QUANTUM, linear

SHORT = 64
"""Up to this length plain batched products beat the fused attention kernel, forward and backward."""

NARROW = 16
"""Softmax over fewer keys than a vector register holds is up to ten times slower than over this many: shorter is padded."""


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The sizes of a decoder; field names follow the Hugging Face configuration."""

    vocab_size: int
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    intermediate_size: int = 168
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 128
    tie_word_embeddings: bool = True
    qk_norm: bool = False
    """True for Qwen3, False for Llama."""

    def forward_flops(self, tokens: int, context: float, heads: int) -> int:
        """FLOPs of `Decoder.hidden_at` with the head: 2 per parameter and position, 4·H·E per key read.

        The head, and what follows the attention in the last block, run on `heads` positions only.
        """
        into = self.hidden_size * self.head_dim * (self.num_attention_heads + 2 * self.num_key_value_heads)
        after = self.hidden_size * (self.head_dim * self.num_attention_heads + 3 * self.intermediate_size)
        everywhere = self.num_hidden_layers * (into + after) - after
        attention = 4 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * context
        return int(tokens * (2 * everywhere + attention) + heads * 2 * (after + self.hidden_size * self.vocab_size))


def rotary(length: int, width: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Unit complex numbers of shape [length, width/2]: position × frequency angles of RoPE (2104.09864)."""
    frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    angle = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def interleave(rows: Tensor, width: int) -> Tensor:
    """Reorder each head's rows from Hugging Face's half-split rotary layout to neighbouring pairs.

    Scores q·k do not change when q and k are permuted alike; pairs allow the rotation to be one complex product.
    """
    heads = rows.shape[0] // width
    return rows.reshape(heads, 2, width // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def half_split(rows: Tensor, width: int) -> Tensor:
    """The inverse of `interleave`."""
    heads = rows.shape[0] // width
    return rows.reshape(heads, width // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def rotate(x_NLHE: Tensor, rotary_LE: Tensor) -> Tensor:
    """RoPE on neighbouring pairs. `rotary_LE` is complex [L, E/2]."""
    x = torch.view_as_complex(x_NLHE.float().unflatten(-1, (-1, 2)))  # complex numbers exist in fp32 only
    return torch.view_as_real(x * rotary_LE[:, None, :]).flatten(-2).to(x_NLHE.dtype)


def attend(q_NHLE: Tensor, k_NKLE: Tensor, v_NKLE: Tensor) -> Tensor:
    """Causal attention, [N, L, H·E]."""
    n, heads, length, width = q_NHLE.shape
    groups = k_NKLE.shape[1]
    if length > SHORT:
        out = F.scaled_dot_product_attention(q_NHLE, k_NKLE, v_NKLE, is_causal=True, enable_gqa=heads != groups)
    else:
        keys = max(length, NARROW)
        future = torch.full((length, keys), -torch.inf, dtype=q_NHLE.dtype, device=q_NHLE.device).triu_(1)
        bias = future.repeat(heads // groups, 1).expand(n * groups, -1, -1)
        q, k, v = (t.reshape(n * groups, -1, width) for t in (q_NHLE, k_NKLE, v_NKLE))
        if keys > length:
            k, v = (F.pad(t, (0, 0, 0, keys - length)) for t in (k, v))
        score = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=width**-0.5)
        out = torch.bmm(score.softmax(-1), v).view(n, heads, length, width)
    return out.transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """One pre-norm block with fused query/key/value and gate/up projections."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        heads = c.num_attention_heads + 2 * c.num_key_value_heads
        self.c = c
        self.norm_attention = nn.Parameter(torch.ones(c.hidden_size))
        self.qkv = nn.Parameter(torch.empty(heads * c.head_dim, c.hidden_size))
        self.out = nn.Parameter(torch.empty(c.hidden_size, c.num_attention_heads * c.head_dim))
        self.norm_mlp = nn.Parameter(torch.ones(c.hidden_size))
        self.gate_up = nn.Parameter(torch.empty(2 * c.intermediate_size, c.hidden_size))
        self.down = nn.Parameter(torch.empty(c.hidden_size, c.intermediate_size))
        if c.qk_norm:
            self.norm_q = nn.Parameter(torch.ones(c.head_dim))
            self.norm_k = nn.Parameter(torch.ones(c.head_dim))

    def heads(self, x: Tensor, rotary_LE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [N, H, L, E], rotated keys and values [N, K, L, E]."""
        c = self.c
        heads = (c.num_attention_heads, c.num_key_value_heads)
        normed = F.rms_norm(x, (c.hidden_size,), self.norm_attention, c.rms_norm_eps)
        qk, v = linear(normed, self.qkv).unflatten(-1, (-1, c.head_dim)).split((sum(heads), heads[1]), -2)
        if c.qk_norm:
            q, k = qk.split(heads, -2)
            q = F.rms_norm(q, (c.head_dim,), self.norm_q, c.rms_norm_eps)
            k = F.rms_norm(k, (c.head_dim,), self.norm_k, c.rms_norm_eps)
            qk = torch.cat((q, k), -2)
        q, k = rotate(qk, rotary_LE).split(heads, -2)
        return q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)

    def pass_on(self, x_NLD: Tensor, rotary_LE: Tensor, chosen_M: Tensor | None) -> Tensor:
        """The whole block; with `chosen_M` only these flat positions pass the feed-forward, [M, D]."""
        attended = attend(*self.heads(x_NLD, rotary_LE))
        if chosen_M is not None:
            x_NLD, attended = (t.flatten(0, 1).index_select(0, chosen_M) for t in (x_NLD, attended))
        return self.mix(x_NLD, attended)

    def mix(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual stream [..., D] after the attention output [..., H·E] and the gated feed-forward."""
        c = self.c
        x = x + linear(attended, self.out)
        gate, up = linear(F.rms_norm(x, (c.hidden_size,), self.norm_mlp, c.rms_norm_eps), self.gate_up).chunk(2, -1)
        return x + linear(F.silu(gate) * up, self.down)


class Decoder(nn.Module):
    """Llama or Qwen3 in fp32 (or what it is cast to), without dropout and without a mask on right-padded batches."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.head = None if config.tie_word_embeddings else nn.Parameter(torch.empty_like(self.embed))
        self.recompute = False
        """Gradient checkpointing (1604.06174): a backward pass computes each block again instead of keeping what it held."""
        # A plain attribute, not a buffer: casting the module to bf16 must not touch the angles.
        self.rotary_PE = rotary(config.max_position_embeddings, config.head_dim, config.rope_theta)

    @classmethod
    def fresh(cls, config: DecoderConfig, generator: torch.Generator, std: float = 0.08) -> Decoder:
        """A newly initialised model: every matrix normal with deviation `std`, norms at one.

        At this size smaller deviations learn to copy late or never (docs/LOG.md).
        """
        model = cls(config)
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() > 1:
                    p.normal_(0.0, std, generator=generator)
        return model

    @property
    def blocks(self) -> list[Layer]:
        """The layers, with their type."""
        return cast(list[Layer], list(self.layers))

    @property
    def device(self) -> torch.device:
        """Where the weights lie; ids must be there too."""
        return self.embed.device

    @property
    def head_VD(self) -> Tensor:
        return self.embed if self.head is None else self.head

    def rotary_to(self, length: int, device: torch.device) -> Tensor:
        """Rotary angles of the first `length` positions; grows the table when a longer text arrives."""
        if length > self.rotary_PE.shape[0] or self.rotary_PE.device != device:
            size = max(length, self.rotary_PE.shape[0])
            with torch.inference_mode(False):  # the sampler may be the one that asks; training reads the same table
                self.rotary_PE = rotary(size, self.config.head_dim, self.config.rope_theta, device)
        return self.rotary_PE[:length]

    def hidden(self, ids_NL: Tensor) -> Tensor:
        """Last hidden states after the final norm, [N, L, D]; the batch is right-padded, so causality hides the padding."""
        every = torch.arange(ids_NL.numel(), device=ids_NL.device)
        return self.hidden_at(ids_NL, every).view(*ids_NL.shape, -1)

    def hidden_at(self, ids_NL: Tensor, at_M: Tensor) -> Tensor:
        """`hidden` at the flat positions `at_M` only, [M, D]: no other position passes the last feed-forward."""
        c = self.config
        x = F.embedding(ids_NL, self.embed)
        angles = self.rotary_to(ids_NL.shape[1], ids_NL.device)
        chosen = F.pad(at_M, (0, -len(at_M) % QUANTUM)) if len(at_M) < ids_NL.numel() else None
        for number, layer in enumerate(self.blocks, 1):
            last = chosen if number == c.num_hidden_layers else None
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer.pass_on, x, angles, last, use_reentrant=False)
            else:
                x = layer.pass_on(x, angles, last)
        return F.rms_norm(x.view(-1, c.hidden_size)[: len(at_M)], (c.hidden_size,), self.norm, c.rms_norm_eps)

    def forward(self, ids_NL: Tensor) -> Tensor:
        """Logits at every position, [N, L, V]: only for short vocabularies and tests; elsewhere use `hidden`."""
        return F.linear(self.hidden(ids_NL), self.head_VD)
