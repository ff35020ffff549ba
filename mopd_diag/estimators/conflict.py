"""Do two teachers fight over one token, and did the student give way to the wrong one?

At the pivot of a failed answer the routed teacher r and another teacher k may want different tokens. z is the token that k pulls
to: the one the student wrote, or, when it wrote neither teacher's, k's favourite. There is a *conflict* when all of these hold:

- r would have said something else: its likeliest token is not the written one;
- k is for z: p_k(z) ≥ 1/4, at least twice the base's p_0(z) and at least twice p_r(z);
- the two are far apart: Jensen–Shannon divergence of p_r and p_k ≥ 0.1 nats (its largest value is ln 2 = 0.69);
- the student was moved there: p_s(z) ≥ 1.5 p_0(z), and p_s(z) ≥ 0.1 where it did not write z.

The base stands in every condition because specialists disagree with one another on each other's prompts for no better reason than that
one of them kept what the base did; that is `pre-existing`, not a fight. V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mopd_diag.estimators.draws import Floats

FOR = 0.25
TIMES = 2.0
MOVED = 1.5
SPLIT = 0.1
APART = 0.1


@dataclass(frozen=True, slots=True)
class Conflict:
    """`teacher` pulls to `token` against the routed one; `won` when the student wrote it. `divergence` in nats; `moved`: how many times as
    probable the token is under the student as under the base."""

    teacher: str
    token: int
    won: bool
    divergence: float
    moved: float


def jensen_shannon(p_V: Floats, q_V: Floats) -> float:
    """JS(p, q) = ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2, in nats; 0 for equal ones, ln 2 for disjoint ones."""
    mean = 0.5 * (p_V + q_V)
    terms = [np.where(x > 0, x * np.log(np.where(x > 0, x, 1) / np.where(mean > 0, mean, 1)), 0) for x in (p_V, q_V)]
    return max(0.0, 0.5 * float(sum(t.sum() for t in terms)))


def find_conflict(
    p_V: Mapping[str, Floats], written: int, *, student: str, base: str, routed: str, others: Sequence[str]
) -> Conflict | None:
    """The clearest conflict at one token, from the members' next-token probabilities there; None when there is none.

    `written` is the student's token. Where several teachers qualify: those whose token was written first, then by divergence.
    """
    favourite = int(p_V[routed].argmax())
    if favourite == written:
        return None
    found = []
    for other in others:
        own = int(p_V[other].argmax())
        divergence = jensen_shannon(p_V[routed], p_V[other])
        for token in dict.fromkeys((written, own)):
            if (
                token != favourite
                and divergence >= APART
                and _pulled(p_V, token, student, base, routed, other, written)
            ):
                moved = float(p_V[student][token] / max(float(p_V[base][token]), 1e-12))
                found.append(Conflict(other, token, token == written, divergence, moved))
    return max(found, key=lambda c: (c.won, c.divergence, c.teacher), default=None)


def _pulled(
    p_V: Mapping[str, Floats], token: int, student: str, base: str, routed: str, other: str, written: int
) -> bool:
    p = {m: float(p_V[m][token]) for m in (student, base, routed, other)}
    wanted = p[other] >= max(FOR, TIMES * p[base], TIMES * p[routed])
    least = 0.0 if token == written else SPLIT
    return wanted and p[student] >= max(MOVED * p[base], least) and not math.isnan(p[student])
