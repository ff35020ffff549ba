"""Comparison and trend as Markdown fit for a pull request comment: the verdict first, the table, the rest folded away.

GitHub takes 65,536 characters a comment; lists are cut, and say so, long before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mopd_diag.diagnostics.comparison import Comparison, cause
from mopd_diag.reporting import text
from mopd_diag.reporting.comparison_view import NAME, ComparisonView, Scale, view_of
from mopd_diag.reporting.flips import first_of
from mopd_diag.reporting.markdown import code, plain, table
from mopd_diag.reporting.tables import Table
from mopd_diag.reporting.trend_view import trend_view

if TYPE_CHECKING:
    from mopd_diag.diagnostics.gate import GateResult
    from mopd_diag.diagnostics.trend import Trend

ITEMS = 50  # lost items listed
GROUPS = 100  # rows of the table
NARROW = ["group", "verdict", "difference", "before", "after", "p (Holm)", "lost", "won", "items"]


def render_comparison(
    comparison: Comparison, gate: GateResult | None = None, *, view: ComparisonView | None = None
) -> str:
    """The whole comment."""
    return "\n".join(_lines(comparison, view or view_of(comparison), gate)).rstrip() + "\n"


def _lines(comparison: Comparison, view: ComparisonView, gate: GateResult | None) -> Iterator[str]:
    before, after = (plain(text.clip(name, NAME)) for name in (view.before, view.after))
    yield f"**{view.icon} {plain(view.headline)}** · {before} → {after}"
    yield ""
    yield plain(" ".join([view.sentence, view.counts]).rstrip())
    if gate is not None:
        yield ""
        yield f"**{'✓ Gate passed' if gate.passed else '✗ Gate failed'}**: {code(gate.rule, 300)} · {plain(gate.reason)}"
    yield ""
    yield from table(_narrow(view.groups))
    if len(view.groups.rows) > GROUPS:
        yield from (f"… and {len(view.groups.rows) - GROUPS} groups more in `comparison.json`.", "")
    if view.lost or view.why_note:
        yield from (
            *(f"- {plain(line)}" for line in view.lost[:GROUPS]),
            *([f"- {plain(view.why_note)}"] if view.why_note else []),
            "",
        )
    for change in ("lost", "won"):
        yield from _folded(comparison, change)
    if view.notes or view.warnings:
        yield from (
            "<details><summary>Notes</summary>",
            "",
            *(f"- {plain(text.clip(n))}" for n in (*view.warnings, *view.notes)[:GROUPS]),
            "",
            "</details>",
            "",
        )
    yield f"<sub>{plain('; '.join(f'{k} {v}' for k, v in view.facts))}. `comparison.html` has the rest.</sub>"


def _narrow(t: Table) -> Table:
    kept = [t.columns.index(c) for c in NARROW]
    shown = [*range(min(len(t.rows), GROUPS))]
    if len(t.rows) > GROUPS:
        shown[-1] = len(t.rows) - 1  # the mean of all groups always
    rows = [[text.clip(t.rows[i][j], NAME) for j in kept] for i in shown]
    strong = frozenset(k for k, i in enumerate(shown) if i in t.strong)
    return Table(t.caption, NARROW, rows, words=t.words, strong=strong)


def _folded(comparison: Comparison, change: str) -> Iterator[str]:
    """The items of one kind under a summary; lost ones with their reason and answers, won ones by name only."""
    total = int((comparison.flips["change"] == change).sum())
    if not total:
        return
    scale, rows = Scale.of(comparison), first_of(comparison.flips, change, ITEMS).to_dict("records")
    yield from (
        f"<details><summary>{text.plural(total, change + ' item')}{f' ({ITEMS} shown)' if total > ITEMS else ''}</summary>",
        "",
    )
    if change == "won":
        names = (f"{plain(text.clip(r['group'], NAME))} {code(r['item_id'], NAME)}" for r in rows)
        yield from ("; ".join(names), "", "</details>", "")
        return
    answers = any(r["response_before"] or r["response_after"] for r in rows)
    reasons = any(r["failure"] for r in rows)
    columns = [
        "group",
        "item",
        "before → after",
        *(["why"] if reasons else []),
        *(["answer before", "answer after"] if answers else []),
    ]
    yield f"| {' | '.join(columns)} |"
    yield f"|{' :-- |' * len(columns)}"
    for r in rows:
        cells = [
            plain(text.clip(r["group"], NAME)),
            code(r["item_id"], NAME),
            f"{scale.item(r['before'])} → {scale.item(r['after'])}",
        ]
        cells += [plain(text.clip(_cause(r), 200))] if reasons else []
        cells += [code(r[f"response_{side}"], 100) for side in ("before", "after")] if answers else []
        yield f"| {' | '.join(cells)} |"
    yield from ("", "</details>", "")


def _cause(row: dict) -> str:

    return cause(row["failure"], row["teacher"]) if row["failure"] else ""


def render_trend(trend: Trend) -> str:
    """The whole comment."""
    view = trend_view(trend)
    lines = [f"**{plain(text.clip(view.title, 2 * NAME))}**", "", *(f"- {plain(s)}" for s in view.sentences), ""]
    lines += table(view.levels)
    for title, t, total in (
        ("lost for good", view.lost, view.lost_total), ("flickering", view.flickering, view.flickering_total)
    ):  # fmt: skip
        if t.rows:
            cut = Table(
                t.caption, t.columns, [[text.clip(c, NAME) for c in row] for row in t.rows[:ITEMS]], words=t.words
            )
            more = f" ({ITEMS} shown)" if total > ITEMS else ""
            lines += [
                f"<details><summary>{text.plural(total, 'item')} {title}{more}</summary>",
                "",
                *table(cut),
                "</details>",
                "",
            ]
    lines += [f"- {plain(w)}" for w in view.warnings]
    return "\n".join(lines).rstrip() + "\n"
