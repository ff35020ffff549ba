"""Failures by teacher: filter, list, and one failed answer token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import figures, parts, state, strip
from app.data import ServedFolder
from app.evaluations import is_evaluation, lacking
from app.failure import Opened, opened
from app.parts import Markup, escaped
from mopd_diag.diagnostics.explained import FailureReport
from mopd_diag.diagnostics.failures import classes_of
from mopd_diag.errors import RunDirectoryError
from mopd_diag.reporting import diff, text
from mopd_diag.reporting.explanation import ARMS, CLASSES, HOW, said_of_all, sentences
from mopd_diag.reporting.look import LABELS, Cast
from mopd_diag.reporting.reading import OVERALL, as_estimate
from mopd_diag.runs.directory import RunDirectory

SURE = {"0.5": "50% or more", "0.7": "70% or more", "0.9": "90% or more"}
FILTERS = ("domain", "class", "teacher", "sure")
OPEN = ("item", "sample", "token", "beside")
"""What the URL says about the open failure; another filter opens its own first one."""
KEY = ["item_id", "sample"]


def page(folder: ServedFolder) -> None:
    run = parts.chosen_run(folder)
    parts.heading(
        "Failures by teacher",
        "Every failed answer of the student: whose mistake it is, and at which token it was decided.",
    )
    if is_evaluation(run):
        lacking(run, "Whose mistake a failure is needs the student's traces, which a run keeps.")
        return
    try:
        with st.spinner("Sorting the failed answers by teacher …"):
            report = folder.failures(run)
    except RunDirectoryError as error:
        parts.empty("No failures to show yet", str(error))
        return
    if report.failed.empty:
        parts.empty("Nothing failed", f"All {sum(report.answered.values())} answers of the student are right.")
        return
    cast = folder.view(run).cast
    overview(report)
    failed = filtered(folder, run, report, cast)
    if failed.empty:
        parts.empty("No failed answer fits these filters", "Take a filter away.")
        st.button("Clear the filters", on_click=lambda: state.set(**dict.fromkeys(FILTERS)))
        return
    at = listing(failed, run)
    row = failed.iloc[at].to_dict()
    one(opened(folder, run, row, cast), run, cast)


# -- all of them ----------------------------------------------------------------------------------------------------------


def overview(report: FailureReport) -> None:
    """How many failures of each class, by domain and by teacher, and what that comes to in words."""
    document = report.to_dict(report.failed.head(0))
    with st.expander(
        f"{len(report.failed):,} of {sum(report.answered.values()):,} answers failed: classes by domain and teacher"
    ):
        for first, cells in (("domain", report.by_domain), ("teacher", report.by_teacher)):
            names = {OVERALL: "all domains"} if first == "domain" else {}
            rows = [
                {first: text.visible(names.get(n, n)), **{c: share_of(cell[c]) for c in report.classes}}
                for n, cell in cells.items()
            ]
            figures.table(pd.DataFrame(rows), f"failures-by-{first}", {c: c for c in (first, *report.classes)})
        said = [Markup("<li>{}</li>").format(escaped(s)) for s in said_of_all(document)]
        meant = [Markup("<li>{} {}</li>").format(parts.badge(c), escaped(CLASSES[c])) for c in report.classes]
        parts.html(
            Markup("<ul class='said'>{}</ul><ul class='said'>{}</ul>").format(
                Markup("").join(said), Markup("").join(meant)
            )
        )


def share_of(cell: Mapping[str, Any]) -> str:
    return f"{cell['count']}: {parts.estimate(cell['share'])}" if cell["count"] else "–"


def filtered(folder: ServedFolder, run: RunDirectory, report: FailureReport, cast: Cast) -> pd.DataFrame:
    """The failed answers that the filters of the URL leave, with the attribution's confidence."""
    failed = report.failed
    with st.container(horizontal=True, gap="small"):
        domain = state.select("Domain", "domain", [str(d) for d in failed["domain"].unique()], clears=OPEN)
        kind = state.select("Class", "class", list(classes_of(failed)), clears=OPEN)
        taught = [t for t in cast.teachers if (failed["teacher"] == t).any()]
        teacher = state.select("Teacher", "teacher", taught, clears=OPEN)
        sure = state.select("Attribution's confidence", "sure", list(SURE), words=SURE, all_="any", clears=OPEN)
    known = folder.query(run, "SELECT item_id, sample, confidence FROM attribution WHERE model = 'student'")
    failed = failed.merge(known.drop_duplicates(KEY), on=KEY, how="left")
    for column, wanted in (("domain", domain), ("failure", kind), ("teacher", teacher)):
        failed = failed[failed[column] == wanted] if wanted else failed
    return (failed[failed["confidence"] >= float(sure)] if sure else failed).reset_index(drop=True)


