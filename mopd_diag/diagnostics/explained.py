"""All failures of a run by class, domain and teacher, and what the explanations kept in it (`explain/*.json`) add up to."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mopd_diag.diagnostics.failures import CONFLICT, KEY, classes_of, failures, findings
from mopd_diag.diagnostics.provenance import OVERALL
from mopd_diag.errors import BadInput, RunDirectoryError, nearest
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Estimate, Finding

SCHEMA = 1
NOBODY = "no teacher"
ARMS = ("own", "teacher", "redraw", "random")
LISTED = [
    "domain",
    "item_id",
    "sample",
    "failure",
    "teacher",
    "routed",
    "strength",
    "reason",
    "attributed",
    "prompt",
    "response",
]
Cell = dict[str, Any]


# -- explanations on disk -------------------------------------------------------------------------------------------------


def explanation_path(run: RunDirectory, item_id: str, sample: int) -> Path:
    """Where the explanation of one answer is kept; the name is made safe for every file system, and unique by its hash."""
    digest = hashlib.blake2b(item_id.encode(), digest_size=5).hexdigest()
    name = re.sub(r"[^A-Za-z0-9]+", "-", item_id).strip("-")[:40]
    return run.path / "explain" / f"{name}-{digest}-{sample}.json"


def explanations(run: RunDirectory) -> list[dict[str, Any]]:
    """The explanations kept in a run, in the order of their names. Raises RunDirectoryError for one that cannot be read."""
    found = []
    for path in sorted((run.path / "explain").glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunDirectoryError(f"{path} is not JSON ({error}); delete it and explain that item again") from error
        if isinstance(document, dict) and document.get("schema") == SCHEMA:
            found.append(document)
    return found


def pivots_of(documents: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
    """One row an explained answer: KEY, response, pivot (-1: not sure), conflict, conflict_strength; None without any."""
    rows = []
    for d in documents:
        if d["pivot"] is None:
            continue
        conflict = d["conflict"] or {"teacher": "", "divergence": 0.0}
        place = d["pivot"]["position"]
        rows.append({
            **{k: d[k] for k in KEY}, "response": d["response"], "pivot": float(-1 if place is None else place),
            "conflict": conflict["teacher"], "conflict_strength": float(conflict["divergence"]),
        })  # fmt: skip
    return pd.DataFrame(rows) if rows else None


# -- all failures of a run ------------------------------------------------------------------------------------------------


def failed_answers(run: RunDirectory, documents: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Every failed answer of a run's student with its class (`failures`), pivots of `documents` taken into account.

    Raises RunDirectoryError for a run without a student, teachers, records or attribution.
    """
    manifest = run.manifest()
    roles = {m: t["role"] for m, t in manifest["models"].items()}
    teachers = [m for m, r in roles.items() if r == "teacher"]
    missing = [m for m in ("student", "base") if m not in roles] + ["teacher"] * (not teachers)
    if missing:
        raise RunDirectoryError(
            f"{run.path} has no {missing[0]}, only {', '.join(roles) or 'no model'}; failures by teacher need a distilled student"
        )
    records = run.records(*(m for m, r in roles.items() if r != "checkpoint"))
    pivots = pivots_of(documents)
    if pivots is not None:  # an explanation of an earlier training is none of this one
        told = records.loc[records["model"] == "student", [*KEY, "response"]]
        pivots = pivots.merge(told, on=[*KEY, "response"])
    route = manifest.get("route") or {}
    return failures(records, route, attributed=run.attribution("student"), teachers=teachers, pivots=pivots)


def select(
    run: RunDirectory, failed: pd.DataFrame, domain: str | None = None, kind: str | None = None, teacher: str | None = None
) -> pd.DataFrame:  # fmt: skip
    """The failed answers of a domain, class or teacher. Raises BadInput for a name that the run does not have."""
    teachers = [m for m, t in run.manifest()["models"].items() if t["role"] == "teacher"]
    if teacher is not None and teacher not in teachers:
        teacher = f"teacher-{teacher}" if f"teacher-{teacher}" in teachers else teacher
    domains = run.records("student")["domain"].unique()
    chosen = failed
    for column, wanted, known in (
        ("domain", domain, domains), ("failure", kind, classes_of(failed)), ("teacher", teacher, teachers),
    ):  # fmt: skip
        if wanted is None:
            continue
        if wanted not in known:
            word = "class" if column == "failure" else column
            hint = "run `mopd-diag explain DIR --pivots` first" if wanted == CONFLICT else nearest(wanted, known)
            raise BadInput(f"no {word} '{wanted}' among the failures of {run.path}; {hint}")
        chosen = chosen[chosen[column] == wanted]
    return chosen


