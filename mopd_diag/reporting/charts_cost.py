"""The charts of cost and course: result against cost, stages on a time line, training curves. Same conventions as `charts`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from mopd_diag.reporting import text
from mopd_diag.reporting.charts import LABEL, PASS_THROUGH, ROW, dressed, frame_of, names_axis, room
from mopd_diag.reporting.look import LIGHT, ROLE_SHAPES, Cast, Look
from mopd_diag.reporting.paths import SERVICES, CostPoint, line_of, pareto

CURVES = {"reward": "reward", "score": "score", "accuracy": "accuracy", "kl": "KL (nats)", "loss": "loss"}
"""Metrics worth a curve, best first, with the words under which they are shown."""


def cost_chart(
    points: Sequence[CostPoint],
    cast: Cast,
    look: Look = LIGHT,
    *,
    unit: str = "FLOPs",
    width: int = 370,
    height: int = 230,
) -> alt.TopLevelMixin:
    """Mean accuracy against the cost of the whole path, with intervals; the stepped line joins what no other model beats."""
    points = [p for p in points if p.result.defined]
    bounds = [b for p in points for b in (p.result.low, p.result.high, p.result.value) if b == b]
    low, high = max(0.0, min(bounds, default=0.0) - 0.02), min(1.0, max(bounds, default=1.0) + 0.02)
    reach = max([p.cost for p in points if p.cost > 0], default=1.0)
    seat = _seats([height * (high - p.result.value) / (high - low) for p in points], gap=15.0, limit=float(height))
    front = pareto(points)
    rows = [
        {
            "model": p.model, "cost": p.cost, "value": p.result.value, "low": p.result.low, "high": p.result.high,
            "colour": look.colour(cast, p.model), "shape": ROLE_SHAPES[cast.roles[p.model]],
            "label": p.model, "seat": high - s / height * (high - low), "edge": reach * 1.12, "anchor": reach * 1.15,
            "about": f"{p.model}: {text.share(p.result)} for {text.count(p.cost)} {unit}{' (Pareto front)' if p in front else ''}",
        }
        for p, s in zip(points, seat, strict=True)
    ]  # fmt: skip
    names_share = min(0.6, (room((p.model for p in points), width) + 6) / max(120, width - 40))
    data = frame_of(rows)
    x_scale = alt.Scale(domain=[0, reach * 1.15 / (1 - names_share)], nice=False)
    y_scale = alt.Scale(domain=[low, high], nice=False)
    x = alt.X("cost:Q", scale=x_scale, title=f"{unit} of the whole path", axis=_cost_axis(reach))
    y = alt.Y("value:Q", scale=y_scale, title=None, axis=alt.Axis(format=".0%", tickCount=5))
    colour = alt.Color("colour:N", scale=PASS_THROUGH, legend=None)
    stairs = frame_of([{"cost": p.cost, "value": p.result.value} for p in front])
    line = (
        alt.Chart(stairs)
        .mark_line(interpolate="step-after", color=look.muted, strokeDash=[3, 3], strokeWidth=1.2)
        .encode(x=x, y=y)
    )
    leads = alt.Chart(data).mark_rule(color=look.base, strokeWidth=0.6).encode(x=x, x2="edge:Q", y=y, y2="seat:Q")
    spread = (
        alt.Chart(data)
        .mark_rule(strokeWidth=2, opacity=0.55)
        .encode(x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q", color=colour)
    )
    dots = alt.Chart(data).mark_point(filled=True, size=80, opacity=1)
    dots = dots.encode(
        x=x,
        y=y,
        color=colour,
        shape=alt.Shape("shape:N", scale=PASS_THROUGH, legend=None),
        tooltip="about:N",
        description="about:N",
    )
    names = alt.Chart(data).mark_text(align="left", fontSize=11, color=look.ink, limit=LABEL)
    names = names.encode(
        x=alt.X("anchor:Q", scale=x_scale), y=alt.Y("seat:Q", scale=y_scale), text="label:N", tooltip="about:N"
    )
    return dressed(alt.layer(leads, line, spread, dots, names).properties(height=height), look, fit=width)


def _seats(wanted: Sequence[float], *, gap: float, limit: float) -> list[float]:
    """Positions near the wanted ones, at least `gap` apart and within `limit` where they fit: labels that do not overlap."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    seats = [wanted[i] for i in order]
    for k in range(1, len(seats)):
        seats[k] = max(seats[k], seats[k - 1] + gap)
    if seats and seats[-1] > limit:
        seats[-1] = limit
        for k in range(len(seats) - 2, -1, -1):
            seats[k] = min(seats[k], seats[k + 1] - gap)
    placed = [0.0] * len(seats)
    for k, i in enumerate(order):
        placed[i] = seats[k]
    return placed


def _cost_axis(reach: float) -> alt.Axis:
    return alt.Axis(
        values=_round_ticks(reach), labelExpr="datum.value === 0 ? '0' : format(datum.value, '~s')", grid=False
    )


def _round_ticks(reach: float) -> list[float]:
    """Two to five round numbers up to `reach`."""
    step = 10.0 ** math.floor(math.log10(reach)) if reach > 0 else 1.0
    step *= 0.5 if reach / step < 2 else 2 if reach / step > 5 else 1
    return [step * i for i in range(int(reach / step) + 1)]


