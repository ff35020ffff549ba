"""Did the teachers cap the student? Recovery of the headroom, the cap's verdict, and which items were inherited, lost
or surpassed.

Axis letters: I items, S samples, M teachers, R replicates, K values of k. All scores are accuracies in [0, 1]; higher
is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import REPLICATES, Bootstrap
from mopd_diag.estimators.draws import Floats, Seed
from mopd_diag.estimators.selection import as_items_by_samples, best_of
from mopd_diag.estimators.statistics import (
    Verdict,
    detectable_from_interval,
    equivalence_verdict,
    item_means,
    pass_at_k,
)
from mopd_diag.types import Estimate

Part = Literal["both", "surpassing", "lost", "inherited"]
PARTS: tuple[Part, ...] = ("both", "surpassing", "lost", "inherited")
SOLVED = 0.5
"""An item counts as solved by a model that is right in more than this share of its samples (a strict majority)."""
STUDENT, BASE, BEST, WHOLE = range(4)
"""Columns of a cap's bootstrap: student, base, best teacher (cross-fitted), best teacher on all samples."""

Training = tuple[npt.ArrayLike, npt.ArrayLike, Sequence[npt.ArrayLike]]
"""One training seed: the student's I × S scores, the base's, and those of M teachers."""


@dataclass(frozen=True, eq=False)
class Cap:
    """One domain's cap.

    `gap` is student − best teacher (negative: below the cap) and `headroom` best teacher − base, both in accuracy.
    `teacher` is the best teacher's index, `chosen` what the two halves of the samples chose (for each training seed).
    `partition` assigns each item to one of `PARTS`. `bootstrap` has the four columns named above, for joining domains.
    """

    recovery: Estimate
    student: Estimate
    base: Estimate
    best_teacher: Estimate
    headroom: Estimate
    gap: Estimate
    verdict: Verdict
    teacher: int
    chosen: tuple[tuple[int, int], ...]
    smallest_detectable_effect: float
    partition_TI: tuple[npt.NDArray[np.str_], ...]
    bootstrap: Bootstrap


def recovered(student: npt.ArrayLike, base: npt.ArrayLike, teacher: npt.ArrayLike) -> Floats:
    """(student − base) / (teacher − base), elementwise: 0 at the base, 1 at the teacher, above 1 past it (design,
    *Caps*).

    NaN where the teacher is not above the base: there is no headroom to recover. For printed point estimates and for
    bootstrap replicates alike; whether the headroom is *surely* there is decided in `cap`.
    """
    s, b, t = (np.asarray(x, dtype=float) for x in (student, base, teacher))
    room = t - b
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room > 0, (s - b) / room, np.nan)


def cap(
    student: npt.ArrayLike, base: npt.ArrayLike, teachers: Sequence[npt.ArrayLike], *, margin: float = 0.05,
    seed: Seed = 0, level: float = 0.95, replicates: int = REPLICATES,
) -> Cap:  # fmt: skip
    """The cap of one domain from one training: I × S scores of the student, the base, and each of M teachers, on the
    same items.

    See `cap_over_seeds` for what is computed and raised.
    """
    return cap_over_seeds([(student, base, teachers)], margin=margin, seed=seed, level=level, replicates=replicates)


def cap_over_seeds(
    trainings: Sequence[Training], *, same_items: bool = True, margin: float = 0.05, seed: Seed = 0,
    shift_seed: Seed | None = None, level: float = 0.95, replicates: int = REPLICATES,
) -> Cap:  # fmt: skip
    """The cap of one domain with intervals over items and, when there are several trainings, over training seeds.

    - *Best teacher*: chosen on one half of the samples and scored on the other, both ways (`selection.best_of`).
    - *Recovery*: ratio of means; undefined, with the reason, when the interval of the headroom covers 0.
    - *Verdict*: equivalence test of the gap with ±`margin` of accuracy.
    - *Intervals* of recovery and gap are widened on the safe side: the upper end is taken against the cross-fitted teacher
      (on average not above the true cap), the lower end also against the best on all samples (on average not below it).
    - *Partition*: `both` the student and some teacher solve the item; `surpassing` the student alone; `lost` the best
      teacher solves it and the student does not; `inherited` neither the student nor the best teacher.

    Raises BadInput for unequal items, no teachers, or a negative margin.
    """
    columns, partitions, chosen = [], [], []
    for student, base, teachers in trainings:
        best = best_of(teachers, seed=_first(seed))
        own, start = (item_means(as_items_by_samples(x)) for x in (student, base))
        if not len(own) == len(start) == len(best.column_I):
            sizes = f"{len(own)} of the student, {len(start)} of the base, {len(best.column_I)} of the teachers"
            raise BadInput(f"expected the same items, got {sizes}")
        columns.append(np.column_stack([own, start, best.column_I, best.whole_I]))
        partitions.append(partition(own, [item_means(as_items_by_samples(t)) for t in teachers], best.index))
        chosen.append(best.chosen)
    boot = Bootstrap.over_seeds(
        columns, same_items=same_items, seed=seed, shift_seed=shift_seed, level=level, replicates=replicates
    )
    overall = [
        np.mean([item_means(as_items_by_samples(t[2][m])).mean() for t in trainings])
        for m in range(len(trainings[0][2]))
    ]
    headroom = boot.estimate(lambda m: m[..., BEST] - m[..., BASE], unit="difference")
    gap = joint_gap([boot])
    verdict = equivalence_verdict(gap, margin)
    effect = detectable_from_interval(gap)
    note = _note(verdict, margin, effect) if gap.defined else gap.note
    return Cap(
        recovery(boot, headroom, note), boot.column(STUDENT), boot.column(BASE), boot.column(BEST), headroom,
        replace(gap, note=note), verdict, int(np.argmax(overall)), tuple(chosen), effect, tuple(partitions), boot,
    )  # fmt: skip


