"""From pooled evidence to a class and a confidence, the same rules for tokens, spans, answers and whole domains.

Axis letters: N groups, K teachers, D decoys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mopd_diag.estimators.attribution import MOVED_TOKEN, OVERSHOOT, Pooled, alone, cosines, residuals, shares
from mopd_diag.estimators.evidence import Bools, Floats, Ints

TEACHER, SEVERAL, EXISTING, OWN, ABSTAIN = "teacher", "several", "pre-existing", "own", "abstain"


@dataclass(frozen=True, slots=True)
class Rules:
    """Every threshold of the method: set by reasoning, adjusted on one quickstart run and merges of its models, not calibrated."""

    moved_token: float = MOVED_TOKEN
    """nats of KL(subject ‖ base) below which a token is pre-existing."""
    moved: float = 0.1
    """The same for a span or an answer: at 0.1 nats the base writes what the subject writes about nine times in ten."""
    gap: float = math.log(1.5)
    """A runner-up must leave 1.5 times as much unexplained as the best, else they are `several`."""
    collinear: float = 0.95
    """Cosine between two teachers' shifts from which on they cannot be told apart, if both went far enough to have taught it."""
    own: float = 0.5
    """Joint residual above which the shift is the subject's own."""
    own_nats: float = 3.0
    """nats that base and teachers all miss on one token: the subject does what each of them does less than one time in
    twenty."""
    majority: float = 0.7
    """Share of the shift that the named teacher, or the named set, must explain."""
    part: float = 0.25
    """Share that makes a teacher one of several who explain the shift together."""
    thin: float = 0.1
    """Confidence below which a class is not given."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """Classes of N groups. `best_N` indexes the teacher that explains most (also where the class is another one).

    `set_NK` are the teachers that a class `teacher` or `several` names. `margin_N` is log(decoy's divergence / best
    teacher's), positive where the teacher is nearer; NaN without decoys. `reason_N` says why a group was abstained on.
    """

    kind_N: npt.NDArray[np.str_]
    best_N: Ints
    set_NK: Bools
    confidence_N: Floats
    share_NK: Floats
    own_N: Floats
    cosine_NK: Floats
    residual_NK: Floats
    joint_N: Floats
    margin_N: Floats
    reason_N: npt.NDArray[np.str_]


def judge(pooled: Pooled, rules: Rules | None = None, *, moved: float | None = None) -> Judgement:
    """Class, set and confidence of each group; `moved` overrides the rule for groups of another size (single tokens)."""
    rules = rules or Rules()
    moved = rules.moved if moved is None else moved
    share_NK, own_N = shares(pooled.gram_NSS)
    residual_NK, joint_N = residuals(pooled, own_N)
    cosine_NSS = cosines(pooled.gram_NSS)
    rank_NK = np.where(np.isnan(residual_NK), np.inf, residual_NK)
    best_N = rank_NK.argmin(1)
    row = np.arange(len(best_N))
    best_residual = rank_NK[row, best_N]

    within_reach = alone(pooled.gram_NSS)[0] < OVERSHOOT
    collinear_NK = within_reach & (cosine_NSS[row, 1 + best_N, 1:] >= rules.collinear)
    alike_NK = collinear_NK | (rank_NK < best_residual[:, None] * math.exp(rules.gap))
    alike_NK[row, best_N] = True
    shift_NK = np.nan_to_num(share_NK)
    parts_NK = shift_NK >= rules.part
    enough, parts_enough = ((shift_NK * s).sum(1) >= rules.majority for s in (alike_NK, parts_NK))
    is_existing = pooled.kl_base_N < moved
    is_own = ~is_existing & ((joint_N > rules.own) | (pooled.unexplained_N >= rules.own_nats))
    is_led = ~is_existing & ~is_own & (best_residual <= rules.own) & enough
    is_teacher, is_alike = is_led & (alike_NK.sum(1) == 1), is_led & (alike_NK.sum(1) > 1)
    is_mixed = ~is_existing & ~is_own & ~is_led & (parts_NK.sum(1) > 1) & parts_enough

    rest = np.where(alike_NK, np.inf, rank_NK).min(1, initial=1.0)
    size = -np.expm1(-pooled.kl_base_N)
    with np.errstate(invalid="ignore"):
        named = size * np.maximum(1 - best_residual, 0) * np.maximum(1 - best_residual / rest, 0)
        mixed = size * np.maximum(1 - joint_N / best_residual, 0)
    by_itself = size * np.clip(np.fmax(joint_N, -np.expm1(-pooled.unexplained_N)), 0, 1)
    confidence = np.select(
        [is_existing, is_own, is_alike | is_teacher, is_mixed], [1 - size, by_itself, named, mixed], 0.0
    )
    kind = np.select(
        [is_existing, is_own, is_alike | is_mixed, is_teacher], [EXISTING, OWN, SEVERAL, TEACHER], ABSTAIN
    ).astype("<U16")
    reason = np.where(kind == ABSTAIN, "no teacher explains most of the shift", "").astype("<U64")

    margin = _decoy_margin(pooled, best_N)
    accused = np.isin(kind, (TEACHER, SEVERAL))
    thin = np.isin(kind, (TEACHER, SEVERAL, OWN)) & (confidence < rules.thin)
    if pooled.kl_ND.shape[1]:
        trust = 1 - decoy_q_values(
            margin, pooled.kl_NK.shape[1] / pooled.kl_ND.shape[1], where=~is_existing & (pooled.used_N > 0)
        )
        confidence = np.where(accused & ~thin, trust, confidence)
    for where, why in (
        (thin, "too little evidence"),
        (accused & ~thin & (margin <= 0), "a decoy that never taught is as near"),
    ):
        kind[where], reason[where], confidence[where] = ABSTAIN, why, 0.0
    empty = pooled.own_N == 0
    kind[empty], reason[empty], confidence[empty] = ABSTAIN, "no token of its own", 0.0
    chosen = np.where(is_mixed[:, None], parts_NK, alike_NK) & np.isin(kind, (TEACHER, SEVERAL))[:, None]
    return Judgement(
        kind, best_N, chosen, np.clip(confidence, 0, 1), share_NK, own_N, cosine_NSS[:, 0, 1:], residual_NK, joint_N, margin, reason
    )  # fmt: skip


def _decoy_margin(pooled: Pooled, best_N: Ints) -> Floats:
    if not pooled.kl_ND.shape[1]:
        return np.full(len(best_N), np.nan)
    tiny = np.finfo(float).tiny
    teacher = pooled.kl_NK[np.arange(len(best_N)), best_N]
    return np.log(np.maximum(pooled.kl_ND.min(1), tiny)) - np.log(np.maximum(teacher, tiny))


def decoy_q_values(margin_N: npt.ArrayLike, ratio: float, *, where: npt.ArrayLike | None = None) -> Floats:
    """Expected share of false accusations among all groups whose margin is at least this one's (N), in [0, 1].

    Target-decoy competition (Elias & Gygi 2007; the knockoff filter of Barber & Candès 2015): if teachers and decoys
    were exchangeable, a decoy would win by as much as often as a teacher, so decoys' wins count teachers' false ones.
    `ratio` is K / D, the teachers' better chance when they outnumber the decoys. Groups outside `where` and groups that
    a decoy wins get 1.
    """
    margin = np.asarray(margin_N, dtype=float)
    use = np.isfinite(margin) if where is None else np.isfinite(margin) & np.asarray(where, dtype=bool)
    wins, losses = np.sort(margin[use & (margin > 0)]), np.sort(-margin[use & (margin < 0)])
    above = np.arange(len(wins), 0, -1)
    false = 1 + len(losses) - np.searchsorted(losses, wins, side="left")
    rate = np.minimum.accumulate(np.minimum(ratio * false / above, 1)) if len(wins) else np.zeros(0)
    q: npt.NDArray[Any] = np.ones(len(margin))
    won = use & (margin > 0)
    q[won] = rate[np.searchsorted(wins, margin[won], side="left")]
    return q
