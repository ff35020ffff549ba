"""Verbs that read a run: what the teachers capped, what the domains did to one another."""

from __future__ import annotations

from typing import Annotated

import typer

from mopd_diag.cli.shared import Json, RayAddress, Run, Scheduler, app, emit, ray_scheduler, stderr, stdout
from mopd_diag.errors import BadInput


@app.command(epilog="Example: mopd-diag caps runs/quickstart --json; mopd-diag caps runs/quickstart --probe")
def caps(
    directory: Run,
    probe: Annotated[
        bool, typer.Option("--probe", help="Is the cap binding? Train a short RL run from the student and see.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, help="Of the probe; default about a tenth of the student's rollouts.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the probe; default the run's.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes, as in `run`; a probe needs one.", show_default=False),
    ] = None,
    scheduler: Scheduler = "local",
    ray_address: RayAddress = None,
    json_: Json = False,
) -> None:
    """What did the teachers cap? Recovery of each domain's headroom, with intervals and verdicts."""
    from mopd_diag.diagnostics.study import caps_of, probe_of
    from mopd_diag.runs.directory import RunDirectory

    if probe:
        from mopd_diag.study.probe import probe as train_probe

        ray = ray_scheduler(scheduler, ray_address)(directory)
        train_probe(directory, steps=steps, seed=seed, workers=workers, console=stderr(), ray=ray)
    else:
        given = {"steps": steps, "seed": seed, "workers": workers, "ray-address": ray_address}
        given["scheduler"] = None if scheduler == "local" else scheduler
        for name, value in given.items():
            if value is not None:
                raise BadInput(
                    f"--{name} {value} is about the probe, which was not asked for; add --probe or leave it out"
                )
    run = RunDirectory.open(directory)
    report = caps_of(run)
    if json_:
        found = probe_of(run, report)
        emit(report.to_dict() | {"probe": None if found is None else found.to_dict()})
    else:
        from mopd_diag.reporting.terminal import show_caps

        show_caps(run, stdout())


@app.command(epilog="Example: mopd-diag interference runs/quickstart")
def interference(directory: Run, json_: Json = False) -> None:
    """What did the domains do to one another? Transfer matrix, forgetting, regret, and which gradients fight, with verdicts."""
    from mopd_diag.diagnostics.study import geometry_of, interference_of
    from mopd_diag.runs.directory import RunDirectory

    run = RunDirectory.open(directory)
    if json_:
        report = interference_of(run)
        compared = geometry_of(run, report)
        emit(report.to_dict() | {"geometry": None if compared is None else compared.to_dict()})
    else:
        from mopd_diag.reporting.terminal import show_interference

        show_interference(run, stdout())
