"""What all verbs share: the app they hang on, output for people and for programs, common options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mopd_diag.errors import BadInput

app = typer.Typer(
    name="mopd-diag",
    help="Evaluate and diagnose multi-teacher on-policy distillation: which teacher taught what, what did the teachers cap, "
    "what did the domains do to one another.\n\nStart with: mopd-diag run quickstart",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BudgetName = Literal["smoke", "small", "full"]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output and nothing else there.")]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto is a GPU where there is one; or cpu, cuda, cuda:N.")
]
Scheduler = Annotated[
    Literal["local", "ray"],
    typer.Option("--scheduler", help="Who runs the jobs: processes of this machine, or Ray (docs/scale.md)."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDR",
        help="A Ray cluster, HOST:PORT or auto; default one on this machine for this run.",
        show_default=False,
    ),
]
Run = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.", show_default=False)]


def emit(document: Any) -> None:
    """One JSON document on standard output; what is not a finite number is null."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def ray_scheduler(scheduler: str, address: str | None) -> Any:
    """A function from the directory that jobs work in to the RayScheduler that was asked for, or to None."""
    if scheduler == "local" and address is not None:
        raise BadInput(f"--ray-address {address} without --scheduler ray; add it, or leave the address out")

    def of(folder: Path) -> Any:
        from mopd_diag.runs.ray_scheduler import RayScheduler

        return RayScheduler(folder, address) if scheduler == "ray" else None

    return of


def stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def stdout() -> Any:
    """Tables for a terminal; wide enough to be read whole when they go to a file or a pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=180)
