"""The verb that compares checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mopd_diag.cli.shared import Json, app, emit, stderr, stdout
from mopd_diag.errors import BadInput


@app.command(
    epilog="Example: mopd-diag compare nightly/mon nightly/tue --gate 'overall.delta.low > -0.01 and no group worse'"
)
def compare(
    before: Annotated[
        str,
        typer.Argument(metavar="BEFORE", help="Records: a file, a results directory, DIR:MODEL.", show_default=False),
    ],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Records of the same items.", show_default=False)],
    more: Annotated[list[str] | None, typer.Argument(metavar="MORE", help="Later checkpoints, with --trend.")] = None,
    gate: Annotated[
        str | None,
        typer.Option("--gate", metavar="RULE", help="Exit code 1 unless it holds, such as 'no group worse'."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write HTML, Markdown, JUnit XML and JSON there.")
    ] = None,
    trend: Annotated[bool, typer.Option("--trend", help="All checkpoints in order, not only two.")] = False,
    rerun: Annotated[
        list[str] | None, typer.Option("--rerun", metavar="PATH", help="Another run of BEFORE, for the noise floor.")
    ] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Which score, where the records have several.")] = None,
    margin: Annotated[float, typer.Option("--margin", min=0.0, help="Differences within it count as none.")] = 0.02,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything resampled.")] = 0,
    cast: Annotated[
        Path | None, typer.Option("--cast", metavar="FILE", help="Models of AFTER: name the teacher of each lost item.")
    ] = None,
    json_: Json = False,
) -> None:
    """What got better, what got worse, and which teacher it was lost to: two checkpoints on the same items.

    With --trend, more than two; the gate then compares the last checkpoint with the first. Exit code 1 when a gate fails.
    """
    if more and not trend:
        raise BadInput(f"got {2 + len(more)} record sets, expected 2; add --trend to see many checkpoints in order")
    from mopd_diag.diagnostics.gate import Gate

    rule = None if gate is None else Gate.parse(gate)
    from mopd_diag.study import compare as study

    checkpoints, console = [before, after, *(more or [])], stderr()
    with console.status("comparing") as status:
        comparison = study.compare(
            before,
            checkpoints[-1],
            margin=margin,
            seed=seed,
            reruns=rerun or [],
            cast=cast,
            metric=metric,
            told=status.update,
            warn=lambda text: console.print(f"warning: {text}", style="yellow"),
        )
        path = study.trend(checkpoints, margin=margin, seed=seed, metric=metric) if trend else None
    document = comparison.to_dict() | ({} if path is None else {"trend": path.to_dict()})
    result = None if rule is None else rule.check(document)
    if result is not None:
        document["gate"] = result.to_dict()
    if out is not None or not json_:
        from mopd_diag.reporting import comparison as report

        if out is not None:
            report.write_comparison(comparison, out, result)
            if path is not None:
                report.write_trend(path, out)
            console.print(f"report in {out}")
        if not json_ and path is not None:
            report.show_trend(path, stdout())
        elif not json_:
            report.show_comparison(comparison, stdout())
    if json_:
        emit(document)
    if result is not None:
        typer.echo(f"gate {'holds' if result.passed else 'failed'}: {result.reason}", err=True)
        if not result.passed:
            raise typer.Exit(1)
