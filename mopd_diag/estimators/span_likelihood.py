"""Which teacher do aligned spans come from, when models share no vocabulary and only likelihoods of the same bytes compare?

One number a span instead of a distribution a token: the verdicts are weaker than those of `judgement`, and say so.

Axis letters: S aligned spans, M members, N groups of spans (one span, a run of spans, an answer), K teachers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mopd_diag.errors import BadInput
from mopd_diag.estimators.attribution import shares
from mopd_diag.estimators.evidence import Bools, Floats, Ints
from mopd_diag.estimators.judgement import ABSTAIN, EXISTING, OWN, TEACHER

SEVERAL = "several"
EVIDENCE = "byte-aligned likelihood"
CEILING = 0.5
"""No confidence is above this. Sampled likelihoods are a poor witness: among four teachers of one base the most likely one was the
right one in 23 to 30 % of the answers (docs/attribution.md), no better than a guess, and this rule is not calibrated."""
MOVED = 0.1
"""nats of divergence from the base below which a group is pre-existing; as for token evidence."""
UNEXPLAINED = 0.5
"""Part of the divergence that the nearest teacher may leave; above it nobody is named."""
RATIO = math.log(20)
"""Log-likelihood ratio from which on one explanation is preferred to another."""
FLOOR = 1e-3
"""Parts left unexplained below this are the same: rounding and noise of the training."""


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """Log-likelihoods (nats) of aligned spans: `logp_SM` with the members subject, base, K teachers, then decoys.

    `answer_S`: index of the answer, sorted. Raises BadInput for shapes that disagree or numbers that are not finite.
    """

    members: tuple[str, ...]
    teachers: tuple[str, ...]
    logp_SM: Floats
    answer_S: Ints

    def __post_init__(self) -> None:
        if self.logp_SM.shape != (len(self.answer_S), len(self.members)):
            raise BadInput(
                f"logp_SM has shape {self.logp_SM.shape}, expected {(len(self.answer_S), len(self.members))}"
            )
        if not self.teachers or self.members[2 : 2 + len(self.teachers)] != self.teachers:
            raise BadInput(f"expected members subject, base, teachers …, got {list(self.members)}")
        broken = [m for m, x in zip(self.members, self.logp_SM.T, strict=True) if not np.isfinite(x).all()]
        if broken:
            raise BadInput(f"{' and '.join(repr(m) for m in broken)} gave NaN or infinite log-likelihoods; repair it")


@dataclass(frozen=True, slots=True, eq=False)
class SpanJudgement:
    """Classes of N groups, as `judgement.Judgement` has them. `residual_NK`: D_k / D_base, 0 explains all.

    `informative_N`: how many spans carry the subject's shift (participation number). `total_NM`: Σ log p, nats.
    """

    kind_N: npt.NDArray[np.str_]
    best_N: Ints
    set_NK: Bools
    confidence_N: Floats
    share_NK: Floats
    own_N: Floats
    residual_NK: Floats
    divergence_base_N: Floats
    informative_N: Floats
    total_NM: Floats
    reason_N: npt.NDArray[np.str_]


def judge_spans(aligned: Aligned, group_S: Ints, n_groups: int) -> SpanJudgement:
    """Class, set and confidence of each group of spans.

    With r_m = log p_subject − log p_m of a span, D_m = ½ Σ r_m² estimates KL(subject ‖ m) from the answer alone: exact to second
    order, never negative, and of low variance (Schulman's k2). If the subject repeats candidate c up to noise of unknown size, the
    profile likelihood of its n informative spans is proportional to D_c^(−n/2); candidates are the base and the teachers. In order:

    - no span: `abstain`. D_base < MOVED: `pre-existing`.
    - the nearest teacher leaves D_k / D_base > UNEXPLAINED: `own` if base and every teacher find the answer 20 times less likely than the
      subject does, else `abstain`.
    - the nearest teacher is not 20 times as likely as the base, or a decoy is as near: `abstain`.
    - teachers within a factor 20 of the nearest: `several`; none: `teacher`.
    """
    k = len(aligned.teachers)
    far_SM = aligned.logp_SM[:, :1] - aligned.logp_SM
    sums = lambda x_SC: _sums(x_SC, group_S, n_groups)  # noqa: E731
    spans_N = np.bincount(group_S, minlength=n_groups)
    divergence_NM = sums(far_SM**2) / 2
    base_N, teacher_NK, decoy_ND = divergence_NM[:, 1], divergence_NM[:, 2 : 2 + k], divergence_NM[:, 2 + k :]
    fourth_N = sums(far_SM[:, 1:2] ** 4)[:, 0]
    informative_N = np.divide(4 * base_N**2, fourth_N, where=fourth_N > 0, out=np.zeros(n_groups))
    moved = base_N >= MOVED
    residual_NK = np.divide(
        teacher_NK, base_N[:, None], where=moved[:, None], out=np.full((n_groups, k), np.nan)
    )  # fmt: skip
    left_NK = np.maximum(np.where(moved[:, None], residual_NK, np.inf), FLOOR)
    best_N = np.where(moved, left_NK.argmin(1), 0)
    best_left = left_NK[np.arange(n_groups), best_N]

    # log D_c^(−n/2), measured from the base: 0 for the base.
    score_NK = np.where(moved[:, None], -0.5 * informative_N[:, None] * np.log(np.where(moved[:, None], left_NK, 1)), 0)
    best_score = score_NK.max(1)
    set_NK = score_NK > best_score[:, None] - RATIO
    total_NM = sums(aligned.logp_SM)
    alone_N = total_NM[:, 0] - total_NM[:, 1 : 2 + k].max(1)
    decoyed = decoy_ND.min(1, initial=np.inf) <= teacher_NK.min(1)

    unexplained = moved & (best_left > UNEXPLAINED)
    named = moved & ~unexplained & (best_score >= RATIO) & ~decoyed
    own = unexplained & (alone_N >= RATIO)
    several = set_NK.sum(1) > 1
    kind = np.select(
        [spans_N == 0, ~moved, own, named & several, named], [ABSTAIN, EXISTING, OWN, SEVERAL, TEACHER], ABSTAIN
    ).astype("<U16")
    reason = np.select(
        [spans_N == 0, kind != ABSTAIN, unexplained, decoyed],
        ["no text", "", "no teacher's likelihood follows the subject's", "a decoy that never taught is as near"],
        "too little evidence",
    ).astype("<U64")
    weight_NC = np.exp(np.column_stack([np.zeros(n_groups), score_NK]) - np.maximum(best_score, 0)[:, None])
    posterior = (weight_NC[:, 1:] * set_NK).sum(1) / weight_NC.sum(1)
    confidence = np.select(
        [kind == EXISTING, kind == OWN, named],
        [np.exp(-base_N), -np.expm1(-np.maximum(alone_N, 0)), posterior * (1 - np.minimum(best_left, 1))],
        0.0,
    )
    shift_SJ = far_SM[:, 1:2] - np.column_stack([np.zeros(len(far_SM)), far_SM[:, 2 : 2 + k]])
    share_NK, own_N = shares(sums(shift_SJ[:, :, None] * shift_SJ[:, None, :]))
    return SpanJudgement(
        kind, best_N, set_NK & named[:, None], np.minimum(confidence, CEILING), share_NK, own_N, residual_NK, base_N, informative_N,
        total_NM, reason,
    )  # fmt: skip


def _sums(values_SC: Floats, group_S: Ints, n_groups: int) -> Floats:
    total = np.zeros((n_groups, *values_SC.shape[1:]))
    np.add.at(total, group_S, values_SC)
    return total


def runs(judged: SpanJudgement, answer_S: Ints) -> Ints:
    """Neighbouring spans of one class and set in one answer as one group: ids from 0, in order (S)."""
    names: Sequence[tuple[str, bytes]] = [(k, s.tobytes()) for k, s in zip(judged.kind_N, judged.set_NK, strict=True)]
    new = [i == 0 or names[i] != names[i - 1] or answer_S[i] != answer_S[i - 1] for i in range(len(names))]
    return np.cumsum(new, dtype=int) - 1
