"""Which teacher wins where prompts of two domains look alike, and in a domain that has no teacher of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mopd_diag.diagnostics.provenance import label_of
from mopd_diag.diagnostics.surface import NEAR, cores, similarity, words_of
from mopd_diag.diagnostics.voices import (
    CONFLICT,
    CONSISTENT,
    EXAMPLES,
    FEWEST,
    ITEM,
    UNDETERMINED,
    Material,
    commonest,
    per_item,
    plain,
    settle,
    short,
    told,
)  # fmt: skip
from mopd_diag.diagnostics.wordings import outcomes
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.types import Estimate, Finding

COLUMNS = ("own", "other", "both", "elsewhere")


def contests(m: Material, *, level: float = 0.95, seed: int = 0) -> list[Finding]:
    """One finding for each two domains of different teachers that share `FEWEST` prompts or more on the surface, and one for each
    domain without a teacher."""
    items = m.items()
    by_domain = {str(d): rows.reset_index(drop=True) for d, rows in items.groupby("domain", sort=False)}
    core = {d: cores([str(p) for p in rows["prompt"]]) for d, rows in by_domain.items()}
    favourite = {t: commonest(m.records[m.records["model"] == t]) for t in sorted(set(m.route.values()))}
    near: dict[str, dict[str, int]] = {d: {} for d in by_domain}
    found = []
    for a, b in combinations(by_domain, 2):
        alike = similarity(core[a], core[b]) >= NEAR
        shared = pd.concat([by_domain[a][alike.any(1)], by_domain[b][alike.any(0)]])
        near[a][b], near[b][a] = int(alike.any(1).sum()), int(alike.any(0).sum())
        own, other = m.route.get(a), m.route.get(b)
        if own and other and own != other and len(shared) >= FEWEST:
            twins = _twins(by_domain[a], by_domain[b], core[a], core[b])
            found.append(_contest(m, (a, b), shared, favourite, twins, level, seed))
    between = [d for d in by_domain if d not in m.route and len(set(m.route.values())) > 1]
    return found + [_between(m, d, near[d], level, seed) for d in between]


# -- two domains that look alike ------------------------------------------------------------------------------------------


def _contest(
    m: Material, pair: tuple[str, str], shared: pd.DataFrame, favourite: Mapping[str, pd.Series],
    twins: tuple[pd.DataFrame, pd.DataFrame], level: float, seed: int,
) -> Finding:  # fmt: skip
    a, b = pair
    teachers = {a: m.route[a], b: m.route[b]}
    labels = {n: _labelled(m.answers[n], shared, teachers) for n in (m.student, *m.controls)}
    own = labels[m.student]
    ratio = _ratio(own, level, seed)
    each = {d: _ratio(own[own.index.get_level_values(0) == d], level, seed) for d in pair}
    beside = {n: _ratio(labels[n], level, seed) for n in m.controls}
    more = {n: _more(own["other"], labels[n]["other"], level, seed) for n in m.controls}
    by_label = settle(ratio, more)

    sides = {
        n: _sides(m.records[m.records["model"] == n], shared, teachers, favourite) for n in (m.student, *m.compared)
    }
    answers = {n: _ratio(s, level, seed) for n, s in sides.items()}
    null = [n for n in (m.base, *m.controls) if n in sides]
    beyond = {n: _more(sides[m.student]["other"], sides[n]["other"], level, seed) for n in null}
    by_answer = settle(answers[m.student], beyond)
    over_base = beyond.get(m.base)
    if by_label[0] == CONFLICT and over_base is not None and over_base.defined and over_base.high < 0:
        by_label = (
            UNDETERMINED,
            f"{by_label[1]}, but the base gives the other domain's answers oftener still: a habit not yet unlearned",
        )

    verdicts = (by_label[0], by_answer[0])
    unanswered = not answers[m.student].defined  # the two teachers give the same answers: nothing to side with
    settled = by_label[0] == CONSISTENT and (by_answer[0] == CONSISTENT or unanswered)
    verdict = CONFLICT if CONFLICT in verdicts else CONSISTENT if settled else UNDETERMINED
    names = f"{teachers[a]} and {teachers[b]}"
    note = (
        f"{names} on {len(shared)} prompts of {a} and {b} that look alike: of the answers given to one of the two, {told(ratio)} go to the "
        f"other domain's teacher ({by_label[1]}); where the two answer differently, the student sides with the other domain's in "
        f"{told(answers[m.student])}{f', the base in {told(answers[m.base])}' if m.base in answers else ''} ({by_answer[1]})"
    )
    left, right = twins
    disagree, apart, apart_more = (
        outcomes(m, left, right, np.arange(len(left)), level=level, seed=seed) if len(left) else ({}, {}, {})
    )
    evidence: dict[str, Any] = {
        "measure": "shared", "domains": list(pair), "teachers": [teachers[a], teachers[b]],
        "n_items": {d: int((shared["domain"] == d).sum()) for d in pair}, "n_traced": len(own),
        "to": {d: {c: float(v) for c, v in own[own.index.get_level_values(0) == d][list(COLUMNS)].mean().items() if v == v} for d in pair},
        "wins": plain({f"{teachers[o]} on {d}": each[d] for d, o in ((a, b), (b, a))}),
        "controls": plain(beside), "beyond_control": plain(more), "sides": plain(answers), "sides_beyond": plain(beyond),
        "twins": {"n": len(left), "disagree": plain(disagree), "beyond_sampling": plain(apart), "beyond_model": plain(apart_more)},
        "cases": _cases(m, own, sides[m.student], teachers), "note": note,
    }  # fmt: skip
    name = f"consistency-shared-{m.student}-{a}-{b}"
    severity = "notice" if verdict == CONFLICT else "info"
    estimate = replace(
        ratio, note=ratio.note or "of the answers given to one of the two teachers, share given to the other domain's"
    )
    return Finding(name, "attribution", f"{m.student}/{a}~{b}", verdict, severity, estimate, evidence)


def _labelled(answers: pd.DataFrame, shared: pd.DataFrame, teachers: Mapping[str, str]) -> pd.DataFrame:
    """Per shared item: share of its attributed answers given to its own domain's teacher, to the other's, to a set with both."""
    rows = answers.merge(shared[ITEM], on=ITEM)
    a, b = teachers
    own = rows["domain"].map({d: label_of(t) for d, t in teachers.items()})
    other = rows["domain"].map({a: label_of(teachers[b]), b: label_of(teachers[a])})
    both = {short(t) for t in teachers.values()}
    rows = rows.assign(
        own=rows["label"] == own, other=rows["label"] == other, both=[both <= set(str(s).split("+")) for s in rows["set"]],
        elsewhere=rows["label"].str.startswith("teacher:") & (rows["label"] != own) & (rows["label"] != other),
    )  # fmt: skip
    return per_item(rows, COLUMNS)


def _sides(
    records: pd.DataFrame, shared: pd.DataFrame, teachers: Mapping[str, str], favourite: Mapping[str, pd.Series]
) -> pd.DataFrame:
    """Per shared item on which the two teachers' commonest answers differ: shares of a model's samples that give the one or the
    other."""
    rows = records.merge(shared[ITEM], on=ITEM)
    at = pd.MultiIndex.from_frame(rows[ITEM])
    a, b = teachers
    says = {d: favourite[t].reindex(at).to_numpy(object) for d, t in teachers.items()}
    in_a = (rows["domain"] == a).to_numpy()
    own, other = np.where(in_a, says[a], says[b]), np.where(in_a, says[b], says[a])
    answer = rows["response"].astype(str).str.strip().to_numpy(object)
    rows = rows.assign(own=answer == own, other=answer == other)
    return per_item(rows[pd.notna(own) & pd.notna(other) & (own != other)], ["own", "other"])


def _ratio(table: pd.DataFrame, level: float, seed: int) -> Estimate:
    """Of what goes to one of the two, the share that goes to the other domain's; over the items where anything does."""
    named = table[(table["own"] + table["other"]) > 0]
    if named.empty:
        return Estimate.undefined("no answer is given to either of the two")
    drawn = Bootstrap.of(named[["own", "other"]].to_numpy(float), seed=seed, level=level)
    return drawn.estimate(lambda v: v[..., 1] / (v[..., 0] + v[..., 1]))


