"""Attribution: who taught what, how sure that is, and what the same method says of a model without teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import figures, parts, state
from app.confidence import confidence
from app.data import ServedFolder
from app.evaluations import is_evaluation, lacking
from app.parts import Markup, escaped
from mopd_diag.diagnostics.provenance import label_of
from mopd_diag.reporting import charts, text
from mopd_diag.reporting.charts_attribution import flows_chart, shares_chart
from mopd_diag.reporting.look import LABELS, Cast
from mopd_diag.reporting.reading import OVERALL, STUDENT, Provenance, as_estimate, words_of
from mopd_diag.reporting.view import View
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Estimate

ANSWERS = """SELECT model, domain, item_id, sample, label, confidence, reason, calibration, response FROM attribution
WHERE drawn AND model = ?"""


def page(folder: ServedFolder) -> None:
    run = parts.chosen_run(folder)
    view = folder.view(run)
    parts.heading("Attribution", "Which teacher explains where the student moved away from the base, answer by answer.")
    table = view.reading.provenance.get(STUDENT, {})
    if not table and is_evaluation(run):
        lacking(run, "Who taught what needs every model's probabilities, which a run keeps.")
        return
    if not table:
        parts.empty(
            "Nothing was attributed yet",
            "The student's answers are attributed at the end of a run.",
            f"mopd-diag run {view.title}",
        )
        return
    answer = next(a for a in view.answers if a.key == "provenance")
    caveat = Markup("<p class='caveat'>{}</p>").format(escaped(answer.caveat)) if answer.caveat else ""
    parts.html(
        Markup("<div class='card'><p class='said'>{} {}</p>{}</div>").format(
            escaped(answer.lead), escaped(answer.detail), caveat
        )
    )
    whole(view)
    domain = one_domain(view, table)
    answers = attributed(folder, run, view.cast)
    if answers is not None:
        confidence(answers if domain == OVERALL else answers[answers["domain"] == domain])
        abstentions(answers, domain)


# -- all domains ------------------------------------------------------------------------------------------------------------


def whole(view: View) -> None:
    """Where every domain's answers went, and the same for the control."""
    cast, reading = view.cast, view.reading
    models = [m for m in (STUDENT, *reading.controls) if m in reading.provenance]
    parts.section(
        "Who taught what",
        "Share of each domain's answers by what explains them. Framed: the domain's own teacher; orange: another teacher.",
    )
    shown = state.switch("Whose answers", "model", models, STUDENT) if len(models) > 1 else STUDENT
    shares = {d: p.shares for d, p in reading.provenance[shown].items() if d != OVERALL and p.shares}
    figures.figure(
        lambda look, width: flows_chart(shares, cast, look, width=width),
        "flows",
        f"share of each domain's answers by label, for {shown}",
        width=figures.WIDE,
    )
    if shown != STUDENT:
        parts.note(f"{shown} never saw a teacher: what is given to teachers here is likeness, not origin.")
    marks = {
        m: {d: p.shares for d, p in reading.provenance[m].items() if d != OVERALL and p.shares} for m in models[:2]
    }
    with st.expander("The student above its control, in one picture"):
        figures.figure(
            lambda look, width: charts.provenance_chart(marks, cast, look, width=width),
            "provenance",
            "shares of the answers, the student above the control",
        )
    table = view.tables.get("provenance")
    if table is not None:
        with st.expander("As a table, with the baselines and the control"):
            frame = pd.DataFrame(
                [[text.visible(c) for c in row] for row in table.rows], columns=[text.visible(c) for c in table.columns]
            )
            figures.table(frame, "provenance", {c: c for c in frame.columns})


# -- one domain -------------------------------------------------------------------------------------------------------------


