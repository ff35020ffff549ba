"""A plan's MOPD stage as any trainer needs it: where its models lie, who teaches what, the prompts of every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mopd_diag.config import MOPDStage
from mopd_diag.errors import BadInput, RunDirectoryError, nearest
from mopd_diag.study.resolve import Study
from mopd_diag.types import Item
from mopd_diag.worlds.domain import Domain

EVALUATION = "eval.jsonl"
"""Held-out prompts, in every export: id, prompt, domain, answer, as `attribute --prompts` and the callback read them."""
ASKED = "asked.jsonl"
"""The training prompts in the same form, each once: `attribute --rollouts … --domains` finds the domain of a logged answer there."""


@dataclass(frozen=True)
class Distillation:
    """One MOPD stage of a settled study. `models` is the folder with a checkpoint a model, bearing the model's name."""

    study: Study
    stage: MOPDStage
    models: Path

    @cached_property
    def domains(self) -> tuple[str, ...]:
        return self.study.domains(self.stage)

    @cached_property
    def teachers(self) -> dict[str, tuple[str, ...]]:
        """Teacher → the domains it teaches here."""
        found: dict[str, list[str]] = {}
        for domain in self.domains:
            found.setdefault(self.stage.teachers[domain], []).append(domain)
        return {name: tuple(domains) for name, domains in found.items()}

    @property
    def student(self) -> str:
        """Where the student starts."""
        return self.path(self.stage.start or "base")

    def path(self, model: str) -> str:
        return str(self.models / model)

    @cached_property
    def items(self) -> list[Item]:
        """The prompts of all steps, in the order in which our own trainer asks them."""
        seed, s = self.study.plan.seed, self.stage
        steps = (self.study.world.draw_batch(self.domains, s.prompts, (seed, s.name, k)) for k in range(s.steps))
        return [item for step in steps for item in step]

    def asked(self) -> list[Item]:
        """Each training prompt once."""
        return list({i.item_id: i for i in self.items}.values())

    def held_out(self) -> list[Item]:
        """The items on which the plan evaluates its models."""
        world, n = self.study.world, self.study.plan.evaluation.items
        return [item for d in self.domains for item in world.evaluation_items(d, n, ("evaluation",))]

    @cached_property
    def longest_answer(self) -> int:
        """Tokens; the largest of the domains' own limits, because trainers have one for all."""
        return max(self.study.world.domains[d].max_new_tokens for d in self.domains)

    @cached_property
    def longest_prompt(self) -> int:
        return max(self.study.tokens([i.prompt for i in self.asked()]))

    def row(self, item: Item) -> dict[str, Any]:
        teacher = self.stage.teachers[item.domain]
        return {
            "id": item.item_id,
            "prompt": item.prompt,
            "domain": item.domain,
            "teacher": teacher,
            "answer": item.target,
        }


@dataclass(frozen=True)
class Translation:
    """What a bridge makes of a stage: files by relative path, commands, and where each setting went or why it did not."""

    files: dict[str, bytes]
    commands: tuple[str, ...]
    mapped: dict[str, str]
    left_out: dict[str, str]
    read_back: tuple[str, ...]


def distillation_of(study: Study, models: Path | None, stage: str | None = None) -> Distillation:
    """The MOPD stage to export: the one named, or the last on the student's line.

    Raises BadInput when there is none, RunDirectoryError when `models` lacks a checkpoint that the stage needs. Without `models`
    they are looked for in `models` beside the config.
    """
    found = {s.name: s for s in study.stages if isinstance(s, MOPDStage)}
    if not found:
        raise BadInput(f"plan '{study.plan.name}' has no stage with algorithm 'mopd'; nothing is left to export")
    if stage is not None and stage not in found:
        raise BadInput(f"plan '{study.plan.name}' has no mopd stage '{stage}'; {nearest(stage, found)}")
    chosen = found[stage] if stage is not None else found.get("student", next(reversed(found.values())))
    if models is not None:
        for name in chosen.parents:
            if not (models / name / "config.json").is_file():
                raise RunDirectoryError(
                    f"no checkpoint {models / name}: stage '{chosen.name}' needs {', '.join(chosen.parents)}; train them with "
                    "`mopd-diag run`, or leave --models out and put them there later"
                )
    return Distillation(study, chosen, Path("models") if models is None else models.resolve())


def never_there(d: Distillation) -> dict[str, str]:
    """Settings of ours that no trainer here has, as far as this stage uses them: setting → what happens instead."""
    s, missing = d.stage, dict[str, str]()
    if s.weighting != "none":
        missing[f'weighting = "{s.weighting}"'] = "tokens of all domains weigh the same"
    if s.extrapolation != 1:
        missing[f"extrapolation = {s.extrapolation}"] = "the student is pulled to the teacher itself"
    if s.form == "sampled" and s.baseline != "none":
        missing[f'baseline = "{s.baseline}"'] = "the advantage is not centred: the same gradient on average, noisier"
    if s.match is not None:
        missing["match"] = f"{s.steps} steps are trained, whatever they cost"
    if speakers := speaking(d.study.world.domains[n] for n in d.domains):
        missing[f"replies of the world ({', '.join(speakers)})"] = (
            "nobody answers a call: the student goes on writing by itself, and learns what it wrote"
        )
    limits = {n: d.study.world.domains[n].max_new_tokens for n in d.domains}
    if len(set(limits.values())) > 1:
        missing["a limit of answer tokens a domain"] = f"one for all, the largest: {d.longest_answer}"
    return missing


def speaking(domains: Iterable[Domain]) -> list[str]:
    """The domains in which the world answers calls."""
    return [d.name for d in domains if type(d).reply is not Domain.reply]
