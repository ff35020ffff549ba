"""The charts of the attribution page: shares with intervals, where answers went against where they belong, and confidence.

Same legend as `charts`: `cast` gives order and roles, `look` the colours, `width` the pixels of the whole picture; every mark carries
the sentence `about`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from mopd_diag.estimators.pivot import share as share_of
from mopd_diag.reporting import text
from mopd_diag.reporting.charts import PASS_THROUGH, ROW, dressed, frame_of, names_axis, room
from mopd_diag.reporting.look import LABELS, LIGHT, Cast, Look
from mopd_diag.types import Estimate

BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
"""Edges of the confidence bins."""


def labels_of(tables: Sequence[Mapping[str, Any]], cast: Cast) -> list[str]:
    """Every member and label that some answers were given to, teachers first."""
    order = [*cast.teachers, *LABELS]
    found = dict.fromkeys(cast.member(label) for table in tables for label in table)
    return sorted(found, key=lambda m: order.index(m) if m in order else len(order))


def shares_chart(
    shares: Mapping[str, Mapping[str, Estimate]], cast: Cast, look: Look = LIGHT, *, width: int = 520
) -> alt.TopLevelMixin:
    """Shares of a domain's answers by label with 95% intervals: `shares[model][label]`, the first model above the others."""
    members = labels_of(list(shares.values()), cast)
    rows, lines = [], []
    for member in members:
        for model, table in shares.items():
            e = next((e for label, e in table.items() if cast.member(label) == member), None)
            name = LABELS.get(member, member)
            line = name if model == next(iter(shares)) else f"{name} · ↳ {model}"
            lines.append(line)
            if e is None or not e.defined:
                continue
            colour = look.muted if member == "abstain" else look.colour(cast, member)
            rows.append({
                "line": line, "value": e.value, "low": e.value if e.low != e.low else e.low,
                "high": e.value if e.high != e.high else e.high, "colour": colour, "fill": colour if line == name else look.card,
                "shape": "square" if line == name else "triangle-up", "about": f"{model}: {text.share(e)} {name}",
            })  # fmt: skip
    names = [*(line.partition(" · ")[0] for line in lines), *(f"↳ {m}" for m in shares)]
    axis = names_axis(names, width, labelExpr="split(datum.value, ' · ')[1] || datum.value")
    order = [text.basic(line) for line in lines]
    y = alt.Y("line:N", sort=order, scale=alt.Scale(domain=order), title=None, axis=axis)
    x = alt.X("low:Q", scale=alt.Scale(domain=[0, 1]), title=None, axis=alt.Axis(format=".0%", values=[0, 0.5, 1]))
    colour = alt.Color("colour:N", scale=PASS_THROUGH, legend=None)
    base = alt.Chart(frame_of(rows)).encode(y=y)
    spread = base.mark_rule(strokeWidth=2.5, opacity=0.6).encode(x=x, x2="high:Q", color=colour)
    dots = base.mark_point(size=70, strokeWidth=1.8, opacity=1).encode(
        x="value:Q", stroke=alt.Stroke("colour:N", scale=PASS_THROUGH, legend=None),
        fill=alt.Fill("fill:N", scale=PASS_THROUGH, legend=None),
        shape=alt.Shape("shape:N", scale=PASS_THROUGH, legend=None), tooltip="about:N", description="about:N",
    )  # fmt: skip
    return dressed(alt.layer(spread, dots).properties(height=ROW * max(1, len(lines))), look, fit=width)


