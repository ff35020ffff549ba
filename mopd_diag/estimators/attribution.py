"""Who explains a model's shift away from its base: closeness, direction and likelihood, for tokens, spans or answers
alike.

Axis letters: T tokens, N groups of tokens (single tokens, spans, answers, all answers of a domain), M members, K
teachers, D decoys, S = 1 + K shifts (the subject's, then the teachers'), R = S + D shifts (then the decoys'), J = R + 1
vectors. `docs/attribution.md` derives the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from mopd_diag.estimators.evidence import Bools, Evidence, Floats, Ints
from mopd_diag.estimators.nnls import nnls_gram

MOVED_TOKEN = 0.02
"""nats of KL(subject ‖ base) from which on a token counts as moved."""
DISAGREE = 0.02
"""nats of second-order divergence between two teachers from which on they disagree about a token."""
NEGLIGIBLE = 1e-6
"""nats of divergence, or nats² of a shift, that may be rounding in single precision: no direction and no ratio is made
of it."""
OVERSHOOT = 2.0
"""How many times a teacher's own shift it may explain: nobody is taught to go much farther than the teacher went."""
FLOOR = 1e-3
"""Fractions left unexplained below this are the same: noise of the training, not evidence."""


# -- geometry of single tokens ------------------------------------------------------------------------------------------


def project_out_base(gram_TJJ: npt.ArrayLike) -> Floats:
    """Inner products of the shifts without their part along log p_0: (..., J, J) with log p_0 last -> (..., R, R),
    nats².

    The Schur complement G_ij − G_ib G_bj / G_bb. RL sharpens every model alike, which is a shift along log p_0; it
    tells nothing about a teacher. Where the base is uniform (G_bb = 0) there is nothing to take away.
    """
    gram = np.asarray(gram_TJJ, dtype=float)
    along, size = gram[..., :-1, -1], gram[..., -1, -1]
    scaled = np.divide(along, size[..., None], where=size[..., None] > NEGLIGIBLE, out=np.zeros_like(along))
    return gram[..., :-1, :-1] - along[..., :, None] * scaled[..., None, :]


def teacher_disagreement(gram_TJJ: npt.ArrayLike, teachers: int) -> Floats:
    """The largest ½‖d_i − d_j‖² between two of the `teachers` first, nats (..., J, J) -> (...): to second order their
    symmetrised KL; 0 for one."""
    shifts = np.asarray(gram_TJJ, dtype=float)[..., 1 : 1 + teachers, 1 : 1 + teachers]
    norm = np.diagonal(shifts, axis1=-2, axis2=-1)
    return np.maximum((norm[..., :, None] + norm[..., None, :] - 2 * shifts).max((-2, -1)) / 2, 0)


def contested(evidence: Evidence, *, moved: float = MOVED_TOKEN, disagree: float = DISAGREE) -> Bools:
    """Tokens (T) that carry information: the subject's own, where it moved from the base or where teachers disagree."""
    kl_T = evidence.kl_TM[:, evidence.columns([evidence.base])[0]]
    with np.errstate(invalid="ignore"):
        return evidence.own_T & (
            (kl_T >= moved) | (teacher_disagreement(evidence.gram_TJJ, len(evidence.teachers)) >= disagree)
        )