@dataclass(frozen=True)
class FailureReport:
    """Failures of one student. Cells hold `count` and `share` (an Estimate, items as clusters: each failed item weighs the same).

    `by_domain`: class -> share of the domain's failed answers. `by_teacher`: class -> share of *all* failed answers that are of that
    class and come from that teacher (for `lost`: that the teacher solves); rows and columns together sum to one.
    """

    run: str
    failed: pd.DataFrame
    answered: dict[str, int]
    classes: tuple[str, ...]
    by_domain: dict[str, dict[str, Cell]]
    by_teacher: dict[str, dict[str, Cell]]
    findings: list[Finding]
    rescue: dict[str, dict[str, Any]]

    def to_dict(self, listed: pd.DataFrame | None = None) -> dict[str, Any]:
        """The document of `mopd-diag explain DIR --json`; `listed`: the answers to list, all when left out."""
        shown = self.failed if listed is None else listed
        domains = {
            d: {"answered": self.answered.get(d, sum(self.answered.values())), "classes": _plain(cells)}
            for d, cells in self.by_domain.items()
        }
        rows = shown[[c for c in (*LISTED, "pivot", "share_own") if c in shown.columns]]
        return {
            "run": self.run,
            "student": "student",
            "failed": len(self.failed),
            "answered": sum(self.answered.values()),
            "classes": list(self.classes),
            "domains": domains,
            "teachers": {t: _plain(cells) for t, cells in self.by_teacher.items()},
            "pivots": {d: _plain({"": c})[""] for d, c in self.rescue.items()} or None,
            "findings": [f.to_dict() for f in self.findings],
            "failures": [{k: None if v != v else v for k, v in row.items()} for row in rows.to_dict("records")],
        }


def report(run: RunDirectory, *, seed: int = 0) -> FailureReport:
    """Failures of a run by class, domain and teacher, with the explanations that are kept in it."""
    documents = explanations(run)
    failed = failed_answers(run, documents)
    classes = classes_of(failed)
    student = run.records("student")
    answered = {str(d): int(n) for d, n in student.groupby("domain", sort=False).size().items()}
    domains = [d for d in answered if (failed["domain"] == d).any()]
    teachers = [m for m, t in run.manifest()["models"].items() if t["role"] == "teacher"]
    by_domain = {d: _cells(failed[failed["domain"] == d], classes, seed) for d in domains}
    by_teacher: dict[str, dict[str, Cell]] = {}
    if len(failed):
        by_domain[OVERALL] = _cells(failed, classes, seed)
        pairs = [(t, c) for t in (*teachers, NOBODY) for c in classes]
        named = failed["teacher"].where(failed["teacher"] != "", NOBODY)
        cells = _cells(failed.assign(pair=[*zip(named, failed["failure"], strict=True)]), pairs, seed, "pair")
        by_teacher = {t: {c: cells[t, c] for c in classes} for t in (*teachers, NOBODY)}
    told = findings(failed, seed=seed)
    current = _current(documents, failed)
    return FailureReport(
        str(run.path), failed, answered, classes, by_domain, by_teacher, told, _rescues(current, domains, seed)
    )


def _cells(failed: pd.DataFrame, names: Sequence[Any], seed: int, column: str = "failure") -> dict[Any, Cell]:
    table = pd.DataFrame({i: [v == n for v in failed[column]] for i, n in enumerate(names)}, index=failed.index)
    items = table.groupby([failed["domain"], failed["item_id"]]).mean()
    drawn = Bootstrap.of(items.to_numpy(float), seed=seed)
    return {n: {"count": int(table[i].sum()), "share": drawn.column(i)} for i, n in enumerate(names)}


