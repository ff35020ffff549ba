"""A comparison as `mopd-diag compare --out` left it: its numbers, its gate on new rules, and the reports beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import parts
from app.data import ServedFolder
from app.figures import beware, facts, figure, legend, number, points, table, verdict_line
from app.gate import gate_editor
from mopd_diag.diagnostics.comparison import CHANGES, OVERALL, GroupComparison
from mopd_diag.errors import BadInput
from mopd_diag.reporting import text
from mopd_diag.reporting.comparison_charts import MOST_GROUPS, forest
from mopd_diag.reporting.comparison_view import ALL_GROUPS, ICONS, Scale
from mopd_diag.reporting.reading import as_estimate
from mopd_diag.types import Estimate

REPORTS = {"comparison.html": "text/html", "comparison.md": "text/markdown", "junit.xml": "application/xml"}


def show(folder: ServedFolder, name: str) -> None:
    """The stored comparison `name` of the folder."""
    place = folder.path(name)
    document = read(place / "comparison.json")
    groups = groups_of(document)
    whole = groups.pop(OVERALL)
    percent = all(0 <= e.value <= 1 for g in groups.values() for e in (g.before, g.after) if e.defined)
    scale = Scale(percent)
    worse = [name for name, g in groups.items() if g.verdict == "worse"]
    hidden = worse and whole.verdict != "worse"
    lead = (
        f"Worse in {text.listed(worse[:4])}, {whole.verdict} overall"
        if hidden
        else f"{whole.verdict.capitalize()} overall"
    )
    verdict_line("worse" if hidden else whole.verdict, f"{lead}: {scale.delta(whole.delta)}")
    lost, won = (len(document.get(k) or []) for k in ("lost_items", "won_items"))
    facts([
        ("before", str(document.get("before"))), ("after", str(document.get("after"))),
        ("items in both", str(document.get("joined"))), ("lost", str(lost)), ("won", str(won)),
    ])  # fmt: skip
    beware([str(w) for w in document.get("warnings") or []])
    gate_editor(document)
    _groups(groups, whole, scale)
    if lost:
        parts.section("Lost items", "Their texts are in the records; the stored comparison holds the names.")
        told = ["group", "item_id", "before", "after", "failure", "teacher", "reason"]
        table(
            pd.DataFrame(document["lost_items"]).reindex(columns=told),
            "lost-items",
            {c: c.replace("_", " ") for c in told},
        )
    parts.section("Report")
    with st.container(horizontal=True):
        for file, mime in REPORTS.items():
            path = folder.path((Path(name) / file).as_posix())
            if path.is_file():
                st.download_button(file, path.read_bytes, file, mime, on_click="ignore", key=f"stored-{file}")


def _groups(groups: dict[str, GroupComparison], whole: GroupComparison, scale: Scale) -> None:
    parts.section("Group by group")
    drawn = dict(list(groups.items())[: MOST_GROUPS - 1]) | ({ALL_GROUPS: whole} if len(groups) > 1 else {})
    worded = "; ".join(f"{name}: {scale.delta(g.delta)}, {g.verdict}" for name, g in list(drawn.items())[:12])
    figure(
        lambda look, width: forest(drawn, scale, look, width=width), "stored-forest", f"Differences by group. {worded}"
    )
    legend([(icon, verdict) for verdict, icon in ICONS.items()])
    frame = pd.DataFrame([g.row() for g in (*groups.values(), whole)])
    frame["verdict"] = [f"{ICONS[v]} {v}" for v in frame["verdict"]]
    change = points if scale.percent else number
    columns = {
        "group": "group", "verdict": "verdict", "delta": change("difference"), "low": change("from"), "high": change("to"),
        "p_adjusted": number("p (Holm)", "g"), "lost": "lost", "won": "won", "n_items": "items",
    }  # fmt: skip
    table(frame, "stored-groups", columns)


def read(path: Path) -> dict[str, Any]:
    """The document. Raises BadInput when it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        whole = {**document["groups"], OVERALL: document["overall"]}
        if not all(isinstance(g, dict) and g["verdict"] in CHANGES for g in whole.values()):
            raise KeyError("verdict")
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise BadInput(
            f"{path.name} is no comparison ({what}); write it again: mopd-diag compare BEFORE AFTER --out DIR"
        ) from None
    return document


def groups_of(document: dict[str, Any]) -> dict[str, GroupComparison]:
    """The groups, and `overall` last, as `compare` made them."""
    return {name: _group(name, g) for name, g in {**document["groups"], OVERALL: document["overall"]}.items()}


def _group(name: str, g: dict[str, Any]) -> GroupComparison:
    def real(key: str) -> float:
        return float(g[key]) if isinstance(g.get(key), int | float) else math.nan

    def estimate(key: str) -> Estimate:
        return as_estimate(g.get(key)) or Estimate.undefined("not in the stored comparison")

    return GroupComparison(
        name, int(g.get("n_items", 0)), int(g.get("n_samples", 1)), estimate("before_estimate"), estimate("after_estimate"),
        estimate("delta"), real("p_value"), str(g.get("test", "")), real("p_adjusted"), real("q_value"), int(g.get("won", 0)),
        int(g.get("lost", 0)), real("mde"), real("margin"), g["verdict"], str(g.get("note", "")),
    )  # fmt: skip
