"""Is AFTER better or worse than BEFORE? Paired differences on the items that both answered, by group and overall.

Axis letters: I items, V columns, G groups. A difference is after − before; positive means that `after` gained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mopd_diag.diagnostics.comparison import (
    FLIP_COLUMNS,
    OVERALL,
    Change,
    Comparison,
    GroupComparison,
)  # fmt: skip
from mopd_diag.diagnostics.join import join
from mopd_diag.diagnostics.noise import noise_floors
from mopd_diag.diagnostics.pairs import Measured, Pairs, bounds_of, measure, pairs_of, together
from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import REPLICATES
from mopd_diag.estimators.significance import benjamini_hochberg, holm
from mopd_diag.estimators.statistics import equivalence_verdict, smallest_detectable_effect
from mopd_diag.records.recordset import RecordSet, aligned
from mopd_diag.types import Estimate

MARGIN = 0.02
ITEM = ["group", "item_id"]
FEW_CLUSTERS = 20
"""Clusters below which a bootstrap over them is known to be too narrow (Cameron, Gelbach & Miller 2008)."""


def compare(
    before: RecordSet, after: RecordSet, *, margin: float = MARGIN, level: float = 0.95, replicates: int = REPLICATES,
    seed: int = 0, reruns: Sequence[RecordSet] = (), why: pd.DataFrame | None = None, why_note: str = "",
) -> Comparison:  # fmt: skip
    """Join two record sets and compare them, group by group and overall.

    `margin`: differences within it count as none, in the scores' own scale. `reruns`: other runs of the checkpoint of
    `before`, for the noise floor. `why`: group, item_id, failure, teacher, reason of lost items. Raises BadInput for a
    join that `join` refuses and for settings out of range.
    """
    check_settings(margin, level, replicates)
    (before, after), assumed = aligned(before, after)
    joined = join(before, after)
    bounds = bounds_of(joined.items)
    pairs = pairs_of(joined.items)
    draw = {"level": level, "replicates": replicates, "bounds": bounds}
    measured = {p.name: measure(p, seed=(seed, k), **draw) for k, p in enumerate(pairs)}
    floors, noise_warnings = noise_floors(before, reruns, pairs, level=level, replicates=replicates, seed=seed)
    groups = judge(pairs, measured, margin=margin, level=level, floors=floors)
    warnings = (*assumed, *joined.warnings, *_scale_warning(bounds, margin), *noise_warnings)
    threshold = (bounds[0] + bounds[1]) / 2
    names = (before.name, after.name) if before.name != after.name else (before.source, after.source)
    return Comparison(
        *names, joined, groups, overall(pairs, measured, groups, margin=margin, level=level, seed=seed, floors=floors),
        telling_answers(flips_of(joined.items, threshold, why), before, after), level, seed, replicates, threshold, why_note,
        warnings,
    )  # fmt: skip


def judge(
    pairs: Sequence[Pairs], measured: Mapping[str, Measured], *, margin: float, level: float,
    floors: Mapping[str, Estimate] | None = None,
) -> dict[str, GroupComparison]:  # fmt: skip
    """Every group with its verdict, p-values adjusted over all of them."""
    p_values = [measured[p.name].p_value for p in pairs]
    adjusted, discovery = holm(p_values), benjamini_hochberg(p_values)
    return {
        p.name: _group(
            p, measured[p.name], float(a), float(q), margin, level, len(pairs), floors.get(p.name) if floors else None
        )
        for p, a, q in zip(pairs, adjusted, discovery, strict=True)
    }


def overall(
    pairs: Sequence[Pairs], measured: Mapping[str, Measured], groups: Mapping[str, GroupComparison], *, margin: float,
    level: float, seed: int, floors: Mapping[str, Estimate] | None = None,
) -> GroupComparison:  # fmt: skip
    """The unweighted mean of the groups, items resampled within them; a single group is its own mean."""
    floor = floors.get(OVERALL) if floors else None
    if len(pairs) == 1:
        return replace(groups[pairs[0].name], name=OVERALL, noise_floor=floor)
    whole = Pairs.stacked(OVERALL, pairs)
    found = together(pairs, measured, seed=seed)
    made = _group(whole, found, found.p_value, found.p_value, margin, level, 1, floor)
    return replace(made, won=sum(g.won for g in groups.values()), lost=sum(g.lost for g in groups.values()))


def verdict_of(delta: Estimate, p_adjusted: float, level: float, *, equal: bool) -> Change:
    """`unchanged` when the difference is surely within the margin, even if it is not exactly 0; otherwise `better` or
    `worse` when the adjusted p-value is at most 1 − level; otherwise `undetermined`."""
    if equal:
        return "unchanged"
    if p_adjusted <= 1 - level + 1e-12 and delta.value:
        return "better" if delta.value > 0 else "worse"
    return "undetermined"


def flips_of(items: pd.DataFrame, threshold: float, why: pd.DataFrame | None = None) -> pd.DataFrame:
    """Items that crossed the threshold, lost ones first, with the reason where `why` has one."""
    was, now = items["before"].to_numpy() > threshold, items["after"].to_numpy() > threshold
    kept = [c for c in FLIP_COLUMNS if c in items.columns]
    changed = items.loc[was != now, kept].assign(change=np.where(was, "lost", "won")[was != now])
    changed = changed.sort_values(["change", "group", "item_id"], kind="stable").reset_index(drop=True)
    causes = ["failure", "teacher", "reason"]
    if why is None or why.empty:
        changed[causes] = ""
    else:
        known = why[["group", "item_id", *causes]].drop_duplicates(["group", "item_id"])
        changed = changed.merge(known, on=["group", "item_id"], how="left")
        lost = changed["change"] == "lost"
        changed[causes] = changed[causes].fillna("").where(lost, "")
    return changed[FLIP_COLUMNS]


def telling_answers(flips: pd.DataFrame, before: RecordSet, after: RecordSet) -> pd.DataFrame:
    """The flips with the sample that shows each best: the highest score on the side that solves it, the lowest on the
    other; the first of equals."""
    if flips.empty:
        return flips
    shown = flips.copy()
    lost = flips["change"] == "lost"
    for side, records, best in (("before", before, lost), ("after", after, ~lost)):
        rows = records.frame.merge(flips[ITEM].assign(sign=np.where(best, -1.0, 1.0)), on=ITEM)
        rows = rows.assign(rank=rows["score"] * rows["sign"]).sort_values([*ITEM, "rank", "sample"], kind="stable")
        first = rows.drop_duplicates(ITEM).set_index(ITEM)["response"]
        shown[f"response_{side}"] = first.reindex(pd.MultiIndex.from_frame(flips[ITEM])).to_numpy()
    return shown


def _group(
    pairs: Pairs, found: Measured, p_adjusted: float, q_value: float, margin: float, level: float, family: int,
    floor: Estimate | None,
) -> GroupComparison:  # fmt: skip
    # Two one-sided tests (Schuirmann 1987), also when one more item is allowed for.
    equal = all(equivalence_verdict(e, margin) == "at" for e in (found.delta, found.wide))
    verdict = verdict_of(found.delta, p_adjusted, level, equal=equal)
    strict = 1 - (1 - level) / family  # Holm's first step: what a group alone must pass
    n = max(pairs.n_items, 2)
    mde = smallest_detectable_effect(found.standard_error * np.sqrt(n), n, level=strict) + found.step
    return GroupComparison(
        pairs.name, pairs.n_items, pairs.n_samples, found.before, found.after, found.delta, found.p_value, found.test,
        p_adjusted, q_value, *_crossings(pairs), mde, margin, verdict,
        _note(found, verdict, p_adjusted, margin, level, mde, floor), found.pass_at_k, floor,
    )  # fmt: skip


def _crossings(pairs: Pairs) -> tuple[int, int]:
    was, now = pairs.before_I > pairs.threshold, pairs.after_I > pairs.threshold
    return int((now & ~was).sum()), int((was & ~now).sum())


def _note(
    found: Measured, verdict: Change, p_adjusted: float, margin: float, level: float, mde: float, floor: Estimate | None
) -> str:  # fmt: skip
    delta, said = found.delta, []
    if delta.note:
        said.append(delta.note)
    if verdict == "unchanged" and p_adjusted <= 1 - level:
        said.append(f"a difference, surely within the margin of {margin:g}")
    if verdict == "undetermined" and delta.defined:
        if delta.low <= 0 <= delta.high:
            said.append(f"a true difference of {mde:.3g} would be found in four of five such comparisons")
        elif found.p_value <= 1 - level:
            said.append("the interval excludes 0, but not after Holm's correction for the number of groups")
        else:
            said.append(f"the interval excludes 0, the test does not agree (p = {found.p_value:.2g})")
    if floor is not None and floor.defined and delta.defined and abs(delta.value) <= floor.value:
        said.append(f"within the noise floor of {floor.value:.3g}: two runs of one checkpoint differ as much")
    if found.clustered and 1 < delta.n_clusters < FEW_CLUSTERS:
        said.append(f"only {delta.n_clusters} clusters: the interval may be too narrow")
    return "; ".join(said)


def check_settings(margin: float, level: float, replicates: int) -> None:
    if not margin >= 0:
        raise BadInput(f"margin is {margin}, expected 0 or more, in the scores' own scale")
    if not 0.5 <= level < 1:
        raise BadInput(f"level is {level}, expected from 0.5 to below 1, such as 0.95")
    if replicates < 100:
        raise BadInput(f"replicates is {replicates}, expected at least 100; 10000 is usual")


def _scale_warning(bounds: tuple[float, float], margin: float) -> list[str]:
    low, high = bounds
    if (low, high) == (0.0, 1.0):
        return []
    return [
        f"scores run from {low:g} to {high:g}: differences and the margin of {margin:g} are in that scale, and an item "
        f"counts as solved above {(low + high) / 2:g}"
    ]
