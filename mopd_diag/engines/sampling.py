"""Batched sampling with a key/value cache for the fast decoder.

A prompt is read once however many answers it gets; finished answers leave the batch; replies of the world are fed as
forced tokens in the same loop. Prompts are left-padded so that all rows write the same column of the cache: rotary
scores depend on differences of positions only, so a row's padding shifts nothing.

Axis letters: B active rows, P prompt columns, T cache columns, D hidden, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.models.decoder import Decoder, rotate
from mopd_diag.models.linear import linear

Reply = Callable[[int, list[int]], list[int] | None]
"""What the world answers when row `i` has just sampled the turn token: ids to append, or None to let the model go on."""


@dataclass(slots=True)
class _Block:
    """One layer for inference: the norms' weights and the attention's scale folded into the matrices."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    norm_q: Tensor | None
    norm_k: Tensor | None
    keys: Tensor
    values: Tensor


class _Stepper:
    """The decoder's forward pass over a cache, without modules and without autograd."""

    def __init__(self, model: Decoder, rows: int, columns: int) -> None:
        c = self.c = model.config
        device, dtype = model.embed.device, model.embed.dtype
        shape = (rows, c.num_key_value_heads, columns, c.head_dim)
        self.embed = model.embed
        self.head = model.head_VD * model.norm
        self.rotary = model.rotary_to(columns, device)
        scale_rows = torch.ones(len(model.layers[0].qkv), 1, device=device, dtype=dtype)  # type: ignore[arg-type]
        if not c.qk_norm:
            scale_rows[: c.num_attention_heads * c.head_dim] = c.head_dim**-0.5
        self.blocks = [
            _Block(
                layer.qkv * layer.norm_attention * scale_rows,  # type: ignore[operator]
                layer.out,  # type: ignore[arg-type]
                layer.gate_up * layer.norm_mlp,  # type: ignore[operator]
                layer.down,  # type: ignore[arg-type]
                layer.norm_q * c.head_dim**-0.5 if c.qk_norm else None,  # type: ignore[operator]
                layer.norm_k if c.qk_norm else None,  # type: ignore[arg-type]
                torch.empty(shape, device=device, dtype=dtype),
                torch.empty(shape, device=device, dtype=dtype),
            )
            for layer in model.layers
        ]

    def read(self, ids_BP: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, V] after the prompts, whose keys and values become the first columns of the cache."""
        c = self.c
        rows, width = ids_BP.shape
        x = F.embedding(ids_BP, self.embed)
        causal = mask is None
        for block in self.blocks:
            q, k, v = self._heads(block, x, 0)
            block.keys[:, :, :width] = k.transpose(1, 2)
            block.values[:, :, :width] = v.transpose(1, 2)
            if block is self.blocks[-1]:  # only the last column is asked for
                x, q, causal = x[:, -1:], q[:, -1:], False
                mask = None if mask is None else mask[:, :, -1:]
            attended = F.scaled_dot_product_attention(
                q.transpose(1, 2), block.keys[:, :, :width], block.values[:, :, :width],
                attn_mask=mask, is_causal=causal, scale=1.0, enable_gqa=c.num_attention_heads != c.num_key_value_heads,
            )  # fmt: skip
            x = self._mix(block, x, attended.transpose(1, 2).flatten(2))
        return self._logits(x[:, -1])

    def step(self, ids_B: Tensor, at: int, bias_BT: Tensor | None) -> Tensor:
        """Logits [B, V] after one more token a row, written to column `at`; `bias_BT` hides the padding."""
        c = self.c
        rows, end, group = len(ids_B), at + 1, c.num_attention_heads // c.num_key_value_heads
        bias = None if bias_BT is None else bias_BT[:, None, None, :end]
        x = F.embedding(ids_B[:, None], self.embed)
        for block in self.blocks:
            q, k, v = self._heads(block, x, at)
            block.keys[:, :, at] = k[:, 0]
            block.values[:, :, at] = v[:, 0]
            # For one query a head, plain batched products beat the fused kernel, which is made for long queries.
            keys, values = (t.view(-1, t.shape[2], c.head_dim)[:, :end] for t in (block.keys, block.values))
            score = torch.bmm(q.reshape(-1, group, c.head_dim), keys.transpose(1, 2))
            if bias is not None:
                score.view(rows, -1, group, end).add_(bias)
            attended = torch.bmm(score.softmax(-1), values)
            x = self._mix(block, x, attended.view(rows, 1, -1))
        return self._logits(x[:, 0])

    def _heads(self, block: _Block, x: Tensor, at: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated and scaled queries, rotated keys, and values of the columns from `at` on: [B, L, heads, E] each."""
        c = self.c
        heads = (c.num_attention_heads, c.num_key_value_heads)
        normed = F.rms_norm(x, (c.hidden_size,), None, c.rms_norm_eps)
        qk, v = linear(normed, block.qkv).unflatten(-1, (-1, c.head_dim)).split((sum(heads), heads[1]), 2)
        if block.norm_q is not None:
            q, k = qk.split(heads, 2)
            q = F.rms_norm(q, (c.head_dim,), block.norm_q, c.rms_norm_eps)
            k = F.rms_norm(k, (c.head_dim,), block.norm_k, c.rms_norm_eps)
            qk = torch.cat((q, k), 2)
        return *rotate(qk, self.rotary[at : at + x.shape[1]]).split(heads, 2), v

    def _mix(self, block: _Block, x: Tensor, attended: Tensor) -> Tensor:
        c = self.c
        x = linear(attended, block.out).add_(x)
        gate, up = linear(F.rms_norm(x, (c.hidden_size,), None, c.rms_norm_eps), block.gate_up).chunk(2, -1)
        return linear(F.silu(gate).mul_(up), block.down).add_(x)

    def _logits(self, x_BD: Tensor) -> Tensor:
        return linear(F.rms_norm(x_BD, (self.c.hidden_size,), None, self.c.rms_norm_eps), self.head)

    def repeat(self, n: int) -> None:
        """Every row n times, side by side."""
        for block in self.blocks:
            block.keys, block.values = block.keys.repeat_interleave(n, 0), block.values.repeat_interleave(n, 0)

    def close_gaps(self, going_B: Tensor, columns: int) -> Tensor:
        """Shrink to the rows that go on: those at the end move into the gaps. Returns which row now stands where."""
        alive = int(going_B.sum())
        gaps = (~going_B[:alive]).nonzero().squeeze(-1)
        movers = going_B[alive:].nonzero().squeeze(-1) + alive
        for block in self.blocks:
            for cache in (block.keys, block.values):
                cache[gaps, :, :columns] = cache[movers, :, :columns]
            block.keys, block.values = block.keys[:alive], block.values[:alive]
        order = torch.arange(alive, device=going_B.device)
        order[gaps] = movers
        return order


