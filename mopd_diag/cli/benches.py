"""The verb that measures this software."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mopd_diag.cli.shared import Json, app, emit


@app.command(epilog="Example: mopd-diag bench sampling --json")
def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="What is right: provenance, interference, caps. What it costs: teachers, costs, scale. Speed: sampling, scoring, "
            "loglikelihood, training, compare, app; on a GPU: gpu.",
            show_default=False,
        ),
    ],
    seed: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            min=0,
            help="provenance, interference, teachers: seed of a cast; repeat it for several. Default 0.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="provenance, interference, teachers: where casts are kept. Default runs/NAME."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure: speed side by side with other tools, how often the attribution is right (provenance), whether gradients foresee harm
    (interference), or whether the caps hold what they say (caps)."""
    from mopd_diag.study.benches import run_bench

    run_bench(name, emit if json_ else None, seeds=seed or (), out=out)
