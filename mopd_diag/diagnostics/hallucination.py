"""Wrong facts: the student's own, inherited or pre-existing, and how sure that is; names nobody was taught among them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mopd_diag.diagnostics.failures import failures
from mopd_diag.diagnostics.provenance import label_of
from mopd_diag.diagnostics.surface import rephrasings
from mopd_diag.diagnostics.voices import ITEM, KEY, UNDETERMINED, Material, plain, short
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.types import Estimate, Finding

INHERITED, EXISTING, OWN = "inherited", "pre-existing", "own"
ORIGINS = (INHERITED, EXISTING, OWN, UNDETERMINED)
SURE = ("answers and attribution", "answers alone", "answers against attribution")
REFUSAL = "?"
"""The right answer about what nobody knows."""
INVENTED = "an answer"
FEWEST = 5
"""Facts got wrong below which there is no verdict."""
EXAMPLES = 5


def hallucinations(m: Material, facts: Sequence[str], *, level: float = 0.95, seed: int = 0) -> list[Finding]:
    """Up to two findings for each domain of facts: wrong answers about what is known, and answers about what nobody knows."""
    found = []
    refused = hashlib.blake2b(REFUSAL.encode(), digest_size=8).hexdigest()
    for domain in facts:
        records = m.records[m.records["domain"] == domain]
        unknown = records["target_hash"] == refused
        for part, invented in ((records[~unknown], False), (records[unknown], True)):
            if len(part):
                found.append(_finding(m, domain, part, invented, level, seed))
    return found


def origins(m: Material, records: pd.DataFrame, *, invented: bool = False) -> pd.DataFrame:
    """Each wrong answer of the student with `origin`, `teacher`, `sure`, `confidence`, `p_inherited` (the attribution's calibrated
    probability that some teacher taught it; NaN without), `value`, `fact` (a number for each question) and the columns of `failures`.

    `inherited`: some teacher gives the same wrong value (`failures`: inherited or leaked); `pre-existing`: it is the base's commonest
    answer; `own`: neither the base nor any teacher gives it in any sample, and attribution names none of them; else `undetermined`.
    With `invented` all answers but the refusal are one value: what counts is who answers at all.
    """
    normalise = (lambda r: REFUSAL if r.strip() == REFUSAL else INVENTED) if invented else str.strip
    failed = failures(
        records, m.route, student=m.student, base=m.base, teachers=m.teachers, attributed=m.attributed, normalise=normalise
    )  # fmt: skip
    items = records[records["model"] == m.student].drop_duplicates(ITEM).reset_index(drop=True)
    fact = pd.Series(rephrasings(items), index=pd.MultiIndex.from_frame(items[ITEM]))
    failed = failed.assign(
        value=failed["response"].astype(str).map(normalise),
        fact=fact.reindex(pd.MultiIndex.from_frame(failed[ITEM])).to_numpy(),
    )
    looked = pd.DataFrame({"label": failed["attributed"], "set": "", "confidence": np.nan, "inherited": np.nan})
    if m.attributed is not None:
        told = m.attributed.drop_duplicates(KEY).set_index(KEY)
        columns = [c for c in ("set", "confidence", "inherited") if c in told.columns]
        looked[columns] = told[columns].reindex(pd.MultiIndex.from_frame(failed[KEY])).to_numpy()
    label = looked["label"].astype(str)
    said = failed[[f"same_{n}" for n in (m.base, *m.teachers)]].to_numpy(float)
    nobody = ~(np.nan_to_num(said, nan=1.0) > 0).any(axis=1)
    blames = label.str.startswith("teacher:") | label.isin(["several", EXISTING])
    kind = failed["failure"]
    failed["origin"] = np.select(
        [kind.isin([INHERITED, "leaked"]), kind == EXISTING, nobody & ~blames], [INHERITED, EXISTING, OWN], UNDETERMINED
    )
    failed["teacher"] = failed["teacher"].where(failed["origin"] == INHERITED, "")
    names = looked["set"].fillna("").astype(str)
    failed["sure"] = [_sure(*row) for row in zip(failed["origin"], failed["teacher"], label, names, strict=True)]
    return failed.assign(confidence=looked["confidence"].astype(float), p_inherited=looked["inherited"].astype(float))


def _sure(origin: str, teacher: str, label: str, names: str) -> str:
    """What an origin rests on: the attribution's label may agree, say nothing, or speak against it."""
    if origin == UNDETERMINED:
        return ""
    if label in ("", "abstain"):
        return SURE[1]
    if label == "several":
        return SURE[0] if origin == INHERITED and short(teacher) in names.split("+") else SURE[2]
    return SURE[0] if label == (label_of(teacher) if origin == INHERITED else origin) else SURE[2]


