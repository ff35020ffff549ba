"""How a training's weight was shared out over the domains: prompts, answer tokens, gradient. Same conventions as `charts`."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt

from mopd_diag.reporting import text
from mopd_diag.reporting.charts import PASS_THROUGH, ROW, dressed, frame_of, names_axis
from mopd_diag.reporting.look import LIGHT, Look

KINDS = {"prompts": "circle", "tokens": "square", "gradient": "triangle-up"}
"""What is shared out, with the shape that says so; the words also stand in each mark's sentence."""


def shares_chart(
    shares: Mapping[str, Mapping[str, float]], look: Look = LIGHT, *, width: int = 370
) -> alt.TopLevelMixin:
    """`shares[domain][kind]` for the KINDS that were measured, one row a domain; a line joins the marks of a row.

    A domain whose tokens lie far left of its prompts weighs less in training than was planned.
    """
    colours = {"prompts": look.muted, "tokens": look.gain, "gradient": look.loss}
    rows = [
        {
            "domain": domain, "share": value, "shape": KINDS[kind], "colour": colours[kind],
            "fill": look.card if kind == "prompts" else colours[kind],
            "about": f"{domain}: {text.percent(value, 1)} of the {kind}",
        }
        for domain, table in shares.items()
        for kind, value in table.items()
        if kind in KINDS and value == value
    ]  # fmt: skip
    data = frame_of(rows)
    order = [text.basic(d) for d in shares]
    high = max([0.1, *(float(r["share"]) for r in rows)])
    y = alt.Y("domain:N", sort=order, title=None, axis=names_axis(order, width))
    axis = alt.Axis(format=".0%", tickCount=5)
    x = alt.X("share:Q", scale=alt.Scale(domain=[0, min(1.0, 1.08 * high)], nice=False), title=None, axis=axis)
    span = alt.Chart(data).mark_rule(strokeWidth=1.2, color=look.base).encode(x="min(share):Q", x2="max(share):Q", y=y)
    dots = alt.Chart(data).mark_point(size=75, strokeWidth=1.8, opacity=1)
    dots = dots.encode(
        x=x, y=y, stroke=alt.Stroke("colour:N", scale=PASS_THROUGH, legend=None),
        fill=alt.Fill("fill:N", scale=PASS_THROUGH, legend=None), shape=alt.Shape("shape:N", scale=PASS_THROUGH, legend=None),
        tooltip="about:N", description="about:N",
    )  # fmt: skip
    return dressed(alt.layer(span, dots).properties(height=(ROW + 9) * len(order)), look, fit=width)