# -- groups of tokens ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """Evidence summed over the tokens of N groups; sums of divergences and inner products, so pooled shifts are stacked
    vectors.

    `gram_NSS`: projected shifts (subject, teachers), nats²; `gram_NRR`: the decoys' too.
    `kl_base_N`, `kl_NK`, `kl_ND`: Σ KL(subject ‖ ·), nats.
    `lift_N`, `lift_NK`: Σ log p(token) − log p_0(token) under the subject and under each teacher, nats: how much more readily than
    the base it writes what was written.
    `unexplained_N`: the largest KL of one token to whichever of base and teachers is nearest there, nats.
    `own_N`, `used_N`: how many tokens the subject wrote, and how many of them were summed.
    """

    gram_NRR: Floats
    kl_base_N: Floats
    kl_NK: Floats
    kl_ND: Floats
    lift_N: Floats
    lift_NK: Floats
    unexplained_N: Floats
    own_N: Ints
    used_N: Ints

    @property
    def gram_NSS(self) -> Floats:
        size = 1 + self.kl_NK.shape[1]
        return self.gram_NRR[:, :size, :size]


def pool(
    evidence: Evidence, group_T: Ints, n_groups: int, *, mask: Bools | None = None, shifts_TRR: Floats | None = None
) -> Pooled:
    """Sum over the tokens of each group (ids 0 … n_groups − 1, in any order), world-written tokens never.

    `mask` leaves further tokens out, usually all that are not contested. `shifts_TRR` saves projecting again.
    """
    use = evidence.own_T if mask is None else evidence.own_T & mask
    shifts = project_out_base(evidence.gram_TJJ) if shifts_TRR is None else shifts_TRR
    group, kl_TM = group_T[use], evidence.kl_TM[use].astype(float)
    base, teachers = evidence.columns([evidence.base]), evidence.columns(evidence.teachers)
    unexplained = np.zeros(n_groups)
    np.maximum.at(unexplained, group, kl_TM[:, [*base, *teachers]].min(1))
    own = np.bincount(group_T[evidence.own_T], minlength=n_groups)
    kl_base, kl_teachers, kl_decoys = (
        _sums(kl_TM[:, columns], group, n_groups) for columns in (base, teachers, evidence.columns(evidence.decoys))
    )
    logp = evidence.logp_TM[use].astype(float)
    lift = _sums(logp - logp[:, base], group, n_groups)
    return Pooled(
        _sums(shifts[use], group, n_groups), kl_base[:, 0], kl_teachers, kl_decoys, lift[:, 0], lift[:, teachers], unexplained, own,
        np.bincount(group, minlength=n_groups),
    )  # fmt: skip


def _sums(values: Floats, group: Ints, n_groups: int) -> Floats:
    """Rows added up by group: (rows, ...) -> (N, ...)."""
    flat = values.reshape(len(group), math.prod(values.shape[1:]))
    total = np.zeros((n_groups, flat.shape[1]))
    for c in range(flat.shape[1]):
        total[:, c] = np.bincount(group, weights=flat[:, c], minlength=n_groups)
    return total.reshape(n_groups, *values.shape[1:])


def cosines(gram_NSS: npt.ArrayLike) -> Floats:
    """Cosines between projected shifts (N, S, S); 0 where a shift is negligible, 1 on the diagonal."""
    gram = np.asarray(gram_NSS, dtype=float)
    norm = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0))
    norm = np.where(norm**2 > NEGLIGIBLE, norm, np.inf)
    found: Floats = gram / norm[..., :, None] / norm[..., None, :]
    found[..., np.arange(gram.shape[-1]), np.arange(gram.shape[-1])] = 1.0
    return np.clip(found, -1, 1)


def alone(gram_NSS: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The subject's shift on one teacher alone: best multiple a in [0, OVERSHOOT], and the part of the squared shift that it leaves.

    Both (N, K). The part left is 1 − cos² where the multiple is allowed and the cosine positive. 1 where a shift is negligible.
    """
    gram = np.asarray(gram_NSS, dtype=float)
    size, rhs = gram[:, :1, 0], gram[:, 0, 1:]
    norm = np.diagonal(gram, axis1=1, axis2=2)[:, 1:]
    known = (norm > NEGLIGIBLE) & (size > NEGLIGIBLE)
    a = np.clip(np.divide(rhs, norm, where=known, out=np.zeros_like(rhs)), 0, OVERSHOOT)
    left = np.divide(size - 2 * a * rhs + a**2 * norm, size, where=known, out=np.ones_like(rhs))
    return a, np.clip(left, 0, 1)


