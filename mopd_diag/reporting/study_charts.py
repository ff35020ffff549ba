"""The charts of a study's page: reference − rival as a forest, and domain by domain as a heat map. As in `charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from mopd_diag.reporting import text
from mopd_diag.reporting.charts import PASS_THROUGH, dressed, frame_of, names_axis, room
from mopd_diag.reporting.comparison_charts import SIGNED, forest_layers
from mopd_diag.reporting.look import LIGHT, Look
from mopd_diag.reporting.study_view import MARKS
from mopd_diag.reporting.study_words import points
from mopd_diag.types import Estimate

ROW = 28
FIGURES = 190  # pixels that a difference with its interval and verdict needs
SHAPES = {"ahead": "triangle-up", "behind": "triangle-down", "level": "circle", "undetermined": "diamond"}
Row = tuple[str, Estimate, str]
"""Name, reference − it, verdict."""


def forest(rows: Sequence[Row], margin: float, look: Look = LIGHT, *, width: int = 1180) -> alt.TopLevelMixin:
    """Differences in points with intervals, a row a rival; right of 0 the reference is ahead. The band is the margin."""
    ends = [100 * x for _, e, _ in rows for x in (e.value, e.low, e.high) if x == x]
    low, high = min([-120 * margin, *ends]), max([120 * margin, *ends])
    air, wide = 0.05 * (high - low), width >= 560
    span = (high - low + 2 * air) / (1 - FIGURES / (0.8 * width) if wide else 1)
    scale = alt.Scale(domain=[low - air, low - air + span], nice=False, zero=False)
    names = [name for name, _, _ in rows]
    data = frame_of(_forest_row(*row, look) for row in rows)
    ticks = [t for t in _ticks(low - air, high + air)]
    x = alt.X("low:Q", scale=scale, axis=alt.Axis(values=ticks, labelExpr=SIGNED, grid=False, title=None))
    y = alt.Y("name:N", sort=[text.basic(n) for n in names], title=None, axis=names_axis(names, width))
    layers = forest_layers(data, x, scale, y, 100 * margin, look, worded=wide)
    return dressed(layers.properties(height=max(60, ROW * len(rows))), look, fit=width)


def _forest_row(name: str, e: Estimate, verdict: str, look: Look) -> dict[str, Any]:
    colour = {"ahead": look.gain, "behind": look.loss, "level": look.ink}.get(verdict, look.muted)
    bounds: dict[str, float | None] = dict.fromkeys(("value", "low", "high"))
    if e.defined:
        bounds = {"value": 100 * e.value, "low": 100 * e.low, "high": 100 * e.high}
    told = f"{points(e, unit=False)}  {MARKS[verdict]}"
    return {
        "name": name, **bounds, "colour": colour, "shape": SHAPES[verdict], "text": told,
        "fill": look.card if verdict == "undetermined" else colour,
        "about": f"reference − {name}: {points(e)} · the reference is {verdict}",
    }  # fmt: skip


def heat_map(
    cells: Mapping[str, Sequence[Row]], look: Look = LIGHT, *, width: int = 1180
) -> alt.TopLevelMixin:  # fmt: skip
    """Reference − rival on every domain: `cells[domain]` holds a row a rival. Colour only where the reference is surely ahead or
    behind; a number in brackets is undetermined, one without colour is level."""
    rivals = list(dict.fromkeys(name for row in cells.values() for name, _, _ in row))
    largest = max([0.01, *(abs(e.value) for row in cells.values() for _, e, _ in row if e.defined)])
    rows = []
    for domain, row in cells.items():
        for name, e, verdict in row:
            sure, number = verdict in ("ahead", "behind"), text.points(e, unit=False).split(" ")[0]
            rows.append({
                "domain": domain, "rival": name, "colour": look.gain if verdict == "ahead" else look.loss,
                "depth": 0.12 + 0.5 * abs(e.value) / largest if sure else 0.0,
                "text": "?" if not e.defined else f"({number})" if verdict == "undetermined" else number,
                "ink": look.muted if verdict == "undetermined" else look.ink,
                "about": f"{domain}, reference − {name}: {text.points(e)} · the reference is {verdict}",
            })  # fmt: skip
    cell = int((width - 30 - room(cells, width)) / max(1, len(rivals))) - 4
    level = room(rivals, width) <= cell + 16
    top = alt.Axis(orient="top", labelAngle=0 if level else -40, labelLimit=cell + 16 if level else 110)
    base = alt.Chart(frame_of(rows)).encode(
        x=alt.X("rival:N", sort=[text.basic(r) for r in rivals], title=None, axis=top),
        y=alt.Y("domain:N", sort=[text.basic(d) for d in cells], title=None, axis=names_axis(list(cells), width)),
    )
    plates = base.mark_rect(stroke=look.card, strokeWidth=3, cornerRadius=5).encode(
        color=alt.Color("colour:N", scale=PASS_THROUGH, legend=None),
        opacity=alt.Opacity("depth:Q", scale=PASS_THROUGH, legend=None), tooltip="about:N", description="about:N",
    )  # fmt: skip
    numbers = base.mark_text(fontSize=12 if cell > 40 else 10 if cell > 24 else 8.5).encode(
        text="text:N", color=alt.Color("ink:N", scale=PASS_THROUGH, legend=None), tooltip="about:N"
    )
    return dressed(alt.layer(plates, numbers).properties(height=27 * len(cells)), look, fit=width)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers of points between two ends, at most nine."""
    step = next(s for s in (1, 2, 5, 10, 20, 50) if (high - low) / s <= 8 or s == 50)
    return [float(k * step) for k in range(int(low // step) + 1, int(high // step) + 1)]