def recovery(boot: Bootstrap, headroom: Estimate, note: str = "") -> Estimate:
    """Recovery of a cap's bootstrap, undefined unless the headroom is surely above 0."""
    if headroom.defined and not headroom.low > 0:
        place = "lies below" if headroom.high < 0 else "covers"
        reason = f"the headroom's interval {place} 0: {headroom.value:.3f} [{headroom.low:.3f}, {headroom.high:.3f}]"
        return Estimate.undefined(reason, unit="ratio", n_items=boot.n_items, method=boot.method)
    return replace(joint_recovery([boot]), note=note) if headroom.defined else joint_recovery([boot])


def joint_recovery(parts: Sequence[Bootstrap]) -> Estimate:
    """Unweighted mean of the recoveries of several domains, resampled together (items within each domain).

    `parts`: bootstraps of caps whose headroom is surely above 0. The lower end is also taken against the best teachers on
    all samples, as in `joint_gap`. Undefined when there are no parts.
    """
    if not parts:
        return Estimate.undefined("no domain has headroom", unit="ratio")
    return _against_both(parts, lambda m, t: (m[..., STUDENT] - m[..., BASE]) / (m[..., t] - m[..., BASE]), "ratio")


def joint_gap(parts: Sequence[Bootstrap]) -> Estimate:
    """Unweighted mean over domains of student − best teacher (negative: below the cap).

    Value and upper end against the cross-fitted teachers, lower end also against the best on all samples.
    """
    return _against_both(parts, lambda m, t: m[..., STUDENT] - m[..., t], "difference")


def _against_both(parts: Sequence[Bootstrap], statistic: Callable[[Floats, int], Floats], unit: str) -> Estimate:
    """Mean over domains of a statistic of (means, column of the teacher), its interval widened on the safe side."""
    joined, n = Bootstrap.join(parts), len(parts)

    def against(teacher: int) -> Estimate:
        return joined.estimate(lambda m: statistic(m.reshape(*m.shape[:-1], n, 4), teacher).mean(-1), unit=unit)

    fitted, whole = against(BEST), against(WHOLE)
    return replace(fitted, low=min(fitted.low, whole.low)) if fitted.defined and whole.defined else fitted


def partition(student_I: npt.ArrayLike, teachers_MI: Sequence[npt.ArrayLike], best: int) -> npt.NDArray[np.str_]:
    """The part of each item, I names of `PARTS`, from item means; solved means right in a strict majority of the
    samples."""
    own = np.asarray(student_I, dtype=float) > SOLVED
    solved = np.stack([np.asarray(t, dtype=float) > SOLVED for t in teachers_MI])
    return np.select([own & solved.any(0), own, solved[best]], PARTS[:3], default=PARTS[3])


def pass_at_ks(
    models: Sequence[npt.ArrayLike], ks: Sequence[int], *, seed: Seed = 0, level: float = 0.95,
    replicates: int = REPLICATES,
) -> list[list[Estimate]]:  # fmt: skip
    """pass@k of M models (I × S scores each; a score above 1/2 is right) for each k: M lists of K estimates, on shared
    draws.

    NaN with the reason where some item has fewer than k samples.
    """
    columns, lacking = [], []
    for scores in (as_items_by_samples(m) for m in models):
        n = (~np.isnan(scores)).sum(1)
        for k in ks:
            lacking.append(int(n.min()) < k)
            columns.append(np.zeros(len(n)) if lacking[-1] else pass_at_k(n, (scores > SOLVED).sum(1), k))
    boot = Bootstrap.of(np.column_stack(columns), seed=seed, level=level, replicates=replicates)
    told = [
        Estimate.undefined(f"some item has fewer than {ks[v % len(ks)]} samples", n_items=boot.n_items)
        if lacks
        else boot.column(v)
        for v, lacks in enumerate(lacking)
    ]
    return [told[m * len(ks) : (m + 1) * len(ks)] for m in range(len(models))]


def _note(verdict: Verdict, margin: float, effect: float) -> str:
    where = "cannot be placed against the cap" if verdict == "undetermined" else f"{verdict} the cap"
    return f"{where}: margin {margin:g}, smallest detectable gap at 80% power {effect:.3f}"


def _first(seed: Seed) -> int:
    return int(np.atleast_1d(np.asarray(seed))[-1])
