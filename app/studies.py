"""The studies of the folder: who won, and the table over recipes and seeds. The seeds themselves are runs like any other."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from app import figures, parts
from app.data import ServedFolder
from mopd_diag.errors import BadInput
from mopd_diag.reporting import text
from mopd_diag.reporting.study_view import paths_table
from mopd_diag.reporting.study_words import said
from mopd_diag.study.conclude import SCHEMA


def studies(folder: ServedFolder) -> None:
    """A line a study, which opens to its table."""
    for name in folder.studies():
        document = _results(folder, name)
        if document is None:
            parts.note(
                f"Study {name} has no results yet, or those of an older version: mopd-diag report {name} writes them."
            )
            continue
        won, *others = said(document)
        with st.expander(text.visible(f"Study {document['study']['name']}: {won.sentences[0]}")):
            table = paths_table(document)
            columns = [text.visible(c) for c in table.columns]
            frame = pd.DataFrame([[text.visible(c) for c in row] for row in table.rows], columns=columns)
            figures.table(frame, f"study-{name}", {c: c for c in columns})
            for answer in (won, *others):
                parts.note(" ".join([*answer.sentences, *answer.caveats]))
            parts.note(f"{table.caption}. The whole page is {name}/report.html.")


def _results(folder: ServedFolder, name: str) -> dict[str, Any] | None:
    """The results of this version; None where there are none, or what lies there is broken or a link out of the folder."""
    try:
        document = json.loads(folder.path(f"{name}/results.json").read_text(encoding="utf-8"))
    except (BadInput, OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get("schema") == SCHEMA else None