def flows_chart(
    shares: Mapping[str, Mapping[str, float]], cast: Cast, look: Look = LIGHT, *, width: int = 1080
) -> alt.TopLevelMixin:
    """Domain by label: which share of a domain's answers went where. A frame marks the routed teacher: what lies outside is off-route.

    `shares[domain][label]`.
    """
    members = labels_of(list(shares.values()), cast)
    down = [LABELS.get(m, m) for m in members]
    rows = []
    for domain, table in shares.items():
        parts: dict[str, float] = {}
        for label, value in table.items():
            parts[cast.member(label)] = parts.get(cast.member(label), 0.0) + value
        for member in members:
            value, route = parts.get(member, 0.0), member == cast.routed(domain)
            off = cast.roles.get(member) == "teacher" and not route
            said = " (its own teacher)" if route else " (off the route)" if off else ""
            rows.append({
                "domain": domain, "label": LABELS.get(member, member), "depth": 0.75 * value,
                "colour": look.loss if off else look.gain if route else look.muted, "edge": look.ink if route else look.card,
                "text": text.percent(value) if value >= 0.005 else "·", "about": f"{domain}: {text.percent(value)} to {member}{said}",
            })  # fmt: skip
    cell = (width - 20 - room(down, width)) / max(1, len(shares))
    level = max((len(d) for d in shares), default=0) * 6.2 < cell
    top = alt.Axis(orient="top", labelAngle=0 if level else -40, labelLimit=90)
    base = alt.Chart(frame_of(rows)).encode(
        x=alt.X("domain:N", sort=[text.basic(d) for d in shares], title=None, axis=top),
        y=alt.Y("label:N", sort=[text.basic(d) for d in down], title=None, axis=names_axis(down, width)),
    )
    plates = base.mark_rect(strokeWidth=2, cornerRadius=4, height={"band": 0.86}, width={"band": 0.94}).encode(
        color=alt.Color("colour:N", scale=PASS_THROUGH, legend=None), opacity=alt.value(1),
        fillOpacity=alt.FillOpacity("depth:Q", scale=PASS_THROUGH, legend=None),
        stroke=alt.Stroke("edge:N", scale=PASS_THROUGH, legend=None), tooltip="about:N", description="about:N",
    )  # fmt: skip
    numbers = base.mark_text(fontSize=12 if cell > 40 else 9, color=look.ink).encode(text="text:N", tooltip="about:N")
    return dressed(alt.layer(plates, numbers).properties(height=30 * max(1, len(down))), look, fit=width)


def confidence_bins(answers: pd.DataFrame) -> pd.DataFrame:
    """Per confidence bin: answers given to one teacher, how many of them to their domain's own, its share and 95% interval.

    `answers`: confidence, label, routed (the label of the domain's teacher). Jeffreys intervals; answers are one an item.
    """
    told = answers[answers["label"].str.startswith("teacher:")]
    place = np.clip(np.searchsorted(BINS, told["confidence"].to_numpy(float), side="right") - 1, 0, len(BINS) - 2)
    rows = []
    for n in range(len(BINS) - 1):
        part = told[place == n]
        right = int((part["label"] == part["routed"]).sum())
        e = share_of(right, len(part)) if len(part) else Estimate.undefined("no answers")
        rows.append({
            "low_edge": BINS[n], "high_edge": BINS[n + 1], "confidence": part["confidence"].mean(), "n": len(part), "right": right,
            "share": e.value, "low": e.low, "high": e.high,
        })  # fmt: skip
    return pd.DataFrame(rows)


def confidence_chart(
    bins: pd.DataFrame, look: Look = LIGHT, *, width: int = 520, diagonal: bool = True
) -> alt.TopLevelMixin:
    """Confidence against the share that went to the domain's own teacher, bin by bin; big dots are many answers.

    `diagonal`: where the dots of calibrated confidences would lie if only a domain's own teacher could be right.
    """
    rows = []
    for r in bins[bins["n"] > 0].to_dict("records"):
        edges = f"{text.percent(r['low_edge'])} to {text.percent(r['high_edge'])}"
        e = text.share(Estimate(r["share"], r["low"], r["high"]))
        rows.append({**r, "about": f"confidence {edges}: {r['right']} of {r['n']} to the domain's own teacher, {e}"})
    scale = alt.Scale(domain=[0, 1])
    ticks = [0, 0.25, 0.5, 0.75, 1]
    x_axis = alt.Axis(format=".0%", title="confidence of the attribution", values=ticks)
    y_axis = alt.Axis(format=".0%", title="to the domain's own teacher", values=ticks)
    base = alt.Chart(frame_of(rows)).encode(x=alt.X("confidence:Q", scale=scale, axis=x_axis))
    spread = base.mark_rule(strokeWidth=2, opacity=0.6, color=look.gain)
    spread = spread.encode(y=alt.Y("low:Q", scale=scale, axis=y_axis), y2="high:Q")
    dots = base.mark_point(filled=True, opacity=1, color=look.gain).encode(
        y="share:Q", size=alt.Size("n:Q", scale=alt.Scale(range=[40, 260]), legend=None), tooltip="about:N", description="about:N"
    )  # fmt: skip
    layers: list[alt.Chart] = [spread, dots]
    if diagonal:
        line = alt.Chart(pd.DataFrame({"at": [0.0, 1.0]})).mark_line(strokeDash=[3, 3], color=look.muted)
        layers.insert(0, line.encode(x=alt.X("at:Q", scale=scale), y=alt.Y("at:Q", scale=scale)))
    return dressed(alt.layer(*layers).properties(height=240), look, fit=width)
