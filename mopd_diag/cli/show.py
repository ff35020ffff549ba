"""Verbs that show a run to people: report and app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mopd_diag.cli.shared import Json, app, emit


@app.command(epilog="Example: mopd-diag report runs/quickstart --out report.html")
def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run directory, or that of a study.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="Default DIR/report.html; Markdown goes beside it."),
    ] = None,
    json_: Json = False,
) -> None:
    """Write one self-contained HTML page, and Markdown beside it."""
    from mopd_diag.study.conclude import is_study, reported

    if is_study(directory):
        html, markdown = reported(directory, out)[1]
        found = {}
    else:
        from mopd_diag.reporting.report import write_report
        from mopd_diag.reporting.teachers import costs_of
        from mopd_diag.runs.directory import RunDirectory

        run = RunDirectory.open(directory)
        html, markdown = write_report(run, out)
        found = {"teachers": [c.to_dict() for c in costs_of(run)]} if json_ else {}
    if json_:
        emit({"html": str(html), "markdown": str(markdown), **found})
    else:
        typer.echo(f"{html}\n{markdown}")


@app.command(name="app", epilog="Example: mopd-diag app runs --port 8501")
def app_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs, or one run.")] = Path(),
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 8501,
) -> None:
    """The same evidence in the browser: Streamlit pages over a folder of runs, on this machine only."""
    from mopd_diag.study.app import serve

    serve(directory, port)
