"""Where teachers disagree, and how the student's first steps are shared out over the domains.

Axis letters: T tokens, K teachers, M positions of a microbatch, V vocabulary, D domains, P kept parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mopd_diag.config import MOPDStage
from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.head import chunks
from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.estimators.draws import Floats
from mopd_diag.models.decoder import Decoder
from mopd_diag.study.gradients import Pieces, flat_gradient, pieces
from mopd_diag.training.algorithm import Part, Work, make_parts, microbatch_tokens, token_losses, training_flops
from mopd_diag.training.distill import MOPD

STEPS = 2
"""Steps of the student whose gradients are shared out."""


@torch.no_grad()
def disagreement(rollouts: Rollouts, teachers: Mapping[str, Decoder], work: Work) -> tuple[Floats, np.ndarray]:
    """KL(teacher‖mean of the teachers) in nats for every own token, T × K, and the row of each token.

    The mean over K is the Jensen–Shannon divergence of the teachers: 0 where all say the same, log K where each says what no
    other does.
    """
    first = next(iter(teachers.values()))
    row_NL = torch.arange(len(rollouts))[:, None].expand(rollouts.own_NL.shape)
    ones = torch.ones(rollouts.own_NL.shape)
    parts = make_parts(
        rollouts.ids_NL, rollouts.length_N, rollouts.own_NL, ones, {"row": row_NL}, tokens=microbatch_tokens(first),
        device=first.device,
    )  # fmt: skip
    found = []
    for part in parts:
        with MODEL_TIME:
            hidden = [t.hidden_at(part.ids_NL, part.at_M) for t in teachers.values()]
        n, length = part.ids_NL.shape
        for teacher in teachers.values():
            work.tokens_scored += len(part.targets_M)
            work.flops += teacher.config.forward_flops(n * length, length / 2, len(part.targets_M))
        for c in chunks(len(part.targets_M), first.config.vocab_size * len(teachers)):
            pairs = zip(hidden, teachers.values(), strict=True)
            found.append(_kl_to_mean(torch.stack([torch.log_softmax(h[c] @ t.head_VD.t(), -1) for h, t in pairs])))
    row_T = torch.cat([p.fields["row"] for p in parts])
    return torch.cat(found).double().cpu().numpy(), row_T.cpu().numpy()


def _kl_to_mean(logp_KMV: Tensor) -> Tensor:
    """KL(p_k‖mean over k) in nats, [M, K]."""
    mean_MV = logp_KMV.logsumexp(0) - np.log(len(logp_KMV))
    return (logp_KMV.exp() * (logp_KMV - mean_MV)).sum(-1).clamp(min=0).t()


@dataclass(frozen=True, eq=False)
class Shares:
    """Of D domains the share of prompts, of own tokens, and of the gradient's norm (‖g_d‖ / Σ ‖g‖), each summing to one.

    `along_D`: cosine of each domain's gradient with that of the whole step; below zero, the step works against the domain.
    """

    domains: tuple[str, ...]
    prompts_D: Floats
    tokens_D: Floats
    gradient_D: Floats
    along_D: Floats


def step_shares(algorithm: MOPD, model: Decoder, work: Work, *, steps: int = STEPS) -> Shares:
    """Who pulls how much in the first steps of a distillation, under its own loss and weights; the model stays as it is."""
    stage: MOPDStage = algorithm.stage
    domains = tuple(algorithm.domains)
    at = pieces(model, len(domains))
    gradient_DP = np.zeros((len(domains), len(flat_gradient(model, at))))
    prompts, tokens = Counter[str](), Counter[str]()
    for step in range(steps):
        items = algorithm.world.draw_batch(domains, stage.prompts, (algorithm.seed, stage.name, step))
        names = list(dict.fromkeys(i.domain for i in items))  # the numbers in a part's field `domain`
        prompts.update(i.domain for i in items)
        batch = algorithm.batch(model, step)
        work += batch.work
        for number, name in enumerate(names):
            mine = [_only(p, p.fields["domain"] == number) for p in batch.parts if (p.fields["domain"] == number).any()]
            tokens[name] += sum(len(p.targets_M) for p in mine)
            gradient_DP[domains.index(name)] += _gradient(algorithm, model, mine, at, work)
    whole_P = gradient_DP.sum(0)
    norm_D = np.linalg.norm(gradient_DP, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Shares(
            domains,
            _share([prompts[d] for d in domains]),
            _share([tokens[d] for d in domains]),
            _share(norm_D),
            gradient_DP @ whole_P / (norm_D * np.linalg.norm(whole_P)),
        )


def _only(part: Part, keep_M: Tensor) -> Part:
    """Some of a part's positions; the rows stay, for the others are read all the same."""
    fields = {k: v[keep_M] for k, v in part.fields.items()}
    return Part(
        part.ids_NL, part.at_M[keep_M], part.targets_M[keep_M], part.weight_M[keep_M], fields, part.teacher
    )  # fmt: skip


def _gradient(algorithm: MOPD, model: Decoder, parts: list[Part], at: Pieces, work: Work) -> Floats:
    model.zero_grad(set_to_none=True)
    with MODEL_TIME:
        for part in parts:
            work.flops += training_flops(model, part.ids_NL, len(part.targets_M))
            token_losses(model, model.hidden_at(part.ids_NL, part.at_M), part, algorithm.token_loss)[0].backward()
    found = flat_gradient(model, at)
    model.zero_grad(set_to_none=True)
    return found


def _share(counts: object) -> Floats:
    counted = np.asarray(counts, dtype=float)
    return counted / counted.sum()
