"""The items that changed between two record sets: filters, a list, and one item open with both answers and their difference."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import parts, state
from app.figures import answers, number, percent, table
from mopd_diag.diagnostics.comparison import Comparison, cause
from mopd_diag.reporting.comparison_view import ComparisonView, Scale
from mopd_diag.reporting.diff import shown, side_by_side

MOST = 1000
"""Items that the box offers; the table has all."""
CHANGES = {"lost": "▼ lost", "won": "▲ won"}


def changed_items(comparison: Comparison, view: ComparisonView) -> None:
    """Filters, table, and the item of the URL."""
    flips = comparison.flips
    parts.section(
        "Items that changed", f"{len(comparison.lost_items)} lost, {len(flips) - len(comparison.lost_items)} won."
    )
    if flips.empty:
        parts.empty("No item changed sides", "Every item that both answered is solved by both or by neither.")
        return
    flips = flips.assign(
        cause=[cause(k, t) if k else "" for k, t in zip(flips["failure"], flips["teacher"], strict=True)]
    )
    found = filtered(flips, *_filters(flips))
    if found.empty:
        parts.empty("None fits the filter", f"{len(flips)} items changed; widen the filter to see them.")
        return
    scale = view.scale
    listed = found.assign(change=found["change"].map(CHANGES))
    score = percent if scale.percent else number
    columns = {
        "change": "change",
        "group": "group",
        "item_id": "item",
        "before": score("before"),
        "after": score("after"),
        "cause": "why",
    }
    if not (found["cause"] != "").any():
        columns.pop("cause")
    table(listed, "changed-items", columns, rows=8)
    _open(found, scale)


def filtered(flips: pd.DataFrame, group: str, change: str, why: str, words: str) -> pd.DataFrame:
    """The flips that fit; an empty value fits all, `words` is looked for in ids, prompts and answers."""
    keep = pd.Series(True, index=flips.index)
    for column, value in (("group", group), ("change", change), ("cause", why)):
        if value:
            keep &= flips[column] == value
    if words:
        texts = ("item_id", "prompt", "response_before", "response_after")
        keep &= pd.concat([flips[c].str.contains(words, case=False, regex=False) for c in texts], axis=1).any(axis=1)
    return flips[keep].reset_index(drop=True)


def _filters(flips: pd.DataFrame) -> tuple[str, str, str, str]:
    groups, causes = sorted(flips["group"].unique()), sorted(c for c in flips["cause"].unique() if c)
    one, two, three, four = st.columns(4)
    with one:
        group = state.select("Group", "group", groups)
    with two:
        change = state.select("Change", "change", [c for c in CHANGES if (flips["change"] == c).any()], words=CHANGES)
    with three:
        why = state.select("Why", "why", causes) if causes else ""
    with four if causes else three:
        words = st.text_input("Text", value=state.get("text"), key="text-box", placeholder="in ids, prompts, answers")
        state.set(text=words)
    return group, change, why, words


def _open(found: pd.DataFrame, scale: Scale) -> None:
    """The box of items with the keys to the next and the previous one, and the item that is open."""
    rows = found.head(MOST)
    ids = [f"{g} / {i}" for g, i in zip(rows["group"], rows["item_id"], strict=True)]
    labels = {
        name: f"{CHANGES[c]} · {name} · {scale.item(b)} → {scale.item(a)}"
        for name, c, b, a in zip(ids, rows["change"], rows["before"], rows["after"], strict=True)
    }
    here = state.choice("flip", ids)
    at = ids.index(here) if here else -1
    box, keys = st.columns([5, 2], vertical_alignment="bottom")
    with box:
        picked = state.select("Item", "flip", ids, words=labels, all_="choose an item to open it")
    with keys, st.container(horizontal=True):
        st.button(
            "Previous",
            on_click=_go,
            args=(ids, at - 1),
            disabled=at <= 0,
            icon=":material/arrow_back:",
            shortcut="P",
            width="stretch",
        )
        st.button(
            "Next",
            on_click=_go,
            args=(ids, at + 1),
            disabled=at >= len(ids) - 1,
            icon=":material/arrow_forward:",
            shortcut="N",
            width="stretch",
        )
    if len(found) > MOST:
        parts.note(f"The box offers the first {MOST} of {len(found)}; filter to reach the others.")
    if picked:
        show_item(rows.iloc[ids.index(picked)], scale)


def _go(ids: list[str], at: int) -> None:
    state.set(flip=ids[at])


def show_item(row: pd.Series, scale: Scale) -> None:
    """One item: what was asked, both answers with their difference, and the reason."""
    if row["prompt"]:
        answers([("asked", shown(row["prompt"]))])
    if not (row["response_before"] or row["response_after"]):
        parts.note("The records hold no texts of this item.")
        return
    sides = side_by_side(row["response_before"], row["response_after"])
    answers([
        (f"before: {scale.item(row['before'])}", sides.before),
        (f"after: {scale.item(row['after'])}", sides.after),
    ])  # fmt: skip
    for words in (sides.note, f"Why: {row['cause']}. {row['reason']}".strip() if row["cause"] else ""):
        if words:
            parts.note(words)
