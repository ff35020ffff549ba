"""Is the cap binding? What a short RL run from the student (the *probe*) says about the level at which the teachers left it.

Three differences of accuracy, paired by item: student − best teacher (*before*), probe − best teacher (*after*), probe − student
(*gain*). A cap binds when it, and not the student's own ability to learn, is what the student stopped at. So `binding` asks for all of
this, and surely:

1. the student is at or below the best teacher: not above it by more than the margin;
2. the probe is above the best teacher, by more than nothing;
3. the probe is above the student. Without this, a student that is a little past its teacher already would be found bound by it.

Each is tested; the claim's p-value is the largest of the three (intersection-union, Berger 1982), and Holm's correction covers the
domains. The best teacher is the one of `estimators.caps`: chosen on one half of the samples and scored on the other, and for the second
test also the best on all samples, whichever is better: the luck of the best of many works against `binding`, never for it.

`not-binding`: the student is surely past its best teacher already, or the probe's gain is equivalent to none (its interval within
±margin, Schuirmann 1987) although so short a run can move a model. That last part is a positive control: a probe of one step gains
nothing anywhere, and that says nothing about teachers. Everything else is `undetermined`, also a probe that climbs without passing the
teacher: it shows that the student had not finished learning, not where it would end.

The intervals are over items. They hold for this probe: another seed's probe is another run.

Axis letters: I items, R replicates, D domains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mopd_diag.estimators.bootstrap import Bootstrap, Statistic
from mopd_diag.estimators.caps import BEST, STUDENT, WHOLE, joint_gap
from mopd_diag.estimators.draws import Floats
from mopd_diag.estimators.statistics import detectable_from_interval, equivalence_verdict
from mopd_diag.types import Estimate

Binding = Literal["binding", "not-binding", "undetermined"]
Reason = Literal["bound", "past", "full", "flat", "short", "unreached", "level", "corrected", "fell", "wide", "unknown"]
"""Why a verdict: `past` its teacher already, nothing left to gain (`full`), no gain (`flat`), no gain by a probe too `short`, a gain that
leaves the teacher `unreached`, one that passes it from a `level` that may have been past it before, sure only before the correction
(`corrected`), a loss (`fell`), too `wide` intervals, nothing computed (`unknown`)."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The three differences on one domain, or their means over several, in accuracy.

    `p_value`: two-sided, of the three claims behind `binding` together. `smallest_detectable_effect`: what a lead over the
    best teacher and a gain over the student must both measure to be found with 80 % power each, before correction.
    """

    before: Estimate
    after: Estimate
    gain: Estimate
    p_value: float
    smallest_detectable_effect: float


def compare(
    before: Sequence[Bootstrap], after: Sequence[Bootstrap], gain: Sequence[Bootstrap], *, margin: float = 0.05
) -> Compared:
    """The three differences over D domains (D = 1 for one), each domain weighing the same.

    `before`, `after`: the bootstraps of the caps of student and probe (`estimators.caps.Cap.bootstrap`). `gain`: I × 2 columns, probe and
    student. NaN where a bootstrap has too few items.
    """
    n, gains = len(gain), Bootstrap.join(gain)
    found = (joint_gap(before), joint_gap(after), gains.estimate(lambda m: _mean_gain(m, n), unit="difference"))
    if not all(e.defined for e in found):
        return Compared(*found, math.nan, math.nan)
    befores, afters = Bootstrap.join(before), Bootstrap.join(after)
    p_values = (
        _p_above(margin - befores.draws(_mean_gap(n, BEST))),
        *(_p_above(afters.draws(_mean_gap(n, teacher))) for teacher in (BEST, WHOLE)),
        _p_above(gains.draws(lambda m: _mean_gain(m, n))),
    )
    return Compared(*found, max(p_values), max(map(detectable_from_interval, found[1:])))


def judge(
    x: Compared, p_adjusted: float, *, margin: float = 0.05, full: bool = False, moved: bool | None = None
) -> tuple[Binding, Reason]:
    """The verdict and what it rests on.

    `full`: the student surely is within the margin of every answer right. `moved`: did as many rollouts move a model that had something
    to learn (None: not known, then taken for granted)?
    """
    alpha = 1 - x.gain.level
    if not (x.before.defined and x.after.defined and x.gain.defined):
        return "undetermined", "unknown"
    if equivalence_verdict(x.before, margin) == "above":
        return "not-binding", "past"
    if p_adjusted < alpha:
        return "binding", "bound"
    if x.p_value < alpha:
        return "undetermined", "corrected"
    if equivalence_verdict(x.gain, margin) == "at":
        if full:
            return "not-binding", "full"
        return ("undetermined", "short") if moved is False else ("not-binding", "flat")
    if x.gain.low > 0:
        return "undetermined", "level" if x.after.low > 0 else "unreached"
    return "undetermined", "fell" if x.gain.high < 0 else "wide"


def _p_above(draws_R: Floats) -> float:
    """Two-sided p-value that a statistic is above 0, from its replicates: below 0.05 where its 95 % interval is above 0."""
    return min(1.0, 2 * (1 + int((draws_R <= 0).sum())) / (1 + len(draws_R)))


def _mean_gap(n: int, teacher: int) -> Statistic:
    """Mean over n domains of (first column − a teacher's) of caps' bootstraps that were joined."""
    return lambda m: (m.reshape(*m.shape[:-1], n, 4)[..., STUDENT] - m.reshape(*m.shape[:-1], n, 4)[..., teacher]).mean(
        -1
    )


def _mean_gain(means: Floats, n: int) -> Floats:
    columns = means.reshape(*means.shape[:-1], n, 2)
    return (columns[..., 0] - columns[..., 1]).mean(-1)
