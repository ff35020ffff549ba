"""The verb that asks a cast the questions of lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mopd_diag.cli.shared import Device, Json, RayAddress, Scheduler, app, emit, ray_scheduler, stderr, stdout
from mopd_diag.errors import BadInput


@app.command(
    name="eval",
    epilog="Example: mopd-diag eval runs/quickstart --tasks mopd_micro_addition,mopd_micro_stack --out results/quickstart",
)
def evaluate(
    cast: Annotated[Path, typer.Argument(metavar="CAST", help="A cast file or a run directory.", show_default=False)],
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks", metavar="NAMES", help="lm-eval's tasks, groups or patterns, and mopd_WORLD[_DOMAIN].", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Results; repeating goes on.", show_default=False)],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first items of each task only.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers to each item of a world's task.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="Of generated answers; 0 is greedy.")] = 0.0,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Examples before a question; default the task's.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask in each model's own chat template.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Texts at once; default by their length.")
    ] = None,
    include_path: Annotated[
        list[Path] | None, typer.Option("--include-path", metavar="DIR", help="More tasks, as lm-eval reads them.")
    ] = None,
    allow_network: Annotated[
        bool, typer.Option("--allow-network", help="Let tasks download their data.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of sampled answers and of few-shot examples.")] = 0,
    device: Device = "auto",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Models asked side by side; default one, on Ray one a core.")
    ] = None,
    scheduler: Scheduler = "local",
    ray_address: RayAddress = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """lm-eval over every model of a cast, each answer kept; compare, caps and report read the results."""
    names = [n.strip() for n in tasks.split(",") if n.strip()]
    if not names:
        raise BadInput("--tasks names no task; give names with commas between them, such as mopd_micro")
    ray = ray_scheduler(scheduler, ray_address)
    from mopd_diag.study.eval_asking import Settings
    from mopd_diag.study.evals import evaluate as evaluated

    settings = Settings(limit, samples, temperature, num_fewshot, apply_chat_template, seed, batch_size, device)
    console = stderr()
    with console.status("evaluating") as status:
        found = evaluated(
            cast,
            names,
            out,
            settings,
            include=include_path or [],
            network=allow_network,
            told=lambda text: status.update(text),
            warn=lambda text: console.print(f"note: {text}", style="dim", markup=False, soft_wrap=True),
            workers=workers,
            ray=ray(out),
        )
    if json_:
        emit(found.to_dict())
        return
    from mopd_diag.reporting.terminal import show_tables
    from mopd_diag.runs.directory import RunDirectory

    show_tables(RunDirectory.open(out), stdout(), ["accuracy"])
    console.print(f"results in {out}; next: mopd-diag compare {out}:base {out}:student", markup=False, soft_wrap=True)
