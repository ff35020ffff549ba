"""From a plan's name or path to a resolved study: world, stages in order, who teaches what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from mopd_diag import plans
from mopd_diag.config import (
    CHECKPOINT_KEYS,
    Budget,
    CheckpointStage,
    DPOStage,
    GRPOStage,
    ModelConfig,
    MOPDStage,
    Plan,
    PPOStage,
    RejectionStage,
    RewardModelStage,
    SeqKDStage,
    SFTStage,
    Stage,
    parse,
    read_toml,
)
from mopd_diag.errors import BadInput, nearest
from mopd_diag.recipes import RECIPES
from mopd_diag.study.affordable import check_affordable
from mopd_diag.study.validate import check_sizes, check_stage, ordered
from mopd_diag.worlds.world import World, world_of, world_table

if TYPE_CHECKING:
    from mopd_diag.models.first import FirstModel

MEASURED = 32
"""Prompts a domain whose lengths are measured before a run."""
PACKAGE = "package:"
"""Before the name of an installed package that holds a GGUF file."""
CLIMBS = (GRPOStage, PPOStage, DPOStage, RejectionStage)
"""Stages that learn from a judgement of answers: what a teacher-free control ends with."""


@dataclass(frozen=True)
class Study:
    """A plan with everything decided: its world, and its stages in an order in which parents come first."""

    plan: Plan
    world: World
    stages: tuple[Stage, ...]
    model: str | None = None
    """Content hash of the checkpoint that stages without parents start from; None without one, or before `settled`."""

    @cached_property
    def first(self) -> FirstModel | None:
        """That checkpoint, read from where the plan says it is; None where stages start from fresh weights."""
        from mopd_diag.models.first import find_first

        path = self.plan.model.path
        return None if path is None else find_first(path)

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text is for the models of this study; one a character without a checkpoint."""
        return [len(t) for t in texts] if self.first is None else [*map(len, self.first.tokenizer.encode_all(texts))]

    @cached_property
    def prompt_tokens(self) -> dict[str, int]:
        """Domain → tokens of the longest of `MEASURED` training prompts."""
        draw = lambda d: self.world.draw_batch([d], MEASURED, (self.plan.seed, "lengths"))  # noqa: E731
        return {d: max(self.tokens([i.prompt for i in draw(d)])) for d in self.world.domains}

    def stage(self, name: str) -> Stage:
        return next(s for s in self.stages if s.name == name)

    @cached_property
    def roles(self) -> dict[str, dict[str, Any]]:
        """Model → its role, the domains it was trained on or teaches. A name with a dot is a checkpoint on the way, and so is a
        reward model: it answers nothing."""
        table = {}
        for s in self.stages:
            on_the_way = "." in s.name or isinstance(s, RewardModelStage)
            role = "checkpoint" if on_the_way else s.name.split("-")[0]
            table[s.name] = {"role": role, "domains": list(self.domains(s)), "algorithm": s.algorithm}
        return table

    def domains(self, stage: Stage) -> tuple[str, ...]:
        """The domains a stage trains on: its own, or all of the world's."""
        return stage.domains or tuple(self.world.domains)

    def teachers(self) -> dict[str, list[str]]:
        """Teacher model → the domains it teaches."""
        return {name: t["domains"] for name, t in self.roles.items() if t["role"] == "teacher"}

    def route(self) -> dict[str, str]:
        """Domain → the teacher that the student's prompts were routed to, by the last stage on its line that learned from
        teachers; where none did (a merge), every domain to the teacher that trained on it. Empty without teachers."""
        stages = {s.name: s for s in self.stages}
        stage = stages.get("student")
        while stage is not None:
            if isinstance(stage, MOPDStage | SeqKDStage):
                return dict(stage.teachers)
            if isinstance(stage, RejectionStage) and any(_is_teacher(s) for s in stage.sources.values()):
                return dict(stage.sources)
            stage = stages.get(stage.start or "")
        return {domain: name for name, domains in self.teachers().items() for domain in domains}

    def sequence(self) -> list[tuple[str, str]]:
        """The sequential rival's checkpoints with the domain each was trained on last, in order."""
        steps = [s for s in self.stages if s.name.split(".")[0] == "rival-sequential-rl"]
        return [(s.name, s.domains[0]) for s in steps] if all(len(s.domains) == 1 for s in steps) else []

    def controls(self) -> list[str]:
        """Models that never saw a teacher: the null against which closeness to a teacher is read. Two trainings without a
        teacher differ from each other too, so one control is fewer than there should be."""
        rivals = [s for s in self.stages if s.name.startswith(("control-", "rival-")) and "." not in s.name]
        return [s.name for s in rivals if isinstance(s, CLIMBS) and not any(map(self._taught, self.ancestry(s.name)))]

    def _taught(self, name: str) -> bool:
        """Is it a teacher, or did its own stage learn from another model? What a path samples of itself is no teacher."""
        stage = self.stage(name)
        if isinstance(stage, RejectionStage):
            line = {name.partition(".")[0], *(a.partition(".")[0] for a in self._line(name))}
            return _is_teacher(name) or any(s.partition(".")[0] not in line for s in stage.sources.values())
        return _is_teacher(name) or bool(stage.teachers_used)

    def _line(self, name: str) -> list[str]:
        """The model itself and what it started from, back to fresh weights."""
        start = self.stage(name).start
        return [name, *(self._line(start) if start else [])]

    @property
    def notes(self) -> list[str]:
        """What a reader should know before the study runs, a line each."""
        return list(dict.fromkeys(s.note for s in self.stages if s.note))

    def ancestry(self, name: str) -> list[str]:
        """The model itself and every model it descends from."""
        found: dict[str, None] = {}
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one not in found:
                found[one] = None
                waiting += self.stage(one).parents
        return list(found)

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: the resolved plan and stages, JSON-ready."""
        plan = self.plan.model_dump(mode="json", exclude_defaults=False)
        plan["stages"] = plan["stages"] if self.plan.recipe is None else []
        plan["world"]["domains"] = list(self.world.domains)
        found = {"plan": plan, "stages": [s.model_dump(mode="json") for s in self.stages]}
        if self.model is not None:
            found["model"] = self.model
        path = self.plan.world.path
        return found if path is None else {**found, "prompts": _prompts_hash(path)}


def builtin_names() -> list[str]:
    return sorted(p.name.removesuffix(".toml") for p in resources.files(plans).iterdir() if p.name.endswith(".toml"))


def study_names() -> list[str]:
    """The built-in studies: several recipes and seeds, read by `mopd_diag.study.studies`."""
    folder = resources.files(plans).joinpath("studies")
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def find_plan(
    name: str,
    *,
    seed: int | None = None,
    budget: Budget | None = None,
    world: str | None = None,
    model: str | None = None,
) -> Study:
    """A plan by built-in name, recipe name or TOML path, with the command line's overrides, resolved and validated whole.

    A checkpoint that it starts from is not read yet: see `mopd_diag.study.settle`.

    Raises BadInput for an unknown name, a broken file, an unknown domain, a cycle, a missing parent or an untaught domain.
    """
    table = located(_table(name), Path(name).parent)
    table |= {k: v for k, v in {"seed": seed, "budget": budget}.items() if v is not None}
    if world is not None:
        table |= located({"world": world_table(world)}, Path())
    if model is not None:
        table |= located({"model": model_table(table, model)}, Path())
    return resolve(parse(Plan, table, name))


def resolve(plan: Plan) -> Study:
    """Decide world and stages; check that the stages can be run in an order and name only what exists."""
    world = world_of(plan.world)
    stages = plan.stages
    if plan.recipe is not None:
        if plan.recipe not in RECIPES:
            raise BadInput(f"plan '{plan.name}': no recipe '{plan.recipe}'; {nearest(plan.recipe, RECIPES)}")
        stages = recipe_stages(plan.recipe, world, plan.budget, plan.model)
    for stage in stages:
        check_stage(stage, stages, world, plan.model)
    study = Study(plan, world, ordered(stages))
    check_sizes(study.stages, plan.model)
    _check_probe(study)
    check_affordable(study)
    return study


def recipe_stages(recipe: str, world: World, budget: Budget, model: ModelConfig | None = None) -> tuple[Stage, ...]:
    """The stages of a recipe. With `[model] path` the checkpoint stands where the recipe begins with a cold start.

    Raises BadInput when the world does not have what the recipe needs.
    """
    try:
        stages = RECIPES[recipe][0](world, budget)
        return (
            stages
            if model is None or model.path is None
            else tuple(_taken_over(s, recipe, model.cold_start) for s in stages)
        )
    except ValidationError as error:
        raise BadInput(
            f"recipe '{recipe}' does not fit world '{world.name}' with the domains {', '.join(world.domains)}: "
            f"{error.errors(include_url=False)[0]['msg']}"
        ) from None


def _taken_over(stage: Stage, recipe: str, steps: int) -> Stage:
    """The checkpoint in place of a cold start on the micro world's demonstrations, fine-tuned on right answers for `steps` steps."""
    if not isinstance(stage, SFTStage) or stage.start is not None:
        return stage
    if stage.shrink is not None:
        raise BadInput(
            f"recipe '{recipe}' begins '{stage.name}' from weights {stage.shrink} times as wide, which a checkpoint does not have; "
            "leave [model] path out, or choose another recipe"
        )
    if steps:
        return stage.model_copy(update={"steps": steps, "warmup": min(50, steps // 10), "decay": steps // 5})
    note = f"{stage.name} is the checkpoint as it is: the recipe's cold start is left out"
    return CheckpointStage(name=stage.name, domains=stage.domains, note=note)


def _check_probe(study: Study) -> None:
    """A probe asks whether RL from the student passes its teachers."""
    steps = study.plan.diagnosis.probe_steps
    lacking = next(
        (w for w, has in (("student", "student" in study.roles), ("teachers", study.teachers())) if not has), ""
    )
    if steps and lacking:
        raise BadInput(
            f"plan '{study.plan.name}': probe_steps {steps} needs a student with teachers, but no stage makes its {lacking}; "
            "set it to 0 or leave it out"
        )


def _is_teacher(name: str) -> bool:
    """A teacher, a model on the way to one, or a rival's own teacher (`rival-x.teacher-y`)."""
    return any(part.split("-")[0] == "teacher" for part in name.split("."))


def _table(name: str) -> dict[str, Any]:
    if name in builtin_names():
        text = resources.files(plans).joinpath(f"{name}.toml")
        with resources.as_file(text) as path:
            return read_toml(path)
    if name in RECIPES:
        return {"name": name, "summary": RECIPES[name][1], "recipe": name}
    if name.endswith(".toml") or "/" in name or Path(name).is_file():
        return read_toml(Path(name))
    raise BadInput(
        f"no plan or recipe '{name}'; {nearest(name, [*builtin_names(), *RECIPES, *study_names()])} (or give a TOML file)"
    )


def located(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A document whose world's file and whose model have absolute paths; relative ones are taken from `folder`, the document's."""
    for key in ("world", "model"):
        part = table.get(key)
        if isinstance(part, dict) and isinstance(path := part.get("path"), str) and not path.startswith(PACKAGE):
            table = {**table, key: {**part, "path": str((folder / path).resolve())}}
    return table


def model_table(table: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The [model] table that `--model` makes of a document's: its sizes do not fit a checkpoint and are dropped."""
    before = table.get("model")
    kept = {k: v for k, v in before.items() if k in CHECKPOINT_KEYS} if isinstance(before, dict) else {}
    return {**kept, "path": path}


def _prompts_hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def resolve_identity(identity: dict[str, Any]) -> Study:
    """The study of a manifest's `identity`, whatever the recipe says today."""
    plan = parse(Plan, identity["plan"], "manifest")
    stages = TypeAdapter(tuple[Stage, ...]).validate_python(tuple(identity["stages"]))
    path, known = plan.world.path, identity.get("prompts")
    if path is not None and path.is_file() and known not in (None, _prompts_hash(path)):
        raise BadInput(
            f"{path} has changed since the run began, or is another file here; put the old one back, or start a new run"
        )
    return Study(plan, world_of(plan.world), stages, identity.get("model"))