def _finding(m: Material, domain: str, records: pd.DataFrame, invented: bool, level: float, seed: int) -> Finding:
    what = "answers about names that nobody was taught" if invented else "wrong answers about facts"
    name = f"consistency-hallucination-{m.student}-{domain}" + ("-unknown" if invented else "")
    rates = _rates(m, records, level, seed)
    wrong = origins(m, records, invented=invented)
    n_items = records.loc[records["model"] == m.student, "item_id"].nunique()
    evidence: dict[str, Any] = {
        "measure": "hallucination",
        "domain": domain,
        "asked": "unknown" if invented else "known",
        "rates": plain(rates),
        "n_items": n_items,
    }
    subject = f"{m.student}/{domain}"
    if wrong.empty:
        note = f"no {what} in {n_items} items of {domain}"
        return Finding(
            name,
            "attribution",
            subject,
            "none",
            "info",
            rates.get(m.student),
            evidence | {"n_wrong": 0, "note": note},
        )
    clusters = wrong["fact"].to_numpy()
    drawn = Bootstrap.of(
        np.column_stack([wrong["origin"] == o for o in ORIGINS]), seed=seed, level=level, clusters=clusters
    )
    shares = {o: drawn.column(i) for i, o in enumerate(ORIGINS)}
    counts = {o: int((wrong["origin"] == o).sum()) for o in ORIGINS}
    blamed = wrong.loc[wrong["origin"] == INHERITED, "teacher"].value_counts()
    culprit = str(blamed.index[0]) if len(blamed) else m.route.get(domain, "")
    chance = _beyond_chance(m, wrong, culprit, level, seed)
    verdict, why = _verdict(shares, chance, wrong["fact"].nunique())
    backed = int(((wrong["origin"] == INHERITED) & (wrong["sure"] == SURE[0])).sum())
    listed = ", ".join(f"{n} {o}" for o, n in counts.items() if n)
    note = f"{len(wrong)} {what} in {domain}, on {wrong['fact'].nunique()} questions: {listed}; {why}"
    if len(blamed):
        note += (
            f"; {culprit} gives {int(blamed.iloc[0])} of the inherited ones too, and attribution says so of {backed}"
        )
    evidence |= {
        "n_wrong": len(wrong), "n_facts": int(wrong["fact"].nunique()), "counts": counts, "shares": plain(shares),
        "sure": {o: {s: int(n) for s, n in g["sure"].value_counts().items() if s} for o, g in wrong.groupby("origin") if o != UNDETERMINED},
        "teachers": {str(t): int(n) for t, n in blamed.items()}, "teacher": culprit, "beyond_chance": plain(chance),
        "same_answer": {c.removeprefix("same_"): float(wrong[c].mean()) for c in _same(wrong) if wrong[c].notna().any()},
        "cases": {o: _cases(wrong[wrong["origin"] == o]) for o in ORIGINS if counts[o]}, "note": note,
    }  # fmt: skip
    estimate = replace(
        shares[INHERITED], note=shares[INHERITED].note or "share of the wrong answers that are inherited"
    )
    severity = "notice" if verdict == INHERITED or backed else "info"
    return Finding(name, "attribution", subject, verdict, severity, estimate, evidence)