def one_domain(view: View, table: Mapping[str, Provenance]) -> str:
    """Shares with intervals of a domain, student and control, beside the baselines and the verdict; returns the domain."""
    domains = [d for d in (*view.cast.domains, OVERALL) if d in table]
    parts.section("One domain")
    domain = state.switch("Domain", "domain", domains, domains[0], words={OVERALL: "all domains"})
    p = table[domain]
    parts.html(Markup("<p>{} {}</p>").format(parts.badge(p.finding.verdict), escaped(words_of(p.finding))))
    shares = {STUDENT: intervals(p)}
    for control in view.reading.controls[:1]:
        other = view.reading.provenance[control].get(domain)
        if other is not None:
            shares[control] = intervals(other)
    left, right = st.columns([3, 2], gap="large")
    with left:
        figures.figure(
            lambda look, width: shares_chart(shares, view.cast, look, width=width),
            "shares",
            f"shares of {domain} by label with intervals",
            width=figures.HALF,
        )
        if len(shares) > 1:
            parts.note("Squares: the student. Hollow triangles (↳): the teacher-free control.")
    with right:
        lines = [["this method", parts.estimate(p.routed)]]
        lines += [
            [
                {"routed": "the route itself", "closest": "closest teacher (KL)", "likelihood": "token likelihood"}.get(
                    k, k
                ),
                share(v),
            ]
            for k, v in p.baselines.items()
        ]
        parts.plain_table(["who says so", "to the domain's own teacher"], lines, words=("who says so",))
        excess = [[c, f"× {text.ratio(e)}" if e.defined else f"unknown: {e.note}"] for c, e in p.excess.items()]
        if excess:
            parts.plain_table(["control", "leaves so many times as much unexplained"], excess, words=("control",))
        told = p.finding.evidence
        known = [
            (k, told[k]) for k in ("n_answers", "n_items", "n_tokens", "n_contested") if isinstance(told.get(k), int)
        ]
        if known:
            parts.note(
                ", ".join(f"{v:,} {k.removeprefix('n_').replace('contested', 'contested tokens')}" for k, v in known)
            )
    return domain


def share(value: Any) -> str:
    return (
        text.percent(float(value))
        if isinstance(value, int | float) and not isinstance(value, bool)
        else text.visible(str(value))
    )


def intervals(p: Provenance) -> dict[str, Estimate]:
    """Label -> share with its interval; without one where the finding has none."""
    told = p.finding.evidence.get("intervals")
    found = {str(k): as_estimate(v) for k, v in told.items()} if isinstance(told, Mapping) else {}
    nan = float("nan")
    return {k: found.get(k) or Estimate(v, nan, nan) for k, v in p.shares.items()}


# -- answers ----------------------------------------------------------------------------------------------------------------


def attributed(folder: ServedFolder, run: RunDirectory, cast: Cast) -> pd.DataFrame | None:
    """The drawn answers of the student with the label of their domain's teacher; None where the run kept none."""
    if not run.attribution_path(STUDENT).is_file():
        parts.note("The run kept no table of attributed answers: confidence and abstentions cannot be shown.")
        return None
    found = folder.query(run, ANSWERS, [STUDENT])
    routes = {str(d): label_of(cast.routed(str(d)) or "") for d in found["domain"].unique()}
    return found.assign(routed=found["domain"].map(routes))


def abstentions(answers: pd.DataFrame, domain: str) -> None:
    """How many answers were left undecided and why, and the answers themselves."""
    here = answers if domain == OVERALL else answers[answers["domain"] == domain]
    silent = here[here["label"] == "abstain"]
    parts.section("Abstentions", escaped(f"{len(silent):,} of {len(here):,} answers were not decided."))
    if len(silent):
        counts = silent["reason"].replace("", "no reason recorded").value_counts()
        parts.plain_table(["why", "answers"], [[str(k), int(n)] for k, n in counts.items()], words=("why",))
    with st.expander(f"All {len(here):,} attributed answers"):
        shown = here.assign(
            item=[text.visible(str(i)) for i in here["item_id"]], response=[text.clip(text.visible(str(r)), 120) for r in here["response"]],
            label=[LABELS.get(v, v) for v in here["label"]],
        )[["domain", "item", "sample", "label", "confidence", "reason", "response"]]  # fmt: skip
        figures.table(
            shown, "attributed", {c: c for c in shown.columns} | {"confidence": figures.percent("confidence")}
        )
