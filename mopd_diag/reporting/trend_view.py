"""What a trend over many checkpoints says, as words and tables, for the page, the Markdown and the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from mopd_diag.diagnostics.comparison import OVERALL
from mopd_diag.reporting import text
from mopd_diag.reporting.comparison_view import ALL_GROUPS, ICONS, Scale, whole_number
from mopd_diag.reporting.tables import Table

if TYPE_CHECKING:
    from mopd_diag.diagnostics.trend import Trend

SHOWN = 200  # items of a list that the page holds; all of them are in trend.json
MOST_COLUMNS = 12  # groups of the table; the long ones scroll
SOLVED, FAILED = "●", "○"


@dataclass(frozen=True)
class TrendView:
    """A trend as its reports show it."""

    title: str
    scale: Scale
    facts: list[tuple[str, str]]
    sentences: list[str]
    levels: Table
    lost: Table
    lost_total: int
    flickering: Table
    flickering_total: int
    warnings: list[str]


def trend_view(trend: Trend) -> TrendView:
    """The words and tables of one trend."""
    values = trend.trajectories["value"].dropna()
    scale = Scale(bool(((values >= 0) & (values <= 1)).all()))
    counts = trend.items["state"].value_counts()
    facts = [
        ("checkpoints", str(len(trend.names))),
        ("items in all of them", whole_number(len(trend.items))),
        ("lost for good", whole_number(len(trend.lost))),
        ("gained", whole_number(int(counts.get("gained", 0)))),
        ("flickering", whole_number(len(trend.flickering))),
        ("never solved", whole_number(int(counts.get("never", 0)))),
    ]
    facts += [("left out, not in all", whole_number(trend.dropped))] if trend.dropped else []
    title = f"{trend.names[0]} … {trend.names[-1]}"
    return TrendView(
        title, scale, facts, trend.summary(), _levels(trend, scale),
        _items(trend.lost, "Lost for good: not solved at the checkpoint named and after it", lost=True), len(trend.lost),
        _items(trend.flickering, "Flickering: changed sides more than once", lost=False), len(trend.flickering),
        list(trend.warnings),
    )  # fmt: skip


def _levels(trend: Trend, scale: Scale) -> Table:
    """One row a checkpoint, one column a group; a sign where it differs from the first checkpoint, or surely does not."""
    groups = [*([OVERALL] if len(trend.groups) > 1 else []), *trend.groups][:MOST_COLUMNS]
    cells = {(int(r["checkpoint"]), r["group"]): r for r in trend.trajectories.to_dict("records")}
    rows = []
    for k, name in enumerate(trend.names):
        rows.append([f"{k + 1} · {name}", *(_cell(cells.get((k, g)), scale) for g in groups)])
    left_out = len(trend.groups) + (len(trend.groups) > 1) - len(groups)
    more = f"; {text.plural(left_out, 'group')} more in trend.json" if left_out else ""
    signs = "▲ better, ▼ worse, ● unchanged, ? undetermined against the first checkpoint"
    return Table(
        f"Mean score with intervals over items; {signs}{more}", ["checkpoint", *(ALL_GROUPS if g == OVERALL else g for g in groups)], rows
    )  # fmt: skip


def _cell(row: dict | None, scale: Scale) -> str:
    if row is None or row["value"] != row["value"]:
        return "–" if row is None else text.UNKNOWN
    sign = f" {ICONS[row['verdict']]}" if row["verdict"] else ""
    return f"{scale.score(row['value'])} [{scale.score(row['low'])}, {scale.score(row['high'])}]{sign}"


def _items(frame: pd.DataFrame, caption: str, *, lost: bool) -> Table:
    first = frame.head(SHOWN)
    rows = [
        [r["group"], r["item_id"], track(r["pattern"]), r["lost_name"] if lost else str(r["changes"])]
        for r in first.to_dict("records")
    ]
    columns = ["group", "item", f"{SOLVED} solved, {FAILED} not", "lost at" if lost else "changes"]
    return Table(caption, columns, rows, words=frozenset(columns[:3] + (["lost at"] if lost else [])))


def track(pattern: str) -> str:
    """One sign a checkpoint.

    >>> track("1101")
    '●●○●'
    """
    return pattern.translate(str.maketrans("10", f"{SOLVED}{FAILED}"))
