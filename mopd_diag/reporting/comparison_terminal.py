"""A comparison and a trend on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from mopd_diag.diagnostics.comparison import Comparison, cause
from mopd_diag.reporting import text
from mopd_diag.reporting.comparison_view import ICONS, Scale, view_of
from mopd_diag.reporting.flips import first_of
from mopd_diag.reporting.tables import Table
from mopd_diag.reporting.terminal import to_rich
from mopd_diag.reporting.trend_view import trend_view

if TYPE_CHECKING:
    from mopd_diag.diagnostics.trend import Trend

STYLES = {"better": "green", "worse": "bold red", "unchanged": "", "undetermined": "yellow"}
LISTED = 10  # lost items named


def show_comparison(comparison: Comparison, console: Console) -> None:
    """The verdict, the table of groups, why items were lost, and what to know before trusting it."""
    view = view_of(comparison)
    say(console, f"{view.before} → {view.after}", "bold")
    say(console, f"{view.icon} {view.headline}", STYLES[view.verdict])
    say(console, f"{view.sentence} {view.counts}".rstrip())
    console.print()
    shown = to_rich(_visible(view.groups))
    styles = {f"{ICONS[v]} {v}": style for v, style in STYLES.items()}
    for column in shown.columns[1:2]:  # the verdict
        for cell in column.cells:
            if isinstance(cell, Text):
                cell.stylize(styles.get(cell.plain, ""))
    console.print(shown)
    for note in view.notes:
        say(console, f"  {note}", "dim")
    if view.lost or view.why_note:
        console.print()
        for line in (*view.lost, view.why_note):
            say(console, line) if line else None
        _lost(comparison, console)
    for warning in view.warnings:
        say(console, f"! {warning}", "yellow")
    say(console, "; ".join(f"{k} {v}" for k, v in view.facts), "dim")


def _lost(comparison: Comparison, console: Console) -> None:
    """The first lost items, every group in turn."""
    scale, first = Scale.of(comparison), first_of(comparison.flips, "lost", LISTED)
    rows = [
        [r["group"], r["item_id"], f"{scale.item(r['before'])} → {scale.item(r['after'])}",
         cause(r["failure"], r["teacher"]) if r["failure"] else ""]
        for r in first.to_dict("records")
    ]  # fmt: skip
    if rows:
        total = int((comparison.flips["change"] == "lost").sum())
        caption = f"Lost items{f', {len(rows)} of {total}' if total > len(rows) else ''}"
        columns = ["group", "item", "before → after", *(["why"] if any(r[3] for r in rows) else [])]
        console.print()
        console.print(
            to_rich(_visible(Table(caption, columns, [r[: len(columns)] for r in rows], words=frozenset(columns))))
        )


def show_trend(trend: Trend, console: Console) -> None:
    """The levels by checkpoint, and what was lost for good."""
    view = trend_view(trend)
    say(console, view.title, "bold")
    for sentence in view.sentences:
        say(console, sentence)
    console.print()
    console.print(to_rich(_visible(view.levels)))
    for table, total in ((view.lost, view.lost_total), (view.flickering, view.flickering_total)):
        if table.rows:
            console.print()
            cut = Table(
                f"{table.caption}{f', {LISTED} of {total}' if total > LISTED else ''}",
                table.columns,
                table.rows[:LISTED],
                words=table.words,
            )
            console.print(to_rich(_visible(cut)))
    for warning in view.warnings:
        say(console, f"! {warning}", "yellow")


def say(console: Console, words: str, style: str = "") -> None:
    """A line that is text, never markup, with nothing in it that a terminal would obey."""
    console.print(Text(text.visible(words), style=style))


def _visible(t: Table) -> Table:
    """No escape sequence of an id or a name reaches the terminal."""
    rows = [[text.visible(text.clip(cell, 60)) for cell in row] for row in t.rows]
    return Table(t.caption, [text.visible(c) for c in t.columns], rows, words=t.words, strong=t.strong)
