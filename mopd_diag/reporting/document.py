"""A plain document of sections, tables and charts, as a self-contained page and as Markdown: for studies of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mopd_diag.reporting.html import page
from mopd_diag.reporting.markdown import plain
from mopd_diag.reporting.markdown import table as table_lines
from mopd_diag.reporting.svg import Picture
from mopd_diag.reporting.tables import Table


@dataclass(frozen=True)
class Section:
    """One heading with what stands under it."""

    title: str
    lead: str
    pictures: Sequence[Picture] = ()
    caption: str = ""
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        return "-".join(self.title.lower().replace(",", "").replace("?", "").split())


@dataclass(frozen=True)
class Document:
    """`credit` is the last line: where the data come from and under which licence."""

    title: str
    summary: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    credit: str


def document_html(document: Document, colours: Mapping[str, str]) -> str:
    """The page. `colours`: the look's colour key of each value in the tables' `keys`."""
    return page(
        "document.html.j2", styles=["comparison.css"], document=document, key=lambda name: colours.get(name, "abstain")
    )


def document_markdown(document: Document) -> str:
    """The same without the charts."""
    lines = [f"# {plain(document.title)}", "", plain(document.summary), ""]
    lines += [" · ".join(f"{plain(k)} **{plain(v)}**" for k, v in document.facts), ""]
    for section in document.sections:
        lines += [f"## {plain(section.title)}", "", plain(section.lead), ""]
        for t in section.tables:
            lines += [f"{plain(t.caption)}.", "", *table_lines(t)]
        lines += [*(f"- {plain(n)}" for n in section.notes), *([""] if section.notes else [])]
    return "\n".join([*lines, plain(document.credit)]) + "\n"
