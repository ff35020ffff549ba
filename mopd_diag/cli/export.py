"""The verb that hands a plan to another trainer: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mopd_diag.cli.shared import BudgetName, Json, app, emit, stdout


@app.command(epilog="Example: mopd-diag export quickstart --to verl --models runs/quickstart/models")
def export(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A built-in name or a TOML file.", show_default=False)],
    to: Annotated[Literal["trl", "verl", "nemo-rl"], typer.Option("--to", help="The trainer.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="An empty or new folder; default exports/PLAN-TRAINER.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", metavar="DIR", help="Checkpoints by model name, such as a run's models; default `models` there."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="A mopd stage; default the student's.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the prompts; default the plan's.")] = None,
    budget: Annotated[BudgetName | None, typer.Option("--budget", help="How much to train; default the plan's.")] = None,
    world: Annotated[str | None, typer.Option("--world", metavar="NAME", help="As in `run`.")] = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Write a plan's MOPD stage for another trainer: config, prompts with their teachers, and what has no counterpart there."""
    from mopd_diag.bridges.write import export_plan
    from mopd_diag.study.resolve import find_plan

    study = find_plan(plan, seed=seed, budget=budget, world=world)
    folder = out or Path("exports") / f"{study.plan.name}-{to}"
    document = export_plan(study, to, folder, models=models, stage=stage)
    if json_:
        emit(document)
        return
    from rich.table import Table

    console = stdout()
    console.print(f"{document['stage']} for {to} in {folder}", markup=False, highlight=False)
    for title, key in (("of the plan", "mapped"), ("without a counterpart", "without_counterpart")):
        table = Table(title, "where it went" if key == "mapped" else "what happens instead", box=None, pad_edge=False)
        for setting, became in document[key].items():
            table.add_row(setting, became)
        if document[key]:
            console.print(table, markup=False)
    console.print("\n".join(document["commands"]), markup=False, highlight=False)