def listing(failed: pd.DataFrame, run: RunDirectory) -> int:
    """The list of failures; returns the row that is open, which is the URL's or the first."""
    here = failed[(failed["item_id"] == state.get("item")) & (failed["sample"] == state.number("sample"))]
    if state.get("item") and here.empty:
        parts.note(f"{state.get('item')} #{state.number('sample')} is not among these; the first one is open instead.")
    at = int(here.index[0]) if len(here) else 0
    kept = {p.stem for p in (run.path / "explain").glob("*.json")}
    from mopd_diag.diagnostics.explained import explanation_path

    shown = pd.DataFrame({
        "open": ["▸" if n == at else "" for n in range(len(failed))],
        "item": [text.visible(str(i)) for i in failed["item_id"]],
        "sample": failed["sample"],
        "class": [f"{parts.VERDICTS[c][0]} {c}" for c in failed["failure"]],
        "teacher": [t or "–" for t in failed["teacher"]],
        "attributed to": [LABELS.get(a, a) or "not traced" for a in failed["attributed"]],
        "confidence": failed["confidence"],
        "explained": ["yes" if explanation_path(run, str(i), int(s)).stem in kept else "" for i, s in failed[KEY].to_numpy()],
        "answer": [text.clip(text.visible(str(a)), 120) for a in failed["response"]],
    })  # fmt: skip

    def picked() -> None:
        rows = st.session_state["failures-list"].selection.rows
        last = rows[0] if rows else st.session_state.get("failures-last")
        if last is not None and last < len(failed):
            st.session_state["failures-last"] = last
            go(failed, last)

    st.dataframe(
        shown, hide_index=True, height=36 * (min(len(shown), 7) + 1), key="failures-list", on_select=picked, selection_mode="single-row",
        column_config={"confidence": figures.percent("confidence"), "open": st.column_config.TextColumn("open", width=48)},
        alt="failed answers; choose a row to open it",
    )  # fmt: skip
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.button(
            "Previous", icon=":material/arrow_back:", shortcut="P", disabled=at == 0, on_click=go, args=(failed, at - 1)
        )
        st.button(
            "Next",
            icon=":material/arrow_forward:",
            shortcut="N",
            disabled=at + 1 >= len(failed),
            on_click=go,
            args=(failed, at + 1),
        )
        parts.html(Markup("<span class='muted'>{} of {}</span>").format(f"{at + 1:,}", f"{len(failed):,}"))
        parts.downloads(shown.drop(columns="open"), "failures")
    return at


def go(failed: pd.DataFrame, at: int) -> None:
    """Open another row: its address in the URL."""
    row = failed.iloc[at]
    state.set(item=row["item_id"], sample=int(row["sample"]), token=None, beside=None)


# -- one of them ------------------------------------------------------------------------------------------------------------


def one(failure: Opened, run: RunDirectory, cast: Cast) -> None:
    """One failed answer: what it comes to, its tokens, the token that was clicked, the counterfactual, everybody's answers."""
    row, document = failure.row, failure.document
    whose = escaped(row["teacher"] or row["routed"] or "no teacher")
    parts.html(
        Markup("<h2 class='item'>{} <small>#{}</small> {}</h2><p class='lead'>{} · taught by {}{}</p>").format(
            escaped(row["item_id"]), row["sample"], parts.badge(str(row["failure"])), escaped(CLASSES[row["failure"]]), whose,
            Markup(" · attribution: {}, confidence {}").format(
                escaped(LABELS.get(row["attributed"], row["attributed"])), text.percent(row["confidence"])
            )
            if row["attributed"] and row["confidence"] == row["confidence"] else Markup(""),
        )
    )  # fmt: skip
    prompt_of(row, document)
    if document is None:
        parts.note(
            "Not explained yet: where the answer was decided, and what would have saved it, takes continuations of the models. Run:"
        )
        st.code(
            text.visible(
                f"mopd-diag explain {run.path.name} {quoted(str(row['item_id']))} --sample {int(row['sample'])}"
            ),
            language=None,
        )
    tokens(failure, cast)
    if document is not None:
        said = [Markup("<li>{}</li>").format(escaped(s)) for s in sentences(document)[1:]]
        parts.section("In words")
        parts.html(Markup("<ul class='said'>{}</ul>").format(Markup("").join(said)))
        if document["counterfactual"]:
            counterfactual(document)
    answers(failure, cast)


def quoted(word: str) -> str:
    """For a shell, so that a line that is copied runs nothing else."""
    return "'" + word.replace("'", "'\\''") + "'"


def prompt_of(row: Mapping[str, Any], document: Mapping[str, Any] | None) -> None:
    panes = [("prompt", row.get("prompt", "")), ("the student wrote", row["response"])]
    panes += [("right is", document["target"])] if document is not None else []
    made = [
        Markup("<div class='pane'><h3>{}</h3><pre>{}</pre></div>").format(name, diff.shown(str(words)))
        for name, words in panes
    ]
    parts.html(Markup("<div class='panes'>{}</div>").format(Markup("").join(made)))


