"""Regression: two record sets, or checkpoints in order; the verdict, the gate, the items that changed, and the report."""

from __future__ import annotations

import json

import pandas as pd
import streamlit as st
from markupsafe import Markup

from app import parts, state, stored
from app.changed import changed_items
from app.data import ServedFolder
from app.figures import WIDE, beware, facts, figure, legend, number, percent, points, table, verdict_line
from app.gate import gate_editor
from app.sources import Picked, choices, compared, followed, picked, uploaded
from mopd_diag.diagnostics.gate import GateResult
from mopd_diag.diagnostics.regression import MARGIN
from mopd_diag.diagnostics.trend import Trend
from mopd_diag.reporting import comparison as reports
from mopd_diag.reporting.comparison_charts import MOST_GROUPS, forest_chart, trend_chart
from mopd_diag.reporting.comparison_view import ICONS, ComparisonView, view_of
from mopd_diag.reporting.junit import render_junit
from mopd_diag.reporting.trend_view import trend_view
from mopd_diag.study.compare import Comparison

SHOWN = 12
"""Sentences of a list before the rest folds away."""


def page(folder: ServedFolder) -> None:
    """The page."""
    parts.heading(
        "Regression", "Is one checkpoint better or worse than another? Paired differences on the items both answered."
    )
    kept = folder.comparisons()
    if kept and (name := state.select("Stored comparison", "stored", kept, all_="none: compare records below")):
        stored.show(folder, name)
        return
    offered = choices(folder)
    sides = _sides(folder, offered)
    if sides is None:
        return
    before, after, margin, further = sides
    comparison = compared(before, after, margin)
    view = view_of(comparison)
    _verdict(view)
    gate = gate_editor(comparison.to_dict())
    _groups(folder, comparison, view)
    if further:
        _trend(followed([before, after, *further], margin))
    changed_items(comparison, view)
    _export(comparison, view, gate)


# -- choosing -------------------------------------------------------------------------------------------------------------------


def _sides(folder: ServedFolder, offered: dict[str, str]) -> tuple[Picked, Picked, float, list[Picked]] | None:
    """The two sides, the margin, and further checkpoints; None until there are two sides."""
    left, right, third = st.columns([3, 3, 2])
    with left:
        first = state.select("Before", "before", list(offered), words=offered, all_="choose")
    with right:
        second = state.select("After", "after", list(offered), words=offered, all_="choose")
    with third:
        margin = _margin()
    with st.expander("Upload records, or follow more than two checkpoints", expanded=not offered):
        one, two = st.columns(2)
        with one:
            up_before = uploaded("Before", "before")
        with two:
            up_after = uploaded("After", "after")
        further = _further(folder, offered)
    before = up_before or (picked(folder, first) if first else None)
    after = up_after or (picked(folder, second) if second else None)
    if before is None or after is None:
        parts.empty(
            "Choose two record sets",
            "Models of a run, record files in the served folder, or uploads: lm-eval samples, inspect_ai logs, Parquet or JSON lines.",
        )
        return None
    return before, after, margin, further


def _margin() -> float:
    """Differences within it count as none."""
    given = pd.to_numeric(state.get("margin", str(MARGIN)), errors="coerce")
    start = float(given) if 0 <= given <= 1e6 else MARGIN
    margin = st.number_input(
        "Margin", min_value=0.0, value=start, step=0.01, format="%.3f", key="margin-box",
        help="Differences within it count as none, in the scores' own scale: 0.02 is 2 percentage points.",
    )  # fmt: skip
    state.set(margin=None if margin == MARGIN else f"{margin:g}")
    return float(margin)


def _further(folder: ServedFolder, offered: dict[str, str]) -> list[Picked]:
    """Checkpoints after the second, in order; in the URL as a JSON list."""
    try:
        given = json.loads(state.get("then", "[]"))
    except ValueError:
        given = []
    here = [c for c in given if c in offered] if isinstance(given, list) else []
    chosen = st.multiselect(
        "Then, in order", list(offered), default=here, format_func=lambda c: offered.get(str(c), str(c)), key="then-box",
        placeholder="more checkpoints of the same training",
    )  # fmt: skip
    state.set(then=json.dumps(chosen) if chosen else None)
    return [picked(folder, c) for c in chosen]


# -- verdict ---------------------------------------------------------------------------------------------------------------------


def _verdict(view: ComparisonView) -> None:
    verdict_line(view.verdict, view.headline)
    parts.html(Markup("<p class='lead'>{}</p>").format(parts.escaped(f"{view.sentence} {view.counts}".strip())))
    facts([("before", view.before), ("after", view.after), *view.facts])
    beware(view.warnings)


