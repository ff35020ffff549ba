"""The report's charts and the tables beside them, in the reader's theme and at the reader's width."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st
from markupsafe import Markup
from streamlit.elements.lib.column_types import ColumnConfig

from app import parts
from mopd_diag.reporting.comparison_view import ICONS, KEYS
from mopd_diag.reporting.look import DARK, LIGHT, Look

WIDE, HALF, PHONE = 1080, 520, 340
"""Pixels that a chart is laid out for: the whole page, a column of two, a phone."""
PERCENT, POINTS = "percent", "%+.1f"
Draw = Callable[[Look, int], Any]
SEVERAL = {"concat", "hconcat", "vconcat", "facet"}


def look() -> Look:
    """The colours of the reader's theme."""
    return DARK if st.context.theme.type == "dark" else LIGHT


def figure(draw: Draw, name: str, about: str, *, width: int = WIDE, stamp: Hashable = None) -> None:
    """A chart of `reporting`, drawn for its place on the page and for a phone; the stylesheet shows the one that fits.

    `name` is unique on the page. `about` tells in a sentence what the picture shows, for who does not see it. With a
    `stamp`, which changes with the data, the chart is laid out once: worth it for many panels.
    """
    dark = look() is DARK
    with st.container(gap=None):
        for kind, pixels in (("desk", width), ("phone", PHONE)):
            spec = _laid_out(draw, dark, pixels) if stamp is None else _kept(name, stamp, dark, pixels, draw)
            fit = "content" if SEVERAL & spec.keys() else "stretch"
            with st.container(key=f"{kind}-{name}"):
                st.vega_lite_chart(spec=spec, width=fit, theme=None, key=f"chart-{kind}-{name}", alt=about)


def _laid_out(draw: Draw, dark: bool, pixels: int) -> dict[str, Any]:
    spec = draw(DARK if dark else LIGHT, pixels).to_dict()
    # Vega lays several views out in no other way, and warns where it is told another.
    return spec | {"autosize": {"type": "pad"}} if SEVERAL & spec.keys() else spec


@st.cache_data(show_spinner=False, max_entries=100)
def _kept(name: str, stamp: Hashable, dark: bool, pixels: int, _draw: Draw) -> dict[str, Any]:
    return _laid_out(_draw, dark, pixels)


def table(frame: pd.DataFrame, name: str, columns: Mapping[str, ColumnConfig | str | None], *, rows: int = 12) -> None:
    """A table that sorts and searches, with the columns named in `columns`; the download has all, with shares as fractions."""
    height: Any = "auto" if len(frame) <= rows else 36 * (rows + 1)
    shown, config = frame.copy(deep=False), dict(columns)
    for column, asked in columns.items():
        form = _format(asked)
        if form in (PERCENT, POINTS):
            shown[column] = 100 * frame[column].astype(float)
        if form == PERCENT and isinstance(asked, dict):  # the grid's own percentages have two decimals
            config[column] = st.column_config.NumberColumn(asked.get("label"), format="%.1f%%")
    order = list(columns)
    st.dataframe(
        shown,
        hide_index=True,
        column_order=order,
        column_config=config,
        placeholder="–",
        key=f"table-{name}",
        height=height,
    )
    parts.downloads(frame, name)


def facts(told: Sequence[tuple[str, str]]) -> None:
    """Names and what they are, side by side."""
    pairs = (Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*map(parts.escaped, pair)) for pair in told)
    parts.html(Markup("<dl class='facts'>{}</dl>").format(Markup().join(pairs)))


def verdict_line(verdict: str, headline: str) -> None:
    """A comparison's verdict in large letters, with its sign."""
    words = Markup('<p class="verdict k-{}"><span class="sign" aria-hidden="true">{}</span> {}</p>')
    parts.html(words.format(KEYS[verdict], ICONS[verdict], parts.escaped(headline)))


def beware(warnings: Sequence[str]) -> None:
    """What a reader has to know of a comparison; nothing when there is nothing."""
    if warnings:
        lines = Markup().join(Markup("<li>{}</li>").format(parts.escaped(w)) for w in warnings)
        words = Markup(
            '<div class="gate k-loss"><strong>To know before you trust it</strong><ul class="plain">{}</ul></div>'
        )
        parts.html(words.format(lines))


def legend(told: Sequence[tuple[str, str]]) -> None:
    """Marks of a chart and what they mean."""
    pairs = (Markup("<span><b>{}</b> {}</span>").format(*map(parts.escaped, pair)) for pair in told)
    parts.html(Markup("<div class='legend'>{}</div>").format(Markup().join(pairs)))


def answers(told: Sequence[tuple[str, Markup]]) -> None:
    """Texts side by side under their names; on a phone one below the other."""
    panes = (
        Markup(
            "<section class='pane'><h3>{}</h3><pre tabindex='0' role='region' aria-label='{}' dir='ltr'>{}</pre></section>"
        ).format(parts.escaped(name), parts.escaped(name), words or Markup("<i>empty</i>"))
        for name, words in told
    )
    parts.html(Markup("<div class='panes'>{}</div>").format(Markup().join(panes)))


def points(label: str) -> ColumnConfig:
    """A column of differences of shares, shown as percentage points with their sign."""
    return st.column_config.NumberColumn(label, format=POINTS)


def percent(label: str) -> ColumnConfig:
    """A column of shares, shown as percentages."""
    return st.column_config.NumberColumn(label, format=PERCENT)


def _format(config: ColumnConfig | str | None) -> object:
    told = config.get("type_config") if isinstance(config, dict) else None
    return told.get("format") if isinstance(told, dict) else None


def number(label: str, digits: int | str = 2) -> ColumnConfig:
    """A column of plain numbers; `g`: two significant digits, whatever their size."""
    return st.column_config.NumberColumn(label, format="%.2g" if digits == "g" else f"%.{digits}f")


def styles() -> None:
    """What the pages of this module need beside `parts.styles`."""
    st.html(f"<style>{STYLE}</style>")


STYLE = """
[class*="st-key-phone-"] { display: none; }
@media (max-width: 640px) { [class*="st-key-phone-"] { display: flex; } [class*="st-key-desk-"] { display: none; } }
[data-testid="stHtml"] .facts { padding: 0; }
.legend b { color: var(--ink); }
.verdict { font-size: 1.55rem; line-height: 1.25; font-weight: 650; letter-spacing: -.015em; margin: 0; overflow-wrap: anywhere; }
.verdict .sign { color: color-mix(in srgb, var(--k) 55%, var(--ink)); }
[data-testid="stHtml"] .such { font-size: .8rem; line-height: 1.7; }
.such code { font-size: inherit; padding: .1em .35em; border-radius: 4px; background: var(--faint); color: var(--ink); }
.gate { border-left: 3px solid var(--k); padding: .1rem 0 .1rem .8rem; margin: 0; overflow-wrap: anywhere; }
.plain { list-style: none; margin: 0; padding: 0; font-size: .92rem; overflow-wrap: anywhere; }
"""
