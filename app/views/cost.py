"""Cost: what each stage took and when, what no number of machines could save, and what came of it for how much."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import parts, state
from app.data import ServedFolder
from app.evaluations import is_evaluation, lacking
from app.figures import HALF, facts, figure, percent, table
from mopd_diag.reporting import text
from mopd_diag.reporting.charts_cost import cost_chart, pareto, timeline_chart
from mopd_diag.reporting.paths import critical_path, parents_of, path_cost, wall_seconds
from mopd_diag.reporting.reading import OVERALL, STUDENT
from mopd_diag.reporting.schedule import as_if_unlimited
from mopd_diag.reporting.view import View

SCHEDULES = {"ran": "as it ran", "teams": "with a team for every stage"}


def page(folder: ServedFolder) -> None:
    """The page."""
    run = parts.chosen_run(folder)
    view = folder.view(run)
    parts.heading("Cost", "What each path took with everything it was made from, and what came of it.")
    if view.ledger.empty and is_evaluation(run):
        lacking(run, "Nothing was trained, so nothing was counted.")
        return
    if view.ledger.empty:
        parts.empty(
            "No costs yet",
            "The ledger is written when the run is finished; repeating the command finishes it.",
            f"mopd-diag run --out {run.path.name}",
        )
        return
    _timeline(view)
    _pareto(view)
    _ledger(view)


def _timeline(view: View) -> None:
    parts.section("Stages on a time line", parts.escaped(view.cost_sentence))
    if "started" not in view.ledger.columns:
        parts.empty("No time line", "This run's ledger does not say when its stages started.")
        return
    picked = state.choice("schedule", list(SCHEDULES), "ran")
    chosen = st.segmented_control(
        "Schedule", list(SCHEDULES), default=picked, format_func=SCHEDULES.__getitem__, key="schedule-box",
        label_visibility="collapsed", required=True,
    )  # fmt: skip
    state.set(schedule=chosen if chosen != "ran" else None)
    shown = as_if_unlimited(view.ledger) if chosen == "teams" else view.ledger
    line, seconds = critical_path(view.ledger, STUDENT)
    wall, teams = wall_seconds(view.ledger), wall_seconds(as_if_unlimited(view.ledger))
    figure(
        lambda look, width: timeline_chart(shown, view.critical, view.cast, look, width=width),
        "timeline",
        f"Stages on a time line. Longest chain to the student: {', then '.join(line)}, {text.duration(seconds)}.",
    )
    facts([
        ("as it ran", text.duration(wall)), ("with a team for every stage", text.duration(teams)),
        ("longest chain to the student", f"{text.duration(seconds)}: {' → '.join(line)}"),
    ])  # fmt: skip
    parts.note(
        "● on the critical path. The strong part of a bar is time inside the model, the pale part everything else."
    )


def _pareto(view: View) -> None:
    points = view.cost_points()
    parts.section("Result against cost", parts.escaped(view.matched_sentence))
    if len(points) < 2:
        parts.empty("No comparison of costs", "The ledger counted no FLOPs for two or more evaluated paths.")
        return
    best = [p.model for p in pareto(points)]
    chart, words = st.columns([3, 2], gap="large")
    with chart:
        figure(
            lambda look, width: cost_chart(points, view.cast, look, width=width, height=300),
            "pareto",
            f"Mean accuracy against the cost of the whole path. No other path beats {text.listed(best)}.",
            width=HALF + 120,
        )
    with words:
        parts.note(
            f"The stepped line joins what no other path beats for the same cost or less: {text.listed(best)}. "
            "A path's cost holds everything it was made from, teachers included and the shared base left out."
        )
    models = [p.model for p in points]
    rows = []
    for model in models:
        cost, result = path_cost(view.ledger, model).counts, view.accuracy[model][OVERALL]
        rows.append({
            "path": model, "accuracy": result.value, "low": result.low, "high": result.high, "front": model in best,
            **{k: cost.get(k, float("nan")) for k in ("tokens_sampled", "tokens_trained", "tokens_scored", "flops", "seconds")},
        })  # fmt: skip
    table(
        pd.DataFrame(rows),
        "paths",
        {
            "path": "path", "accuracy": percent("all domains"),
            "low": percent("from"),
            "high": percent("to"),
            "front": st.column_config.CheckboxColumn("unbeaten"), **COUNTS,
        },
    )  # fmt: skip


def _ledger(view: View) -> None:
    parts.section("Ledger", "One row a stage, in order of completion.")
    frame = view.ledger.assign(
        made_from=[", ".join(parents_of(p)) or "–" for p in view.ledger.get("parents", [None] * len(view.ledger))],
        critical=view.ledger["stage"].isin(view.critical),
    )
    if "seconds_model" in frame.columns:
        frame["inside"] = frame["seconds_model"] / frame["seconds"].where(frame["seconds"] > 0)
    told = {"stage": "stage", "algorithm": "algorithm", "made_from": "made from", **COUNTS}
    told |= {"inside": INSIDE, "critical": CRITICAL}
    table(frame, "ledger", {k: v for k, v in told.items() if k in frame.columns})


COUNTS = {
    "tokens_sampled": st.column_config.NumberColumn("tokens sampled", format="compact"),
    "tokens_trained": st.column_config.NumberColumn("trained", format="compact"),
    "tokens_scored": st.column_config.NumberColumn("scored", format="compact"),
    "flops": st.column_config.NumberColumn("FLOPs", format="scientific"),
    "seconds": st.column_config.NumberColumn("seconds", format="%.1f"),
}
INSIDE = percent("in the model")
CRITICAL = st.column_config.CheckboxColumn("critical")
