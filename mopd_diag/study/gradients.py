"""Gradients of a checkpoint on every domain, module by module: what each domain asks of the same weights.

A module is what one head asks of its queries, keys, values or output, one matrix of a feed-forward, a norm, the embedding. Of large
models only some numbers of each module are kept, drawn once: cosines are estimated from them.

Axis letters: N answers, L positions, D domains, B batches, P parameters of a module that are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.estimators.draws import Floats
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.training.algorithm import Work, make_parts, microbatch_tokens, token_losses, training_flops
from mopd_diag.training.reading import over_own, part_logp
from mopd_diag.training.sft import sft_loss
from mopd_diag.types import Item
from mopd_diag.worlds.world import World

BATCHES, ITEMS = 4, 64
FLOPS = 2e13
"""What all gradients of a run may take, about: minutes on two cores."""
KEPT_BYTES = 256 << 20
"""What the gradients of all domains and batches together may take: more parameters than that are sampled."""
LEAST = 2048
"""Numbers of a module that are always kept: small modules are kept whole."""

Objective = Literal["likelihood", "accuracy"]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A module as part of a parameter: some rows and columns of a matrix, and which of these numbers are kept (None: all)."""

    parameter: str
    rows: slice
    columns: slice
    kept: np.ndarray | None = None

    def of(self, tables: Mapping[str, torch.Tensor]) -> Floats:
        """Its numbers in a table of the parameter's shape, flat, in fp32."""
        table = tables[self.parameter]
        part = table[self.rows, self.columns] if table.dim() > 1 else table[self.rows]
        flat = part.flatten().float().cpu().numpy()
        return flat.copy() if self.kept is None else flat[self.kept]


Pieces = dict[str, Piece]
"""Module → where it is."""


def pieces(model: Decoder, vectors: int, *, kept_bytes: int = KEPT_BYTES, seed: int = 0) -> Pieces:
    """The modules of a decoder: queries, keys, values and output of each head, gate, up and down, norms, embedding.

    `vectors` flat vectors of what is kept fit in `kept_bytes`; of each module the same share is kept.
    """
    tables = {name: p.detach() for name, p in model.named_parameters()}
    share = min(1.0, kept_bytes / (4 * vectors * sum(t.numel() for t in tables.values())))
    found: Pieces = {}
    for name, table in tables.items():
        for number, (label, piece) in enumerate(_cut(name, table, model)):
            part = table[piece.rows, piece.columns] if table.dim() > 1 else table
            keep, size = max(LEAST, round(share * part.numel())), part.numel()
            if keep < size:
                rng = np.random.default_rng([seed, len(found), number])
                piece = replace(piece, kept=np.sort(rng.choice(size, keep, replace=False)))
            found[label] = piece
    return found


def _cut(name: str, table: torch.Tensor, model: Decoder) -> Iterator[tuple[str, Piece]]:
    """The modules that stand in one parameter of the decoder."""
    c, every = model.config, slice(None)
    path, _, kind = name.rpartition(".")
    layer, width = f"{path}." if path else "", c.head_dim
    match kind:
        case "qkv":
            groups = (("q", c.num_attention_heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads))
            labels = [f"{layer}{letter}{head}" for letter, heads in groups for head in range(heads)]
            for n, label in enumerate(labels):
                yield label, Piece(name, slice(n * width, (n + 1) * width), every)
        case "out":
            for n in range(c.num_attention_heads):
                yield f"{layer}o{n}", Piece(name, every, slice(n * width, (n + 1) * width))
        case "gate_up":
            half = table.shape[0] // 2
            yield f"{layer}gate", Piece(name, slice(0, half), every)
            yield f"{layer}up", Piece(name, slice(half, None), every)
        case _:
            yield name, Piece(name, every, every)


