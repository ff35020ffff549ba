"""The report's tables and sentences on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

from mopd_diag.reporting import text
from mopd_diag.reporting.reading import reason_of
from mopd_diag.reporting.tables import Table
from mopd_diag.reporting.view import view_of
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Finding


def to_rich(table: Table) -> RichTable:
    """A report table for a terminal; contents are text, never markup."""
    shown = RichTable(title=table.caption, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(table.columns):
        flush_left = i == 0 or column in table.words
        shown.add_column(column, justify="left" if flush_left else "right", no_wrap=i == 0)
    for i, row in enumerate(table.rows):
        shown.add_row(*(Text(cell) for cell in row), style="bold" if i in table.strong else None)
    return shown


def show_run(run: RunDirectory, console: Console) -> None:
    """Accuracies, the three answers, and where to read on."""
    view = view_of(run)
    if "accuracy" in view.tables:
        console.print(to_rich(view.tables["accuracy"]))
    for answer in view.answers:
        console.print()
        console.print(Text(answer.question, style="bold"))
        console.print(Text(answer.sentence))
    console.print()
    console.print(Text(f"report: {run.path / 'report.html'}"))


def show_caps(run: RunDirectory, console: Console) -> None:
    """The student against its best teachers, and what a probe says about it."""
    view = view_of(run, tokens=False)
    for name in ("caps", "probe"):
        if name in view.tables:
            console.print(to_rich(view.tables[name]))
            console.print()
    console.print(Text(view.probe_sentence))


def show_tables(run: RunDirectory, console: Console, names: Sequence[str]) -> None:
    """The named tables of a run's report, those that it has."""
    tables = view_of(run).tables
    for name in names:
        if name in tables:
            console.print(to_rich(tables[name]))
            console.print()


def show_interference(run: RunDirectory, console: Console) -> None:
    """Transfer, forgetting and regret, and what the domains' gradients say, tables and sentence."""
    view = view_of(run, tokens=False)
    for name in ("transfer", "measures", "geometry", "shares", "signs"):
        if name in view.tables:
            console.print(to_rich(view.tables[name]))
            console.print()
    console.print(Text(view.geometry_sentence))


def findings_table(findings: Sequence[Finding]) -> RichTable:
    """Subject, verdict, estimate and the sentence behind each finding."""
    shown = RichTable("subject", "verdict", "estimate", "what it says", box=None, pad_edge=False)
    for f in findings:
        said = str(f.evidence.get("note") or reason_of(f))
        style = {"blocking": "bold red", "warning": "yellow"}.get(f.severity)
        shown.add_row(
            Text(f.subject),
            Text(f.verdict, style=style or ""),
            text.estimate(f.estimate) if f.estimate else "",
            Text(said),
        )
    return shown


def attribution_table(document: Mapping[str, Any]) -> Group:
    """Classes with their shares, then the answers, of an attribution document (the `attribute --json` contract)."""
    classes = RichTable(
        "class", "share of answers", box=None, pad_edge=False, title="Attribution", title_justify="left"
    )
    for label, share in document["summary"].items():
        classes.add_row(Text(label), text.percent(share))
    items = RichTable("item", "label", "confidence", "shares", box=None, pad_edge=False)
    for item in document["items"][:20]:
        shares = ", ".join(
            f"{name} {share:.2f}"
            for name, share in sorted(item["shares"].items(), key=lambda kv: -(kv[1] or 0))
            if share
        )
        confidence = item["confidence"]
        items.add_row(
            Text(text.visible(item["id"])),
            Text(item["label"]),
            "–" if confidence is None else f"{confidence:.2f}",
            Text(shares),
        )
    lacking = {
        "full": "no control was scored beside the teachers (add [controls.NAME] to the cast)",
        "top-k": "probabilities were learned on whole vocabularies, here a few tokens of each were compared",
        "none": "probabilities were learned on models that share a vocabulary",
    }
    calibrated = {
        "uncalibrated": f"confidence is not calibrated: {lacking[document['vocabulary']]}",
        "calibrated": "confidence is a probability, learned from casts of known provenance with the decoys as the null",
    }
    seen = document["evidence"] if document["vocabulary"] == "none" else f"{document['vocabulary']} vocabulary"
    how = f"{seen}; {calibrated[document['calibration']]}"
    left = len(document["items"]) - 20
    more = f"… and {left} more in the JSON and the traces" if left > 0 else ""
    return Group(classes, Text(""), items, *([Text(more)] if more else []), Text(how, style="dim"))
