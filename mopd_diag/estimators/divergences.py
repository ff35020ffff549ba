"""Divergences and shift geometry from whole log-probability vectors: the definitions that fast scorers are tested
against.

Axis letters: T tokens (contexts), M members, K teachers, V vocabulary. Log-probabilities are natural and normalised
over V.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from mopd_diag.errors import BadInput
from mopd_diag.estimators.evidence import Evidence, Floats


def log_softmax(logits: npt.ArrayLike) -> Floats:
    """Normalised natural log-probabilities over the last axis."""
    return special.log_softmax(np.asarray(logits, dtype=float), axis=-1)


def kl(logp: npt.ArrayLike, logq: npt.ArrayLike) -> Floats:
    """KL(p ‖ q) = Σ p (log p − log q), nats, over the last axis: at least 0, and 0 only for p = q. Where p = 0 the term
    is 0."""
    logp, logq = np.asarray(logp, dtype=float), np.asarray(logq, dtype=float)
    p = np.exp(logp)
    terms = np.multiply(p, np.subtract(logp, logq, where=p > 0, out=np.zeros(np.broadcast_shapes(p.shape, logq.shape))))
    return terms.sum(-1)


def centred_gram(vectors: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """Weighted covariances of J vectors: (..., J, V) and (..., V), which sums to 1 -> (..., J, J).

    Entry ij is Σ_v w x_i x_j − (Σ_v w x_i)(Σ_v w x_j). Centring makes it blind to adding a constant to a vector, so
    logits and log-probabilities give the same.
    """
    x, w = np.asarray(vectors, dtype=float), np.asarray(weights, dtype=float)[..., None, :]
    centred = x - (w * x).sum(-1, keepdims=True)
    return (w * centred) @ np.swapaxes(centred, -1, -2)


def tail_bucket(logp: npt.ArrayLike, top: npt.ArrayLike) -> Floats:
    """Top-k log-probabilities with the rest of the mass as one more outcome: (..., V) at indices (..., k) -> (..., k +
    1).

    Divergences between bucketed distributions are never larger than those over the whole vocabulary (data processing).
    """
    chosen = np.take_along_axis(np.asarray(logp, dtype=float), np.asarray(top), axis=-1)
    rest = np.log(np.maximum(1 - np.exp(chosen).sum(-1, keepdims=True), np.finfo(float).tiny))
    return np.concatenate([chosen, rest], axis=-1)


def evidence_from_logp(
    logp: Mapping[str, npt.ArrayLike], token_T: npt.ArrayLike, teachers: Sequence[str], answer_T: npt.ArrayLike, *,
    base: str = "base", own_T: npt.ArrayLike | None = None, top_k: int | None = None,
) -> Evidence:  # fmt: skip
    """Evidence from whole arrays: `logp[member]` is (T, V), the subject first; other members than `teachers` are
    decoys.

    `token_T` are the tokens that were written. With `top_k`, every distribution is reduced to the subject's k likeliest
    tokens and a tail bucket first. Raises BadInput when shapes disagree.
    """
    full = {m: np.asarray(x, dtype=float) for m, x in logp.items()}
    subject = next(iter(full))
    members = tuple(dict.fromkeys((subject, base, *teachers, *full)))
    token, answer = np.asarray(token_T, dtype=int), np.asarray(answer_T, dtype=int)
    if any(x.shape != (len(token), full[subject].shape[-1]) for x in full.values()):
        raise BadInput(f"expected (tokens, vocabulary) for every member, got { {m: x.shape for m, x in full.items()} }")
    picked = np.stack([np.take_along_axis(full[m], token[:, None], 1)[:, 0] for m in members], 1)
    if top_k is not None:
        top = np.argsort(-full[subject], axis=-1)[:, :top_k]
        full = {m: tail_bucket(x, top) for m, x in full.items()}
    s, b = full[subject], full[base]
    others = [m for m in members[1:] if m != base and m not in teachers]
    vectors = np.stack([*(full[m] - b for m in (subject, *teachers, *others)), b], axis=1)
    first = np.concatenate([[0], np.flatnonzero(np.diff(answer)) + 1]) if len(answer) else np.zeros(0, int)
    sizes = np.diff([*first, len(answer)])
    return Evidence(
        members, tuple(teachers), picked, np.stack([kl(s, full[m]) for m in members], 1),
        centred_gram(vectors, (np.exp(s) + np.exp(b)) / 2), answer, np.arange(len(answer)) - np.repeat(first, sizes),
        np.ones(len(answer), bool) if own_T is None else np.asarray(own_T, dtype=bool), top_k is None, base,
    )  # fmt: skip
