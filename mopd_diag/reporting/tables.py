"""The tables of the report as plain text, once, for HTML and Markdown alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from mopd_diag.reporting import text
from mopd_diag.reporting.look import Cast
from mopd_diag.reporting.paths import line_of, model_share, parents_of, path_cost
from mopd_diag.reporting.reading import (
    CONSISTENCY,
    MEASURES,
    OVERALL,
    STUDENT,
    Cap,
    Provenance,
    Reading,
    as_estimate,
    is_open,
    reason_of,
    split_subject,
    words_of,
)
from mopd_diag.types import Estimate, Finding

PARTS = {"both": "both solve", "inherited": "both fail"}
VERDICTS = {"at": "● at the cap", "below": "▼ below", "above": "▲ above", "undetermined": "? undetermined"}


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns; the first column names the row. Columns in `words` are set flush left, numbers flush right.

    `strong` rows are set in bold, `keys` give the row's name a colour mark by member, `finds` the finding behind the row.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    words: frozenset[str] = frozenset()
    strong: frozenset[int] = frozenset()
    keys: list[str] = field(default_factory=list)
    finds: list[str] = field(default_factory=list)

    def key(self, row: int) -> str | None:
        return self.keys[row] if row < len(self.keys) else None

    def find(self, row: int) -> str | None:
        return self.finds[row] if row < len(self.finds) else None


def accuracy_table(accuracy: Mapping[str, Mapping[str, Estimate]], cast: Cast) -> Table:
    models = [m for m in cast.roles if m in accuracy]
    domains = [d for d in (*cast.domains, OVERALL) if any(d in accuracy[m] for m in models)]
    rows = [[m, *(_maybe(accuracy[m].get(d)) for d in domains)] for m in models]
    strong = frozenset(i for i, m in enumerate(models) if m == STUDENT)
    caption = "Share of sampled answers that the verifier accepts, with 95% intervals over items"
    return Table(
        caption,
        ["model", *("all domains" if d == OVERALL else d for d in domains)],
        rows,
        strong=strong,
        keys=list(models),
    )


def _maybe(e: Estimate | None) -> str:
    return "–" if e is None else text.share(e)


def caps_table(reading: Reading) -> Table:
    table = _overall_last(reading.caps.get(STUDENT, {}))
    partitions = list(dict.fromkeys(p for c in table.values() for p in c.partition))
    gaps = any(c.gap is not None for c in table.values())
    columns = ["domain", "recovery", "verdict", "base", "student", "best teacher", "which"]
    columns += ["gap"] * gaps + [PARTS.get(p, p) for p in partitions]
    rows = []
    for domain, c in table.items():
        row = [_domain(domain), text.ratio(c.recovery), VERDICTS.get(c.finding.verdict, c.finding.verdict)]
        row += [*(_maybe(e) for e in (c.base, c.student, c.best)), c.teacher or "–"]
        row += ["–" if c.gap is None else text.points(c.gap, unit=False)] * gaps
        rows.append(row + [str(c.partition.get(p, "–")) for p in partitions])
    caption = "Recovery = (student − base) / (best teacher − base)"
    caption += "; gap = student − best teacher, in percentage points" * gaps + "; the last columns count items" * bool(
        partitions
    )
    finds = [c.finding.id for c in table.values()]
    return Table(caption, columns, rows, frozenset({"verdict", "which"}), _last(table), finds=finds)


def transfer_table(reading: Reading) -> Table:
    trained = list(dict.fromkeys(c.row for c in reading.cells))
    evaluated = list(dict.fromkeys(c.evaluated_on for c in reading.cells))
    cells = {(c.row, c.evaluated_on): text.points(c.change, unit=False) for c in reading.cells}
    rows = [[r, *(cells.get((r, e), "–") for e in evaluated)] for r in trained]
    return Table("Change of accuracy against the base, in percentage points", ["trained on", *evaluated], rows)


def provenance_table(reading: Reading, cast: Cast) -> Table:
    models = [m for m in (STUDENT, *reading.controls) if m in reading.provenance]
    baselines = list(dict.fromkeys(b for m in models for p in reading.provenance[m].values() for b in p.baselines))
    domains = [d for d in (*cast.domains, OVERALL) if any(d in reading.provenance[m] for m in models)]
    compared = any(p.excess for m in models for p in reading.provenance[m].values())
    columns = ["domain", "model", "to the domain's teacher", *(f"baseline: {b}" for b in baselines), "verdict"]
    columns += ["control unexplained"] * compared + ["everything else"]
    rows, finds = [], list[str]()
    for domain in domains:
        for model in models:
            p = reading.provenance[model].get(domain)
            if p is not None:
                row = [
                    _domain(domain),
                    model,
                    text.share(p.routed),
                    *(_baseline(p.baselines.get(b)) for b in baselines),
                ]
                times = ", ".join(f"× {text.ratio(e)}" if e.defined else text.UNKNOWN for e in p.excess.values())
                rows.append([*row, p.finding.verdict, *[times or "–"] * compared, _rest(p, cast, domain)])
                finds.append(p.finding.id)
    caption = "To whom the answers are attributed, for the student and for a model that never saw a teacher"
    strong = frozenset(i for i, r in enumerate(rows) if r[1] == STUDENT)
    return Table(caption, columns, rows, frozenset({"model", "verdict", "everything else"}), strong, finds=finds)


def _rest(p: Provenance, cast: Cast, domain: str) -> str:
    """Where the other answers went, largest first."""
    routed = cast.routed(domain)
    parts: dict[str, float] = {}
    for label, value in p.shares.items():
        parts[cast.member(label)] = parts.get(cast.member(label), 0.0) + value
    hidden = {routed} if domain != OVERALL else set(cast.teachers)
    rest = sorted(((m, v) for m, v in parts.items() if m not in hidden and v >= 0.005), key=lambda mv: -mv[1])
    return ", ".join(f"{m} {text.percent(v)}" for m, v in rest) or "–"


def _baseline(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return text.percent(float(value))
    return "–" if value is None else str(value)


def consistency_table(reading: Reading) -> Table:
    """Whether the student speaks with one voice: every question that was asked, what is surest first."""
    order = {v: i for i, v in enumerate(("conflict", "inconsistent", "inherited", "mixed"))}
    told = sorted(reading.consistency, key=lambda f: (is_open(f), order.get(f.verdict, len(order))))
    rows = []
    for f in told:
        where = split_subject(f.subject)[1].replace("~", " and ")
        asked = CONSISTENCY.get(str(f.evidence.get("measure")), "–")
        rows.append([_domain(where), asked, text.estimate(f.estimate), f.verdict, words_of(f)])
    columns = ["where", "question", "estimate", "verdict", "in words"]
    caption = "Does the student speak with one voice? Each beside the base and models without teachers"
    return Table(caption, columns, rows, frozenset({"question", "verdict", "in words"}), finds=[f.id for f in told])


def failures_table(reading: Reading) -> Table:
    """Where the student's failed answers come from, by class."""
    told = {d: {c: as_estimate(e) for c, e in f.evidence["shares"].items()} for d, f in reading.failures.items()}
    classes = list(dict.fromkeys(c for shares in told.values() for c in shares))
    domains = sorted(told, key=lambda d: d == OVERALL)
    rows = []
    for domain in domains:
        shares = [told[domain].get(c) for c in classes]
        failed = reading.failures[domain].evidence.get("n_failed", "–")
        rows.append([_domain(domain), str(failed), *("–" if e is None else text.share(e) for e in shares)])
    finds = [reading.failures[d].id for d in domains]
    caption = "Share of the student's failed answers in each class, with 95% intervals over items"
    return Table(caption, ["domain", "failed answers", *classes], rows, strong=_last(told), finds=finds)


