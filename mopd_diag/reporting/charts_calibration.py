"""The charts of how far a stated confidence can be trusted: the reliability of the calibration, and what a run stated.

Same legend as `charts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from mopd_diag.reporting import text
from mopd_diag.reporting.charts import PASS_THROUGH, dressed, frame_of
from mopd_diag.reporting.look import LIGHT, Look
from mopd_diag.types import Estimate

STEPS = 20
"""Bars from 0 to 100%."""
HEIGHT = 240
TICKS = [0, 0.25, 0.5, 0.75, 1]
WHO = ("the domain's own teacher", "another teacher", "no listed teacher")


def reliability_chart(
    bins: Sequence[Mapping[str, float]], look: Look = LIGHT, *, width: int = 520
) -> alt.TopLevelMixin:
    """Stated confidence against the share that was right, with 95% intervals; dots grow with the items (`Calibration.reliability`)."""
    rows = []
    for b in bins:
        e = text.share(Estimate(b["right"], b["right_low"], b["right_high"]))
        about = f"confidence {text.percent(b['low'])} to {text.percent(b['high'])}: {e} right of {int(b['n']):,}"
        rows.append({**b, "about": about})
    scale = alt.Scale(domain=[0, 1])
    x = alt.X("confidence:Q", scale=scale, axis=alt.Axis(format=".0%", title="stated confidence", values=TICKS))
    y_axis = alt.Axis(format=".0%", title="right", values=TICKS)
    base = alt.Chart(frame_of(rows)).encode(x=x)
    spread = base.mark_rule(strokeWidth=2, opacity=0.6, color=look.gain)
    spread = spread.encode(y=alt.Y("right_low:Q", scale=scale, axis=y_axis), y2="right_high:Q")
    size = alt.Size("n:Q", scale=alt.Scale(type="sqrt", range=[40, 260]), legend=None)
    dots = base.mark_point(filled=True, opacity=1, color=look.gain).encode(
        y="right:Q", size=size, tooltip="about:N", description="about:N"
    )
    line = alt.Chart(pd.DataFrame({"at": [0.0, 1.0]})).mark_line(strokeDash=[3, 3], color=look.muted)
    just = line.encode(x=alt.X("at:Q", scale=scale), y=alt.Y("at:Q", scale=scale))
    return dressed(alt.layer(just, spread, dots).properties(height=HEIGHT), look, fit=width)


def stated_bins(answers: pd.DataFrame) -> pd.DataFrame:
    """Decided answers by stated confidence and by whom they were given to (`WHO`), piled up from `bottom` to `top`.

    `answers`: confidence, label, routed (the label of the domain's teacher). An abstention states no confidence.
    """
    told = answers[answers["label"] != "abstain"]
    labels = told["label"].astype(str)
    who = np.select([labels == told["routed"], labels.str.startswith("teacher:")], WHO[:2], WHO[2])
    place = np.clip((told["confidence"].to_numpy(float) * STEPS).astype(int), 0, STEPS - 1)
    each = pd.DataFrame({"place": place, "who": pd.Categorical(who, WHO)})
    counts = each.value_counts().rename("n").reset_index().sort_values(["place", "who"], ignore_index=True)
    counts = counts[counts["n"] > 0]  # a count for every category is what pandas gives
    top = counts.groupby("place")["n"].cumsum()
    low, high = counts["place"] / STEPS, (counts["place"] + 1) / STEPS
    return counts.assign(who=counts["who"].astype(str), low=low, high=high, bottom=top - counts["n"], top=top)


def stated_chart(
    bins: pd.DataFrame, sure: Mapping[str, float], look: Look = LIGHT, *, width: int = 520
) -> alt.TopLevelMixin:
    """Decided answers by stated confidence (`stated_bins`); dashed: the confidence from which on a teacher is named, or `own` is said."""
    colours = dict(zip(WHO, (look.gain, look.loss, look.muted), strict=True))
    rows = [
        {
            **r, "colour": colours[r["who"]],
            "about": f"confidence {text.percent(r['low'])} to {text.percent(r['high'])}: {r['n']:,} to {r['who']}",
        }
        for r in bins.to_dict("records")
    ]  # fmt: skip
    x = alt.X(
        "low:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%", title="stated confidence", values=TICKS)
    )
    y = alt.Y(
        "bottom:Q", scale=alt.Scale(zero=True), axis=alt.Axis(title="answers", tickMinStep=1, tickCount=4, format="d")
    )
    bars = alt.Chart(frame_of(rows)).mark_rect(stroke=look.card, strokeWidth=1).encode(
        x=x, x2="high:Q", y=y, y2="top:Q", color=alt.Color("colour:N", scale=PASS_THROUGH, legend=None),
        tooltip="about:N", description="about:N",
    )  # fmt: skip
    lines = [{"at": at, "name": f"{name} from {text.percent(at)}"} for name, at in sure.items()]
    marks = alt.Chart(frame_of(lines)).mark_rule(strokeDash=[4, 3], color=look.ink)
    return dressed(
        alt.layer(bars, marks.encode(x="at:Q", tooltip="name:N", description="name:N")).properties(height=HEIGHT),
        look,
        fit=width,
    )
