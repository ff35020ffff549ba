"""What each method says of the judged items, on one scale: probabilities of the teachers, of `own` and of `pre-existing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bench.provenance import cast as c
from bench.provenance.judged import Judged
from mopd_diag.estimators.attribution import FLOOR, closeness, shares
from mopd_diag.estimators.judgement import MOVED, existing, readiness
from mopd_diag.estimators.origin import Model, origin


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """N items of one case. `teacher_NK`, `own_N`, `existing_N`: confidences, which need not sum to one for a baseline.

    `rank_NK` orders the teachers in a forced choice, `inherited_N` orders items from *not taught* to *taught by someone listed*,
    `share_NK` is what each teacher is held to explain.
    """

    teacher_NK: np.ndarray
    own_N: np.ndarray
    existing_N: np.ndarray
    rank_NK: np.ndarray
    inherited_N: np.ndarray
    share_NK: np.ndarray


def ours(model: Model) -> Callable[[Judged], Said]:
    """The method of `diagnostics.attribution`."""

    def say(j: Judged) -> Said:
        found = origin(j.pooled, j.near, model)
        there = existing(j.pooled, MOVED)
        sure = np.where(there, readiness(j.pooled), 0.0)
        left = (1 - sure) * ~there
        share = np.nan_to_num(shares(j.pooled.gram_NSS)[0])
        return Said(
            found.teacher_NK * left[:, None],
            (1 - found.inherited_N) * left,
            sure,
            found.choice_NK,
            found.inherited_N,
            share,
        )

    return say


def routed(j: Judged) -> Said:
    """Blame the teacher of the prompt's domain, always."""
    teachers = list(j.case.evidence.teachers)
    owner = {
        d: k
        for k, t in enumerate(teachers)
        for d in c.TAUGHT
        if t in (c.teacher(d), c.quirky(d) if d in c.QUIRKS else "")
    }
    pick = np.zeros((len(j.rows), len(teachers)))
    for n, domain in enumerate(j.domain_N):
        if domain in owner:
            pick[n, owner[domain]] = 1.0
    nobody = np.zeros(len(pick))
    return Said(pick, nobody, nobody, pick, pick.max(1), pick)


def likelihood(j: Judged) -> Said:
    """Whoever gives the tokens the highest probability; equal odds before."""
    logp = j.logp_NC - j.logp_NC.max(1, keepdims=True)
    return _mixture(np.exp(logp) / np.exp(logp).sum(1, keepdims=True), j.logp_NC[:, 1:])


def em_mixture(j: Judged) -> Said:
    """The same with the odds that expectation maximisation fits to all answers."""
    return _mixture(j.posterior_NC, j.posterior_NC[:, 1:])


def reverse_kl(j: Judged) -> Said:
    """Whoever's distribution is nearest to the student's, as far as it is nearer than the base's."""
    near = np.clip(np.nan_to_num(closeness(j.pooled.kl_base_N, j.pooled.kl_NK)), 0, 1)
    best = near.max(1)
    pick = np.where(near == best[:, None], near, 0.0)
    there = j.pooled.kl_base_N < MOVED
    share = near / np.maximum(near.sum(1, keepdims=True), FLOOR)
    return Said(
        np.where(there[:, None], 0, pick),
        np.where(there, 0, 1 - best),
        there.astype(float),
        -j.pooled.kl_NK,
        best,
        share,
    )


def _mixture(posterior_NC: np.ndarray, rank_NK: np.ndarray) -> Said:
    base, teachers = posterior_NC[:, 0], posterior_NC[:, 1:]
    return Said(teachers, np.zeros(len(base)), base, rank_NK, 1 - base, teachers)


BASELINES: Mapping[str, Callable[[Judged], Said]] = {
    "routed-teacher": routed, "token-likelihood": likelihood, "reverse-kl": reverse_kl, "em-mixture": em_mixture,
}  # fmt: skip
