"""Gradients of a checkpoint on every domain, module by module: what each domain asks of the same weights."""

from __future__ import annotations

import numpy as np
import torch

from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.estimators.draws import Floats
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.training.algorithm import make_parts, token_losses
from mopd_diag.training.sft import sft_loss
from mopd_diag.worlds.world import World

BATCHES, ITEMS = 4, 64


def module_gradients(
    model: Decoder, tokenizer: Tokenizer, world: World, *, seed: int = 0, batches: int = BATCHES, items: int = ITEMS
) -> dict[str, Floats]:
    """Module → domains × batches × parameters: gradients of −log π(right answer), mean over tokens, on training items.

    Each domain's batches depend on the seed and its own name only. What the world writes in an answer carries no loss. The
    right answer stands for what any method asks of the weights, with a teacher or without.
    """
    rows = []
    for domain in world.domains:
        for batch in range(batches):
            drawn = world.draw_batch([domain], items, (seed, "gradients", batch))
            answers = [[*tokenizer.encode(i.target), tokenizer.eos_id] for i in drawn]
            prompts = tokenizer.encode_all([i.prompt for i in drawn])
            rollouts = pack(prompts, answers, tokenizer.pad_id)
            for row, item in enumerate(drawn):
                for start, end in world.world_spans(item, item.target):  # one token a character
                    rollouts.own_NL[row, len(prompts[row]) + start : len(prompts[row]) + end] = False
            rows.append(_gradient(model, rollouts))
    shape = (len(world.domains), batches, -1)
    return {name: np.stack([r[name] for r in rows]).reshape(shape) for name in rows[0]}


def _gradient(model: Decoder, rollouts: Rollouts) -> dict[str, Floats]:
    model.zero_grad(set_to_none=True)
    weight = torch.full(rollouts.own_NL.shape, 1.0 / max(1, int(rollouts.own_NL.sum())))
    with MODEL_TIME:
        for part in make_parts(rollouts.ids_NL, rollouts.length_N, rollouts.own_NL, weight):
            loss = lambda logits, p, where: (sft_loss(logits, p.targets_M[where]), {})  # noqa: E731
            token_losses(model, model.hidden_at(part.ids_NL, part.at_M), part, loss)[0].backward()
    found = {
        name: p.grad.flatten().double().numpy().copy() for name, p in model.named_parameters() if p.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return found
