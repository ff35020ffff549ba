"""A failure, by teacher: where each failed answer of the student comes from, read off the answers of the whole cast.

It compares answers, takes the attribution's word where there is one, and the pivot's where one was looked for (`mopd-diag explain`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mopd_diag.diagnostics.provenance import OVERALL, label_of
from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.types import Estimate, Finding

INHERITED, LEAKED, EXISTING, CONFLICT = "inherited", "leaked", "pre-existing", "conflict"
LOST, UNDETERMINED = "lost", "undetermined"
CLASSES = (INHERITED, LEAKED, EXISTING, CONFLICT, LOST, UNDETERMINED)
"""In the order in which they are tried. `conflict` is only known where a pivot was looked for."""
SOLVES = 0.5
"""Mean score over its samples from which on a model solves an item."""
FEWEST = 5
"""Failed items below which a domain has no verdict."""
EXAMPLES = 3
KEY = ["domain", "item_id", "sample"]


def failures(
    records: pd.DataFrame, routed: Mapping[str, str], *, student: str = "student", base: str = "base",
    teachers: Sequence[str] | None = None, attributed: pd.DataFrame | None = None, pivots: pd.DataFrame | None = None,
    normalise: Callable[[str], str] = str.strip,
) -> pd.DataFrame:  # fmt: skip
    """Every failed answer of `student` (score below 1) with its class, one row each; the first class that fits:

    - `inherited`: the routed teacher gives the same wrong answer: as its most common one, or in any sample of an item it does not
      solve. Where the base's most common answer is the same too, only when attribution names that teacher.
    - `leaked`: the same holds for another teacher, and attribution names that one.
    - `pre-existing`: it is the base's most common answer.
    - `conflict`: at its pivot another teacher pulls against the routed one, and the student was moved there (`estimators.conflict`).
    - `lost`: the routed teacher solves the item.
    - `undetermined`: none of these; `reason` says what was seen.

    `records` hold all models (the contract's columns); `routed`: domain -> teacher; `attributed`: `Attribution.answers` of the student;
    `pivots`: KEY, pivot (position, -1 where none was sure), conflict (the other teacher or ""), conflict_strength, of the answers that
    were looked at: the result then has these columns, `pivot` NaN for answers that were not.
    `same_<model>` is the share of that model's samples that give the student's answer after `normalise`; NaN when the model has none.
    """
    missing = {"model", "domain", "item_id", "sample", "response", "score"} - set(records.columns)
    if missing:
        raise BadInput(f"failures need records with {sorted(missing)}, got the columns {list(records.columns)}")
    teachers = (
        list(teachers)
        if teachers is not None
        else sorted({m for m in records["model"] if m.startswith("teacher-")} | set(routed.values()))
    )
    table = records.assign(answer=records["response"].astype(str).map(normalise))
    own = table[table["model"] == student]
    failed = own[own["score"] < 1].reset_index(drop=True)
    others = [m for m in table["model"].unique() if m != student]
    solved = table.groupby(["model", "domain", "item_id"])["score"].mean()
    common = _most_common(table)
    looked_up = {m: _look_up(failed, table, solved, common, m) for m in dict.fromkeys([*others, *teachers, base])}
    named = _named(failed, attributed)

    route = failed["domain"].map(lambda d: routed.get(d, ""))
    blank = (np.full(len(failed), np.nan), np.zeros(len(failed), bool), np.full(len(failed), np.nan))
    of_routed = [_choose(route, {t: looked_up[t][i] for t in teachers}, blank[i]) for i in range(3)]
    shares, alike = {m: x[0] for m, x in looked_up.items()}, {m: _gives_it(*x) for m, x in looked_up.items()}
    is_base = looked_up[base][1]
    by_routed = _gives_it(*of_routed) & (~is_base | (named == route.map(label_of)).to_numpy())
    leaks = {t: alike[t] & (named == label_of(t)).to_numpy() & (route != t).to_numpy() for t in teachers}
    is_leak = np.logical_or.reduce([np.zeros(len(failed), bool), *leaks.values()])
    is_lost = of_routed[2] >= SOLVES
    leaker = np.select(list(leaks.values()), list(leaks), "") if leaks else np.full(len(failed), "")

    looked = _looked_at(failed, pivots)
    is_conflict = (looked["conflict"] != "").to_numpy()

    tests = [by_routed, is_leak, is_base, is_conflict, is_lost]
    strength = [
        of_routed[0], _choose(pd.Series(leaker), shares, blank[0]), shares[base], looked["conflict_strength"].to_numpy(), of_routed[2],
    ]  # fmt: skip
    culprits = [route, leaker, "", looked["conflict"], route]
    found = failed[[c for c in (*KEY, "prompt", "response", "score") if c in failed.columns]].copy()
    found["failure"] = np.select(tests, list(CLASSES[:-1]), UNDETERMINED).astype(object)
    found["teacher"] = np.select(tests, culprits, "").astype(object)
    found["strength"] = np.nan_to_num(np.select(tests, strength, 0.0))
    found["routed"], found["attributed"] = route, named
    found["reason"] = np.where(found["failure"] == UNDETERMINED, _reasons(of_routed[2], named), "").astype(object)
    if pivots is not None:
        found[list(looked.columns)] = looked
    if attributed is not None:
        shares_own = failed[KEY].merge(attributed[[*KEY, "share_own"]].drop_duplicates(KEY), on=KEY, how="left")[
            "share_own"
        ]
        found["share_own"] = shares_own.to_numpy()
    return found.assign(
        **{f"same_{m}": shares[m] for m in looked_up}, **{f"common_{m}": looked_up[m][1] for m in looked_up}
    )


def findings(failed: pd.DataFrame, *, student: str = "student", level: float = 0.95, seed: int = 0) -> list[Finding]:
    """One finding a domain with failures, and one overall: verdict is the commonest class, estimate its share of the failed answers
    (each failed item weighs the same).

    `evidence`: counts and shares (with intervals over items) of the classes, the clearest cases of each, and `agreement`: in how many
    of the failures each model's most common answer is the student's, rivals included: what coincidence alone gives.
    """
    domains = [*(str(d) for d in failed["domain"].unique()), OVERALL] if len(failed) else []
    return [
        _finding(failed if d == OVERALL else failed[failed["domain"] == d], d, student, level, seed) for d in domains
    ]


def classes_of(failed: pd.DataFrame) -> tuple[str, ...]:
    """The classes that a table of failures could hold: without pivots, a conflict was not looked for."""
    return CLASSES if "pivot" in failed.columns else tuple(c for c in CLASSES if c != CONFLICT)


def _finding(failed: pd.DataFrame, domain: str, student: str, level: float, seed: int) -> Finding:
    classes = classes_of(failed)
    counts = {c: int((failed["failure"] == c).sum()) for c in classes}
    items = (
        pd.DataFrame({c: failed["failure"] == c for c in classes}).groupby([failed["domain"], failed["item_id"]]).mean()
    )
    drawn = Bootstrap.of(items.to_numpy(float), seed=seed, level=level)
    shares = {c: drawn.column(i) for i, c in enumerate(classes)}
    weight = items.mean()
    most = max(
        classes, key=lambda c: weight[c]
    )  # by items, as the estimate: one item with many failed answers decides nothing
    verdict, note = (
        most,
        f"{counts[most]} of {len(failed)} failed answers; in the estimate each of {len(items)} items weighs the same",
    )
    if len(items) < FEWEST:
        verdict, note = UNDETERMINED, f"only {len(items)} items failed: too few for a verdict"
    told = failed.assign(traced=failed["attributed"] != "").sort_values(
        ["traced", "strength"], ascending=False, kind="stable"
    )
    if CONFLICT in classes:
        note += f"; conflict was looked for in {int(failed['pivot'].notna().sum())} of them"
    cases = {c: _cases(told[told["failure"] == c]) for c in classes if counts[c]}
    prefix = "common_"
    evidence: dict[str, Any] = {
        "counts": counts, "shares": {c: e.to_dict() for c, e in shares.items()}, "n_failed": len(failed), "n_items": len(items),
        "teachers": {str(t): int(n) for t, n in failed.loc[failed["failure"] != LOST, "teacher"].value_counts().items() if t},
        "agreement": {c.removeprefix(prefix): float(failed[c].mean()) for c in failed.columns if c.startswith(prefix)},
        "cases": cases, "item_ids": [c["item_id"] for c in cases[most]], "note": note,
    }  # fmt: skip
    if domain != OVERALL:
        evidence |= {"item_id": cases[most][0]["item_id"], "sample": cases[most][0]["sample"], "model": student}
    estimate: Estimate = shares[most]
    name = f"failure-{student}" + ("" if domain == OVERALL else f"-{domain}")
    return Finding(
        name,
        "failure",
        f"{student}/{domain}",
        verdict,
        "notice" if verdict in (INHERITED, LEAKED, CONFLICT, LOST) else "info",
        estimate,
        evidence,
    )


def _cases(told: pd.DataFrame) -> list[dict[str, Any]]:
    rows = told.drop_duplicates("item_id").head(EXAMPLES)
    return [
        {
            **{k: str(r[k]) for k in ("item_id", "teacher", "response")},
            "sample": int(r["sample"]),
            "strength": float(r["strength"]),
            **({"pivot": int(r["pivot"])} if r.get("pivot", -1) >= 0 else {}),
        }
        for r in rows.to_dict("records")
    ]


def _most_common(table: pd.DataFrame) -> pd.Series:
    """Each model's most common answer to each item; the first in the alphabet among equally common ones."""
    counts = table.groupby(["model", "domain", "item_id", "answer"]).size().reset_index(name="n")
    counts = counts.sort_values(["n", "answer"], ascending=[False, True], kind="stable")
    return counts.groupby(["model", "domain", "item_id"])["answer"].first()


def _look_up(
    failed: pd.DataFrame, table: pd.DataFrame, solved: pd.Series, common: pd.Series, model: str
) -> tuple[Any, Any, Any]:
    """Of one model, on each failed answer's item: share of its samples that give the answer, whether its most common one does,
    mean score."""
    items = pd.MultiIndex.from_frame(failed[["domain", "item_id"]].assign(model=model)[["model", "domain", "item_id"]])
    score = solved.reindex(items).to_numpy(float)
    is_common = common.reindex(items).to_numpy(object) == failed["answer"].to_numpy(object)
    rows = table.loc[table["model"] == model, ["domain", "item_id", "answer"]]
    share = rows.groupby(["domain", "item_id"])["answer"].value_counts(normalize=True)
    wanted = pd.MultiIndex.from_frame(failed[["domain", "item_id", "answer"]])
    same = share.reindex(wanted).fillna(0.0).to_numpy(float) if len(share) else np.zeros(len(failed))
    return np.where(np.isnan(score), np.nan, same), is_common, score


def _gives_it(same: Any, is_common: Any, score: Any) -> Any:
    return is_common | ((np.nan_to_num(same) > 0) & (score < SOLVES))


def _choose(names: pd.Series, columns: Mapping[str, Any], otherwise: Any) -> Any:
    """For each row the value of the column that `names` picks."""
    return (
        np.select([(names == m).to_numpy() for m in columns], list(columns.values()), otherwise)
        if columns
        else otherwise
    )


def _named(failed: pd.DataFrame, attributed: pd.DataFrame | None) -> pd.Series:
    """The attribution's label of each failed answer, empty where it was not attributed."""
    if attributed is None:
        return pd.Series([""] * len(failed), dtype=object)
    return (
        failed[KEY]
        .merge(attributed[[*KEY, "label"]].drop_duplicates(KEY), on=KEY, how="left")["label"]
        .fillna("")
        .astype(object)
    )


def _looked_at(failed: pd.DataFrame, pivots: pd.DataFrame | None) -> pd.DataFrame:
    """pivot, conflict and conflict_strength of each failed answer; NaN, "" and 0 where no pivot was looked for."""
    columns = ["pivot", "conflict", "conflict_strength"]
    if pivots is None or pivots.empty:
        return pd.DataFrame({"pivot": np.nan, "conflict": "", "conflict_strength": 0.0}, index=failed.index)
    found = failed[KEY].merge(pivots[[*KEY, *columns]].drop_duplicates(KEY), on=KEY, how="left")[columns]
    return found.fillna({"conflict": "", "conflict_strength": 0.0}).set_axis(failed.index)


def _reasons(score_of_routed: Any, named: pd.Series) -> Any:
    unknown = np.isnan(score_of_routed)
    return np.select([unknown, (named == "own").to_numpy()], ["no record of a routed teacher", "the student's own shift"],
                     "base and teachers answer otherwise, and the routed teacher does not solve it")  # fmt: skip
