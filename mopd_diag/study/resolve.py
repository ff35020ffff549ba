"""From a plan's name or path to a resolved study: world, stages in order, who teaches what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mopd_diag import plans
from mopd_diag.config import (
    Budget,
    GRPOStage,
    MergeStage,
    MOPDStage,
    Plan,
    PlantStage,
    RejectionStage,
    RewardModelStage,
    SeqKDStage,
    Stage,
    parse,
    read_toml,
)
from mopd_diag.errors import BadInput, nearest
from mopd_diag.recipes import RECIPES
from mopd_diag.worlds.micro.quirks import quirk
from mopd_diag.worlds.world import World, load_world

ROLES = ("base", "teacher", "student", "rival", "control")


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
        """Domain → the teacher that the student's prompts are routed to; empty when nothing was distilled."""
        for stage in self.stages:
            if stage.name == "student" and isinstance(stage, MOPDStage | SeqKDStage):
                return dict(stage.teachers)
        return {domain: name for name, domains in self.teachers().items() for domain in domains}

    def sequence(self) -> list[tuple[str, str]]:
        """The sequential rival's checkpoints with the domain each was trained on last, in order."""
        steps = [s for s in self.stages if s.name.split(".")[0] == "rival-sequential-rl"]
        return [(s.name, s.domains[0]) for s in steps] if all(len(s.domains) == 1 for s in steps) else []

    def controls(self) -> list[str]:
        """Models that never saw a teacher: the null against which closeness to a teacher is read. Two trainings without a
        teacher differ from each other too, so one control is fewer than there should be."""
        taught = {s.name for s in self.stages if s.teachers_used}
        rivals = [s for s in self.stages if s.name.startswith(("control-", "rival-")) and "." not in s.name]
        return [s.name for s in rivals if isinstance(s, GRPOStage) and not taught & set(self.ancestry(s.name))]

    def ancestry(self, name: str) -> list[str]:
        """The model itself and every model it descends from."""
        return [name, *(a for p in self.stage(name).parents for a in self.ancestry(p))]

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: the resolved plan and stages, JSON-ready."""
        plan = self.plan.model_dump(mode="json", exclude_defaults=False)
        plan["stages"] = plan["stages"] if self.plan.recipe is None else []
        plan["world"]["domains"] = list(self.world.domains)
        return {"plan": plan, "stages": [s.model_dump(mode="json") for s in self.stages]}


def builtin_names() -> list[str]:
    return sorted(p.name.removesuffix(".toml") for p in resources.files(plans).iterdir() if p.name.endswith(".toml"))


def find_plan(name: str, *, seed: int | None = None, budget: Budget | None = None, world: str | None = None) -> Study:
    """A plan by built-in name, recipe name or TOML path, with the command line's overrides, resolved and validated whole.

    Raises BadInput for an unknown name, a broken file, an unknown domain, a cycle, a missing parent or an untaught domain.
    """
    table = _table(name)
    table |= {k: v for k, v in {"seed": seed, "budget": budget}.items() if v is not None}
    if world is not None:
        world_name, _, domains = world.partition(":")
        table["world"] = {"name": world_name, "domains": [d for d in domains.split(",") if d]}
    return resolve(parse(Plan, table, name))


def resolve(plan: Plan) -> Study:
    """Decide world and stages; check that the stages can be run in an order and name only what exists."""
    world = load_world(plan.world.name, plan.world.domains or None)
    stages = plan.stages
    if plan.recipe is not None:
        if plan.recipe not in RECIPES:
            raise BadInput(f"plan '{plan.name}': no recipe '{plan.recipe}'; {nearest(plan.recipe, RECIPES)}")
        stages = RECIPES[plan.recipe][0](world, plan.budget)
    for stage in stages:
        _check(stage, stages, world)
    return Study(plan, world, _ordered(stages))


def _table(name: str) -> dict[str, Any]:
    if name in builtin_names():
        text = resources.files(plans).joinpath(f"{name}.toml")
        with resources.as_file(text) as path:
            return read_toml(path)
    if name in RECIPES:
        return {"name": name, "summary": RECIPES[name][1], "recipe": name}
    if name.endswith(".toml") or "/" in name or Path(name).is_file():
        return read_toml(Path(name))
    raise BadInput(f"no plan or recipe '{name}'; {nearest(name, [*builtin_names(), *RECIPES])} (or give a TOML file)")


def _check(stage: Stage, stages: Iterable[Stage], world: World) -> None:
    names = [s.name for s in stages]
    if names.count(stage.name) > 1:
        raise BadInput(f"two stages are called '{stage.name}'; names of stages are names of models, make them differ")
    if stage.name.split("-")[0].split(".")[0] not in ROLES:
        raise BadInput(f"stage '{stage.name}': names start with a role, expected one of {', '.join(ROLES)}")
    for domain in stage.domains:
        world.domain(domain)
    for parent in stage.parents:
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
        ready = next((s for s in left if all(p in {d.name for d in done} for p in s.parents)), None)
        if ready is None:
            raise BadInput(f"stages wait for one another in a circle: {', '.join(s.name for s in left)}; break it")
        left.remove(ready)
        done.append(ready)
    return tuple(done)


def resolve_identity(identity: dict[str, Any]) -> Study:
    """The study of a manifest's `identity`, whatever the recipe says today."""
    plan = parse(Plan, identity["plan"], "manifest")
    stages = TypeAdapter(tuple[Stage, ...]).validate_python(tuple(identity["stages"]))
    return Study(plan, load_world(plan.world.name, plan.world.domains or None), stages)