def rivals_table(
    accuracy: Mapping[str, Mapping[str, Estimate]], ledger: pd.DataFrame, reading: Reading, cast: Cast
) -> Table:
    """The paths side by side at what each cost, recovery and the worst domain beside the mean."""
    stages = set(ledger["stage"].astype(str)) if len(ledger) else set()
    models = [m for m in cast.with_role("student", "rival", "control") if m in accuracy]
    recovered = {m: reading.caps[m][OVERALL].recovery for m in models if OVERALL in reading.caps.get(m, {})}
    columns = [
        "path",
        "all domains",
        *["recovery"] * bool(recovered),
        "worst domain",
        "tokens sampled",
        "trained",
        "scored",
        "FLOPs",
    ]
    rows = []
    for model in models:
        domains = {d: e for d, e in accuracy[model].items() if d != OVERALL and e.defined}
        worst = min(domains, key=lambda d: domains[d].value, default=None)
        cost = path_cost(ledger, model).counts if model in stages else {}
        row = [model, _maybe(accuracy[model].get(OVERALL))]
        row += [text.ratio(recovered[model]) if model in recovered else "–"] * bool(recovered)
        row += [f"{worst} {text.share(domains[worst])}" if worst else "–"]
        row += [
            text.count(cost[c]) if c in cost else "–"
            for c in ("tokens_sampled", "tokens_trained", "tokens_scored", "flops")
        ]
        rows.append(row)
    caption = "Each path with the cost of everything it was made from, teachers included and the shared base left out"
    strong = frozenset(i for i, m in enumerate(models) if m == STUDENT)
    return Table(caption, columns, rows, strong=strong, keys=list(models))


