"""Verbs that train: what can be run, whether it can, and the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mopd_diag.cli.shared import (
    BudgetName,
    Device,
    Json,
    RayAddress,
    Scheduler,
    app,
    emit,
    ray_scheduler,
    stderr,
    stdout,
)


@app.command(epilog="Example: mopd-diag plans --json")
def plans(json_: Json = False) -> None:
    """List the built-in plans, recipes and studies, one line each."""
    from mopd_diag.study.listing import listed

    rows = listed()
    if json_:
        emit({"plans": rows})
        return
    from rich.table import Table

    table = Table("name", "kind", "teachers", "domains", "summary", box=None, pad_edge=False)
    for row in rows:
        numbers = ("–" if row[key] is None else str(row[key]) for key in ("teachers", "domains"))
        table.add_row(row["name"], row["kind"], *numbers, row["summary"])
    stdout().print(table)


@app.command(epilog="Example: mopd-diag run quickstart --out runs/quickstart --seed 1 --budget smoke")
def run(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A built-in name or a TOML file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory; default runs/PLAN-BUDGET-sSEED.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            min=0,
            help="Seed of everything random; default the plan's. Repeat it for several runs and one table.",
        ),
    ] = None,
    budget: Annotated[
        BudgetName | None, typer.Option("--budget", help="How much to train; default the plan's.")
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(
            "--world",
            metavar="NAME",
            help="World, or WORLD:DOMAIN,DOMAIN; jsonl:FILE for your own prompts, gym:NAMES for reasoning-gym. Default the plan's.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PATH",
            help="Checkpoint to start from: a Hugging Face directory, a GGUF file, or package:NAME. Default the plan's.",
        ),
    ] = None,
    scheduler: Scheduler = "local",
    ray_address: RayAddress = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes side by side; default one a core.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="NAMES",
            help="Stream training to tensorboard, wandb, trackio, mlflow (docs/bridges.md).",
            show_default=False,
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Train, evaluate and diagnose a plan, or a study of several recipes and seeds. Repeating the command goes on where it stopped."""
    from mopd_diag.runs.metrics import tracker_names
    from mopd_diag.study.resolve import find_plan
    from mopd_diag.study.studies import find_study, run_studies

    ray_for = ray_scheduler(scheduler, ray_address)
    trackers = tracker_names(metrics)
    if (several := find_study(plan, seeds=seed or (), budget=budget, world=world, model=model)) is not None:
        folder = out or Path("runs") / f"{several.study.name}-{several.study.budget}"
        results = run_studies(
            several, folder, workers=workers, console=stderr(), ray=ray_for(folder), trackers=trackers
        )
        if json_:
            emit(results)
        else:
            from mopd_diag.reporting.study_table import study_table

            stdout().print(study_table(results))
        return
    study = find_plan(plan, seed=seed[0] if seed else None, budget=budget, world=world, model=model)
    folder = out or Path("runs") / f"{study.plan.name}-{study.plan.budget}-s{study.plan.seed}"
    from mopd_diag.study.run import run_study

    directory = run_study(study, folder, workers=workers, console=stderr(), ray=ray_for(folder), trackers=trackers)
    if json_:
        from mopd_diag.diagnostics.study import run_document

        emit(run_document(directory))
    else:
        from mopd_diag.reporting.terminal import show_run

        show_run(directory, stdout())


@app.command(epilog="Example: mopd-diag check quickstart; mopd-diag check cast.toml --prompts prompts.jsonl")
def check(
    target: Annotated[
        str, typer.Argument(metavar="PLAN_OR_CAST", help="A plan's name or file, or a cast file.", show_default=False)
    ],
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE.jsonl", help="Prompts on which a cast's teachers are compared."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampled answers.")] = 0,
    world: Annotated[str | None, typer.Option("--world", metavar="NAME", help="A plan's world, as for `run`.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PATH", help="A plan's first checkpoint, as for `run`.")
    ] = None,
    engine: Annotated[
        Literal["torch", "vllm"],
        typer.Option(
            "--engine", help="vllm: measure too how far its sampling of a cast's student is from the trainer."
        ),
    ] = "torch",
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Pre-flight: config, tokenizers, initial KL of each teacher, token and gradient share per domain.

    Exit code 1 when something found would make the training or the diagnosis fail.
    """
    from mopd_diag.study.check import check_target

    found = check_target(target, prompts, seed, world=world, model=model, engine=engine, device=device)
    if json_:
        emit({"findings": [f.to_dict() for f in found]})
    else:
        from mopd_diag.reporting.terminal import findings_table

        stdout().print(findings_table(found))
    if any(f.severity == "blocking" for f in found):
        raise typer.Exit(1)
