"""Does a student of many teachers speak with one voice? Four questions to the records and traces of a run; no model is loaded.

Which teacher wins where domains look alike (`contests`), whether an answer changes its teacher midway (here), whether the wording
of a question decides (`wordings`), and where wrong facts come from (`hallucination`). `docs/consistency.md` has the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mopd_diag.diagnostics.contests import contests
from mopd_diag.diagnostics.hallucination import hallucinations
from mopd_diag.diagnostics.provenance import OVERALL
from mopd_diag.diagnostics.voices import CONFLICT, EXAMPLES, ITEM, KEY, Material, per_item, plain, settle, told
from mopd_diag.diagnostics.wordings import wordings
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.types import Estimate, Finding

__all__ = ["Material", "findings", "stretches", "switches"]

MOVED = 0.1
"""nats of KL(student ‖ base) over a stretch of tokens below which it is no voice: the base would write it nine times in ten."""


def findings(m: Material, *, facts: Sequence[str] = (), level: float = 0.95, seed: int = 0) -> list[Finding]:
    """Everything about the student's consistency that the material can tell; `facts`: domains whose answers are facts.

    With a single teacher there is nobody to disagree, and only wordings and facts are asked about.
    """
    several = len(set(m.route.values())) > 1
    return [
        *(contests(m, level=level, seed=seed) if several else []),
        *(switches(m, level=level, seed=seed) if several else []),
        *wordings(m, level=level, seed=seed),
        *hallucinations(m, facts, level=level, seed=seed),
    ]


def stretches(tokens: pd.DataFrame, *, moved: float = MOVED) -> pd.DataFrame:
    """Stretches of one teacher in each answer, in order: KEY, label, start, end (exclusive), text, nats, confidence.

    Tokens of every other class are passed over, and stretches in which the student moved by less than `moved` nats altogether;
    neighbours of one teacher are one stretch.
    """
    rows = tokens[tokens["label"].astype(str).str.startswith("teacher:")]
    if "sampled" in rows.columns:
        rows = rows[rows["sampled"].astype(bool)]
    rows = rows.sort_values([*KEY, "position"], kind="stable")
    told_rows = rows.assign(
        start=rows["position"], end=rows["position"] + 1, text=rows["token"].astype(str), nats=rows["kl_base"]
    )
    once = _joined(told_rows)
    return _joined(once[once["nats"] >= moved])


def switches(m: Material, *, level: float = 0.95, seed: int = 0) -> list[Finding]:
    """One finding for each domain and one overall: of the answers in which some teacher speaks, how many change to another one."""
    voices = {n: stretches(m.tokens[n]) for n in (m.student, *m.controls)}
    spoken = {n: per_item(_by_answer(v), ["switched"])["switched"] for n, v in voices.items()}
    domains = [*(str(d) for d in m.answers[m.student]["domain"].unique()), OVERALL]
    return [_finding(m, d, voices[m.student], spoken, level, seed) for d in domains]


def _joined(rows: pd.DataFrame) -> pd.DataFrame:
    """Neighbouring rows of one answer and one label as one."""
    if rows.empty:
        return rows.reindex(columns=[*KEY, "label", "start", "end", "text", "nats", "confidence"])
    new = (rows[[*KEY, "label"]] != rows[[*KEY, "label"]].shift()).any(axis=1).cumsum()
    grouped = rows.groupby(new.to_numpy(), sort=True)
    first = grouped[[*KEY, "label", "start"]].first()
    rest = grouped.agg(
        end=("end", "max"), text=("text", "".join), nats=("nats", "sum"), confidence=("confidence", "max")
    )
    return pd.concat([first, rest], axis=1).reset_index(drop=True)


def _by_answer(voices: pd.DataFrame) -> pd.DataFrame:
    counted = voices.groupby(KEY, sort=False).size().rename("n").reset_index()
    return counted.assign(switches=counted["n"] - 1, switched=counted["n"] > 1)


def _finding(
    m: Material, domain: str, voices: pd.DataFrame, spoken: dict[str, pd.Series], level: float, seed: int
) -> Finding:
    def of(name: str) -> pd.Series:
        return spoken[name] if domain == OVERALL else spoken[name][spoken[name].index.get_level_values(0) == domain]

    own = of(m.student)
    share = Estimate.undefined("in no answer does a single teacher speak")
    if len(own):
        share = Bootstrap.of(own.to_numpy(float), seed=seed, level=level).column(0)
    beside, more = dict[str, Estimate](), dict[str, Estimate]()
    for name in m.controls:
        both = pd.concat([own, of(name)], axis=1).dropna().to_numpy(float).reshape(-1, 2)
        drawn = Bootstrap.of(both, seed=seed, level=level)
        beside[name] = drawn.column(1)
        more[name] = drawn.estimate(lambda v: v[..., 0] - v[..., 1], unit="difference")
    verdict, why = settle(share, more)
    mine = voices if domain == OVERALL else voices[voices["domain"] == domain]
    turns = _turns(mine)
    pairs = turns["pair"].value_counts()
    n_answers = len(m.answers[m.student] if domain == OVERALL else m.answers[m.student].query("domain == @domain"))
    where = "over all domains" if domain == OVERALL else f"on {domain}"
    note = f"{where}, of {len(own)} items in whose answers some teacher speaks, {told(share)} change to another one midway ({why})"
    if len(pairs):
        note += f"; most often {str(pairs.index[0]).replace(' | ', ' and ')}"
    evidence: dict[str, Any] = {
        "measure": "switch", "domain": domain, "n_answers": n_answers, "n_items_spoken": len(own),
        "pairs": {str(k): int(v) for k, v in pairs.items()},
        "per_answer": float(_by_answer(mine)["switches"].mean()) if len(mine) else None,
        "where": _where(turns),
        "controls": plain(beside), "beyond_control": plain(more), "cases": _cases(m, mine, turns), "note": note,
    }  # fmt: skip
    name = f"consistency-switch-{m.student}" + ("" if domain == OVERALL else f"-{domain}")
    estimate = replace(
        share, note=share.note or "of the items in whose answers a teacher speaks, share that change the teacher midway"
    )
    severity = "notice" if verdict == CONFLICT else "info"
    return Finding(name, "attribution", f"{m.student}/{domain}", verdict, severity, estimate, evidence)


def _where(turns: pd.DataFrame) -> dict[str, Any] | None:
    """The middle position of the changes, and the tokens that the new voice begins with most."""
    if turns.empty:
        return None
    begins = turns["text"].str[:1].value_counts().head(5)
    return {
        "median_token": float(turns["start"].median()),
        "begins_with": {str(k): int(v) for k, v in begins.items()},
    }


def _turns(voices: pd.DataFrame) -> pd.DataFrame:
    """The stretches that begin with another teacher than the one before in the same answer: KEY, pair, start, text, weight (nats of
    the weaker of the two)."""
    before = voices.groupby(KEY, sort=False)[["label", "nats"]].shift()
    turned = voices[before["label"].notna()]
    before = before.loc[turned.index]
    pair = [" | ".join(sorted((str(x), str(y)))) for x, y in zip(before["label"], turned["label"], strict=True)]
    weight = turned["nats"].where(turned["nats"] < before["nats"], before["nats"])
    return turned[[*KEY, "start", "text"]].assign(pair=pd.Series(pair, index=turned.index, dtype=object), weight=weight)


def _cases(m: Material, voices: pd.DataFrame, turns: pd.DataFrame) -> list[dict[str, Any]]:
    """The answers whose two voices both weigh most, with their stretches."""
    answers = m.answers[m.student].drop_duplicates(KEY).set_index(KEY)
    chosen = turns.sort_values("weight", ascending=False, kind="stable").drop_duplicates(ITEM).head(EXAMPLES)
    found = []
    for turn in chosen.to_dict("records"):
        at = tuple(turn[k] for k in KEY)
        rows = voices[(voices[KEY] == pd.Series(at, index=KEY)).all(axis=1)]
        known = answers.loc[at].to_dict() if at in answers.index else {}
        parts = [
            {"label": str(r["label"]), "start": int(r["start"]), "end": int(r["end"]), "text": str(r["text"])}
            for r in rows.to_dict("records")
        ]
        text = {k: str(known[k]) for k in ("prompt", "response") if k in known}
        found.append({"item_id": str(at[1]), "sample": int(at[2]), "pair": turn["pair"], **text, "stretches": parts})
    return found
