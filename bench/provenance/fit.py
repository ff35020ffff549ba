"""Learn the weights of `estimators.origin` from judged cases of known truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from bench.provenance.cases import CONTROLS, SPECIALISTS
from bench.provenance.judged import Judged, with_decoys
from mopd_diag.estimators.origin import CHOICE, INHERITED, choice_features, inherited_features

RIDGE = 1.0
"""Strength of the pull of every weight toward 0, in items: features that are constant within a cluster must not be trusted blindly."""
SIGNS: dict[str, tuple[float | None, float | None]] = {"unexplained": (None, 0), "size": (None, None)}
"""Bounds of weights; all others are ≥ 0: a teacher that is nearer, or that explains more, is never evidence against teaching."""
DECOYS = {"all": (*SPECIALISTS, *CONTROLS), "controls": CONTROLS, "specialists": SPECIALISTS}
"""Sets of decoys that users may have; the model learns from all of them."""
TOGETHER, HARD = 8, 4
"""Weight of one case and domain, in items; and how many times as much where a student and an untaught model are equally competent:
these are few and hard to tell apart, and the many easy cases must not decide how sure one is about them."""
KINDS_OF_CHOICE = ("single", "swapped", "quirk", "routed")


def fit(judged: Sequence[Judged]) -> dict[str, Any]:
    """The numbers of the calibration file: `choice`, `inherited` and its `bias`."""
    choice = _choice(judged)
    seen = [with_decoys(j, d) for d in DECOYS.values() for j in judged]
    found = _logistic(*_inherited([j for j in seen if j.case.evidence.decoys], choice), INHERITED)
    return {
        "choice": dict(zip(CHOICE, choice.tolist(), strict=True)),
        "inherited": dict(zip(INHERITED, found[:-1].tolist(), strict=True)),
        "bias": float(found[-1]),
    }


def _choice(judged: Sequence[Judged]) -> np.ndarray:
    """Conditional logit over the candidates, on items whose truth is one of them; each case and domain weighs the same."""
    features, right, weights = [], [], []
    for j in judged:
        if j.case.kind not in KINDS_OF_CHOICE or not len(j.rows):
            continue
        features.append(choice_features(j.pooled, j.near))
        right.append([j.case.evidence.teachers.index(t[0]) for t in j.truth_N])
        weights.append(_weights(j))
    x, y, w = np.concatenate(features), np.concatenate(right), np.concatenate(weights)

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        logp = special.log_softmax(x @ b, axis=1)
        expected = (np.exp(logp)[:, :, None] * x).sum(1)
        each = x[np.arange(len(y)), y]
        value = -(w * logp[np.arange(len(y)), y]).sum() + RIDGE * (b**2).sum() / 2
        return value, (w[:, None] * (expected - each)).sum(0) + RIDGE * b

    bounds = [(0, None)] * x.shape[2]  # nearer is never evidence against
    return optimize.minimize(loss, np.full(x.shape[2], 0.5), jac=True, method="L-BFGS-B", bounds=bounds).x


def _inherited(judged: Sequence[Judged], choice: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tables, taught, weights = [], [], []
    for j in judged:
        if not len(j.rows) or j.case.kind in ("base", "twin", "copy"):
            continue  # what did not move from the base is not asked where it comes from
        features = choice_features(j.pooled, j.near)
        tables.append(inherited_features(j.pooled, j.near, (features @ choice).argmax(1)))
        taught.append([t[0].startswith("teacher") for t in j.truth_N])
        weights.append(_weights(j))
    return np.concatenate(tables), np.concatenate(taught).astype(float), np.concatenate(weights)


def _weights(j: Judged) -> np.ndarray:
    """Items of one case and domain together weigh as much as `TOGETHER` items: they share their training."""
    counts = {d: int((j.domain_N == d).sum()) for d in set(j.domain_N)}
    much = TOGETHER * (HARD if j.case.kind in ("routed", "control") else 1)
    return np.array([much / counts[d] for d in j.domain_N])


def _logistic(x: np.ndarray, y: np.ndarray, w: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Ridge logistic regression; the sign of a weight is given where reason gives it (SIGNS)."""
    # Taught and not taught weigh the same: how often people are taught is not for a bench to say.
    w = w * np.where(y > 0, (w * (y == 0)).sum() / (w * (y > 0)).sum(), 1.0)

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ b[:-1] + b[-1]
        value = (w * (np.logaddexp(0, z) - y * z)).sum() + RIDGE * (b[:-1] ** 2).sum() / 2
        slope = w * (special.expit(z) - y)
        return value, np.concatenate([x.T @ slope + RIDGE * b[:-1], [slope.sum()]])

    bounds = [SIGNS.get(n, (0, None)) for n in names] + [(None, None)]
    return optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