# -- groups ---------------------------------------------------------------------------------------------------------------------


def _groups(folder: ServedFolder, comparison: Comparison, view: ComparisonView) -> None:
    lead = "Right of the dashed line is better; the grey band is the margin within which a difference counts as none."
    parts.section("Group by group", lead)
    worded = "; ".join(f"{r[0]}: {r[2]}, {r[1]}" for r in view.groups.rows[:SHOWN])
    figure(
        lambda look, width: forest_chart(comparison, look, width=width),
        "forest",
        f"Differences by group. {worded}",
        width=WIDE,
    )
    cut = len(comparison.groups) - MOST_GROUPS + 1
    legend([(icon, verdict) for verdict, icon in ICONS.items()])
    if cut > 0:
        parts.note(f"The {cut} groups with the largest p-values are only in the table.")
    frame = comparison.frame
    frame["verdict"] = [f"{ICONS[v]} {v}" for v in frame["verdict"]]
    score = percent if view.scale.percent else number
    change = points if view.scale.percent else number
    columns = {
        "group": "group", "verdict": "verdict", "delta": change("difference"), "low": change("from"), "high": change("to"),
        "before": score("before"), "after": score("after"), "p_adjusted": number("p (Holm)", "g"), "lost": "lost", "won": "won",
        "n_items": "items", "mde": score("detectable"),
    }  # fmt: skip
    table(frame, "groups", columns)
    if view.notes:
        _folded("Notes on the numbers", view.notes)
    for title, found in (("pass@k", view.passes), ("Lost items by reason", view.causes)):
        if found is not None:
            with st.expander(title, expanded=title != "pass@k"):
                rows = pd.DataFrame(found.rows, columns=[str(c) for c in found.columns])
                table(rows, title, {c: c for c in rows.columns})
    if view.why_note:
        parts.note(view.why_note.replace(f"{folder.root}/", ""))
    for side, ids, total in view.one_sided:
        _folded(f"{total} items {side}" if total > 1 else f"1 item {side}", ids)


def _folded(title: str, lines: list[str]) -> None:
    """A list behind its title. The title is text of the reader's records, so it is no widget's label."""
    items = Markup().join(Markup("<li>{}</li>").format(parts.escaped(line)) for line in lines)
    parts.html(
        Markup("<details><summary>{}</summary><ul class='plain'>{}</ul></details>").format(parts.escaped(title), items)
    )


def _trend(trend: Trend) -> None:
    parts.section("Checkpoints in order", "On the items that all of them answered.")
    view = trend_view(trend)
    drawn = ["overall", *trend.groups] if len(trend.groups) > 1 else list(trend.groups)
    figure(
        lambda look, width: trend_chart(
            trend.trajectories, drawn[:MOST_GROUPS], trend.names, view.scale, look, width=width
        ),
        "trend",
        "Scores by checkpoint. " + " ".join(f"{s}." for s in view.sentences[:SHOWN]),
    )
    facts(view.facts)
    _folded("In words", view.sentences)
    for title, found in (("lost", trend.lost), ("flickering", trend.flickering)):
        if len(found):
            parts.note("Lost for good" if title == "lost" else "Flickering: changed sides more than once")
            columns = {"group": "group", "item_id": "item", "pattern": "solved", "changes": "changes"}
            table(found, f"trend-{title}", columns | ({"lost_name": "lost at"} if title == "lost" else {}))


# -- export ---------------------------------------------------------------------------------------------------------------------


def _export(comparison: Comparison, view: ComparisonView, gate: GateResult | None) -> None:
    parts.section("Report", "The page opens from disk anywhere; the Markdown fits a pull request comment.")
    document = comparison.to_dict() | ({} if gate is None else {"gate": gate.to_dict()})
    made = {
        "HTML": (lambda: reports.html(comparison, gate), "comparison.html", "text/html"),
        "Markdown": (lambda: reports.markdown(comparison, gate), "comparison.md", "text/markdown"),
        "JSON": (lambda: json.dumps(document, indent=2, allow_nan=False), "comparison.json", "application/json"),
        "JUnit": (lambda: render_junit(comparison, gate), "junit.xml", "application/xml"),
    }
    with st.container(horizontal=True):
        for name, (make, file, mime) in made.items():
            st.download_button(
                name, make, file, mime, icon=":material/download:", on_click="ignore", key=f"export-{name}"
            )
