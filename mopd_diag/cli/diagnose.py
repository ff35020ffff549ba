"""Verbs that ask where a behaviour comes from: attribute, explain."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mopd_diag.cli.shared import Device, Json, Run, app, emit, stderr, stdout
from mopd_diag.errors import BadInput


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
        Path | None,
        typer.Option(
            "--rollouts",
            metavar="FILE",
            help="Given answers, scored as they are; also what TRL, verl or NeMo-RL logged.",
        ),
    ] = None,
    domains: Annotated[
        Path | None,
        typer.Option("--domains", metavar="FILE.jsonl", help="Prompts with domains, for rollouts that name none."),
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
    engine: Annotated[
        Literal["torch", "vllm"],
        typer.Option(
            "--engine", help="vllm: sample and score in vLLM, over K tokens of each model; for large models and GPUs."
        ),
    ] = "torch",
    vllm: Annotated[
        list[str] | None,
        typer.Option(
            "--vllm",
            metavar="NAME=VALUE",
            help="An option of vllm.LLM, such as tensor_parallel_size=2; may be repeated.",
        ),
    ] = None,
    device: Device = "auto",
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
            domains=domains,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            engine=engine,
            vllm=_options(vllm or []),
            device=device,
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


def _options(given: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` lines as a table; a value that is no TOML is text, because a shell takes the quotes off."""
    found: dict[str, Any] = {}
    for line in given:
        name, equals, value = line.partition("=")
        if not (equals and value and name.isidentifier()):
            raise BadInput(f"--vllm {line}: expected NAME=VALUE, such as tensor_parallel_size=2 or quantization=fp8")
        try:
            found[name] = tomllib.loads(f"value={value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found


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
