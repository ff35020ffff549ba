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
from mopd_diag.estimators.selection import as_items_by_samples, best_of, contenders
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
"""Columns of a cap's bootstrap: student, base, best teacher (cross-fitted), best teacher on all samples. See `_with_rivals`."""

Training = tuple[npt.ArrayLike, npt.ArrayLike, Sequence[npt.ArrayLike]]
"""One training seed: the student's I × S scores, the base's, and those of M teachers."""


@dataclass(frozen=True, eq=False)
class Cap:
    """One domain's cap.

    `gap` is student − best teacher (negative: below the cap) and `headroom` best teacher − base, both in accuracy.
    `teacher` is the best teacher's index, `chosen` what the two halves of the samples chose (for each training seed).
    `tested` is the gap with the one-sided bounds that `verdict` is read from. `partition` assigns each item to one of `PARTS`.
    `bootstrap` has the four columns named above, for joining domains.
    """

    recovery: Estimate
    student: Estimate
    base: Estimate
    best_teacher: Estimate
    headroom: Estimate
    gap: Estimate
    tested: Estimate
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
    - *Intervals* hold whichever of the `selection.contenders` is the best teacher: see `_with_rivals` and `_against`.
    - *Verdict*: one-sided tests of the gap, each at 1 − `level`, and an equivalence test with ±`margin` of accuracy (Schuirmann 1987),
      all read from `tested`, whose bounds enclose 2·`level` − 1.
    - *Partition*: `both` the student and some teacher solve the item; `surpassing` the student alone; `lost` the best
      teacher solves it and the student does not; `inherited` neither the student nor the best teacher.

    Raises BadInput for unequal items, no teachers, or a negative margin.
    """
    bests = [best_of(teachers, seed=_first(seed)) for _, _, teachers in trainings]
    taught = [np.stack([item_means(as_items_by_samples(t)) for t in teachers]) for _, _, teachers in trainings]
    if len({len(t) for t in taught}) != 1:
        raise BadInput(f"expected the same teachers in every training, got {[len(t) for t in taught]} of them")
    able = contenders(taught)
    columns, partitions = [], []
    for (student, base, _), best, taught_MI in zip(trainings, bests, taught, strict=True):
        own, start = (item_means(as_items_by_samples(x)) for x in (student, base))
        if not len(own) == len(start) == len(best.column_I):
            sizes = f"{len(own)} of the student, {len(start)} of the base, {len(best.column_I)} of the teachers"
            raise BadInput(f"expected the same items, got {sizes}")
        columns.append(np.column_stack([own, start, best.column_I, *taught_MI[able]]))
        partitions.append(partition(own, list(taught_MI), best.index))
    boot = _with_rivals(
        Bootstrap.over_seeds(
            columns,
            same_items=same_items,
            seed=seed,
            shift_seed=shift_seed,
            level=level,
            replicates=replicates,
            crossed=True,
        )
    )
    headroom = _against([boot], lambda m, t: t - m[..., BASE], "difference")
    gap, tested = joint_gap([boot]), one_sided_gap([boot])
    verdict = equivalence_verdict(tested, margin)
    effect = detectable_from_interval(tested)
    note = _note(verdict, margin, effect, level) if gap.defined else gap.note
    return Cap(
        recovery(boot, headroom, note), boot.column(STUDENT), boot.column(BASE), _against([boot], lambda m, t: t, "share"),
        headroom, replace(gap, note=note), tested, verdict, able[0], tuple(b.chosen for b in bests), effect, tuple(partitions), boot,
    )  # fmt: skip


def _with_rivals(boot: Bootstrap) -> Bootstrap:
    """The four columns of a cap from a bootstrap whose columns from `WHOLE` on are the contenders, the leader first.

    Whoever leads may lead by luck. In the replicates, `WHOLE` is the leader as measured: at least the best teacher, on average. `BEST`
    is the leader's level less the worst that a replicate does to any contender, as if all of them were equal at that level: the least
    favourable case (as in Dunnett's and other max-t tests), so at most the best teacher. With one contender they are the same.
    """
    away_RN, level = boot.means_RV[:, WHOLE:] - boot.point_V[WHOLE:], boot.point_V[WHOLE]
    worst_R = away_RN.min(1)
    means = boot.means_RV[:, : WHOLE + 1].copy()
    means[:, BEST] = level + worst_R

    def beside(added_RV: Floats | None) -> Floats | None:
        if added_RV is None:
            return None
        added = added_RV[:, : WHOLE + 1].copy()
        added[:, BEST] = (away_RN + added_RV[:, WHOLE:]).min(1) - worst_R
        return added

    redraw = boot.redraw
    again = None if redraw is None else lambda weight: _with_rivals(redraw(weight))
    shift, noise = beside(boot.shift_RV), beside(boot.noise_RV)
    return replace(
        boot, point_V=boot.point_V[: WHOLE + 1], means_RV=means, shift_RV=shift, noise_RV=noise, redraw=again
    )


def recovery(boot: Bootstrap, headroom: Estimate, note: str = "") -> Estimate:
    """Recovery of a cap's bootstrap, undefined unless the headroom is surely above 0."""
    if headroom.defined and not headroom.low > 0:
        place = "lies below" if headroom.high < 0 else "covers"
        reason = f"the headroom's interval {place} 0: {headroom.value:.3f} [{headroom.low:.3f}, {headroom.high:.3f}]"
        return Estimate.undefined(reason, unit="ratio", n_items=boot.n_items, method=boot.method)
    return replace(joint_recovery([boot]), note=note) if headroom.defined else joint_recovery([boot])


def joint_recovery(parts: Sequence[Bootstrap]) -> Estimate:
    """Unweighted mean of the recoveries of several domains, resampled together (items within each domain).

    `parts`: bootstraps of caps whose headroom is surely above 0. Undefined when there are no parts.
    """
    if not parts:
        return Estimate.undefined("no domain has headroom", unit="ratio")
    return _against(parts, lambda m, t: (m[..., STUDENT] - m[..., BASE]) / (t - m[..., BASE]), "ratio")


def joint_gap(parts: Sequence[Bootstrap]) -> Estimate:
    """Unweighted mean over domains of student − best teacher (negative: below the cap)."""
    return _against(parts, lambda m, t: m[..., STUDENT] - t, "difference")


def one_sided_gap(parts: Sequence[Bootstrap]) -> Estimate:
    """`joint_gap` with bounds for verdicts: each holds alone with the level, so the two enclose 2·level − 1 (0.90 for 0.95)."""
    return _against(parts, lambda m, t: m[..., STUDENT] - t, "difference", one_sided=True)


def _against(
    parts: Sequence[Bootstrap], statistic: Callable[[Floats, Floats], Floats], unit: str, *, one_sided: bool = False
) -> Estimate:
    """Mean over domains of a statistic of (means, level of the best teacher).

    Its value is taken at the cross-fitted teachers. Of the two kinds of replicates (`_with_rivals`), the one that reaches lower bounds
    it from below, the other from above: both ends hold whoever is the best. Where several teachers contend, the lower end then misses
    less often than it may; what it leaves unused goes to the upper end, so that contenders that are really equal make no interval
    wider than its level.
    """
    joined, n = Bootstrap.join(parts), len(parts)

    def against(teacher: int) -> Callable[[Floats], Floats]:
        def mean(means: Floats) -> Floats:
            m = means.reshape(*means.shape[:-1], n, 4)
            return statistic(m, m[..., teacher]).mean(-1)

        return mean

    found = joined.estimate(against(BEST), unit=unit)
    if not found.defined:
        return found
    tail = (1 - joined.level) * (1 if one_sided else 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = [d[np.isfinite(d)] for d in (joined.draws(against(t)) for t in (BEST, WHOLE))]
    lows = [np.quantile(d, tail) for d in draws]
    low, above = min(lows), draws[int(np.argmin(lows) == 0)]
    unused = 0.0 if one_sided else max(0.0, tail - float((above < low).mean()))
    high = np.quantile(above, 1 - tail - unused)
    level = round(1 - 2 * tail, 12)
    return replace(found, low=min(float(low), found.value), high=max(float(high), found.value), level=level)


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


def _note(verdict: Verdict, margin: float, effect: float, level: float) -> str:
    where = "cannot be placed against the cap" if verdict == "undetermined" else f"{verdict} the cap"
    sides = f"each side tested at {1 - level:.1%}".replace(".0%", "%")
    return f"{where}: margin {margin:g}, {sides}, smallest detectable gap at 80% power {effect:.3f}"


def _first(seed: Seed) -> int:
    return int(np.atleast_1d(np.asarray(seed))[-1])
