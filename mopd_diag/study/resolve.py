"""From a plan's name or path to a resolved study: world, stages in order, who teaches what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mopd_diag import plans
from mopd_diag.config import (
    Budget,
    DPOStage,
    GRPOStage,
    MergeStage,
    ModelConfig,
    MOPDStage,
    Plan,
    PlantStage,
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
from mopd_diag.worlds.micro.quirks import quirk
from mopd_diag.worlds.world import World, world_of, world_table

ROLES = ("base", "teacher", "student", "rival", "control")
BITS = 7
"""Hidden dimensions that the micro world's vocabulary of 99 tokens needs at least: fewer cannot name them all apart."""
CLIMBS = (GRPOStage, PPOStage, DPOStage, RejectionStage)
"""Stages that learn from a judgement of answers: what a teacher-free control ends with."""


@dataclass(frozen=True)
class Study:
    """A plan with everything decided: its world, and its stages in an order in which parents come first."""

    plan: Plan
    world: World
    stages: tuple[Stage, ...]

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
        path = self.plan.world.path
        return found if path is None else {**found, "prompts": _prompts_hash(path)}


def builtin_names() -> list[str]:
    return sorted(p.name.removesuffix(".toml") for p in resources.files(plans).iterdir() if p.name.endswith(".toml"))


def study_names() -> list[str]:
    """The built-in studies: several recipes and seeds, read by `mopd_diag.study.studies`."""
    folder = resources.files(plans).joinpath("studies")
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def find_plan(name: str, *, seed: int | None = None, budget: Budget | None = None, world: str | None = None) -> Study:
    """A plan by built-in name, recipe name or TOML path, with the command line's overrides, resolved and validated whole.

    Raises BadInput for an unknown name, a broken file, an unknown domain, a cycle, a missing parent or an untaught domain.
    """
    table = located(_table(name), Path(name).parent)
    table |= {k: v for k, v in {"seed": seed, "budget": budget}.items() if v is not None}
    if world is not None:
        table |= located({"world": world_table(world)}, Path())
    return resolve(parse(Plan, table, name))


def resolve(plan: Plan) -> Study:
    """Decide world and stages; check that the stages can be run in an order and name only what exists."""
    world = world_of(plan.world)
    stages = plan.stages
    if plan.recipe is not None:
        if plan.recipe not in RECIPES:
            raise BadInput(f"plan '{plan.name}': no recipe '{plan.recipe}'; {nearest(plan.recipe, RECIPES)}")
        stages = recipe_stages(plan.recipe, world, plan.budget)
    for stage in stages:
        _check(stage, stages, world)
    study = Study(plan, world, _ordered(stages))
    _check_sizes(study)
    return study


