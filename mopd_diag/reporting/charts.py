"""The charts of the first screen. Each takes plain tables and returns an Altair chart; the app shows the same ones.

Legend: `accuracy[model][domain]` and `recoveries[domain]` are Estimates; `cast` gives order and roles; `look` the colours; `width`
the pixels of the whole picture. Every mark carries the sentence `about`, as tooltip and as its accessible name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from mopd_diag.reporting import text
from mopd_diag.reporting.look import LABELS, LIGHT, ROLE_SHAPES, Cast, Look
from mopd_diag.types import Estimate

FONT = "-apple-system, BlinkMacSystemFont, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', Arial, sans-serif"
OVERALL = "overall"
ROW = 19
FIGURES = 104  # pixels that a ratio with its interval needs
LABEL = 170  # pixels at which a label is cut off
LETTER = 6.2  # pixels of one letter of a label, on the wide side: fonts differ between machines
PASS_THROUGH: Any = None  # a scale of None paints the column's own colours


def dressed(chart: alt.TopLevelMixin, look: Look, *, fit: int | None = None) -> alt.TopLevelMixin:
    """The house style; with `fit`, a single or layered chart of that many pixels, labels included."""
    if fit is not None:
        chart = chart.properties(width=fit, autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
    axis = {
        "labelColor": look.muted, "titleColor": look.muted, "gridColor": look.faint, "domain": False, "ticks": False,
        "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "labelPadding": 6, "labelLimit": LABEL, "titlePadding": 8,
    }  # fmt: skip
    return chart.configure(
        background="transparent", font=FONT, padding=2, view={"stroke": None}, axis=axis,
        title={"color": look.ink, "fontSize": 12, "fontWeight": 600, "anchor": "start", "subtitleColor": look.muted,
               "subtitleFontSize": 11, "offset": 6},
        legend={"labelColor": look.muted, "titleColor": look.muted, "labelFontSize": 11, "symbolStrokeWidth": 0},
    )  # fmt: skip


def frame_of(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows for a chart, with every text made visible: charts show names that a user wrote."""
    plain = [{k: text.basic(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    return pd.DataFrame(plain)


def room(names: Iterable[str], width: int) -> int:
    """Pixels that the longest of some labels needs in a chart of `width`; beyond a good third it is cut off with an ellipsis."""
    return round(min(LABEL, 0.38 * width, 8 + LETTER * max((len(n) for n in names), default=0)))


def names_axis(names: Sequence[str], width: int, **options: Any) -> alt.Axis:
    """An axis of names with room for them."""
    return alt.Axis(minExtent=room(names, width), labelLimit=room(names, width), **options)


def _bounds(e: Estimate) -> dict[str, float]:
    return {
        "value": e.value,
        "low": e.value if e.low != e.low else e.low,
        "high": e.value if e.high != e.high else e.high,
    }


def accuracy_chart(
    accuracy: Mapping[str, Mapping[str, Estimate]], cast: Cast, look: Look = LIGHT, *, width: int = 1180
) -> alt.TopLevelMixin:
    """Accuracy of every model, one panel a domain and one for all: dots with intervals, filled where the model was taught."""
    models = [m for m in cast.roles if m in accuracy]
    panels = [d for d in cast.domains if any(d in accuracy[m] for m in models)]
    panels += [OVERALL] if any(OVERALL in accuracy[m] for m in models) else []
    labels = room(models, width)
    columns = max(1, min(len(panels), int((width - labels) // 170)))
    inner = int((width - labels) / columns - 24)
    drawn = [
        _accuracy_panel(d, accuracy, models, cast, look, inner, 0 if i % columns else labels)
        for i, d in enumerate(panels)
    ]
    return dressed(alt.concat(*drawn, columns=columns, spacing={"row": 22, "column": 20}), look)


def _accuracy_panel(
    domain: str,
    accuracy: Mapping[str, Mapping[str, Estimate]],
    models: list[str],
    cast: Cast,
    look: Look,
    width: int,
    labels: int,
) -> alt.LayerChart | alt.FacetChart:
    rows = []
    for model in models:
        e = accuracy[model].get(domain)
        if e is not None and e.defined:
            taught = domain in cast.taught.get(model, ()) or domain == OVERALL or not cast.taught.get(model)
            rows.append({
                "model": model, **_bounds(e), "colour": look.colour(cast, model), "shape": ROLE_SHAPES[cast.roles[model]],
                "fill": look.colour(cast, model) if taught else look.card,
                "about": f"{model}, {domain}: {text.share(e)}, {e.n_items} items",
            })  # fmt: skip
    data = frame_of(rows)
    y = alt.Y("model:N", sort=[text.basic(m) for m in models], title=None, axis=_model_axis(labels))
    ticks = [0, 0.25, 0.5, 0.75, 1] if width > 190 else [0, 0.5, 1]
    x_axis = alt.Axis(format=".0%", values=ticks, title=None)
    x = alt.X("low:Q", scale=alt.Scale(domain=[0, 1], clamp=True), axis=x_axis)
    colour = alt.Color("colour:N", scale=PASS_THROUGH, legend=None)
    spread = alt.Chart(data).mark_rule(strokeWidth=2, opacity=0.55).encode(x=x, x2="high:Q", y=y, color=colour)
    dots = (
        alt.Chart(data)
        .mark_point(size=62, strokeWidth=1.8, opacity=1)
        .encode(
            x="value:Q", y=y, stroke=alt.Stroke("colour:N", scale=PASS_THROUGH, legend=None),
            fill=alt.Fill("fill:N", scale=PASS_THROUGH, legend=None), shape=alt.Shape("shape:N", scale=PASS_THROUGH, legend=None),
            tooltip="about:N", description="about:N",
        )
    )  # fmt: skip
    layers: list[alt.Chart] = [spread, dots]
    base = next((accuracy[m].get(domain) for m in models if cast.roles[m] == "base"), None)
    if base is not None and base.defined:
        reference = alt.Chart(pd.DataFrame({"at": [base.value]})).mark_rule(strokeDash=[3, 3], color=look.base)
        layers.insert(0, reference.encode(x="at:Q"))
    routed = cast.routed(domain)
    under = "every domain weighs alike" if domain == OVERALL else f"taught by {routed}" if routed else "no teacher"
    title = alt.TitleParams(
        "all domains" if domain == OVERALL else text.basic(domain), subtitle=text.basic(under), limit=width
    )
    return alt.layer(*layers, title=title).properties(width=width, height=ROW * len(models))


def _model_axis(labels: int) -> alt.Axis:
    """Model names in so many pixels, or none; the student's stands out."""
    student = "datum.value === 'student'"
    weight = {"condition": {"test": student, "value": "bold"}, "value": "normal"}
    return alt.Axis(labels=labels > 0, minExtent=labels, labelLimit=labels, labelFontWeight=weight)


def recovery_chart(recoveries: Mapping[str, Estimate], look: Look = LIGHT, *, width: int = 370) -> alt.TopLevelMixin:
    """Recovered share of the headroom per domain, with reference lines at the base (0) and the best teacher (1)."""
    domains = [*(d for d in recoveries if d != OVERALL), *([OVERALL] if OVERALL in recoveries else [])]
    defined = [e for e in recoveries.values() if e.defined]
    low = max(-1.0, min([-0.08, *(b for e in defined for b in (e.low, e.value) if b == b)]))
    high = min(2.0, max([1.12, *(b for e in defined for b in (e.high, e.value) if b == b)]))
    rows = [_recovery_row(d, recoveries[d], look, low, high) for d in domains]
    data = frame_of(rows)
    order = [text.basic(str(r["domain"])) for r in rows]
    y = alt.Y("domain:N", sort=order, title=None, axis=names_axis(order, width))
    figures_share = FIGURES / (width - room(order, width))
    scale = alt.Scale(domain=[low, low + (high - low) / (1 - figures_share)], nice=False)
    x = alt.X("low:Q", scale=scale, title=None, axis=alt.Axis(labels=False, grid=False))
    marks = pd.DataFrame({"at": [0.0, 1.0], "name": ["base", "best teacher"]})
    lines = alt.Chart(marks).mark_rule(color=look.muted, strokeDash=[3, 3]).encode(x=alt.X("at:Q", scale=scale))
    names = alt.Chart(marks).mark_text(baseline="bottom", dy=-4, color=look.muted, fontSize=11)
    names = names.encode(x="at:Q", y=alt.value(0), text="name:N")
    told = alt.Chart(data).transform_filter("isValid(datum.value)")
    colour = alt.Color("colour:N", scale=PASS_THROUGH, legend=None)
    spread = told.mark_rule(strokeWidth=2.5, opacity=0.6).encode(x=x, x2="high:Q", y=y, color=colour)
    dots = told.mark_point(filled=True, size=85, opacity=1, shape="diamond")
    dots = dots.encode(x="value:Q", y=y, color=colour, tooltip="about:N", description="about:N")
    figures = alt.Chart(data).mark_text(align="right", fontSize=11, color=look.ink)
    figures = figures.encode(x=alt.value("width"), y=y, text="text:N", description="about:N")
    return dressed(
        alt.layer(lines, names, spread, dots, figures).properties(height=max(170, (ROW + 7) * len(rows))),
        look,
        fit=width,
    )


def _recovery_row(domain: str, e: Estimate, look: Look, low: float, high: float) -> dict[str, Any]:
    bounds: dict[str, float | None] = dict.fromkeys(("value", "low", "high"))
    if e.defined:
        bounds = {k: min(max(v, low), high) for k, v in _bounds(e).items()}
    reason = "" if e.defined else f": {e.note or 'no reason was recorded'}"
    return {
        "domain": "all domains" if domain == OVERALL else domain, **bounds, "text": text.ratio(e),
        "about": f"recovery on {'all domains' if domain == OVERALL else domain}: {text.ratio(e)}{reason}",
        "colour": look.student,
    }  # fmt: skip


def transfer_chart(
    cells: Sequence[tuple[str, str, Estimate, bool]], look: Look = LIGHT, *, width: int = 370
) -> alt.TopLevelMixin:
    """What training on one domain did to another, against the base: a heat map with the points printed in the cells.

    `cells`: trained on, evaluated on, change, and whether it is surely a change. Colour says the sign and its depth the size; a
    number in brackets is not surely a change.
    """
    trained, evaluated = list(dict.fromkeys(c[0] for c in cells)), list(dict.fromkeys(c[1] for c in cells))
    largest = max([0.01, *(abs(e.value) for _, _, e, _ in cells if e.defined)])
    rows = []
    for row, column, e, sure in cells:
        number = text.points(e, unit=False).split(" ")[0]
        rows.append({
            "trained on": row, "evaluated on": column, "colour": look.gain if e.defined and e.value > 0 else look.loss,
            "depth": 0.62 * abs(e.value) / largest if e.defined else 0.0,
            "text": number if sure else "?" if not e.defined else f"({number})", "ink": look.ink if sure else look.muted,
            "about": f"trained on {row}, evaluated on {column}: {text.points(e)}{'' if e.defined else ': ' + e.note}",
        })  # fmt: skip
    down, across = ("trained on", trained), ("evaluated on", evaluated)
    if len(evaluated) > max(6, len(trained)):  # many domains, few specialists: a tall matrix keeps its numbers readable
        down, across = across, down
    cell = int((width - 30 - room(down[1], width)) / max(1, len(across[1]))) - 4
    level = room(across[1], width) <= cell + 16
    top = alt.Axis(orient="top", labelAngle=0 if level else -40, labelLimit=cell if level else 90)
    base = alt.Chart(frame_of(rows)).encode(
        x=alt.X(f"{across[0]}:N", sort=[text.basic(c) for c in across[1]], axis=top),
        y=alt.Y(f"{down[0]}:N", sort=[text.basic(c) for c in down[1]], axis=names_axis(down[1], width)),
    )
    plates = base.mark_rect(stroke=look.card, strokeWidth=3, cornerRadius=5).encode(
        color=alt.Color("colour:N", scale=PASS_THROUGH, legend=None),
        opacity=alt.Opacity("depth:Q", scale=PASS_THROUGH, legend=None),
        tooltip="about:N", description="about:N",
    )  # fmt: skip
    numbers = base.mark_text(fontSize=12 if cell > 40 else 10 if cell > 22 else 8.5).encode(
        text="text:N", color=alt.Color("ink:N", scale=PASS_THROUGH, legend=None), tooltip="about:N"
    )
    height = (40 if len(down[1]) <= 6 else 26) * len(down[1])
    return dressed(alt.layer(plates, numbers).properties(height=height), look, fit=width)


def provenance_chart(
    shares: Mapping[str, Mapping[str, Mapping[str, float]]], cast: Cast, look: Look = LIGHT, *, width: int = 370
) -> alt.TopLevelMixin:
    """What the answers were attributed to, per domain: the student above the teacher-free control, labelled with marks.

    `shares[model][domain][label]` is the share of the model's answers with that label.
    """
    order = [*cast.teachers, *LABELS]
    first = next(iter(shares), None)
    rows, bars = [], []
    for domain in cast.domains:
        for model, table in shares.items():
            bar = domain if model == first else f"{domain} · ↳ {model}"
            start = 0.0
            parts: dict[str, float] = {}
            for label, value in table.get(domain, {}).items():
                parts[cast.member(label)] = parts.get(cast.member(label), 0.0) + value
            bars += [bar] if parts else []
            for member in sorted(parts, key=lambda m: order.index(m) if m in order else len(order)):
                end = start + parts[member]
                rows.append({
                    "bar": bar, "start": start, "end": end, "middle": (start + end) / 2, "colour": look.colour(cast, member),
                    "mark": cast.mark(member) if end - start >= 0.085 else "",
                    "ink": look.card if cast.roles.get(member) or member == "own" else look.ink,
                    "about": f"{model}, {domain}: {text.percent(end - start)} {LABELS.get(member, member)}",
                })  # fmt: skip
                start = end
    names = [*(b.partition(" · ")[0] for b in bars), *(f"↳ {m}" for m in shares if m != first)]
    axis = names_axis(names, width, labelExpr="split(datum.value, ' · ')[1] || datum.value")
    base = alt.Chart(frame_of(rows)).encode(y=alt.Y("bar:N", sort=[text.basic(b) for b in bars], title=None, axis=axis))
    x = alt.X(
        "start:Q",
        scale=alt.Scale(domain=[0, 1]),
        title=None,
        axis=alt.Axis(format=".0%", values=[0, 0.5, 1], grid=False),
    )
    plates = base.mark_bar(stroke=look.card, strokeWidth=1, height={"band": 0.86}).encode(
        x=x,
        x2="end:Q",
        color=alt.Color("colour:N", scale=PASS_THROUGH, legend=None),
        tooltip="about:N",
        description="about:N",
    )
    marks = base.mark_text(fontSize=10, fontWeight=600).encode(
        x="middle:Q", text="mark:N", color=alt.Color("ink:N", scale=PASS_THROUGH, legend=None), tooltip="about:N"
    )
    return dressed(alt.layer(plates, marks).properties(height=ROW * len(bars)), look, fit=width)
