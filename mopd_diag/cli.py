"""The command line: thin verbs, lazy imports, one line for every mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mopd_diag.errors import BadInput, MopdDiagError

app = typer.Typer(
    name="mopd-diag",
    help="Evaluate and diagnose multi-teacher on-policy distillation: which teacher taught what, what did the teachers cap, "
    "what did the domains do to one another.\n\nStart with: mopd-diag run quickstart",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

STOPPED = 130
"""Exit code of a process that was stopped from the keyboard."""
GO_ON = "stopped; what was done is kept, repeat the command to go on"

BudgetName = Literal["smoke", "small", "full"]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output and nothing else there.")]
Run = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.", show_default=False)]


def emit(document: Any) -> None:
    """One JSON document on standard output; what is not a finite number is null."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def stdout() -> Any:
    """Tables for a terminal; wide enough to be read whole when they go to a file or a pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=180)


def _version(wanted: bool) -> None:
    if wanted:
        from mopd_diag import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Which teacher taught what, what did the teachers cap, what did the domains do to one another."""


@app.command(epilog="Example: mopd-diag plans --json")
def plans(json_: Json = False) -> None:
    """List the built-in plans and recipes, one line each."""
    from mopd_diag.study.listing import listed

    rows = listed()
    if json_:
        emit({"plans": rows})
        return
    from rich.table import Table

    table = Table("name", "kind", "teachers", "domains", "summary", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], row["kind"], str(row["teachers"]), str(row["domains"]), row["summary"])
    stdout().print(table)


@app.command(epilog="Example: mopd-diag run quickstart --out runs/quickstart --seed 1 --budget smoke")
def run(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A built-in name or a TOML file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory; default runs/PLAN-BUDGET-sSEED.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of everything random; default the plan's.")
    ] = None,
    budget: Annotated[
        BudgetName | None, typer.Option("--budget", help="How much to train; default the plan's.")
    ] = None,
    world: Annotated[
        str | None, typer.Option("--world", metavar="NAME", help="World, or WORLD:DOMAIN,DOMAIN; default the plan's.")
    ] = None,
    scheduler: Annotated[
        Literal["local", "ray"], typer.Option("--scheduler", help="Who runs independent stages.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes side by side; default one a core.")
    ] = None,
    json_: Json = False,
) -> None:
    """Train, evaluate and diagnose a plan. Repeating the command goes on where it stopped."""
    from mopd_diag.study.resolve import find_plan

    if scheduler != "local":
        raise BadInput(f"scheduler '{scheduler}' is not built yet, expected 'local'; leave the option out")
    study = find_plan(plan, seed=seed, budget=budget, world=world)
    folder = out or Path("runs") / f"{study.plan.name}-{study.plan.budget}-s{study.plan.seed}"
    from mopd_diag.study.run import run_study

    directory = run_study(study, folder, workers=workers, console=stderr())
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
    json_: Json = False,
) -> None:
    """Pre-flight: config, tokenizers, initial KL of each teacher, token and gradient share per domain.

    Exit code 1 when something found would make the training or the diagnosis fail.
    """
    from mopd_diag.study.check import check_target

    found = check_target(target, prompts, seed)
    if json_:
        emit({"findings": [f.to_dict() for f in found]})
    else:
        from mopd_diag.reporting.terminal import findings_table

        stdout().print(findings_table(found))
    if any(f.severity == "blocking" for f in found):
        raise typer.Exit(1)


@app.command(epilog="Example: mopd-diag attribute cast.toml --prompts prompts.jsonl --out diagnosis")
def attribute(
    cast: Annotated[Path, typer.Argument(metavar="CAST", help="A cast file.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where traces and answers are written.", show_default=False)
    ],
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE.jsonl", help="Prompts; the student samples the answers.")
    ] = None,
    rollouts: Annotated[
        Path | None, typer.Option("--rollouts", metavar="FILE.jsonl", help="Given answers, scored as they are.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest sampled answer.")] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="Sampling temperature; 0 is greedy.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampled answers.")] = 0,
    json_: Json = False,
) -> None:
    """Attribute a student's behaviour to base and teachers, for any checkpoints that share a tokenizer."""
    if (prompts is None) == (rollouts is None):
        raise BadInput(
            "give either --prompts (the student samples) or --rollouts (answers as they are), not both and not neither"
        )
    from mopd_diag.config import load_cast
    from mopd_diag.prompts import read_prompts

    members = load_cast(cast)
    lines = read_prompts(prompts or rollouts or Path(), responses=rollouts is not None)
    if prompts is not None:
        from dataclasses import replace

        lines = [replace(p, response=None) for p in lines]
    from mopd_diag.study.cast import attribute_cast, write_attribution

    console = stderr()
    with console.status("attributing") as status:
        attribution = attribute_cast(
            members,
            lines,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            told=status.update,
            warn=lambda text: console.print(f"warning: {text}", style="yellow"),
        )
    write_attribution(attribution, out)
    document = attribution.to_dict()
    if json_:
        emit(document)
        return
    from mopd_diag.reporting.terminal import attribution_table

    stdout().print(attribution_table(document))
    console.print(f"traces and answers in {out}")


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


@app.command(epilog="Example: mopd-diag report runs/quickstart --out report.html")
def report(
    directory: Run,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="Default DIR/report.html; Markdown goes beside it."),
    ] = None,
    json_: Json = False,
) -> None:
    """Write one self-contained HTML page, and Markdown beside it."""
    from mopd_diag.reporting.report import write_report
    from mopd_diag.runs.directory import RunDirectory

    html, markdown = write_report(RunDirectory.open(directory), out)
    if json_:
        emit({"html": str(html), "markdown": str(markdown)})
    else:
        typer.echo(f"{html}\n{markdown}")


@app.command(epilog="Example: mopd-diag bench sampling --json")
def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="sampling or training.", show_default=False)],
    json_: Json = False,
) -> None:
    """Measure this tool side by side with others, in one run on this machine."""
    from mopd_diag.study.benches import run_bench

    run_bench(name, emit if json_ else None)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; mistakes become one line on standard error and exit code 2."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments
    # Accepted anywhere, because people add it to a command that just failed.
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = app(args=arguments, prog_name="mopd-diag", standalone_mode=False)
    except MopdDiagError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        if debug:
            raise
        context = getattr(error, "ctx", None)
        message = getattr(
            error, "format_message", None
        )  # typer's usage errors have one; their class has no public name
        said = (message() if message else str(error)).replace("Value error, ", "")
        _fail(f"{said} (see: {context.command_path if context else 'mopd-diag'} --help)", 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail(GO_ON, STOPPED)
    except BrokenPipeError:
        sys.exit(0)  # the reader of our output has had enough
    except OSError as error:
        if debug:
            raise
        _fail(
            f"{error.filename or 'file'}: {error.strerror or error}; check the path, its permissions and the free space",
            2,
        )
    except Exception as error:
        if debug:
            raise
        _fail(
            f"unexpected {type(error).__name__}: {error}; this is a bug: repeat with --debug and report what it shows",
            1,
        )
    else:
        if code == STOPPED:  # typer turns Ctrl-C into this
            _fail(GO_ON, STOPPED)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    sys.stderr.write(f"mopd-diag: {line}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
