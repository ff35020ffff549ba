"""How sure the attributions of some answers are, and what such a confidence has been worth where the truth was known."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import figures, parts
from mopd_diag.diagnostics.calibration import Calibration, packaged
from mopd_diag.reporting import text
from mopd_diag.reporting.charts_attribution import confidence_bins, confidence_chart
from mopd_diag.reporting.charts_calibration import WHO, reliability_chart, stated_bins, stated_chart


def confidence(answers: pd.DataFrame) -> None:
    """`answers`: confidence, label, routed (the label of the domain's teacher), calibration."""
    calibrated = set(answers["calibration"]) == {"calibrated"}
    parts.section(
        "Confidence",
        "How sure the decided answers are, and how often such a confidence was right."
        if calibrated
        else "Among the answers given to one teacher: the surer, the more often it should be the domain's own.",
    )
    if not calibrated:
        _margins(answers)
        return
    left, right = st.columns(2, gap="large")
    with left:
        _stated(answers, packaged())
    with right:
        _reliability(packaged())


def _stated(answers: pd.DataFrame, calibration: Calibration) -> None:
    bins = stated_bins(answers)
    if bins.empty:
        parts.note("No answer was decided here: none states a confidence.")
        return
    figures.figure(
        lambda look, width: stated_chart(bins, calibration.sure, look, width=width),
        "stated",
        "decided answers by stated confidence, with the operating points",
        width=figures.HALF,
    )
    counts = bins.groupby("who")["n"].sum()
    told = [f"{counts.get(who, 0):,} to {who}" for who in WHO]
    left = int((answers["label"] == "abstain").sum())
    sure = calibration.sure
    parts.note(
        f"This run: {', '.join(told)}; {left:,} undecided, which state none. Dashed: a teacher is named from "
        f"{text.percent(sure['teacher'])} on, nobody's teaching is said from {text.percent(sure['own'])} on."
    )


def _reliability(calibration: Calibration) -> None:
    figures.figure(
        lambda look, width: reliability_chart(calibration.reliability, look, width=width),
        "reliability",
        "stated confidence against the share that was right, on casts of known provenance",
        width=figures.HALF,
    )
    h = calibration.held_out
    items = sum(int(b["n"]) for b in calibration.reliability)
    parts.note(
        f"Casts of known provenance, {items:,} items from trainings that the fit had not seen; on the dotted line a confidence says how "
        f"often it is right. Expected calibration error {text.fixed(float(h['ece']), 3)}; {text.percent(float(h['coverage']))} of the "
        "items were decided."
    )
    with st.expander("The numbers"):
        rows = [
            [f"{text.percent(b['low'])}–{text.percent(b['high'])}", f"{int(b['n']):,}",
             f"{text.percent(b['right'])} [{100 * b['right_low']:.0f}, {100 * b['right_high']:.0f}]"]
            for b in calibration.reliability
        ]  # fmt: skip
        parts.plain_table(["confidence", "items", "right"], rows, words=("confidence",))


def _margins(answers: pd.DataFrame) -> None:
    bins = confidence_bins(answers)
    if not bins["n"].sum():
        parts.note("No answer was given to a single teacher here.")
        return
    left, right = st.columns([3, 2], gap="large")
    with left:
        figures.figure(
            lambda look, width: confidence_chart(bins, look, width=width, diagonal=False),
            "confidence",
            "confidence against the share given to the domain's own teacher",
            width=figures.HALF,
        )
    with right:
        told = bins[bins["n"] > 0]
        lines = [
            [f"{text.percent(r['low_edge'])}–{text.percent(r['high_edge'])}", int(r["n"]), text.percent(r["share"])]
            for r in told.to_dict("records")
        ]
        parts.plain_table(["confidence", "answers", "to its own teacher"], lines, words=("confidence",))
        parts.note(
            "These confidences are margins, not probabilities: the run had no decoys to calibrate with. "
            "An answer that rightly is another teacher's counts as a miss here."
        )
