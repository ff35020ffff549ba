"""The forest plot of a comparison, and the trajectories of a trend. As in `charts`: plain values in, an Altair chart out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from mopd_diag.diagnostics.comparison import OVERALL, Comparison, GroupComparison
from mopd_diag.reporting import text
from mopd_diag.reporting.charts import PASS_THROUGH, dressed, frame_of, names_axis
from mopd_diag.reporting.comparison_view import ALL_GROUPS, ICONS, KEYS, Scale, rows_of, shown_name
from mopd_diag.reporting.look import LIGHT, Look

ROW, MANY_ROW = 30, 21  # pixels of one group, and of one of more than 20
FIGURES = 168  # pixels that a difference with its interval and verdict needs
SIGNED = "(datum.value > 0 ? '+' : datum.value < 0 ? '−' : '') + format(abs(datum.value), '~g')"
MOST_GROUPS = 60  # groups that a forest plot holds; the table has all
SHAPES = {"better": "triangle-up", "worse": "triangle-down", "unchanged": "circle", "undetermined": "diamond"}


def forest_chart(comparison: Comparison, look: Look = LIGHT, *, width: int = 1180) -> alt.TopLevelMixin:
    """Differences with intervals, one row a group and the mean of all below them."""
    found = rows_of(comparison)
    if len(found) > MOST_GROUPS:  # the surest first, and always the mean of all
        keep = sorted(found[:-1], key=lambda g: 2.0 if math.isnan(g.p_value) else g.p_value)[: MOST_GROUPS - 1]
        found = [*(g for g in found if g in keep), found[-1]]
    return forest({shown_name(g, comparison): g for g in found}, Scale.of(comparison), look, width=width)


def forest(
    named: Mapping[str, GroupComparison], scale: Scale, look: Look = LIGHT, *, width: int = 1180
) -> alt.TopLevelMixin:  # fmt: skip
    """Any differences under their names; the band is the equivalence margin of the first.

    Shape and colour say the verdict, which also stands as a word beside the interval where there is room for it.
    """
    found = list(named.values())
    rows = [_row(g, name, scale, look) for name, g in named.items()]
    names = [r["group"] for r in rows]
    low, high = _domain(found, scale)
    data, wide = frame_of(rows), width >= 560
    span = (high - low) * (1 / (1 - FIGURES / (0.8 * width)) if wide else 1)
    x_scale = alt.Scale(domain=[low, low + span], nice=False, zero=False)
    ticks = _ticks(low, high)
    axis = alt.Axis(values=ticks, labelExpr=SIGNED, grid=False, title=None)
    x = alt.X("low:Q", scale=x_scale, axis=axis)
    bold = {"condition": {"test": f"datum.value === '{ALL_GROUPS}'", "value": "bold"}, "value": "normal"}
    y = alt.Y(
        "group:N", sort=[text.basic(n) for n in names], title=None, axis=names_axis(names, width, labelFontWeight=bold)
    )
    layers = forest_layers(data, x, x_scale, y, scale.factor * found[0].margin, look, worded=wide)
    height = max(60, (ROW if len(rows) <= 20 else MANY_ROW) * len(rows))
    return dressed(layers.properties(height=height), look, fit=width)


def forest_layers(
    data: pd.DataFrame, x: alt.X, scale: alt.Scale, y: alt.Y, margin: float, look: Look, *, worded: bool
) -> alt.LayerChart | alt.FacetChart:  # fmt: skip
    """Band of ±`margin`, zero, intervals and dots; `worded`, the figures at the right end too.

    Rows of `data`: value, low, high in the axis' unit, colour, fill, shape, text, and `about` for those who cannot see the chart.
    """
    band = alt.Chart(pd.DataFrame({"from": [-margin], "to": [margin]})).mark_rect(color=look.base, opacity=0.16)
    band = band.encode(x=alt.X("from:Q", scale=scale), x2="to:Q")
    zero = alt.Chart(pd.DataFrame({"at": [0.0]})).mark_rule(color=look.muted, strokeDash=[3, 3]).encode(x="at:Q")
    told = alt.Chart(data).transform_filter("isValid(datum.value)")
    colour = alt.Color("colour:N", scale=PASS_THROUGH, legend=None)
    spread = told.mark_rule(strokeWidth=2.5, opacity=0.6).encode(x=x, x2="high:Q", y=y, color=colour)
    dots = told.mark_point(size=95, strokeWidth=1.8, opacity=1).encode(
        x="value:Q", y=y, shape=alt.Shape("shape:N", scale=PASS_THROUGH, legend=None),
        stroke=alt.Stroke("colour:N", scale=PASS_THROUGH, legend=None),
        fill=alt.Fill("fill:N", scale=PASS_THROUGH, legend=None), tooltip="about:N", description="about:N",
    )  # fmt: skip
    layers: list[alt.Chart] = [band, zero, spread, dots]
    if worded:
        words = alt.Chart(data).mark_text(align="right", fontSize=11.5, color=look.ink)
        layers.append(words.encode(x=alt.value("width"), y=y, text="text:N", description="about:N"))
    return alt.layer(*layers)


def _row(g: GroupComparison, name: str, scale: Scale, look: Look) -> dict[str, Any]:
    colour = {"gain": look.gain, "loss": look.loss, "base": look.ink, "abstain": look.muted}[KEYS[g.verdict]]
    bounds: dict[str, float | None] = dict.fromkeys(("value", "low", "high"))
    if g.delta.defined:
        ends = (g.delta.value, g.delta.low, g.delta.high)
        bounds = dict(zip(bounds, (scale.factor * (g.delta.value if math.isnan(x) else x) for x in ends), strict=True))
    said = f"{scale.score(g.before.value)} before, {scale.score(g.after.value)} after, {text.plural(g.n_items, 'item')}"
    return {
        "group": name, **bounds, "shape": SHAPES[g.verdict], "colour": colour,
        "fill": look.card if g.verdict == "undetermined" else colour,
        "text": f"{scale.delta(g.delta, unit=False)}  {ICONS[g.verdict]} {g.verdict}" if g.delta.defined else "unknown",
        "about": f"{name}: {scale.delta(g.delta)} · {ICONS[g.verdict]} {g.verdict} · {said}",
    }  # fmt: skip


def _domain(found: Sequence[GroupComparison], scale: Scale) -> tuple[float, float]:
    """From the lowest to the highest end, the margin and a little air included."""
    margin = found[0].margin
    ends = [e for g in found for e in (g.delta.low, g.delta.high, g.delta.value) if not math.isnan(e)]
    low, high = scale.factor * min([-1.2 * margin, *ends]), scale.factor * max([1.2 * margin, *ends])
    air = 0.05 * (high - low) or 1.0
    return low - air, high + air


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers, 0 among them."""
    raw = (high - low) / 7
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def trend_chart(
    trajectories: pd.DataFrame, groups: Sequence[str], names: Sequence[str], scale: Scale, look: Look = LIGHT, *, width: int = 1180
) -> alt.TopLevelMixin:  # fmt: skip
    """One panel a group, and one for all: score by checkpoint with its interval; marks say what differs from the first."""
    columns = max(1, min(len(groups), width // 280))
    inner = int(width / columns - 58)
    drawn = [_panel(trajectories[trajectories["group"] == g], g, names, scale, look, inner) for g in groups]
    return dressed(alt.concat(*drawn, columns=columns, spacing={"row": 26, "column": 18}), look)


def _panel(
    path: pd.DataFrame, group: str, names: Sequence[str], scale: Scale, look: Look, width: int
) -> alt.LayerChart | alt.FacetChart:
    shapes = {"": "circle", **SHAPES}
    colours = {"better": look.gain, "worse": look.loss}
    rows = []
    for row in path.to_dict("records"):
        verdict = str(row["verdict"])
        colour = colours.get(verdict, look.ink)
        interval = f" [{scale.score(row['low'])}, {scale.score(row['high'])}]"
        since = (
            f" · {scale.size(row['delta'], signed=True)}{scale.unit} since the first · {ICONS[verdict]} {verdict}"
            if verdict
            else ""
        )
        rows.append({
            "at": int(row["checkpoint"]), "value": scale.factor * row["value"], "low": scale.factor * row["low"],
            "high": scale.factor * row["high"], "shape": shapes[verdict], "colour": colour,
            "fill": look.card if verdict == "undetermined" else colour,
            "about": f"{names[int(row['checkpoint'])]}, {group}: {scale.score(row['value'])}{interval}{since}",
        })  # fmt: skip
    data = frame_of(rows)
    low, high = data["low"].fillna(data["value"]).min(), data["high"].fillna(data["value"]).max()
    air = 0.06 * (high - low) or 1.0
    # The checkpoints' numbers on the axis; their names are in the table and in each mark's sentence.
    last = len(names) - 1
    step = max(1, math.ceil(last / 8))
    x = alt.X("at:Q", scale=alt.Scale(domain=[-0.2, last + 0.2], nice=False), title=None,
              axis=alt.Axis(values=list(range(0, last + 1, step)), labelExpr="format(datum.value + 1, 'd')", grid=False))  # fmt: skip
    ends = alt.Axis(tickCount=4, labelExpr="datum.label + '%'" if scale.percent else "datum.label")
    y = alt.Y("value:Q", title=None, scale=alt.Scale(domain=[low - air, high + air], nice=False), axis=ends)
    base = alt.Chart(data)
    band = base.mark_area(color=look.base, opacity=0.18).encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q")
    line = base.mark_line(color=look.ink, strokeWidth=1.6, opacity=0.7).encode(x=x, y=y)
    dots = base.mark_point(size=55, strokeWidth=1.6, opacity=1).encode(
        x=x, y=y, shape=alt.Shape("shape:N", scale=PASS_THROUGH, legend=None),
        stroke=alt.Stroke("colour:N", scale=PASS_THROUGH, legend=None), fill=alt.Fill("fill:N", scale=PASS_THROUGH, legend=None),
        tooltip="about:N", description="about:N",
    )  # fmt: skip
    title = alt.TitleParams(ALL_GROUPS if group == OVERALL else text.basic(group), limit=width)
    return alt.layer(band, line, dots, title=title).properties(width=width, height=130)