def shares(gram_NSS: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The part of the subject's squared shift that each teacher explains (N, K) and the rest, its *own* (N): all ≥ 0, sum 1.

    d_s ≈ Σ a_k d_k with 0 ≤ a ≤ OVERSHOOT explains R² = 1 − ‖d_s − Σ a_k d_k‖² / ‖d_s‖² of it. R² is allotted
    in proportion to max(a_k⟨d_k, d_s⟩, 0), which adds up to R² by itself unless teachers pull against each other or the bound
    holds. NaN where the subject's shift is negligible: then there is nothing to share.
    """
    gram = np.asarray(gram_NSS, dtype=float)
    size, rhs, between = gram[:, 0, 0], gram[:, 0, 1:], gram[:, 1:, 1:]
    a = nnls_gram(between, rhs, upper=OVERSHOOT)
    explained = 2 * (a * rhs).sum(1) - np.einsum("ni,nij,nj->n", a, between, a)
    known = size > NEGLIGIBLE
    r2 = np.clip(np.divide(explained, size, where=known, out=np.full(len(size), np.nan)), 0, 1)
    parts = np.maximum(a * rhs, 0)
    whole = parts.sum(1)
    share = parts * np.divide(r2, whole, where=known & (whole > 0), out=np.zeros(len(size)))[:, None]
    share[~known] = np.nan
    return share, 1 - share.sum(1)


def closeness(kl_base_N: npt.ArrayLike, kl_NK: npt.ArrayLike) -> Floats:
    """1 − KL(subject ‖ teacher) / KL(subject ‖ base) (N, K): 1 at a teacher, 0 as far as the base, below 0 farther.

    NaN where the subject is the base.
    """
    base, teachers = np.asarray(kl_base_N, dtype=float)[:, None], np.asarray(kl_NK, dtype=float)
    return 1 - np.divide(teachers, base, where=base > NEGLIGIBLE, out=np.full(teachers.shape, np.nan))


def residuals(pooled: Pooled, own_N: Floats | None = None) -> tuple[Floats, Floats]:
    """What each teacher alone leaves unexplained (N, K), and what all together leave (N); in [FLOOR, 1].

    Closeness and direction err in different places, so a teacher's residual is the geometric mean of two fractions: the part of the
    divergence left, KL(s‖k) / KL(s‖0), and the part of the squared shift left (`alone`). 0 is a perfect explanation, 1 is as bad as
    the base. No fraction counts above 1: a student that went part of the way is farther from its teacher than from the base, and
    farther still from the others, and then only the direction tells. The joint residual takes the nearest teacher and the share
    that is `own` (`own_N` saves computing it again). NaN where the subject is the base.
    """
    far = np.clip(1 - closeness(pooled.kl_base_N, pooled.kl_NK), FLOOR, 1)
    left = np.maximum(alone(pooled.gram_NSS)[1], FLOOR)
    own = np.nan_to_num(shares(pooled.gram_NSS)[1] if own_N is None else own_N, nan=1.0)
    joint = far.min(1) * np.minimum(np.maximum(own, FLOOR), left.min(1))
    return np.sqrt(far * left), np.sqrt(joint)


# -- likelihood ---------------------------------------------------------------------------------------------------------


def total_logp(evidence: Evidence, group_T: Ints, n_groups: int) -> Floats:
    """Σ log p_m(token) over the tokens that the subject wrote (N, M), nats."""
    return _sums(evidence.logp_TM[evidence.own_T].astype(float), group_T[evidence.own_T], n_groups)


def responsibilities(logp_NC: npt.ArrayLike, *, steps: int = 500, tolerance: float = 1e-9) -> tuple[Floats, Floats]:
    """A mixture whose components are C fixed models: P(component | group) (N, C) and the priors (C) that EM fits from 1
    / C.

    `logp_NC` are summed log-likelihoods, nats. The likelihood never falls from step to step and is concave in the
    priors, so the start does not matter; equal columns keep equal priors. Priors are 1 / C without any group.
    """
    logp = np.asarray(logp_NC, dtype=float)
    prior = np.full(logp.shape[1], 1 / logp.shape[1])
    posterior: Floats = special.softmax(logp, axis=1)
    for _ in range(steps if len(logp) else 0):
        new = posterior.mean(0)
        done = np.abs(new - prior).max() < tolerance
        prior = new
        with np.errstate(divide="ignore"):
            posterior = special.softmax(logp + np.log(prior), axis=1)
        if done:
            break
    return posterior, prior
