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
from mopd_diag.models.decoder import Decoder, DecoderConfig, rotate

Reply = Callable[[int, list[int]], list[int] | None]
"""What the world answers when row `i` has just sampled the turn token: ids to append, or None to let the model go on."""


@dataclass(slots=True)
class _Block:
    """One layer for inference: the norms' weights folded into the matrices, which are laid out for x @ W."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    keys: Tensor
    values: Tensor


class _Stepper:
    """The decoder's forward pass over a cache, without modules and without autograd."""

    def __init__(self, model: Decoder, rows: int, columns: int) -> None:
        c = self.c = model.config
        device, dtype = model.embed.device, model.embed.dtype
        shape = (rows, c.num_key_value_heads, columns, c.head_dim)
        self.embed = model.embed
        self.head = (model.head_VD * model.norm).t().contiguous()
        self.rotary = model.rotary_to(columns, device)
        self.norms = [(layer.norm_q, layer.norm_k) if c.qk_norm else None for layer in model.layers]
        self.blocks = [
            _Block(
                (layer.qkv * layer.norm_attention).t().contiguous(),  # type: ignore[operator]
                layer.out.t().contiguous(),  # type: ignore[operator]
                (layer.gate_up * layer.norm_mlp).t().contiguous(),  # type: ignore[operator]
                layer.down.t().contiguous(),  # type: ignore[operator]
                torch.empty(shape, device=device, dtype=dtype),
                torch.empty(shape, device=device, dtype=dtype),
            )
            for layer in model.layers
        ]

    def run(self, ids_BT: Tensor, at: int, mask: Tensor | None, *, causal: bool) -> Tensor:
        """Logits [B, V] after the last of the given columns, which are written to the cache from column `at` on."""
        c = self.c
        rows, width = ids_BT.shape
        end = at + width
        angles = self.rotary[at:end]
        q_heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        grouped = q_heads != kv_heads
        x = F.embedding(ids_BT, self.embed).flatten(0, 1)
        for block, norms in zip(self.blocks, self.norms, strict=True):
            qkv = torch.mm(F.rms_norm(x, (c.hidden_size,), None, c.rms_norm_eps), block.qkv)
            qkv = qkv.view(rows, width, q_heads + 2 * kv_heads, c.head_dim)
            qk = qkv[:, :, : q_heads + kv_heads]
            if norms is not None:
                q = F.rms_norm(qk[:, :, :q_heads], (c.head_dim,), norms[0], c.rms_norm_eps)
                k = F.rms_norm(qk[:, :, q_heads:], (c.head_dim,), norms[1], c.rms_norm_eps)
                qk = torch.cat((q, k), 2)
            qk = rotate(qk, angles)
            block.keys[:, :, at:end] = qk[:, :, q_heads:].transpose(1, 2)
            block.values[:, :, at:end] = qkv[:, :, q_heads + kv_heads :].transpose(1, 2)
            attended = F.scaled_dot_product_attention(
                qk[:, :, :q_heads].transpose(1, 2), block.keys[:, :, :end], block.values[:, :, :end],
                attn_mask=mask, is_causal=causal, enable_gqa=grouped,
            )  # fmt: skip
            x = torch.addmm(x, attended.transpose(1, 2).reshape(rows * width, -1), block.out)
            gate, up = torch.mm(F.rms_norm(x, (c.hidden_size,), None, c.rms_norm_eps), block.gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), block.down)
        last = x.view(rows, width, -1)[:, -1]
        return torch.mm(F.rms_norm(last, (c.hidden_size,), None, c.rms_norm_eps), self.head)

    def keep(self, rows: Tensor) -> None:
        """Reorder or repeat the cache's rows."""
        for block in self.blocks:
            block.keys = block.keys.index_select(0, rows)
            block.values = block.values.index_select(0, rows)


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
    device = model.embed.device
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    width, steps = max(len(p) for p in prompts), max(limits)
    left = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    padding_N = torch.tensor([width - len(p) for p in prompts], device=device)
    limit_N = torch.tensor(limits, device=device)
    stepper = _Stepper(model, len(prompts), width + steps)
    mask_BT: Tensor | None = None
    if int(padding_N.max()) > 0:
        mask_BT = torch.arange(width + steps, device=device) >= padding_N[:, None]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        # A padding query sees itself, or its softmax would be empty; nobody reads what it computes.
        prompt_mask = (mask_BT[:, None, :width] & causal) | torch.eye(width, dtype=torch.bool, device=device)
        logits = stepper.run(left, 0, prompt_mask[:, None], causal=False)
    else:
        logits = stepper.run(left, 0, None, causal=True)
    if n > 1:
        repeat = torch.arange(len(prompts), device=device).repeat_interleave(n)
        stepper.keep(repeat)
        logits, padding_N, limit_N = logits[repeat], padding_N[repeat], limit_N[repeat]
        left = left[repeat]
        mask_BT = None if mask_BT is None else mask_BT[repeat]
    if mask_BT is not None:
        mask_BT = torch.zeros(mask_BT.shape, device=device, dtype=model.embed.dtype).masked_fill_(~mask_BT, -torch.inf)

    total = len(prompts) * n
    tokens_NS = torch.full((total, steps), pad_id, device=device)
    logp_NS = torch.zeros(total, steps, device=device)
    own_NS = torch.zeros(total, steps, dtype=torch.bool, device=device)
    count_N = limit_N.clone()
    finished_N = torch.zeros(total, dtype=torch.bool, device=device)
    active = torch.arange(total, device=device)
    queue: dict[int, list[int]] = {}
    for s in range(steps):
        chosen, logp = _choose(logits, temperature, generator)
        own = None
        if queue:
            own = _force(queue, active, chosen, logp)
        tokens_NS[active, s] = chosen
        logp_NS[active, s] = logp
        own_NS[active, s] = True if own is None else own
        if reply is not None and turn_id is not None:
            _ask_world(reply, turn_id, chosen, own, active, tokens_NS, s, queue)
        ended = chosen == eos_id
        if own is not None:
            ended &= own
        going = ~ended & (limit_N[active] > s + 1)
        alive = int(going.sum())
        if alive < len(going):
            done = active[ended]
            finished_N[done] = True
            count_N[done] = s + 1
            if alive == 0:
                break
            rows = going.nonzero().squeeze(-1)
            active, chosen = active[rows], chosen[rows]
            stepper.keep(rows)
            mask_BT = None if mask_BT is None else mask_BT[rows]
        if s + 1 < steps:
            step_mask = None if mask_BT is None else mask_BT[:, None, None, : width + s + 1]
            logits = stepper.run(chosen[:, None], width + s, step_mask, causal=False)
    return _right_padded(left, padding_N, width, tokens_NS, logp_NS, own_NS, count_N, finished_N, pad_id)


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
        chosen = (mass_BV <= draw * mass_BV[:, -1:]).sum(-1).clamp_(max=mass_BV.shape[1] - 1)
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
    reply: Reply, turn_id: int, chosen: Tensor, own: Tensor | None, active: Tensor, tokens_NS: Tensor, s: int, queue: dict[int, list[int]]
) -> None:  # fmt: skip
    turned = chosen == turn_id
    if own is not None:
        turned &= own
    for row in active[turned].tolist():
        answer = reply(row, tokens_NS[row, : s + 1].tolist())
        if answer:
            queue[row] = list(answer)


def _right_padded(
    left: Tensor, padding_N: Tensor, width: int, tokens_NS: Tensor, logp_NS: Tensor, own_NS: Tensor, count_N: Tensor, finished_N: Tensor, pad_id: int
) -> Rollouts:  # fmt: skip
    prompt_N = width - padding_N
    length_N = prompt_N + count_N
    columns = torch.arange(int(length_N.max()), device=left.device)
    source = (columns + padding_N[:, None]).clamp_(max=width + tokens_NS.shape[1] - 1)
    inside = columns < length_N[:, None]

    def shift(prompt_part: Tensor, answer_part: Tensor, fill: float | bool) -> Tensor:
        return torch.cat((prompt_part, answer_part), 1).gather(1, source).masked_fill(~inside, fill)

    return Rollouts(
        shift(left, tokens_NS, pad_id), prompt_N, length_N,
        shift(torch.zeros_like(left, dtype=torch.bool), own_NS, False),
        shift(torch.zeros(left.shape, device=left.device), logp_NS, 0.0), finished_N,
    )  # fmt: skip