def sample(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int | Sequence[int],
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    n: int = 1,
    turn_id: int | None = None,
    reply: Reply | None = None,
) -> Rollouts:
    """Sample `n` answers to each prompt; rows of one prompt stand together in the result.

    Args:
        max_new_tokens: upper bound on an answer's tokens (end-of-sequence and the world's replies included), one for all
            or one a prompt.
        temperature: 0 is greedy (log-probabilities are then those at temperature 1); otherwise logits are divided by it.
        generator: the source of randomness; required unless greedy.
        turn_id, reply: when a row samples `turn_id`, `reply(row, answer so far)` may give tokens that are appended unchosen.

    Raises ValueError for an empty prompt, a temperature below 0, or sampling without a generator.
    """
    if temperature < 0 or (temperature > 0 and generator is None):
        raise ValueError(f"temperature {temperature} needs to be 0, or positive with a generator")
    if not prompts or min(len(p) for p in prompts) == 0:
        raise ValueError("every prompt needs at least one token")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    ask = None if reply is None or turn_id is None else (reply, turn_id)
    with torch.inference_mode():
        drawn = _draw(model, prompts, limits, eos_id, pad_id, generator, temperature, n, ask)
    # Out here, so that what a caller gets are ordinary tensors, which a loss may use.
    return _right_padded(*drawn, pad_id)


