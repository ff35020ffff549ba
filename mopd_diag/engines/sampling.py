"""Batched sampling with a key/value cache for the fast decoder.

A prompt is read once however many answers it gets; finished answers leave the batch; replies of the world are fed as
forced tokens in the same loop.

Axis letters: N answers, S steps, B active rows, T cache columns, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mopd_diag.engines.rollouts import Rollouts, join
from mopd_diag.engines.stepper import Stepper
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.device import room

Reply = Callable[[int, list[int]], list[int] | None]
"""What the world answers when row `i` has just sampled the turn token: ids to append, or None to let the model go on."""


CACHE_BYTES = 10 << 20
"""Keys and values held at once on a CPU: more would no longer stay near the processor, so more rows take turns."""

TURN_BYTES = 2 << 30
"""Keys, values and next-token tables held at once for larger models."""


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
    turn_id: int | Sequence[int] | None = None,
    reply: Reply | None = None,
) -> Rollouts:
    """Sample `n` answers to each prompt on the model's device; rows of one prompt stand together in the result, on the CPU.

    Args:
        max_new_tokens: upper bound on an answer's tokens (end-of-sequence and the world's replies included), one for all
            or one a prompt.
        temperature: 0 is greedy (log-probabilities are then those at temperature 1); otherwise logits are divided by it.
        generator: the source of randomness, of any device; required unless greedy. One of the CPU draws alike for all devices.
        turn_id, reply: when a row samples `turn_id` (or one of several), `reply(row, answer so far)` may give tokens that are
            appended unchosen.

    Raises ValueError for an empty prompt, a temperature below 0, or sampling without a generator.
    """
    if temperature < 0 or (temperature > 0 and generator is None):
        raise ValueError(f"temperature {temperature} needs to be 0, or positive with a generator")
    if not prompts or min(len(p) for p in prompts) == 0:
        raise ValueError("every prompt needs at least one token")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    turns = (turn_id,) if isinstance(turn_id, int) else tuple(turn_id or ())
    at_once = _at_once(model, len(prompts), n, max(map(len, prompts)) + max(limits))
    parts = []
    for first in range(0, len(prompts), at_once):
        some = slice(first, first + at_once)
        ask = None if reply is None or not turns else _Ask(reply, turns, first * n)
        with torch.inference_mode():
            drawn = _draw(model, prompts[some], limits[some], eos_id, pad_id, generator, temperature, n, ask)
        # Out here, so that what a caller gets are ordinary tensors, which a loss may use.
        parts.append(_right_padded(drawn, pad_id))
    return join(parts, pad_id)


def _at_once(model: Decoder, prompts: int, n: int, columns: int) -> int:
    """How many prompts to answer at once, so that all turns are about as large."""
    c = model.config
    size = model.embed.element_size()
    row = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * columns * size
    weights = size * sum(p.numel() for p in model.parameters())
    at_once = CACHE_BYTES
    if model.embed.device.type != "cpu" or weights > CACHE_BYTES:
        # Weights that do not fit there are read anew each turn: few turns are best. A draw holds three tables over the vocabulary.
        at_once, row = TURN_BYTES * room(model.device), row + 16 * c.vocab_size
    turns = math.ceil(prompts * n * row / at_once)
    return math.ceil(prompts / turns)


@dataclass(frozen=True, slots=True)
class _Ask:
    """Whom to ask when a row has sampled a turn token; the caller counts rows from `first_row` on."""

    reply: Reply
    turn_ids: tuple[int, ...]
    first_row: int


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Prompts still padded on the left, answers beside them."""

    left_NP: Tensor
    padding_N: Tensor
    tokens_NS: Tensor
    logp_NS: Tensor
    forced_NS: Tensor
    count_N: Tensor
    finished_N: Tensor


