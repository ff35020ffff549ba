"""Charts behind a cap: which items are lost, inherited or won, and whether more samples reach what one does not.

Same conventions as `charts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from mopd_diag.reporting import text
from mopd_diag.reporting.charts import PASS_THROUGH, ROW, dressed, frame_of, names_axis
from mopd_diag.reporting.look import LIGHT, ROLE_SHAPES, Cast, Look
from mopd_diag.types import Estimate

PARTS = {
    "both": ("●", "both solve"),
    "surpassing": ("▲", "solved, no teacher solves it"),
    "lost": ("▼", "lost: the best teacher solves it"),
    "inherited": ("○", "both fail"),
}
"""Parts of a partition with the mark and the words under which they are shown."""


def partition_chart(
    partitions: Mapping[str, Mapping[str, int]], look: Look = LIGHT, *, width: int = 760
) -> alt.TopLevelMixin:
    """The items of each domain by who solves them, as shares of a bar with counts and marks in it."""
    colours = {"both": look.several, "surpassing": look.gain, "lost": look.loss, "inherited": look.existing}
    inks = {"both": look.ink, "surpassing": look.card, "lost": look.card, "inherited": look.ink}
    rows = []
    for domain, counts in partitions.items():
        total, start = sum(counts.values()), 0.0
        for part in (p for p in PARTS if counts.get(p)):
            mark, words = PARTS[part]
            end = start + counts[part] / total
            label = f"{mark} {counts[part]}"
            rows.append({
                "domain": domain, "start": start, "end": end, "middle": (start + end) / 2, "colour": colours[part],
                "ink": inks[part], "text": label if (end - start) * width * 0.8 > 7 * len(label) + 4 else "",
                "about": f"{domain}: {text.plural(counts[part], 'item')} of {total}, {words}",
            })  # fmt: skip
            start = end
    order = [text.basic(d) for d in partitions]
    base = alt.Chart(frame_of(rows)).encode(y=alt.Y("domain:N", sort=order, title=None, axis=names_axis(order, width)))
    axis = alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1], grid=False)
    x = alt.X("start:Q", scale=alt.Scale(domain=[0, 1]), title=None, axis=axis)
    bars = base.mark_bar(stroke=look.card, strokeWidth=1.5, height={"band": 0.8}).encode(
        x=x, x2="end:Q", color=alt.Color("colour:N", scale=PASS_THROUGH, legend=None), tooltip="about:N",
        description="about:N",
    )  # fmt: skip
    counts = base.mark_text(fontSize=11, fontWeight=600).encode(
        x="middle:Q", text="text:N", color=alt.Color("ink:N", scale=PASS_THROUGH, legend=None), tooltip="about:N"
    )
    return dressed(alt.layer(bars, counts).properties(height=(ROW + 13) * len(order)), look, fit=width)


def passes_chart(
    passes: Mapping[str, Mapping[str, Mapping[int, Estimate]]], cast: Cast, look: Look = LIGHT, *, width: int = 1180
) -> alt.TopLevelMixin:
    """pass@k of student, base and best teacher, one panel a domain, with intervals.

    `passes[domain][model][k]` are Estimates. Lines that meet at large k say that the student knew it all along and
    only answers more surely.
    """
    columns = max(1, min(len(passes), width // 230))
    inner = int(width / columns - 58)
    panels = [_passes_panel(domain, table, cast, look, inner) for domain, table in passes.items()]
    return dressed(alt.concat(*panels, columns=columns, spacing={"row": 24, "column": 20}), look)


def _passes_panel(
    domain: str, table: Mapping[str, Mapping[int, Estimate]], cast: Cast, look: Look, width: int
) -> alt.LayerChart | alt.FacetChart:
    rows: list[dict[str, Any]] = []
    for model, row in table.items():
        for k, e in row.items():
            if e.defined:
                rows.append({
                    "model": model, "k": k, "value": e.value, "low": e.low, "high": e.high, "colour": look.colour(cast, model),
                    "shape": ROLE_SHAPES[cast.roles.get(model, "rival")],
                    "about": f"{model}, {domain}, pass@{k}: {text.share(e)}",
                })  # fmt: skip
    data = frame_of(rows)
    ks = sorted({int(r["k"]) for r in rows})
    x = alt.X(
        "k:Q",
        scale=alt.Scale(type="log", base=2, domain=[ks[0], max(ks[-1], ks[0] + 1)] if ks else [1, 2], nice=False, padding=9),
        axis=alt.Axis(values=ks, format="d", grid=False),
        title="k samples",
    )  # fmt: skip
    y_scale = alt.Scale(domain=[0, 1])
    axis = alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1], minExtent=30)
    colour = alt.Color("colour:N", scale=PASS_THROUGH, legend=None)
    base = alt.Chart(data)
    spread = base.mark_rule(strokeWidth=2, opacity=0.45).encode(
        x=x, y=alt.Y("low:Q", scale=y_scale, title=None, axis=axis), y2="high:Q", color=colour
    )
    lines = base.mark_line(strokeWidth=1.8).encode(
        x=x, y=alt.Y("value:Q", scale=y_scale, title=None), color=colour, detail="model:N"
    )
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=x, y="value:Q", color=colour, shape=alt.Shape("shape:N", scale=PASS_THROUGH, legend=None), tooltip="about:N",
        description="about:N",
    )  # fmt: skip
    best = text.listed([m for m in table if cast.roles.get(m) == "teacher"], none="no teacher")
    title = alt.TitleParams(text.basic(domain), subtitle=text.basic(f"■ {best}"), limit=width)
    return alt.layer(spread, lines, dots, title=title).properties(width=width, height=150)
