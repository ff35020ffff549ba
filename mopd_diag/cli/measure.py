"""Verbs that read a run: what the teachers capped, what the domains did to one another."""

from __future__ import annotations

from mopd_diag.cli.shared import Json, Run, app, emit, stdout


@app.command(epilog="Example: mopd-diag caps runs/quickstart --json")
def caps(directory: Run, json_: Json = False) -> None:
    """What did the teachers cap? Recovery of each domain's headroom, with intervals and verdicts."""
    from mopd_diag.diagnostics.study import caps_of
    from mopd_diag.runs.directory import RunDirectory

    report = caps_of(RunDirectory.open(directory))
    if json_:
        emit(report.to_dict())
    else:
        from mopd_diag.reporting.terminal import show_tables

        show_tables(RunDirectory.open(directory), stdout(), ["caps"])


@app.command(epilog="Example: mopd-diag interference runs/quickstart")
def interference(directory: Run, json_: Json = False) -> None:
    """What did the domains do to one another? Transfer matrix, forgetting and regret, with intervals and verdicts."""
    from mopd_diag.diagnostics.study import interference_of
    from mopd_diag.runs.directory import RunDirectory

    report = interference_of(RunDirectory.open(directory))
    if json_:
        emit(report.to_dict())
    else:
        from mopd_diag.reporting.terminal import show_tables

        show_tables(RunDirectory.open(directory), stdout(), ["transfer", "measures"])