def _draw(
    model: Decoder, prompts: Sequence[Sequence[int]], limits: list[int], eos_id: int, pad_id: int,
    generator: torch.Generator | None, temperature: float, n: int, ask: _Ask | None,
) -> _Drawn:  # fmt: skip
    device = model.embed.device
    width, steps = max(len(p) for p in prompts), max(limits)
    left = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    padding_N = torch.tensor([width - len(p) for p in prompts], device=device)
    limit_N = torch.tensor(limits, device=device)
    total = len(prompts) * n
    stepper = Stepper(model, padding_N, n, width, steps)
    logits = stepper.read(left)
    left, padding_N, limit_N = (t.repeat_interleave(n, 0) for t in (left, padding_N, limit_N))

    shortest = min(limits)
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
        if len(active) == total:
            tokens_SN[s], logp_SN[s] = chosen, logp
        else:
            tokens_SN[s, active], logp_SN[s, active] = chosen, logp
        if ask is not None:
            _ask_world(ask, chosen, own, active, tokens_SN[: s + 1], queue)
        ended = chosen == eos_id
        if own is not None:
            ended &= own
        going = ~ended
        if s + 1 >= shortest:
            going &= limit_N[active] > s + 1
        if not going.all():
            for row in active[~going].tolist() if queue else ():
                queue.pop(row, None)
            done = active[ended]
            finished_N[done] = True
            count_N[done] = s + 1
            order = _close_gaps(going)
            if len(order) == 0:
                break
            stepper.keep(order, width + s)
            active, chosen = active[order], chosen[order]
        logits = stepper.step(chosen, width + s)
    return _Drawn(left, padding_N, tokens_SN.t(), logp_SN.t(), forced_SN.t(), count_N, finished_N)


def _close_gaps(going_B: Tensor) -> Tensor:
    """The rows that go on, those from the end put into the gaps, so that the others stay where they are."""
    alive = int(going_B.sum())
    order = torch.arange(alive, device=going_B.device)
    order[~going_B[:alive]] = going_B[alive:].nonzero().squeeze(-1) + alive
    return order


def _choose(logits_BV: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Token ids and their log-probabilities; sampling inverts the cumulative distribution at one uniform draw a row."""
    if temperature == 0:
        chosen = logits_BV.argmax(-1, keepdim=True)
        return chosen.squeeze(1), torch.log_softmax(logits_BV, -1).gather(1, chosen).squeeze(1)
    p_BV = torch.softmax(logits_BV if temperature == 1 else logits_BV / temperature, -1)
    # Float64 keeps the far tail in reach: an fp32 sum loses what is below 6e-8 of the total.
    mass_BV = p_BV.cumsum(-1, dtype=torch.float64)
    where = mass_BV.device if generator is None else generator.device
    draw = torch.rand(len(mass_BV), 1, dtype=torch.float64, generator=generator, device=where).to(mass_BV.device)
    chosen = torch.searchsorted(mass_BV, draw.mul_(mass_BV[:, -1:]), right=True).clamp_(max=mass_BV.shape[1] - 1)
    return chosen.squeeze(1), p_BV.gather(1, chosen).log_().squeeze(1)


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
    ask: _Ask, chosen: Tensor, own: Tensor | None, active: Tensor, tokens_SN: Tensor, queue: dict[int, list[int]]
) -> None:
    turned = chosen == ask.turn_ids[0]
    for other in ask.turn_ids[1:]:
        turned |= chosen == other
    if own is not None:
        turned &= own
    for row in active[turned].tolist():
        answer = ask.reply(ask.first_row + row, tokens_SN[:, row].tolist())
        if answer:
            queue[row] = list(answer)


def _right_padded(drawn: _Drawn, pad_id: int) -> Rollouts:
    left, padding_N = drawn.left_NP, drawn.padding_N
    width, steps = left.shape[1], drawn.tokens_NS.shape[1]
    prompt_N = width - padding_N
    length_N = prompt_N + drawn.count_N
    columns = torch.arange(int(length_N.max()), device=left.device)
    source = (columns + padding_N[:, None]).clamp_(max=width + steps - 1)
    inside = columns < length_N[:, None]
    answer = inside & (columns >= prompt_N[:, None])

    def shift(prompt_part: Tensor, answer_part: Tensor) -> Tensor:
        return torch.cat((prompt_part, answer_part), 1).gather(1, source)

    ids = shift(left, drawn.tokens_NS).masked_fill_(~inside, pad_id)
    own = ~shift(torch.zeros_like(left, dtype=torch.bool), drawn.forced_NS) & answer
    logp = shift(torch.zeros(left.shape, device=left.device), drawn.logp_NS).masked_fill_(~answer, 0.0)
    # What reads answers asks for single numbers, which a GPU gives one slow transfer each.
    return Rollouts(*(t.cpu() for t in (ids, prompt_N, length_N, own, logp, drawn.finished_N.clone())))