def module_gradients(
    model: Decoder,
    tokenizer: Tokenizer,
    world: World,
    *,
    objective: Objective = "likelihood",
    seed: int = 0,
    batches: int = BATCHES,
    items: int = ITEMS,
    kept_bytes: int = KEPT_BYTES,
    work: Work | None = None,
) -> dict[str, Floats]:
    """Module → domains × batches × parameters: gradients on training items, downhill being better.

    `likelihood`: of −log π(right answer), mean over tokens: every token of the answer counts alike. `accuracy`: of −π(right
    answer), mean over items, which is what RL climbs where one answer is right: items out of reach count for nothing. Each
    domain's batches depend on the seed and its own name only. What the world writes in an answer carries no loss. What it costs is
    added to `work`.
    """
    at = pieces(model, len(world.domains) * batches, kept_bytes=kept_bytes)
    rows = [
        _gradient(model, _right_answers(tokenizer, world, drawn), objective, at, work or Work())
        for domain in world.domains
        for drawn in (world.draw_batch([domain], items, (seed, "gradients", b)) for b in range(batches))
    ]
    shape = (len(world.domains), batches, -1)
    return {name: np.stack([r[name] for r in rows]).reshape(shape) for name in rows[0]}


def affordable_items(model: Decoder, tokenizer: Tokenizer, world: World, batches: int = BATCHES) -> int:
    """Items a batch: `ITEMS`, or for a large model fewer, so that both objectives on all domains take about `FLOPS`; 4 at least."""
    drawn = [_right_answers(tokenizer, world, world.draw_batch([d], 8, (0, "length"))) for d in world.domains]
    tokens = sum(float(r.length_N.float().mean()) for r in drawn)  # of one item of every domain
    needed = 2 * batches * tokens * 6 * sum(p.numel() for p in model.parameters())
    return int(min(ITEMS, max(4, FLOPS // needed)))


def _right_answers(tokenizer: Tokenizer, world: World, items: list[Item]) -> Rollouts:
    prompts = tokenizer.encode_all([i.prompt for i in items])
    turns = [tokenizer.encode_turns(i.target, world.world_spans(i, i.target)) for i in items]
    rollouts = pack(prompts, [[*ids, tokenizer.eos_id] for ids, _ in turns], tokenizer.pad_id)
    for row, (ids, own) in enumerate(turns):
        first = len(prompts[row])
        rollouts.own_NL[row, first : first + len(ids)] = torch.tensor(own, dtype=torch.bool)
    return rollouts


def _gradient(model: Decoder, rollouts: Rollouts, objective: Objective, at: Pieces, work: Work) -> dict[str, Floats]:
    own_NL = rollouts.own_NL
    if objective == "accuracy":
        logp_NL = over_own(model, rollouts, lambda part: part_logp(model, part))
        weight_NL = (logp_NL.sum(1).exp() / len(own_NL))[:, None].expand(own_NL.shape)  # ∇π = π ∇log π
    else:
        weight_NL = torch.full(own_NL.shape, 1.0 / max(1, int(own_NL.sum())))
    parts = make_parts(
        rollouts.ids_NL, rollouts.length_N, own_NL, weight_NL, tokens=microbatch_tokens(model), device=model.device
    )
    model.zero_grad(set_to_none=True)
    with MODEL_TIME:
        for part in parts:
            work.flops += training_flops(model, part.ids_NL, len(part.targets_M))
            loss = lambda logits, p, where: (sft_loss(logits, p.targets_M[where]), {})  # noqa: E731
            token_losses(model, model.hidden_at(part.ids_NL, part.at_M), part, loss)[0].backward()
    found = kept_gradient(model, at)
    model.zero_grad(set_to_none=True)
    return found


def kept_gradient(model: Decoder, at: Pieces) -> dict[str, Floats]:
    """The model's gradients at what is kept of each module; zeros where a parameter got none."""
    tables = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return {name: piece.of(tables) for name, piece in at.items()}


def flat_gradient(model: Decoder, at: Pieces) -> Floats:
    """The same in one row."""
    return np.concatenate(list(kept_gradient(model, at).values()))


def task_vectors(start: Decoder, models: Iterable[Decoder], at: Pieces) -> Floats:
    """models × kept parameters: what training moved, trained − start."""
    base_P = _flat(start, at)
    return np.stack([_flat(m, at) - base_P for m in models])


def _flat(model: Decoder, at: Pieces) -> Floats:
    tables = {n: p.detach() for n, p in model.named_parameters()}
    return np.concatenate([piece.of(tables) for piece in at.values()])