def tokens(failure: Opened, cast: Cast) -> None:
    """The strip, and what is known about one token of it."""
    if not failure.tokens:
        parts.note("This answer has no trace: the run traces a drawn part of the answers and all that were explained.")
        return
    parts.section("Token by token")
    pinned, values = strip.pins(failure.document), strip.curves(failure.document or {})
    if not pinned and any(t.pivot for t in failure.tokens):
        pinned = {t.position: "pivot" for t in failure.tokens if t.pivot}
    chosen = state.number("token", next(iter(pinned), failure.tokens[0].position))
    token = next((t for t in failure.tokens if t.position == chosen), failure.tokens[0])
    strip.legend(failure.tokens, values, pinned)
    strip.show(strip.strip_data(failure.tokens, cast, pinned, values, token.position), "strip")
    if len(failure.tokens) < failure.n_tokens:
        first, last = failure.tokens[0].position + 1, failure.tokens[-1].position + 1
        parts.note(f"Tokens {first} to {last} of {failure.n_tokens} are shown.")
    about = f"{LABELS.get(token.label, token.label)}" + (
        "" if token.confidence != token.confidence else f", confidence {text.percent(token.confidence)}"
    )
    parts.html(
        Markup("<h3>Token {}: “{}” <span class='muted'>{}</span></h3>").format(
            token.position + 1, token.shown, escaped(about)
        )
    )
    likely = failure.alternatives(token.position)
    told = {line[0]: line[1:] for line in strip.member_rows(token, cast)}
    order = [m for m in (*cast.roles, *told) if m in told or m in likely]
    lines = [model_line(m, token.logp.get(m, math.nan), told.get(m, ["–"] * 3), likely) for m in dict.fromkeys(order)]
    columns = [
        "model",
        f"wrote “{token.shown}”",
        "log-probability",
        "divergence",
        "share of the shift",
        *(["likeliest here"] if likely else []),
    ]
    parts.plain_table(columns, lines, words=("model", "likeliest here"), strong="student")
    if not likely:
        parts.note(
            "The likeliest tokens of each model are kept where an explanation looked; `mopd-diag explain` keeps them."
        )
    elif (
        failure.document
        and failure.document["alternatives"]
        and failure.document["alternatives"]["position"] == token.position
    ):
        parts.note(f"This is the token {HOW[failure.document['alternatives']['how']]}.")


def model_line(member: str, logp: float, told: list[str], likely: Mapping[str, Any]) -> list[object]:
    """One model at one token: how likely it is to write it, what the trace has, and what it likes best where that was kept."""
    best = likely.get(member)
    chance = best["p_own"] if best else math.exp(logp)
    line: list[object] = [member, "–" if chance != chance else text.percent(chance, 1), *told]
    if not likely:
        return line
    top = (
        [
            Markup("<b>{}</b>\u00a0{}").format(escaped(t["token"], spaces=True), text.percent(t["p"], 1))
            for t in best["top"]
        ]
        if best
        else ["–"]
    )
    return [*line, Markup("  ").join(top)]


def counterfactual(document: Mapping[str, Any]) -> None:
    """What another token at the pivot would have done."""
    c = document["counterfactual"]
    parts.section(
        "What would have saved it", escaped(f"Put in as token {c['position'] + 1}, the student going on from there.")
    )
    words = {k: f"“{text.visible(c[k], spaces=True)}”" for k in ("own_token", "teacher_token")}
    lines = []
    for arm, phrase in ARMS.items():
        said = phrase.format(routed=document["routed"], **words)
        said += f": {', '.join(text.visible(t, spaces=True) for t in c['random_tokens'])}" if arm == "random" else ""
        e = as_estimate(c["arms"][arm])
        lines.append([said, parts.bar(e), parts.estimate(e)])
    parts.plain_table(["token put in", "", "continuations that succeed"], lines, words=("token put in", ""))


def answers(failure: Opened, cast: Cast) -> None:
    """Every model's answers to the item; one of them beside the student's with the differences marked."""
    parts.section("What everybody answered")
    models = [a.model for a in failure.attempts]
    lines = [[a.model, f"{a.right} of {a.samples}", text.clip(text.visible(a.response), 200)] for a in failure.attempts]
    parts.plain_table(
        ["model", "right", "most common answer"], lines, words=("model", "most common answer"), strong="student"
    )
    others = [m for m in models if m != "student"]
    if not others:
        return
    first = next((m for m in (failure.row["teacher"], failure.row["routed"]) if m in others), others[0])
    rest = [m for m in others if m != first]
    picked = state.select("Beside the student's answer", "beside", rest, all_=first) or first
    common = next(a.response for a in failure.attempts if a.model == picked)
    both = diff.side_by_side(str(failure.row["response"]), common)
    parts.html(
        Markup(
            "<div class='panes'><div class='pane'><h3>student</h3><pre>{}</pre></div>"
            "<div class='pane'><h3>{}</h3><pre>{}</pre></div></div><p class='muted'>{}</p>"
        ).format(
            both.before, escaped(picked), both.after, both.note
        )
    )  # fmt: skip
