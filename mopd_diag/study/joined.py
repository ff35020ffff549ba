"""Several recipes as one list of stages: what is the same is trained once, what is a rival's own is renamed and matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mopd_diag.config import Match, MergeStage, Plan, Stage
from mopd_diag.recipes.parts import slug
from mopd_diag.study.resolve import Study, recipe_stages, resolve
from mopd_diag.study_plan import StudyPlan
from mopd_diag.worlds.world import World, world_of

WORDS = ("name", "note", "matched_to", "matched_on")
"""Fields of a stage that do not change what it trains."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Stages of all recipes. `finals`: recipe → its final model. `shared`: recipe → stages of the reference that it uses."""

    stages: tuple[Stage, ...]
    finals: dict[str, str]
    shared: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


def study_of(plan: StudyPlan, seed: int) -> Study:
    """The study of one seed: a plan like any other, whose models are the reference's and `rival-RECIPE`."""
    s, joined = plan.study, join(plan, world_of(plan.world))
    rest = {k: getattr(plan, k) for k in ("world", "model", "evaluation", "diagnosis", "compute")}
    found = resolve(Plan(name=s.name, summary=s.summary, stages=joined.stages, budget=s.budget, seed=seed, **rest))
    return found


def join(plan: StudyPlan, world: World) -> Joined:
    """Reference first, then each rival's stages that the reference does not have. Raises BadInput for what does not fit."""
    s = plan.study
    whole = recipe_stages(s.reference, world, s.budget, plan.model)
    reference = _line(whole) if s.recipes else list(whole)
    stages, finals, shared = list(reference), {s.reference: "student"}, dict[str, tuple[str, ...]]()
    finals |= {
        x.name.removeprefix("rival-"): x.name for x in reference if x.name.startswith("rival-") and "." not in x.name
    }
    notes = [f"{s.reference}: {x.note}" for x in reference if x.note]
    for recipe in s.recipes:
        path = _line(recipe_stages(recipe, world, s.budget, plan.model))
        names, own = dict[str, str](), list[Stage]()
        for stage in path:
            told = _renamed(stage, names)
            twin = next((r.name for r in reference if r.name != "student" and _same(r, told)), None)
            if twin is not None and stage.name != "student":
                names[stage.name] = twin
                continue
            names[stage.name] = _name(recipe, stage.name, set(names.values()))
            own.append(told.model_copy(update={"name": names[stage.name]}))
        final = finals[recipe] = names["student"]
        shared[recipe] = tuple(n for n in names.values() if n in {r.name for r in reference})
        stages += _matched(own, final, s.reference, plan)
        notes += [f"{recipe}: {x.note}" for x in path if x.note]
    return Joined(tuple(stages), finals, shared, tuple(notes))


def _line(stages: Sequence[Stage]) -> list[Stage]:
    """The student and all it is made from, in order: a recipe's own rivals are left out."""
    by_name = {s.name: s for s in stages}
    needed, waiting = set[str](), ["student"]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += by_name[name].parents
    return [s for s in stages if s.name in needed]


def _renamed(stage: Stage, names: Mapping[str, str]) -> Stage:
    """The stage with the models it uses under their new names."""
    new = lambda name: names.get(name, name)  # noqa: E731
    changes: dict[str, Any] = {}
    for field in ("start", "sampled_from", "reference", "reward"):
        if getattr(stage, field, None):
            changes[field] = new(getattr(stage, field))
    for field in ("teachers", "sources"):
        if hasattr(stage, field):
            changes[field] = {d: new(t) for d, t in getattr(stage, field).items()}
    if isinstance(stage, MergeStage):
        changes["models"] = tuple(map(new, stage.models))
    return stage.model_copy(update=changes)


def _same(a: Stage, b: Stage) -> bool:
    """Do two stages train the same thing from the same models?"""
    return a.model_dump(exclude=set(WORDS)) == b.model_dump(exclude=set(WORDS))


def _name(recipe: str, name: str, taken: set[str]) -> str:
    """A rival's final model, or a checkpoint on its way."""
    if name == "student":
        return f"rival-{recipe}"
    rest = name.removeprefix("student.") if name.startswith("student.") else slug(name)
    short = f"rival-{recipe}.{rest}"[:64]
    return short if short not in taken else f"{short[:60]}-{len(taken)}"


def _matched(own: Sequence[Stage], final: str, reference: str, plan: StudyPlan) -> list[Stage]:
    """A rival's own stages, told when to stop. What it has of its own is shared out as the recipe shares out answers."""
    s = plan.study
    to = {"path": f"the whole path of {reference}", "student": f"the student's own stage of {reference}"}[s.scope]
    trained = [x for x in own if x.start and not isinstance(x, MergeStage)]
    total, found = sum(map(_answers, trained)), list[Stage]()
    for stage in own:
        if stage not in trained:
            said = f"nothing: it trains nothing after what it is made of; {reference} may cost more"
            words = {"matched_to": said} if isinstance(stage, MergeStage) else {}
            found.append(stage.model_copy(update=words))
            continue
        share = None if stage.name == final else _answers(stage) / total
        match = Match(to="student", on=s.match, scope="path" if s.scope == "path" else "stage", share=share)
        found.append(
            stage.model_copy(update={"match": match, "matched_to": to, "matched_on": s.match.replace("_", " ")})
        )
    return found


def _answers(stage: Stage) -> float:
    """Answers that a stage reads or samples in all its planned steps."""
    prompts = getattr(stage, "prompts", getattr(stage, "batch", 0)) * getattr(stage, "group", 1)
    return getattr(stage, "steps", 0) * prompts / getattr(stage, "updates", 1)
