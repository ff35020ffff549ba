"""A study's results on a terminal: which path won, by how much, at what cost."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mopd_diag.reporting import text
from mopd_diag.reporting.study_view import paths_table
from mopd_diag.reporting.study_words import Document, said


def study_table(document: Document) -> Group:
    """The page's first table, a row a recipe, and its first lines in words."""
    told = paths_table(document)
    shown = Table(*told.columns, box=None, pad_edge=False)
    for i, row in enumerate(told.rows):
        shown.add_row(*(Text(text.visible(cell), style="bold" if i in told.strong else "") for cell in row))
    words = [Text(text.visible(" ".join([*answer.sentences, *answer.caveats]))) for answer in said(document)]
    runs = [Text(f"run: {run}") for run in document["runs"]]
    return Group(shown, Text(f"{told.caption}.", style="dim"), *words, *runs)
