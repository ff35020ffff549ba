"""Conflict and synergy of the domains' gradients as one heat map. Same conventions as `charts`."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from mopd_diag.diagnostics.geometry import CARRIED, Pair
from mopd_diag.reporting import text
from mopd_diag.reporting.charts import PASS_THROUGH, dressed, frame_of, names_axis, room
from mopd_diag.reporting.look import LIGHT, Look


def geometry_chart(
    pairs: Sequence[Pair], domains: Sequence[str], look: Look = LIGHT, *, width: int = 370
) -> alt.TopLevelMixin:
    """Every two domains: conflict above the diagonal, synergy below it, in percent of the gradients' energy.

    Colour says which, its depth how much of the largest number; one in brackets is in no module more than random directions give.
    """
    at = {d: n for n, d in enumerate(domains)}
    values = [e.value for p in pairs for e in (p.conflict, p.synergy) if e.defined]
    largest = max([0.01, *values])
    rows = []
    for p in pairs:
        first, last = sorted(p.domains, key=at.__getitem__)
        for row, column, e, name, colour, share in (
            (first, last, p.conflict, "conflict", look.loss, p.fighting_share),
            (last, first, p.synergy, "synergy", look.gain, p.agreeing_share),
        ):
            beyond = share >= CARRIED
            number = f"{100 * e.value:.0f}" if e.defined else "?"
            rows.append({
                "domain": row, "other": column, "colour": colour, "depth": 0.62 * e.value / largest if e.defined else 0.0,
                "text": number if beyond or not e.defined else f"({number})", "ink": look.ink if beyond else look.muted,
                "about": f"{name} of {first} and {last}: {text.share(e)}; {text.percent(share)} of the energy lies beyond chance",
            })  # fmt: skip
    cell = int((width - 30 - room(domains, width)) / max(1, len(domains))) - 4
    level = room(domains, width) <= cell + 16
    top = alt.Axis(orient="top", labelAngle=0 if level else -40, labelLimit=cell if level else 90)
    names = [text.basic(d) for d in domains]
    base = alt.Chart(frame_of(rows)).encode(
        x=alt.X("other:N", sort=names, title=None, axis=top),
        y=alt.Y("domain:N", sort=names, title=None, axis=names_axis(domains, width)),
    )
    plates = base.mark_rect(stroke=look.card, strokeWidth=3, cornerRadius=5).encode(
        color=alt.Color("colour:N", scale=PASS_THROUGH, legend=None),
        opacity=alt.Opacity("depth:Q", scale=PASS_THROUGH, legend=None),
        tooltip="about:N", description="about:N",
    )  # fmt: skip
    numbers = base.mark_text(fontSize=12 if cell > 40 else 10 if cell > 22 else 8.5).encode(
        text="text:N", color=alt.Color("ink:N", scale=PASS_THROUGH, legend=None), tooltip="about:N"
    )
    height = (40 if len(domains) <= 6 else 26) * len(domains)
    return dressed(alt.layer(plates, numbers).properties(height=height), look, fit=width)
