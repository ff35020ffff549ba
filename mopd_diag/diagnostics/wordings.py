"""Does the wording decide? Disagreement between wordings of one question, beyond what sampling one wording twice gives.

Axis letters: P pairs of items, G groups (questions), V columns.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mopd_diag.diagnostics.surface import rephrasings
from mopd_diag.diagnostics.voices import (
    CONFLICT,
    CONSISTENT,
    EXAMPLES,
    FEWEST,
    INCONSISTENT,
    ITEM,
    LITTLE,
    TOLERANCE,
    UNDETERMINED,
    Material,
    per_item,
    plain,
    settle,
    told,
)  # fmt: skip
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.types import Estimate, Finding

Pairs = npt.NDArray[np.intp]


def wordings(m: Material, *, level: float = 0.95, seed: int = 0) -> list[Finding]:
    """One finding for each domain in which some question is asked in two wordings or more."""
    found = []
    for domain, items in m.items().groupby("domain", sort=False):
        items = items.reset_index(drop=True)
        pairs, group_P = _pairs(rephrasings(items))
        if len(pairs):
            found.append(_finding(m, str(domain), items, pairs, group_P, level, seed))
    return found


def outcomes(
    m: Material, left: pd.DataFrame, right: pd.DataFrame, group_P: Pairs, *, level: float = 0.95, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, Estimate], dict[str, Estimate]]:
    """Disagreement in outcome over P pairs of items (rows of `left` and `right`: domain, item_id), model -> estimate.

    First P(one sampled answer to each of the two items: exactly one right), then what it has beyond the same for two samples of
    one item, then by how much the student's is beyond the model's. Each group weighs the same; models on the same groups, paired.
    """
    right_wrong = m.records.assign(right=m.records["score"] >= 1)
    names, columns = [], []
    for name in (m.student, *m.compared):
        grouped = right_wrong[right_wrong["model"] == name].groupby(ITEM)["right"].agg(["mean", "size"])
        p, q = (_reindexed(grouped, side) for side in (left, right))
        between = p[:, 0] * (1 - q[:, 0]) + q[:, 0] * (1 - p[:, 0])
        within = (_within(p) + _within(q)) / 2
        if np.isfinite(between).all():
            names.append(name)
            columns += [between, within]
    if not names or names[0] != m.student:
        return {}, {}, {}
    by_group = pd.DataFrame(np.column_stack(columns)).groupby(group_P).mean().to_numpy()
    single = np.isnan(by_group).any()
    drawn = Bootstrap.of(np.nan_to_num(by_group).clip(0, 1), seed=seed, level=level)
    between = {n: drawn.column(2 * i) for i, n in enumerate(names)}
    if single:
        unknown = Estimate.undefined(
            "one sample an item: wording and chance cannot be told apart", n_items=len(by_group)
        )
        return between, {n: unknown for n in names}, {n: unknown for n in names[1:]}
    beyond = {
        n: drawn.estimate(lambda v, i=i: v[..., 2 * i] - v[..., 2 * i + 1], unit="difference")
        for i, n in enumerate(names)
    }
    excess = {
        n: drawn.estimate(
            lambda v, i=i: v[..., 0] - v[..., 1] - v[..., 2 * i] + v[..., 2 * i + 1], unit="difference"
        )
        for i, n in enumerate(names) if i
    }  # fmt: skip
    return between, beyond, excess


def _finding(
    m: Material, domain: str, items: pd.DataFrame, pairs: Pairs, group_P: Pairs, level: float, seed: int
) -> Finding:
    n_groups = len(np.unique(group_P))
    left, right = items.iloc[pairs[:, 0]], items.iloc[pairs[:, 1]]
    between, beyond, excess = outcomes(m, left, right, group_P, level=level, seed=seed)
    labels, label_excess, fighting = _labels(m, items, pairs, group_P, level, seed)
    own = beyond.get(m.student, Estimate.undefined("no records of the student", n_items=n_groups))
    of_labels = settle(labels[m.student], label_excess) if labels else (UNDETERMINED, "")
    verdict, note = _outcome_verdict(own, excess.get(m.base), n_groups)
    note = (
        f"{n_groups} questions of {domain} in {len(np.unique(pairs))} wordings: the outcome differs between wordings by {_points(own)} "
        f"more than between samples; {note}"
    )
    if labels:
        note += f"; labels name different teachers in {told(labels[m.student])} of the pairs"
    if of_labels[0] == CONFLICT:
        verdict = CONFLICT
        note += f", {' and '.join(fighting[0].split(' | '))} most, {of_labels[1]}"
    evidence: dict[str, Any] = {
        "measure": "rephrased", "domain": domain, "n_questions": n_groups, "n_items": len(np.unique(pairs)), "disagree": plain(between),
        "beyond_sampling": plain(beyond), "beyond_model": plain(excess), "labels_differ": plain(labels),
        "labels_beyond": plain(label_excess), "pairs": fighting, "cases": _cases(m, items, pairs, group_P), "note": note,
    }  # fmt: skip
    estimate = replace(own, note=own.note or "disagreement between wordings beyond that between samples of one wording")
    severity = "notice" if verdict in (CONFLICT, INCONSISTENT) else "info"
    name = f"consistency-rephrased-{m.student}-{domain}"
    return Finding(name, "attribution", f"{m.student}/{domain}", verdict, severity, estimate, evidence)


def _outcome_verdict(own: Estimate, over_base: Estimate | None, n_groups: int) -> tuple[str, str]:
    if n_groups < FEWEST:
        return UNDETERMINED, f"only {n_groups} questions, {FEWEST} are asked for"
    if not own.defined:
        return UNDETERMINED, own.note
    if own.high < LITTLE:
        return CONSISTENT, f"surely less than {LITTLE:.0%}"
    if own.low <= TOLERANCE:
        return UNDETERMINED, "the interval allows hardly any and much"
    if over_base is None or not over_base.defined:
        return UNDETERMINED, "the base has no answers to compare with"
    if over_base.low > 0:
        return INCONSISTENT, f"that is {_points(over_base)} more than in the base"
    if over_base.high < TOLERANCE:
        return "pre-existing", "the base depends on the wording as much"
    return UNDETERMINED, "it is not sure to be more than in the base"


def _points(e: Estimate) -> str:
    return (
        f"{100 * e.value:.0f} points [{100 * e.low:.0f}, {100 * e.high:.0f}]"
        if e.defined
        else "an unknown number of points"
    )


def _labels(
    m: Material, items: pd.DataFrame, pairs: Pairs, group_P: Pairs, level: float, seed: int
) -> tuple[dict[str, Estimate], dict[str, Estimate], list[str]]:
    """Share of the pairs whose labels name two different teachers, for the student and each control on the same groups; how much
    more the student's is; and the student's fighting pairs of teachers, the commonest first."""
    differ: dict[str, pd.Series] = {}
    fights: list[str] = []
    index = pd.MultiIndex.from_frame(items[ITEM])
    for name in (m.student, *m.controls):
        label = m.answers[name].drop_duplicates(ITEM).set_index(ITEM)["label"].reindex(index).to_numpy(object)
        one, two = label[pairs[:, 0]], label[pairs[:, 1]]
        known = pd.notna(one) & pd.notna(two)
        named = known & _names_one(one) & _names_one(two)
        fight = named & (one != two)
        differ[name] = pd.Series(fight[known]).groupby(group_P[known]).mean().astype(float)
        if name == m.student:
            told_pairs = [" | ".join(sorted((str(a), str(b)))) for a, b in zip(one[fight], two[fight], strict=True)]
            fights = [str(p) for p in pd.Series(told_pairs, dtype=object).value_counts().index]
    table = pd.concat(differ, axis=1).dropna()
    if len(table) < 2:
        return {}, {}, fights
    drawn = Bootstrap.of(table.to_numpy(), seed=seed, level=level)
    shares = {n: drawn.column(i) for i, n in enumerate(table.columns)}
    more = {
        n: drawn.estimate(lambda v, i=i: v[..., 0] - v[..., i], unit="difference")
        for i, n in enumerate(table.columns)
        if i
    }
    return shares, more, fights


def _names_one(labels: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    return np.array([str(label).startswith("teacher:") for label in labels], dtype=bool)


def _cases(m: Material, items: pd.DataFrame, pairs: Pairs, group_P: Pairs) -> list[list[dict[str, Any]]]:
    """The questions whose wordings differ most in the student's outcome, each with its best and its worst wording."""
    own = m.records[m.records["model"] == m.student]
    solved = per_item(own.assign(right=own["score"] >= 1), ["right"])["right"]
    first = own.drop_duplicates(ITEM).set_index(ITEM)["response"]
    label = m.answers[m.student].drop_duplicates(ITEM).set_index(ITEM)["label"]
    table = items.assign(right=solved.reindex(pd.MultiIndex.from_frame(items[ITEM])).to_numpy())
    spread = np.abs(table["right"].to_numpy()[pairs[:, 0]] - table["right"].to_numpy()[pairs[:, 1]])
    order = np.argsort(-spread, kind="stable")
    chosen = [p for n, p in enumerate(order) if spread[p] > 0 and group_P[p] not in group_P[order[:n]]][:EXAMPLES]
    best_first = [table.iloc[pairs[p]].sort_values("right", ascending=False, kind="stable") for p in chosen]
    return [[_wording(row, first, label) for row in rows.to_dict("records")] for rows in best_first]