def _plain(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Cells with their estimates ready for JSON."""
    return {n: {k: v.to_dict() if isinstance(v, Estimate) else v for k, v in cell.items()} for n, cell in cells.items()}


# -- pivots and counterfactuals -------------------------------------------------------------------------------------------


def _current(documents: Sequence[dict[str, Any]], failed: pd.DataFrame) -> list[dict[str, Any]]:
    known = {(r["item_id"], r["sample"]): r["response"] for r in failed[[*KEY, "response"]].to_dict("records")}
    return [d for d in documents if d["pivot"] is not None and known.get((d["item_id"], d["sample"])) == d["response"]]


def _rescues(documents: Sequence[dict[str, Any]], domains: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Domain -> how many pivots were looked for and found, and what putting in the routed teacher's token did, over items."""
    found = {}
    for domain in (*domains, OVERALL):
        looked = [d for d in documents if domain in (d["domain"], OVERALL)]
        if looked:
            found[domain] = _rescue(looked, seed)
    return found


def _rescue(looked: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    located = [d for d in looked if d["pivot"]["position"] is not None]
    fights = [d["conflict"] for d in located if d["conflict"]]
    pairs = pd.Series([f"{c['routed']} against {c['teacher']}" for c in fights], dtype=object).value_counts()
    rows = [
        {"item_id": d["item_id"], "p_own": d["alternatives"]["members"]["student"]["p_own"]}
        | {a: d["counterfactual"]["arms"][a]["value"] for a in ARMS}
        for d in located
        if d["counterfactual"] and all(d["counterfactual"]["arms"][a]["value"] is not None for a in ARMS)
    ]
    columns = [*ARMS, "p_own"]
    items = pd.DataFrame(rows, columns=["item_id", *columns]).groupby("item_id").mean()
    drawn = Bootstrap.of(items.to_numpy(float).reshape(-1, len(columns)), seed=seed)
    gain = {a: drawn.estimate(lambda m, i=i: m[..., 1] - m[..., i], unit="difference") for i, a in enumerate(ARMS)}
    return {
        "looked": len(looked),
        "located": len(located),
        "by_student": sum(d["pivot"]["by"] == "student" for d in located),
        "conflicts": len(fights),
        "conflicts_control": sum(bool(c["controls"]) for c in fights),
        "pairs": {str(k): int(n) for k, n in pairs.items()},
        **{a: drawn.column(i) for i, a in enumerate(ARMS)},
        "p_own": drawn.column(len(ARMS), unit="probability"),
        "gain_over_own": gain["own"],
        "gain_over_random": gain["random"],
    }


# -- one item -------------------------------------------------------------------------------------------------------------


def find_failure(run: RunDirectory, failed: pd.DataFrame, item: str, sample: int | None = None) -> dict[str, Any]:
    """The failed answer that `item` names: an item's id, perhaps with `#sample`; without a sample its first failed one.

    Raises BadInput for an unknown item, one that did not fail and a sample that did not, with the nearest that did.
    """
    records = run.records("student")
    known = set(records["item_id"])
    head, mark, tail = item.rpartition("#")
    if item not in known and mark and tail.isdigit():
        if sample is not None and sample != int(tail):
            raise BadInput(f"got '{item}' and --sample {sample}: two different samples; name one")
        item, sample = head, int(tail)
    own = records[records["item_id"] == item]
    of_item = failed[failed["item_id"] == item]
    if own.empty:
        raise BadInput(f"{run.path}: the student never answered an item '{item}'; {_nearest(item, failed)}")
    if of_item.empty:
        raise BadInput(f"item '{item}' did not fail: all of its {len(own)} answers are right; {_nearest(item, failed)}")
    if sample is None:
        return of_item.iloc[0].to_dict()
    chosen = of_item[of_item["sample"] == sample]
    if chosen.empty:
        state = "is right" if (own["sample"] == sample).any() else f"is not there: it has {len(own)}, counted from 0"
        raise BadInput(f"sample {sample} of '{item}' {state}; failed: {', '.join(map(str, of_item['sample']))}")
    return chosen.iloc[0].to_dict()


def _nearest(item: str, failed: pd.DataFrame) -> str:
    ids = list(dict.fromkeys(failed["item_id"]))
    if not ids:
        return "no answer of the student failed"
    close = difflib.get_close_matches(item, ids, n=3, cutoff=0.4) or ids[:3]
    return f"failed items near it: {', '.join(close)}" if len(ids) > 1 else f"the only failed one: {ids[0]}"
