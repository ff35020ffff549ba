"""An export on disk: the trainer's files, held-out prompts, a cast to diagnose the result with, and a README that says what went where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mopd_diag.bridges.distillation import ASKED, EVALUATION, Distillation, Translation, distillation_of
from mopd_diag.bridges.nemo_rl import to_nemo_rl
from mopd_diag.bridges.text import jsonl
from mopd_diag.bridges.trl import to_trl
from mopd_diag.bridges.verl import to_verl
from mopd_diag.errors import RunDirectoryError, writing
from mopd_diag.study.resolve import Study
from mopd_diag.study.settle import settled

Trainer = Literal["trl", "verl", "nemo-rl"]
TRANSLATORS: dict[Trainer, Callable[[Distillation], Translation]] = {
    "trl": to_trl,
    "verl": to_verl,
    "nemo-rl": to_nemo_rl,
}
TRIED: dict[Trainer, str] = {"trl": "TRL 1.16", "verl": "verl 0.9.1", "nemo-rl": "NeMo-RL 0.6"}


def export_plan(
    study: Study, trainer: Trainer, out: Path, *, models: Path | None = None, stage: str | None = None
) -> dict[str, Any]:
    """Write a plan's MOPD stage for a trainer into `out` and return what the README says, as a document.

    `models` is a folder with a checkpoint a model under the model's name, such as `models` of a run. Raises BadInput when the
    plan has no such stage, RunDirectoryError when checkpoints are missing or `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirectoryError(f"{out} is there already and not empty; choose another --out")
    distillation = distillation_of(settled(study), models, stage)
    made = TRANSLATORS[trainer](distillation)
    ours = lambda items: jsonl({k: v for k, v in distillation.row(i).items() if k != "teacher"} for i in items)  # noqa: E731
    files = {
        **made.files,
        EVALUATION: ours(distillation.held_out()),
        ASKED: ours(distillation.asked()),
        "cast.toml": cast_skeleton(distillation).encode(),
        "README.md": readme(distillation, trainer, made).encode(),
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
    return {
        "to": trainer,
        "tried_with": TRIED[trainer],
        "stage": distillation.stage.name,
        "out": str(out),
        "files": sorted(files),
        "commands": list(made.commands),
        "mapped": made.mapped,
        "without_counterpart": made.left_out,
        "read_back": list(made.read_back),
    }


def cast_skeleton(d: Distillation) -> str:
    """A cast file of the stage's own models; the student is what the trainer will have written."""
    lines = [
        "# The models of this distillation, for `mopd-diag attribute` and `check`. Same-base models that never taught, as",
        "# [controls.NAME], are what calibrated confidence needs.",
        "[base]",
        f'path = "{d.student}"',
        "",
        "[student]",
        'path = "student"  # the checkpoint that the trainer wrote',
    ]
    for teacher, domains in d.teachers.items():
        listed = ", ".join(f'"{n}"' for n in domains)
        lines += [
            "",
            f'[teachers."{teacher.removeprefix("teacher-")}"]',
            f'path = "{d.path(teacher)}"',
            f"domains = [{listed}]",
        ]
    return "\n".join(lines) + "\n"


def readme(d: Distillation, trainer: Trainer, made: Translation) -> str:
    """What to run, what each setting became, and what has no counterpart."""
    rows = lambda table: [f"| {_cell(k)} | {_cell(v)} |" for k, v in table.items()]  # noqa: E731
    plan = d.study.plan
    lines = [
        f"# {plan.name}: stage `{d.stage.name}` for {trainer}",
        "",
        f"Plan `{plan.name}`, budget {plan.budget}, seed {plan.seed}. Written for {TRIED[trainer]}. Run in this folder:",
        "",
        "```sh",
        *made.commands,
        "```",
        "",
        "| of the plan | where it went |",
        "|---|---|",
        *rows(made.mapped),
        "",
        "## Without a counterpart",
        "",
        "| of the plan | what happens instead |",
        "|---|---|",
        *rows(made.left_out or {"(nothing)": "everything has a counterpart"}),
        "",
        "## Reading the result back",
        "",
        *[f"- {line}" for line in made.read_back],
        f"- `{EVALUATION}`: the prompts on which the plan evaluates its models; `{ASKED}`: those it trains on, with their domains.",
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
