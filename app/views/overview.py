"""The runs of the folder, and what one of them comes to."""

from __future__ import annotations

import math

import pandas as pd
import streamlit as st

from app import figures, parts, state
from app.data import RunCard, ServedFolder
from app.evaluations import is_evaluation
from app.parts import Markup, escaped
from app.studies import studies
from mopd_diag.reporting import charts, text
from mopd_diag.reporting.view import View

OPENS = {
    "provenance": ("attribution", "Who taught what"),
    "caps": ("caps", "Recovery and caps"),
    "interference": ("interference", "Transfer between domains"),
}
EVERY = 3.0
"""Seconds between two looks at runs in progress."""
SELDOM = 20.0
"""The same while nothing is in progress: a run may start."""
COLUMNS = [
    "run",
    "state",
    "recipe",
    "budget",
    "seed",
    "jobs",
    "from their teacher",
    "headroom recovered",
    "worst transfer",
    "stages worked",
    "FLOPs",
    "made",
]


def page(folder: ServedFolder) -> None:
    parts.heading("Runs", escaped(f"What is in {folder.root.name or folder.root}"))
    cards = folder.runs()
    if not cards:
        parts.empty(
            "No run here yet", f"{folder.root} holds no run directory. This makes one in some minutes:",
            "mopd-diag run quickstart --out runs/quickstart",
        )  # fmt: skip
        return
    busy = any(c.state == "running" for c in cards)
    st.session_state["run-states"] = states(cards)
    st.fragment(lambda: runs(folder), run_every=EVERY if busy else SELDOM)()
    studies(folder)
    name = state.get("run")
    card = next((c for c in cards if c.name == name), None)
    if card is None:
        parts.empty(
            "No such run", f"The link names {name}, and this folder has no run of that name. Choose one in the list."
        )
        return
    if card.state == "broken":
        parts.empty("This run cannot be read", card.note)
        return
    run = folder.open(name)
    one(folder.view(run), card, evaluation=is_evaluation(run))


# -- all runs -----------------------------------------------------------------------------------------------------------------


def runs(folder: ServedFolder) -> None:
    """The table of runs, and what is in work; read anew every few seconds while something is."""
    cards = folder.runs()
    frame = pd.DataFrame([row_of(folder, card) for card in cards], columns=COLUMNS)

    def picked() -> None:
        rows = st.session_state["runs"].selection.rows
        if rows and rows[0] < len(cards):
            state.set(run=cards[rows[0]].name)
            st.session_state["run-picked"] = True

    finished = all(c.state == "done" for c in cards)
    st.dataframe(
        frame, hide_index=True, key="runs", column_order=[c for c in COLUMNS if c != "jobs" or not finished],
        on_select=picked, selection_mode="single-row", height="auto" if len(frame) < 12 else 36 * 12,
        column_config={"jobs": st.column_config.ProgressColumn("jobs done", format="percent", min_value=0, max_value=1)},
        alt="runs of this folder; choose a row to look at it",
    )  # fmt: skip
    if st.session_state.pop("run-picked", False) or states(cards) != st.session_state["run-states"]:
        st.rerun()  # the whole page, not this fragment alone
    parts.downloads(frame, "runs")
    for card in cards:
        if card.state == "running":
            work = ", ".join(card.working) or "the diagnosis"
            done = f"{card.done} of {card.total} jobs done" if card.total else "running"
            parts.html(
                Markup("<p class='muted'>{} {}: {}; next or in work: {}</p>").format(
                    parts.badge("running"), escaped(card.name), done, escaped(work)
                )
            )


def states(cards: list[RunCard]) -> list[tuple[str, str]]:
    """What the rest of the page depends on."""
    return [(c.name, c.state) for c in cards]


def row_of(folder: ServedFolder, card: RunCard) -> list[object]:
    """A run as a row: its three figures come with their intervals, or say that they are unknown."""
    icon = parts.VERDICTS[card.state][0]
    figures_ = folder.figures(card.name) if card.state == "done" else ("–",) * 5
    jobs = card.done / card.total if card.total else 1.0 if card.state == "done" else math.nan
    name = text.visible(card.name if card.name != "." else folder.root.name)
    return [
        name,
        f"{icon} {card.state}",
        *map(text.visible, (card.recipe, card.budget, card.seed)),
        jobs,
        *figures_,
        text.visible(card.created),
    ]


# -- one run -----------------------------------------------------------------------------------------------------------------


def one(view: View, card: RunCard, *, evaluation: bool = False) -> None:
    """The three answers with their charts, and everybody's accuracy."""
    name = view.title if card.name == "." else card.name
    lead = view.summary if name == view.title else f"{view.title}: {view.summary}" if view.summary else view.title
    facts = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(escaped(k), escaped(v)) for k, v in view.facts
    )
    parts.html(
        Markup("<h2>{} {}</h2><p class='lead'>{}</p><dl class='facts'>{}</dl>").format(
            escaped(name), parts.badge(card.state), escaped(lead), facts
        )
    )
    made = []
    for answer in view.answers:
        page_name, words = OPENS[answer.key]
        value, bracket, interval = answer.figure.partition(" [")
        made.append(
            Markup(
                "<section class='card'><h2>{}</h2><p class='figure'>{} <small>{}</small></p><p class='muted'>{}</p><p class='said'>{}</p>{}"
                "<p class='said'><a href='{}' target='_self'>{}</a></p></section>"
            ).format(
                escaped(answer.question), escaped(value), escaped(bracket.strip() + interval), escaped(answer.figure_is),
                escaped(answer.detail),
                Markup("<p class='caveat'>{}</p>").format(escaped(answer.caveat)) if answer.caveat else "",
                state.link(page_name), words,
            )
        )  # fmt: skip
    parts.html(Markup("<div class='cards'>{}</div>").format(Markup("").join(made)))
    if view.accuracy:
        parts.section(
            "Accuracy",
            "Dots with 95% intervals over items; filled where the model was taught. The dashed line is the base.",
        )
        figures.figure(
            lambda look, width: charts.accuracy_chart(view.accuracy, view.cast, look, width=width), "accuracy",
            "accuracy of every model on every domain, with intervals",
        )  # fmt: skip
        accuracy(view)
    if evaluation:
        parts.note("An evaluation: it keeps the answers to lm-eval's tasks, and no traces, transfer or costs.")
        return
    for sentence in view.missing:
        parts.note(sentence)


def accuracy(view: View) -> None:
    table = view.tables.get("accuracy")
    if table is not None:
        with st.expander("The same as a table"):
            frame = pd.DataFrame(
                [[text.visible(c) for c in row] for row in table.rows], columns=[text.visible(c) for c in table.columns]
            )
            figures.table(frame, "accuracy", {c: c for c in frame.columns})