def recipe_stages(recipe: str, world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of a recipe. Raises BadInput when the world does not have what the recipe needs."""
    try:
        return RECIPES[recipe][0](world, budget)
    except ValidationError as error:
        raise BadInput(
            f"recipe '{recipe}' does not fit world '{world.name}' with the domains {', '.join(world.domains)}: "
            f"{error.errors(include_url=False)[0]['msg']}"
        ) from None


def _check_sizes(study: Study) -> None:
    """Merging is arithmetic on parameters: only models of one size can be merged."""
    sizes: dict[str, ModelConfig] = {}
    for stage in study.stages:
        shrink = stage.shrink if isinstance(stage, SFTStage) else None
        sizes[stage.name] = sizes[stage.start] if stage.start else study.plan.model.shrunk(shrink)
        if shrink and (narrow := sizes[stage.name].hidden) < BITS:
            raise BadInput(
                f"stage '{stage.name}': shrink {shrink} leaves {narrow} of {study.plan.model.hidden} hidden dimensions, too few to "
                f"hold the vocabulary (at least {BITS}, one a bit of a token); raise shrink or the plan's `hidden`"
            )
        if isinstance(stage, MergeStage):
            used = stage.parents
            sizes[stage.name] = sizes[used[0]]
            other = next((m for m in used if sizes[m] != sizes[used[0]]), None)
            if other is not None:
                raise BadInput(
                    f"stage '{stage.name}' merges '{used[0]}' and '{other}', which are of different sizes; "
                    "only models of one size can be merged"
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
    """A document whose world's file has an absolute path; a relative one is taken from `folder`, that of the document."""
    world = table.get("world")
    if not isinstance(world, dict) or not isinstance(world.get("path"), str):
        return table
    return {**table, "world": {**world, "path": str((folder / world["path"]).resolve())}}


def _prompts_hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _check(stage: Stage, stages: Iterable[Stage], world: World) -> None:
    names = [s.name for s in stages]
    if names.count(stage.name) > 1:
        raise BadInput(f"two stages are called '{stage.name}'; names of stages are names of models, make them differ")
    if stage.name.split("-")[0].split(".")[0] not in ROLES:
        raise BadInput(f"stage '{stage.name}': names start with a role, expected one of {', '.join(ROLES)}")
    for domain in stage.domains:
        world.domain(domain)
    for parent in stage.waits_for:
        if parent not in names:
            raise BadInput(
                f"stage '{stage.name}' needs model '{parent}', which no stage makes; {nearest(parent, names)}"
            )
    _check_judges(stage, {s.name for s in stages if isinstance(s, RewardModelStage)})
    if isinstance(stage, RejectionStage):
        for domain in stage.sources:
            world.domain(domain)
    if isinstance(stage, PlantStage):
        quirk(stage.quirk)
    if isinstance(stage, MOPDStage | SeqKDStage):
        for domain in stage.teachers:
            world.domain(domain)
        untaught = [d for d in stage.domains or world.domains if d not in stage.teachers]
        if untaught:
            raise BadInput(
                f"stage '{stage.name}': no teacher for domain '{untaught[0]}'; add it to `teachers` or leave it out of `domains`"
            )
    if stage.match is not None and (isinstance(stage, MergeStage) or stage.start is None):
        raise BadInput(f"stage '{stage.name}': `match` is for stages that train on from a model; leave it out")
    if not isinstance(stage, MergeStage) and stage.algorithm != "sft" and stage.start is None:
        raise BadInput(f"stage '{stage.name}': {stage.algorithm} needs `start`, the model it starts from")


def _check_judges(stage: Stage, judges: set[str]) -> None:
    """A reward model can judge and do nothing else; nothing else can judge."""
    reward = getattr(stage, "reward", None)
    if reward is not None and reward not in judges:
        raise BadInput(
            f"stage '{stage.name}': reward '{reward}' is not a reward model; "
            + (nearest(reward, judges) if judges else "add a stage with algorithm 'reward-model'")
        )
    others = (getattr(stage, field, None) for field in ("start", "sampled_from", "reference"))
    for name in (*others, *stage.teachers_used):
        if name in judges:
            raise BadInput(
                f"stage '{stage.name}' uses '{name}', a reward model, as one that answers; only `reward` can name it"
            )


def _ordered(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Parents before children, otherwise as written. Raises BadInput on a cycle."""
    left, done = list(stages), list[Stage]()
    while left:
        ready = next((s for s in left if all(p in {d.name for d in done} for p in s.waits_for)), None)
        if ready is None:
            raise BadInput(f"stages wait for one another in a circle: {', '.join(s.name for s in left)}; break it")
        left.remove(ready)
        done.append(ready)
    return tuple(done)


def resolve_identity(identity: dict[str, Any]) -> Study:
    """The study of a manifest's `identity`, whatever the recipe says today."""
    plan = parse(Plan, identity["plan"], "manifest")
    stages = TypeAdapter(tuple[Stage, ...]).validate_python(tuple(identity["stages"]))
    path, known = plan.world.path, identity.get("prompts")
    if path is not None and path.is_file() and known not in (None, _prompts_hash(path)):
        raise BadInput(
            f"{path} has changed since the run began, or is another file here; put the old one back, or start a new run"
        )
    return Study(plan, world_of(plan.world), stages)
