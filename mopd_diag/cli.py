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
    """List the built-in plans, recipes and studies, one line each."""
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
        str | None,
        typer.Option(
            "--world",
            metavar="NAME",
            help="World, or WORLD:DOMAIN,DOMAIN; jsonl:FILE for your own prompts, gym:NAMES for reasoning-gym. Default the plan's.",
        ),
    ] = None,
    scheduler: Annotated[
        Literal["local", "ray"], typer.Option("--scheduler", help="Who runs independent stages.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes side by side; default one a core.")
    ] = None,
    json_: Json = False,
) -> None:
    """Train, evaluate and diagnose a plan, or a study of several recipes and seeds. Repeating the command goes on where it stopped."""
    from mopd_diag.study.resolve import find_plan
    from mopd_diag.study.studies import find_study, run_studies

    if scheduler != "local":
        raise BadInput(f"scheduler '{scheduler}' is not built yet, expected 'local'; leave the option out")
    if (several := find_study(plan, seed=seed, budget=budget, world=world)) is not None:
        results = run_studies(
            several,
            out or Path("runs") / f"{several.study.name}-{several.study.budget}",
            workers=workers,
            console=stderr(),
        )
        if json_:
            emit(results)
        else:
            from mopd_diag.reporting.study_table import study_table

            stdout().print(study_table(results))
        return
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
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", metavar="K", min=1, help="Compare K tokens and a tail bucket, as served teachers give."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Attribute a student's behaviour to base and teachers, for any checkpoints.

    Members that share a tokenizer are compared token by token, others by the likelihood of the same bytes.
    """
    if (prompts is None) == (rollouts is None):
        raise BadInput(
            "give either --prompts (the student samples) or --rollouts (answers as they are), not both and not neither"
        )
    from mopd_diag.study.attribute import attribute as attributed
    from mopd_diag.study.cast import write_attribution

    console = stderr()
    with console.status("attributing") as status:
        attribution = attributed(
            cast,
            prompts=prompts,
            rollouts=rollouts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            told=status.update,
            warn=lambda text: console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True),
        )
    write_attribution(attribution, out)
    document = attribution.to_dict()
    if json_:
        emit(document)
        return
    from mopd_diag.reporting.terminal import attribution_table

    stdout().print(attribution_table(document))
    console.print(f"traces and answers in {out}")


@app.command(
    epilog="Example: mopd-diag explain runs/quickstart; mopd-diag explain runs/quickstart 'stack:C34+2*:' --rollouts 256"
)
def explain(
    directory: Run,
    item: Annotated[
        str | None, typer.Argument(metavar="ITEM", help="A failed item, or ITEM#SAMPLE.", show_default=False)
    ] = None,
    sample: Annotated[int | None, typer.Option("--sample", min=0, help="Which answer to ITEM; default its first failed one.")] = None,
    domain: Annotated[str | None, typer.Option("--domain", metavar="NAME", help="List the failures of a domain.")] = None,
    kind: Annotated[str | None, typer.Option("--class", metavar="NAME", help="List the failures of a class.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", metavar="NAME", help="List the failures of a teacher.")] = None,
    pivots: Annotated[bool, typer.Option("--pivots", help="Look for the pivot of failures of every domain first.")] = False,
    items: Annotated[int, typer.Option("--items", min=1, help="Failed items a domain for --pivots.")] = 20,
    rollouts: Annotated[int, typer.Option("--rollouts", min=1, help="Continuations of each prefix.")] = 64,
    no_rollouts: Annotated[bool, typer.Option("--no-rollouts", help="Continue nothing: no value, pivot or counterfactual.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the continuations.")] = 0,
    json_: Json = False,
) -> None:  # fmt: skip
    """Failures by teacher; with ITEM, one failure token by token, its pivot, and what would have saved it."""
    from mopd_diag.diagnostics import explained
    from mopd_diag.runs.directory import RunDirectory

    opened = RunDirectory.open(directory)
    if item is not None and (pivots or domain or kind or teacher):
        raise BadInput("ITEM is one failure; --pivots, --domain, --class and --teacher are about all of them")
    if pivots and no_rollouts:
        raise BadInput("--pivots needs rollouts: leave --no-rollouts out")
    if item is None and sample is not None:
        raise BadInput("--sample chooses an answer to ITEM; name the item")
    if item is not None:
        from mopd_diag.study.explain import explain_all

        failed = explained.failed_answers(opened, explained.explanations(opened))
        row = explained.find_failure(opened, failed, item, sample)
        (document,) = explain_all(opened, [row], rollouts=0 if no_rollouts else rollouts, seed=seed, console=stderr())
        from mopd_diag.reporting import explanation
        from mopd_diag.reporting.look import Cast

        if json_:
            emit({**document, "said": explanation.sentences(document)})
            return
        console = stdout()
        console.print(explanation.explanation(document, Cast.of(opened.manifest()), console.width))
        return
    if pivots:
        from mopd_diag.study.explain import chosen, explain_all

        failed = explained.failed_answers(opened, explained.explanations(opened))
        asked = explained.select(opened, failed, domain, None if kind == "conflict" else kind, teacher)
        explain_all(opened, chosen(asked, items), rollouts=rollouts, seed=seed, console=stderr())
    report = explained.report(opened)
    document = report.to_dict(explained.select(opened, report.failed, domain, kind, teacher))
    if json_:
        emit(document)
        return
    from mopd_diag.reporting import explanation

    listing = domain or kind or teacher
    stdout().print(explanation.failure_list(document) if listing else explanation.failure_tables(document))


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


@app.command(name="app", epilog="Example: mopd-diag app runs --port 8501")
def app_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs, or one run.")] = Path(),
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 8501,
) -> None:
    """The same evidence in the browser: Streamlit pages over a folder of runs, on this machine only."""
    from mopd_diag.study.app import serve

    serve(directory, port)


@app.command(epilog="Example: mopd-diag bench sampling --json")
def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="provenance, sampling, scoring, training, compare or app.", show_default=False
        ),
    ],
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, help="provenance: seed of a cast; repeat it for several. Default 0."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="provenance: where casts are kept. Default runs/provenance."),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure: speed side by side with other tools, or how often the attribution is right (provenance)."""
    from mopd_diag.study.benches import run_bench

    run_bench(name, emit if json_ else None, seeds=seed or (), out=out)


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