def measures_table(reading: Reading, cast: Cast) -> Table:
    """What each whole path forgot and regrets, in its worst domain."""
    names = [n for n in MEASURES if reading.measure(n)]
    models = [m for m in cast.roles if any(m in reading.measure(n) for n in names)]
    rows = []
    for model in models:
        row = [model]
        for name in names:
            measure = reading.measure(name).get(model)
            row.append("–" if measure is None else f"{measure.domain} {text.points(measure.value, unit=False)}".strip())
        rows.append(row)
    strong = frozenset(i for i, m in enumerate(models) if m == STUDENT)
    caption = "In percentage points, in each path's worst domain; positive is bad"
    return Table(caption, ["path", *(n.replace("_", " ") for n in names)], rows, strong=strong, keys=list(models))


def ledger_table(ledger: pd.DataFrame, critical: Sequence[str]) -> Table:
    """One row a training stage, one for all evaluations, one for all traces, and the sum."""
    columns = [
        "stage",
        "algorithm",
        "made from",
        "tokens sampled",
        "trained",
        "scored",
        "FLOPs",
        "time",
        "in the model",
        "device",
    ]
    service = ledger["stage"].astype(str).str.contains(":")
    rows = []
    for r in ledger[~service].to_dict("records"):
        name = f"{r['stage']} ●" if r["stage"] in critical else str(r["stage"])
        made = text.clip(", ".join(parents_of(r.get("parents"))) or "–", 90)
        rows.append([name, str(r.get("algorithm", "–")), made, *_work(pd.DataFrame([r])), str(r.get("device", "–"))])
    for line, part in ledger[service].groupby(ledger["stage"].astype(str).map(line_of), sort=False):
        rows.append([str(line), "–", text.plural(len(part), "model"), *_work(part), str(part["device"].iloc[0])])
    rows.append(["sum", "", "", *_work(ledger), ""])
    keys = [str(s) for s in ledger[~service]["stage"]]
    words = frozenset({"algorithm", "made from", "device"})
    return Table("● on the critical path", columns, rows, words, frozenset({len(rows) - 1}), keys)


def _work(part: pd.DataFrame) -> list[str]:
    """Tokens, FLOPs, time and the share of it inside the model, summed over some rows of the ledger."""
    counts = ("tokens_sampled", "tokens_trained", "tokens_scored", "flops")
    told = [text.count(float(part[c].sum()) if c in part.columns else math.nan) for c in counts]
    return [*told, text.duration(float(part["seconds"].sum())), text.percent(model_share(part))]


def unknown_table(findings: Sequence[Finding]) -> Table:
    rows = [[f.subject, f.kind, f.verdict, text.estimate(f.estimate), reason_of(f)] for f in findings]
    columns = ["subject", "question", "verdict", "estimate", "why"]
    return Table(
        "Questions that this run leaves open", columns, rows, frozenset(columns), finds=[f.id for f in findings]
    )


def preflight_table(findings: Sequence[Finding]) -> Table:
    told = [f for f in findings if f.kind in ("preflight", "pathology", "regression")]
    rows = [[f.subject, f.kind, f.verdict, f.severity, text.estimate(f.estimate), words_of(f)] for f in told]
    columns = ["subject", "check", "verdict", "severity", "estimate", "in words"]
    return Table("Checks", columns, rows, frozenset(columns), finds=[f.id for f in told])


def _domain(name: str) -> str:
    return "all domains" if name == OVERALL else name


def _overall_last(table: Mapping[str, Cap]) -> dict[str, Cap]:
    return {k: table[k] for k in sorted(table, key=lambda k: k == OVERALL)}


def _last(table: Mapping[str, object]) -> frozenset[int]:
    return frozenset({len(table) - 1}) if OVERALL in table else frozenset()
