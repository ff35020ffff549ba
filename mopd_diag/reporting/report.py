"""`write_report`: a run directory in, `report.html` and `report.md` out."""

from __future__ import annotations

from pathlib import Path

from mopd_diag.reporting.html import render_html
from mopd_diag.reporting.markdown import render_markdown
from mopd_diag.reporting.view import view_of
from mopd_diag.runs.directory import RunDirectory, write_text


def write_report(run: RunDirectory, out: Path | None = None) -> tuple[Path, Path]:
    """Write the page to `out` (default: `report.html` in the run) and the Markdown beside it; returns both paths.

    Raises RunDirectoryError when there is no manifest; any other part that is missing is said on the page.
    """
    page = out if out is not None else run.path / "report.html"
    beside = page.with_suffix(".md")
    view = view_of(run)
    write_text(page, render_html(view))
    write_text(beside, render_markdown(view))
    return page, beside