def _rates(m: Material, records: pd.DataFrame, level: float, seed: int) -> dict[str, Estimate]:
    """How often each model is wrong, over the same items."""
    wrong = records.assign(wrong=records["score"] < 1).groupby(["model", *ITEM])["wrong"].mean().unstack("model")
    names = [n for n in (m.student, *m.compared, *m.teachers) if n in wrong.columns]
    drawn = Bootstrap.of(wrong[names].dropna().to_numpy(float), seed=seed, level=level)
    return {n: drawn.column(i) for i, n in enumerate(names)}


def _beyond_chance(m: Material, wrong: pd.DataFrame, teacher: str, level: float, seed: int) -> dict[str, Estimate]:
    """By how much more of its samples the teacher gives the student's wrong answers than each control does: with few possible
    answers, models agree in some by chance."""
    if f"same_{teacher}" not in wrong.columns:
        return {}
    found = {}
    for control in m.controls:
        pair = wrong[[f"same_{teacher}", f"same_{control}", "fact"]].dropna()
        drawn = Bootstrap.of(pair.iloc[:, :2].to_numpy(float), seed=seed, level=level, clusters=pair["fact"].to_numpy())
        found[control] = drawn.estimate(lambda v: v[..., 0] - v[..., 1], unit="difference")
    return found


def _verdict(shares: dict[str, Estimate], chance: dict[str, Estimate], n_facts: int) -> tuple[str, str]:
    if n_facts < FEWEST:
        return UNDETERMINED, f"only {n_facts} questions are answered wrong, {FEWEST} are asked for"
    most = next((o for o in ORIGINS if shares[o].defined and shares[o].low > 0.5), "")
    if most == UNDETERMINED:
        return UNDETERMINED, "of most it cannot be said where they come from"
    if not most:
        return "mixed", "no origin holds for most of them"
    if most != INHERITED:
        return most, f"most are {most}"
    alike = [n for n, e in chance.items() if not e.defined or e.low <= 0]
    if alike:
        return UNDETERMINED, f"{' and '.join(alike)}, which never saw a teacher, gives the same wrong answers as often"
    if not chance:
        return UNDETERMINED, "no teacher-free control to compare with: models may agree by chance"
    return INHERITED, "most are the teacher's, beyond what models without teachers share with the student"


def _cases(wrong: pd.DataFrame) -> list[dict[str, Any]]:
    """Questions and wrong values that come back most, the best backed first."""
    table = wrong.assign(backed=wrong["sure"].eq(SURE[0]))
    grouped = table.groupby(["fact", "value"], sort=False)
    size = grouped.agg(n=("value", "size"), wordings=("item_id", "nunique"), backed=("backed", "mean"))
    order = size.sort_values(["wordings", "backed", "n"], ascending=False, kind="stable").index[:EXAMPLES]
    found = []
    for key in order:
        rows = grouped.get_group(key)
        row = rows.sort_values(["backed", "confidence"], ascending=False, kind="stable").iloc[0]
        same = {c.removeprefix("same_"): float(row[c]) for c in _same(rows) if row[c] > 0}
        likely = {k: None if np.isnan(row[k]) else float(row[k]) for k in ("confidence", "p_inherited")}
        found.append({
            "item_id": str(row["item_id"]), "sample": int(row["sample"]), "prompt": str(row.get("prompt", "")),
            "response": str(row["response"]), "teacher": str(row["teacher"]), "sure": str(row["sure"]),
            "label": str(row["attributed"]), **likely,
            "answers": len(rows), "wordings": int(rows["item_id"].nunique()), "same": same,
        })  # fmt: skip
    return found


def _same(wrong: pd.DataFrame) -> list[str]:
    """The columns that hold how often each model gives the student's answer."""
    return [c for c in wrong.columns if c.startswith("same_")]
