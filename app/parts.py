"""What several pages show: the run they are about, verdicts, estimates, headings, empty states, downloads.

Texts of models and users go through `escaped`; nothing here hands one to Markdown.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import streamlit as st
from markupsafe import Markup, escape

from app import state
from app.data import ServedFolder
from mopd_diag.reporting import text
from mopd_diag.reporting.look import DARK, LIGHT, stylesheet_classes, stylesheet_variables
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Estimate

VERDICTS = {
    # verdict: icon, colour key; a word always stands beside them
    "inherited": ("●", "gain"), "lost": ("▼", "loss"), "leaked": ("◆", "loss"), "conflict": ("✕", "loss"),
    "pre-existing": ("○", "muted"), "undetermined": ("?", "muted"), "own": ("◇", "own"), "control": ("△", "control"),
    "at": ("●", "gain"), "below": ("▼", "loss"), "above": ("▲", "gain"),
    "harm": ("▼", "loss"), "help": ("▲", "gain"), "none": ("=", "muted"),
    "done": ("✓", "gain"), "running": ("▶", "gain"), "stopped": ("‖", "loss"), "broken": ("!", "loss"),
    "worse": ("▼", "loss"), "better": ("▲", "gain"), "same": ("=", "muted"),
}  # fmt: skip


def escaped(words: object, *, spaces: bool = False) -> Markup:
    """Untrusted text for HTML: every odd character visible, every special one escaped."""
    return escape(text.visible(str(words), spaces=spaces))


def html(markup: Markup) -> None:
    """HTML made of escaped parts."""
    st.html(str(markup))


def badge(verdict: str) -> Markup:
    """A verdict as icon, colour and word."""
    icon, key = VERDICTS.get(verdict, ("·", "muted"))
    return Markup('<span class="badge k-{}"><span aria-hidden="true">{}</span> {}</span>').format(
        key, icon, escaped(verdict)
    )


def estimate(e: Estimate | None) -> str:
    """An estimate as the report writes it: value, interval, unit."""
    return text.estimate(e)


def heading(title: str, lead: str = "") -> None:
    """The page's title and the sentence under it."""
    html(Markup("<h1>{}</h1>").format(escaped(title)) + (Markup("<p class='lead'>{}</p>").format(lead) if lead else Markup()))  # fmt: skip


def section(title: str, lead: str = "") -> None:
    """A section's heading and the sentence under it."""
    html(Markup("<h2>{}</h2>").format(escaped(title)) + (Markup("<p class='lead'>{}</p>").format(lead) if lead else Markup()))  # fmt: skip


def empty(title: str, why: str, command: str = "") -> None:
    """A state with nothing to show: what is missing, and the command that makes it."""
    html(Markup("<div class='empty' role='status'><p class='what'>{}</p><p>{}</p></div>").format(escaped(title), escaped(why)))  # fmt: skip
    if command:
        st.code(text.visible(command), language=None)


def note(words: str) -> None:
    """A quiet line."""
    html(Markup("<p class='muted'>{}</p>").format(escaped(words)))


def plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, words: Sequence[str] = (), strong: str = ""
) -> None:
    """A small table that needs no sorting; cells are text or `Markup` made here, columns in `words` flush left."""
    left = [c in words for c in columns]
    cell = lambda tag, value, n: Markup("<{} class='{}'>{}</{}>").format(  # noqa: E731
        Markup(tag), "w" if left[n] else "n", value if isinstance(value, Markup) else escaped(value), Markup(tag)
    )
    head = Markup("").join(cell("th", c, n) for n, c in enumerate(columns))
    body = Markup("").join(
        Markup("<tr class='{}'>{}</tr>").format(
            "strong" if strong and row[0] == strong else "", Markup("").join(cell("td", v, n) for n, v in enumerate(row))
        )
        for row in rows
    )  # fmt: skip
    html(
        Markup(
            "<div class='scroll' tabindex='0'><table class='plain'><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
        ).format(head, body)
    )


def bar(e: Estimate | None) -> Markup:
    """A share as a bar with its interval as a line; empty when unknown. The number stands beside it."""
    if e is None or not e.defined:
        return Markup("")
    low, high = (e.value if x != x else x for x in (e.low, e.high))
    return Markup(
        "<span class='bar' aria-hidden='true' style='--v:{:.1f}%;--lo:{:.1f}%;--hi:{:.1f}%'><i></i><b></b></span>"
    ).format(100 * e.value, 100 * low, 100 * high)


def chosen_run(folder: ServedFolder) -> RunDirectory:
    """The run of the URL; where there is none, or none of that name, an empty state ends the page."""
    name = state.get("run")
    if not name:
        empty(
            "No run here yet",
            f"{folder.root} holds no run directory.",
            "mopd-diag run quickstart --out runs/quickstart",
        )
        st.stop()
    if name not in folder.run_names():
        empty("No such run", f"The link names {name}, and this folder has no run of that name. Choose one in the list.")
        st.stop()
    return folder.open(name)


def downloads(frame: pd.DataFrame | Callable[[], pd.DataFrame], name: str) -> None:
    """Two quiet buttons: the table as CSV and as Parquet, made when asked for."""
    made: Callable[[], pd.DataFrame] = (lambda: frame) if isinstance(frame, pd.DataFrame) else frame
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name)

    def parquet() -> bytes:
        buffer = io.BytesIO()
        made().to_parquet(buffer, index=False)
        return buffer.getvalue()

    with st.container(horizontal=True, gap="small"):
        st.download_button(
            "CSV",
            lambda: made().to_csv(index=False).encode(),
            f"{safe}.csv",
            "text/csv",
            type="tertiary",
            icon=":material/download:",
            key=f"csv-{name}",
            on_click="ignore",
        )
        st.download_button(
            "Parquet",
            parquet,
            f"{safe}.parquet",
            "application/vnd.apache.parquet",
            type="tertiary",
            icon=":material/download:",
            key=f"parquet-{name}",
            on_click="ignore",
        )


def styles() -> None:
    """The stylesheet of all pages, with the report's colours in the reader's theme."""
    look = DARK if st.context.theme.type == "dark" else LIGHT
    st.html(f"<style>:root{{{stylesheet_variables(look)}}}{stylesheet_classes()}{STYLE}</style>")


STYLE = (Path(__file__).parent / "static" / "app.css").read_text()