def _wording(row: dict[str, Any], first: pd.Series, label: pd.Series) -> dict[str, Any]:
    at = (row["domain"], row["item_id"])
    return {
        "item_id": str(row["item_id"]),
        "prompt": str(row["prompt"]),
        "right": float(row["right"]),
        "response": str(first.get(at, "")),
        "label": str(label.get(at, "")),
    }


def _pairs(group_I: Pairs) -> tuple[Pairs, Pairs]:
    """All pairs of items (P × 2) within each group, and the group of each."""
    found: list[tuple[int, int, int]] = []
    for rows in pd.Series(group_I).groupby(group_I).groups.values():
        found += [(int(i), int(j), int(group_I[i])) for i, j in combinations(list(rows), 2)]
    table = np.array(found, dtype=np.intp).reshape(-1, 3)
    return table[:, :2], table[:, 2]


def _reindexed(grouped: pd.DataFrame, side: pd.DataFrame) -> npt.NDArray[np.floating[Any]]:
    return grouped.reindex(pd.MultiIndex.from_frame(side[ITEM])).to_numpy(float)


def _within(table: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """P(two samples of one item differ), without bias: 2 p (1 − p) n / (n − 1); NaN for one sample."""
    p, n = table.T
    return np.where(n > 1, 2 * p * (1 - p) * n / np.maximum(n - 1, 1), np.nan)