def _more(mine: pd.Series, theirs: pd.Series, level: float, seed: int) -> Estimate:
    """How much larger a share is in the student than in another model, paired over the items that both have."""
    both = pd.concat([mine, theirs], axis=1).dropna().to_numpy(float)
    return Bootstrap.of(both.reshape(-1, 2), seed=seed, level=level).estimate(
        lambda v: v[..., 0] - v[..., 1], unit="difference"
    )


def _twins(
    a: pd.DataFrame, b: pd.DataFrame, core_a: Sequence[str], core_b: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items of the two domains that ask the same behind the domains' own marks, each of `a` once."""
    place = {words_of(p): i for i, p in reversed(list(enumerate(core_b))) if words_of(p)}
    pairs = [(i, place[words_of(p)]) for i, p in enumerate(core_a) if words_of(p) in place]
    rows: npt.NDArray[np.intp] = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return a.iloc[rows[:, 0]], b.iloc[rows[:, 1]]


def _cases(m: Material, own: pd.DataFrame, sides: pd.DataFrame, teachers: Mapping[str, str]) -> list[dict[str, Any]]:
    """The clearest answers that went to the other domain's teacher: by label and answer, then by confidence."""
    rows = m.answers[m.student].drop_duplicates(ITEM).set_index(ITEM)
    crossed = own.index[own["other"] > 0].append(sides.index[sides["other"] > 0]).unique()
    told_rows = []
    a, b = teachers
    for at in crossed:
        by_label = bool(at in own.index and own.at[at, "other"] > 0)
        sided = float(sides.at[at, "other"]) if at in sides.index else 0.0  # type: ignore[arg-type]
        row = rows.loc[at] if at in rows.index else None
        told_rows.append({
            "item_id": str(at[1]), "domain": str(at[0]), "teacher": teachers[b if at[0] == a else a],
            "label": "" if row is None else str(row["label"]), "by_label": by_label, "sided": sided,
            "confidence": 0.0 if row is None or not by_label else float(row["confidence"]),
            **_example(m, at, row),
        })  # fmt: skip
    return sorted(told_rows, key=lambda c: (-(c["by_label"] + c["sided"]), -c["confidence"], c["item_id"]))[:EXAMPLES]


def _example(m: Material, at: Any, row: pd.Series | None) -> dict[str, Any]:
    if row is not None and {"prompt", "response"} <= set(row.index):
        return {"sample": int(row["sample"]), "prompt": str(row["prompt"]), "response": str(row["response"])}
    own = m.records[m.records["model"] == m.student].set_index(ITEM).loc[[at]].iloc[0]
    return {"sample": int(own["sample"]), "prompt": str(own["prompt"]), "response": str(own["response"])}


# -- a domain without a teacher -------------------------------------------------------------------------------------------


def _between(m: Material, domain: str, near: Mapping[str, int], level: float, seed: int) -> Finding:
    """Whose voice is heard where no teacher was asked; conflict when the runner-up is surely heard too, and oftener than in controls."""
    teachers = list(dict.fromkeys(m.route.values()))
    tables = {n: _by_teacher(m.answers[n], domain, teachers) for n in (m.student, *m.controls)}
    own = tables[m.student]
    named = own[own[teachers].sum(axis=1) > 0]
    order = sorted(teachers, key=lambda t: -float(own[t].sum()))
    first, second = order[:2]
    second_share = Estimate.undefined("no answer names a single teacher")
    if len(named):
        drawn = Bootstrap.of(named[teachers].to_numpy(float), seed=seed, level=level)
        at = teachers.index(second)
        second_share = drawn.estimate(lambda v: v[..., at] / v.sum(-1))
    more = {n: _more(own[second], tables[n][second], level, seed) for n in m.controls}
    verdict, why = settle(second_share, more)
    beside = sorted((d for d in near if near[d] >= FEWEST), key=lambda d: -near[d])
    note = (
        f"no teacher was asked about {domain}{', which looks like ' if beside else ''}{' and '.join(beside)}: {first} is named most, then "
        f"{second}, which has {told(second_share)} of the answers that name one teacher ({why})"
    )
    counts = {t: float(own[t].sum()) for t in order if own[t].sum()}
    evidence: dict[str, Any] = {
        "measure": "between", "domain": domain, "teachers": [first, second], "looks_like": {d: near[d] for d in beside},
        "answers": counts, "n_items": len(own), "beyond_control": plain(more), "note": note,
        "cases": _named_cases(m.answers[m.student], domain, (first, second)),
    }  # fmt: skip
    estimate = replace(
        second_share, note=second_share.note or "of the answers that name one teacher, share of the second"
    )
    name = f"consistency-between-{m.student}-{domain}"
    severity = "notice" if verdict == CONFLICT else "info"
    return Finding(name, "attribution", f"{m.student}/{domain}", verdict, severity, estimate, evidence)


def _by_teacher(answers: pd.DataFrame, domain: str, teachers: Sequence[str]) -> pd.DataFrame:
    rows = answers[answers["domain"] == domain]
    return per_item(rows.assign(**{t: rows["label"] == label_of(t) for t in teachers}), teachers)


def _named_cases(answers: pd.DataFrame, domain: str, teachers: Sequence[str]) -> list[dict[str, Any]]:
    rows = answers[answers["domain"] == domain].sort_values("confidence", ascending=False, kind="stable")
    found = []
    for teacher in teachers:
        for row in rows[rows["label"] == label_of(teacher)].head(EXAMPLES - 1).to_dict("records"):
            text = {k: str(row[k]) for k in ("item_id", "prompt", "response") if k in row}
            found.append(
                {"teacher": teacher, "sample": int(row["sample"]), "confidence": float(row["confidence"]), **text}
            )
    return found