def _round_range(low: float, high: float) -> tuple[float, float]:
    """A range with round ends that holds both numbers."""
    step = 10.0 ** math.floor(math.log10(high - low)) if high > low else 1.0
    start = math.floor(low / step)
    return round(start * step, 9), round(max(start + 1, math.ceil(high / step)) * step, 9)


def timeline_chart(
    ledger: pd.DataFrame, critical: Sequence[str], cast: Cast, look: Look = LIGHT, *, width: int = 760
) -> alt.TopLevelMixin:
    """Stages on a time line, a row a model: the full bar is wall time, the strong part the share inside the model.

    Models on the critical path have a mark; all evaluations share a row, and so do all traces.
    """
    rows = []
    marked = {line_of(s) for s in critical}
    for stage in ledger.sort_values(["started", "stage"]).to_dict("records"):
        name, start, seconds = str(stage["stage"]), float(stage["started"]), float(stage["seconds"])
        inside, line = float(stage.get("seconds_model", 0.0) or 0.0), line_of(name)
        share = text.percent(inside / seconds if seconds else 0.0)
        rows.append({
            "stage": f"{line} ●" if line in marked else line, "start": start, "end": start + seconds, "seconds": seconds,
            "model": start + min(inside, seconds), "colour": look.colour(cast, name.rpartition(":")[2]), "text": "",
            "about": f"{name}: {text.duration(seconds)}, {share} inside the model"
                     + (", on the critical path" if name in critical else ""),
        })  # fmt: skip
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(row["stage"], []).append(row)
    lines = {k: lines[k] for k in sorted(lines, key=lambda k: k in SERVICES.values())}
    for line in lines.values():
        max(line, key=lambda r: r["end"])["text"] = text.duration(sum(r["seconds"] for r in line))
    order = [text.basic(line) for line in lines]
    base = alt.Chart(frame_of(rows)).encode(y=alt.Y("stage:N", sort=order, title=None, axis=names_axis(order, width)))
    colour = alt.Color("colour:N", scale=PASS_THROUGH, legend=None)
    last = max((float(r["end"]) for r in rows), default=1.0)
    x = alt.X(
        "start:Q",
        scale=alt.Scale(domain=[0, last * 1.1], nice=False),
        title="seconds after the start",
        axis=alt.Axis(tickCount=6),
    )
    whole = base.mark_bar(opacity=0.32, cornerRadius=2).encode(
        x=x, x2="end:Q", color=colour, tooltip="about:N", description="about:N"
    )
    inside = base.mark_bar(cornerRadius=2).encode(x=x, x2="model:Q", color=colour, tooltip="about:N")
    names = base.mark_text(align="left", dx=5, fontSize=10, color=look.muted).encode(x="end:Q", text="text:N")
    return dressed(alt.layer(whole, inside, names).properties(height=(ROW + 1) * len(lines)), look, fit=width)


def curve_of(frame: pd.DataFrame) -> tuple[str, pd.DataFrame] | None:
    """The first of `CURVES` with at least two finite values, as its name and a frame of step and value; None without one."""
    for metric in CURVES:
        if {"step", metric} <= set(frame.columns):
            data = frame[["step", metric]].astype(float).rename(columns={metric: "value"})
            data = data[np.isfinite(data).all(axis=1)]
            if len(data) > 1:
                return metric, data.iloc[:: max(1, len(data) // 150)].copy()
    return None


def curves_chart(
    curves: Mapping[str, pd.DataFrame], cast: Cast, look: Look = LIGHT, *, width: int = 1180
) -> alt.TopLevelMixin:
    """One small panel a stage that logged a curve: its first metric of `CURVES`, by step, raw and smoothed."""
    told = {stage: curve for stage, frame in curves.items() if (curve := curve_of(frame)) is not None}
    rows = math.ceil(len(told) / max(1, width // 165))
    columns = math.ceil(len(told) / max(1, rows))
    inner = int(width / columns - 52)
    panels = []
    for stage, (metric, data) in told.items():
        data["smooth"] = data["value"].rolling(7, min_periods=1, center=True).mean()
        ends = list(_round_range(float(data["value"].min()), float(data["value"].max())))
        x = alt.X("step:Q", title=None, axis=alt.Axis(tickCount=3, grid=False, labelOverlap=True))
        axis = alt.Axis(values=ends, format="~g", minExtent=28)
        y = alt.Y("value:Q", title=None, scale=alt.Scale(domain=ends, nice=False), axis=axis)
        hue = look.colour(cast, stage)
        raw = alt.Chart(data).mark_line(strokeWidth=1, opacity=0.3, color=hue).encode(x=x, y=y)
        smooth = alt.Chart(data).mark_line(strokeWidth=2, color=hue).encode(x=x, y="smooth:Q")
        title = alt.TitleParams(text.basic(stage), subtitle=CURVES[metric], limit=inner)
        panels.append(alt.layer(raw, smooth, title=title).properties(width=inner, height=84))
    return dressed(alt.concat(*panels, columns=columns, spacing=18), look)