def _draw(
    model: Decoder, prompts: Sequence[Sequence[int]], limits: list[int], eos_id: int, pad_id: int,
    generator: torch.Generator | None, temperature: float, n: int, ask: tuple[Reply, int] | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The left-padded prompts, their padding, and by row: tokens, log-probabilities, whether forced, count, whether finished."""
    device = model.embed.device
    width, steps = max(len(p) for p in prompts), max(limits)
    left = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    padding_N = torch.tensor([width - len(p) for p in prompts], device=device)
    limit_N = torch.tensor(limits, device=device)
    stepper = _Stepper(model, len(prompts), width + steps)
    bias_BT, prompt_mask = None, None
    if int(padding_N.max()) > 0:
        real_BT = torch.arange(width + steps, device=device) >= padding_N[:, None]
        bias_BT = torch.zeros(real_BT.shape, device=device, dtype=model.embed.dtype).masked_fill_(~real_BT, -torch.inf)
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        # A padding query sees itself, or its softmax would be empty; nobody reads what it computes.
        prompt_mask = (real_BT[:, None, :width] & causal) | torch.eye(width, dtype=torch.bool, device=device)
        prompt_mask = prompt_mask[:, None]
    logits = stepper.read(left, prompt_mask)
    if n > 1:
        stepper.repeat(n)
        left, padding_N, limit_N, logits = (t.repeat_interleave(n, 0) for t in (left, padding_N, limit_N, logits))
        bias_BT = None if bias_BT is None else bias_BT.repeat_interleave(n, 0)

    total, shortest = len(prompts) * n, min(limits)
    tokens_SN = torch.full((steps, total), pad_id, device=device)
    logp_SN = torch.zeros(steps, total, device=device)
    forced_SN = torch.zeros(steps, total, dtype=torch.bool, device=device)
    count_N = limit_N.clone()
    finished_N = torch.zeros(total, dtype=torch.bool, device=device)
    active = torch.arange(total, device=device)
    queue: dict[int, list[int]] = {}
    for s in range(steps):
        chosen, logp = _choose(logits, temperature, generator)
        own = None
        if queue:
            own = _force(queue, active, chosen, logp)
            forced_SN[s, active] = ~own
        tokens_SN[s, active] = chosen
        logp_SN[s, active] = logp
        if ask is not None:
            _ask_world(*ask, chosen, own, active, tokens_SN[: s + 1], queue)
        ended = chosen == eos_id
        if own is not None:
            ended &= own
        going = ~ended
        if s + 1 >= shortest:
            going &= limit_N[active] > s + 1
        if not going.all():
            done = active[ended]
            finished_N[done] = True
            count_N[done] = s + 1
            order = stepper.close_gaps(going, width + s)
            if len(order) == 0:
                break
            active, chosen = active[order], chosen[order]
            bias_BT = None if bias_BT is None else bias_BT[order]
        logits = stepper.step(chosen, width + s, bias_BT)
    return left, padding_N, tokens_SN.t(), logp_SN.t(), forced_SN.t(), count_N, finished_N


def _choose(logits_BV: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Token ids and their log-probabilities; sampling inverts the cumulative distribution at one uniform draw a row."""
    scaled = logits_BV if temperature in (0.0, 1.0) else logits_BV / temperature
    logp_BV = torch.log_softmax(scaled, -1)
    if temperature == 0:
        chosen = logits_BV.argmax(-1)
    else:
        # Float64 keeps the far tail in reach: an fp32 sum loses what is below 6e-8 of the total.
        mass_BV = logp_BV.exp().cumsum(-1, dtype=torch.float64)
        draw = torch.rand(len(mass_BV), 1, dtype=torch.float64, generator=generator, device=mass_BV.device)
        place = torch.searchsorted(mass_BV, draw.mul_(mass_BV[:, -1:]), right=True)
        chosen = place.squeeze(1).clamp_(max=mass_BV.shape[1] - 1)
    return chosen, logp_BV.gather(1, chosen[:, None]).squeeze(1)


def _force(queue: dict[int, list[int]], active: Tensor, chosen: Tensor, logp: Tensor) -> Tensor:
    """Put the world's pending tokens in place of the sampled ones; returns which rows chose for themselves."""
    own = torch.ones(len(active), dtype=torch.bool, device=active.device)
    for place, row in enumerate(active.tolist()):
        if row in queue:
            chosen[place] = queue[row].pop(0)
            logp[place] = 0.0
            own[place] = False
            if not queue[row]:
                del queue[row]
    return own


def _ask_world(
    reply: Reply, turn_id: int, chosen: Tensor, own: Tensor | None, active: Tensor, tokens_SN: Tensor, queue: dict[int, list[int]]
) -> None:  # fmt: skip
    turned = chosen == turn_id
    if own is not None:
        turned &= own
    for row in active[turned].tolist():
        answer = reply(row, tokens_SN[:, row].tolist())
        if answer:
            queue[row] = list(answer)


def _right_padded(
    left: Tensor, padding_N: Tensor, tokens_NS: Tensor, logp_NS: Tensor, forced_NS: Tensor, count_N: Tensor,
    finished_N: Tensor, pad_id: int,
) -> Rollouts:  # fmt: skip
    width, steps = left.shape[1], tokens_NS.shape[1]
    prompt_N = width - padding_N
    length_N = prompt_N + count_N
    columns = torch.arange(int(length_N.max()), device=left.device)
    source = (columns + padding_N[:, None]).clamp_(max=width + steps - 1)
    inside = columns < length_N[:, None]
    answer = inside & (columns >= prompt_N[:, None])

    def shift(prompt_part: Tensor, answer_part: Tensor) -> Tensor:
        return torch.cat((prompt_part, answer_part), 1).gather(1, source)

    ids = shift(left, tokens_NS).masked_fill_(~inside, pad_id)
    own = ~shift(torch.zeros_like(left, dtype=torch.bool), forced_NS) & answer
    logp = shift(torch.zeros(left.shape, device=left.device), logp_NS).masked_fill_(~answer, 0.0)
    return Rollouts(ids, prompt_N, length_N, own, logp, finished_N.clone())
