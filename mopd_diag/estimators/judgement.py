"""From pooled evidence to a class and a confidence, the same rules for tokens, spans, answers and whole domains.

Axis letters: N groups, K teachers, D decoys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mopd_diag.estimators.attribution import MOVED_TOKEN, OVERSHOOT, Pooled, alone, cosines, residuals, shares
from mopd_diag.estimators.evidence import Bools, Floats, Ints
from mopd_diag.estimators.origin import Origin

TEACHER, SEVERAL, EXISTING, OWN, ABSTAIN = "teacher", "several", "pre-existing", "own", "abstain"


MOST = 3
"""Teachers that a set may hold; more say no more than that somebody listed taught it."""
TINY = float(np.finfo(float).tiny)
UNLIKE = 1.0
"""nats by which every teacher must be less ready than the subject to write something that the base writes as readily."""
MOVED = 0.1
"""nats of KL(subject ‖ base) of a span or an answer from which on it moved: below, the base writes the same about nine times in ten."""


def existing(pooled: Pooled, moved: float) -> Bools:
    """Groups (N) that are the base's: its distributions are the subject's, or it gives these tokens no less than the subject does
    while every teacher gives them clearly less (`UNLIKE`)."""
    unlike = pooled.lift_NK.max(1) < pooled.lift_N - UNLIKE
    return (pooled.kl_base_N < moved) | ((pooled.lift_N <= 0) & unlike)


def readiness(pooled: Pooled) -> Floats:
    """How readily the base writes what the subject writes (N), in [0, 1]: e^−nats, of the divergence or of the tokens' own
    log-ratio, whichever is less; 1 where the base gives these tokens no less."""
    return np.exp(-np.minimum(pooled.kl_base_N, np.maximum(pooled.lift_N, 0)))


@dataclass(frozen=True, slots=True)
class Rules:
    """Every threshold of the method without a null: set by reasoning, adjusted on one quickstart run and merges of its models."""

    moved_token: float = MOVED_TOKEN
    """nats of KL(subject ‖ base) below which a token is pre-existing."""
    moved: float = MOVED
    """The same for a span or an answer."""
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
    inherited_N: Floats
    """Calibrated probability that some listed teacher taught it; NaN without a calibration."""


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
    is_existing = existing(pooled, moved)
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
        [is_existing, is_own, is_alike | is_teacher, is_mixed], [readiness(pooled), by_itself, named, mixed], 0.0
    )
    kind = np.select(
        [is_existing, is_own, is_alike | is_mixed, is_teacher], [EXISTING, OWN, SEVERAL, TEACHER], ABSTAIN
    ).astype("<U16")
    reason = np.where(kind == ABSTAIN, "no teacher explains most of the shift", "").astype("<U64")

    margin = _decoy_margin(pooled, best_N)
    thin = np.isin(kind, (TEACHER, SEVERAL, OWN)) & (confidence < rules.thin)
    kind[thin], reason[thin], confidence[thin] = ABSTAIN, "too little evidence", 0.0
    empty = pooled.own_N == 0
    kind[empty], reason[empty], confidence[empty] = ABSTAIN, "no token of its own", 0.0
    chosen = np.where(is_mixed[:, None], parts_NK, alike_NK) & np.isin(kind, (TEACHER, SEVERAL))[:, None]
    return Judgement(
        kind, best_N, chosen, np.clip(confidence, 0, 1), share_NK, own_N, cosine_NSS[:, 0, 1:], residual_NK, joint_N, margin, reason,
        np.full(len(best_N), np.nan),
    )  # fmt: skip


def _decoy_margin(pooled: Pooled, best_N: Ints) -> Floats:
    if not pooled.kl_ND.shape[1]:
        return np.full(len(best_N), np.nan)
    teacher = pooled.kl_NK[np.arange(len(best_N)), best_N]
    return np.log(np.maximum(pooled.kl_ND.min(1), TINY)) - np.log(np.maximum(teacher, TINY))


def decide(
    judged: Judgement, pooled: Pooled, found: Origin, *, sure: float, sure_own: float, moved: float
) -> Judgement:  # fmt: skip
    """The same groups, their classes and confidences from calibrated probabilities; what they rest on stays as `judge` found it.

    A class is given where its probability is at least `sure`: one teacher; else the smallest set of teachers that reaches it, or the
    parts of a mixture where `judge` saw one. `own`, which says that no listed teacher taught it, needs `sure_own`. Otherwise `abstain`.
    """
    teacher_NK, row = found.teacher_NK, np.arange(len(pooled.kl_base_N))
    best_N = teacher_NK.argmax(1)
    is_existing = existing(pooled, moved)
    is_named = ~is_existing & (teacher_NK[row, best_N] >= sure)
    was_mixed = (judged.kind_N == SEVERAL) & (found.inherited_N >= sure)
    set_NK = np.where(was_mixed[:, None], judged.set_NK, _smallest_set(teacher_NK, sure))
    few = set_NK.any(1) & (set_NK.sum(1) <= MOST)
    is_several = ~is_existing & ~is_named & few
    is_own = ~is_existing & (1 - found.inherited_N >= sure_own)
    together = np.where(was_mixed, found.inherited_N, (teacher_NK * set_NK).sum(1))
    choices = [is_existing, is_named, is_several, is_own]
    kind = np.select(choices, [EXISTING, TEACHER, SEVERAL, OWN], ABSTAIN).astype("<U16")
    confidence = np.select(choices, [readiness(pooled), teacher_NK[row, best_N], together, 1 - found.inherited_N], 0.0)
    near = np.log(np.maximum(pooled.kl_ND.min(1), TINY)) < np.log(np.maximum(pooled.kl_NK[row, best_N], TINY))
    why = np.where(
        near, "a decoy that never taught is as near", "not clear enough whether a listed teacher taught it, or which"
    )
    reason = np.where(kind == ABSTAIN, why, "").astype("<U64")
    empty = pooled.own_N == 0
    kind[empty], reason[empty], confidence[empty] = ABSTAIN, "no token of its own", 0.0
    one_NK = np.arange(teacher_NK.shape[1]) == best_N[:, None]
    chosen = np.where(is_named[:, None], one_NK, set_NK) & np.isin(kind, (TEACHER, SEVERAL))[:, None]
    return replace(
        judged, kind_N=kind, best_N=best_N, set_NK=chosen, confidence_N=np.clip(confidence, 0, 1), reason_N=reason,
        margin_N=_decoy_margin(pooled, best_N), inherited_N=np.where(empty, np.nan, found.inherited_N),
    )  # fmt: skip


def _smallest_set(teacher_NK: Floats, sure: float) -> Bools:
    """The likeliest teachers that together reach `sure` (N, K); none where all of them do not."""
    order = np.argsort(-teacher_NK, axis=1, kind="stable")
    total = np.cumsum(np.take_along_axis(teacher_NK, order, 1), 1)
    needed = (total - np.take_along_axis(teacher_NK, order, 1) < sure) & (total[:, -1:] >= sure)
    chosen = np.zeros(teacher_NK.shape, dtype=bool)
    np.put_along_axis(chosen, order, needed, 1)
    return chosen
