"""Run a study: every seed in its own run directory, all their jobs side by side, then one table over recipes and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from mopd_diag import plans
from mopd_diag.config import Budget, parse, read_toml
from mopd_diag.errors import BadInput, RunDirectoryError, nearest
from mopd_diag.recipes import RECIPES
from mopd_diag.runs.directory import RunDirectory, write_json
from mopd_diag.runs.metrics import streaming
from mopd_diag.runs.progress import RunProgress
from mopd_diag.runs.ray_scheduler import RayScheduler
from mopd_diag.runs.scheduler import Job
from mopd_diag.study.conclude import conclude, folder, read_json
from mopd_diag.study.joined import join, study_of
from mopd_diag.study.preflight import check_fit
from mopd_diag.study.resolve import Study, find_plan, located, model_table, study_names
from mopd_diag.study.run import claim, finish, is_done, lock, make_jobs
from mopd_diag.study.settle import settled
from mopd_diag.study.shards import hand_out
from mopd_diag.study_plan import StudyPlan
from mopd_diag.worlds.world import world_of, world_table


def find_study(
    name: str,
    *,
    seeds: Sequence[int] = (),
    budget: Budget | None = None,
    world: str | None = None,
    model: str | None = None,
) -> StudyPlan | None:
    """A study by built-in name or by the path of a TOML file with a [study] table; or a recipe on several seeds. None when it is a
    plan, on one seed.

    `seeds` asks for these alone. Raises BadInput for what cannot be run: an unknown recipe, a seed that repeats, a recipe
    that the world does not fit.
    """
    path = Path(name)
    if name in study_names():
        with resources.as_file(resources.files(plans).joinpath("studies", f"{name}.toml")) as file:
            table = read_toml(file)
    elif path.suffix == ".toml" and path.is_file() and "study" in read_toml(path):
        table = located(read_toml(path), path.parent)
    elif len(seeds) > 1:
        return _of_seeds(name, seeds, budget, world, model)
    else:
        return None
    if world is not None:
        table |= located({"world": world_table(world)}, Path())
    if model is not None:
        table |= located({"model": model_table(table, model)}, Path())
    if isinstance(table["study"], dict):
        given = {"seeds": list(seeds) or None, "budget": budget}
        table["study"] = table["study"] | {k: v for k, v in given.items() if v is not None}
    plan = parse(StudyPlan, table, name)
    for recipe in (plan.study.reference, *plan.study.recipes):
        if recipe not in RECIPES:
            raise BadInput(f"study '{plan.study.name}': no recipe '{recipe}'; {nearest(recipe, RECIPES)}")
    study_of(plan, plan.study.seeds[0])  # everything resolves before anything trains
    return plan


def _of_seeds(
    name: str, seeds: Sequence[int], budget: Budget | None, world: str | None, model: str | None
) -> StudyPlan:
    """A plan made by a recipe, on several seeds: a study without other recipes, in which the recipe's own rivals stand."""
    plan = find_plan(name, seed=seeds[0], budget=budget, world=world, model=model).plan
    if plan.recipe is None:
        raise BadInput(
            f"plan '{plan.name}' has stages of its own; several seeds need a recipe or a study: give one --seed at a time"
        )
    section = {
        "name": plan.name,
        "summary": plan.summary,
        "reference": plan.recipe,
        "seeds": list(seeds),
        "budget": plan.budget,
    }
    rest = {k: getattr(plan, k) for k in ("world", "model", "evaluation", "diagnosis", "compute")}
    return parse(StudyPlan, {"study": section, **rest}, name)


def run_studies(
    plan: StudyPlan,
    out: Path,
    *,
    workers: int | None = None,
    console: Console | None = None,
    ray: RayScheduler | None = None,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Train, evaluate and diagnose all seeds under `out`; a repeated call goes on. Returns the results document, also written there.

    `out/seed-N` is a run like any other, with a report of its own; `out/report.html` is the study's. Raises RunDirectoryError when
    `out` belongs to another study.
    """
    console = console or Console(stderr=True, quiet=True)
    found = {seed: settled(study_of(plan, seed), of_recipes=True) for seed in plan.study.seeds}
    for study in found.values():
        check_fit(study, out)
    for note in join(plan, world_of(plan.world)).notes:
        console.print(f"note: {note}", style="dim", markup=False)
    _claim(plan, out)
    runs = {seed: claim(folder(out, seed), study, study.identity()) for seed, study in found.items()}
    with ExitStack() as held:
        for run in runs.values():
            held.enter_context(lock(run.path))
        everything = [j for seed, run in runs.items() for j in _jobs(run, found[seed], seed)]
        left = [job for job, done in everything if not done]
        if len(left) < len(everything):
            console.print(f"[dim]{out}: going on, {len(everything) - len(left)} of {len(everything)} jobs are done[/]")
        folders = {f"s{seed}/": run.path for seed, run in runs.items()}
        with (
            RunProgress(console, sum(j.weight for j in left)) as bars,
            streaming(trackers, bars, out, folders) as watcher,
        ):
            hand_out(left, found.values(), workers, watcher, ray)
        for seed, run in runs.items():
            finish(run, found[seed])
        return conclude(out, plan, found, runs)[0]


def _jobs(run: RunDirectory, study: Study, seed: int) -> list[tuple[Job, bool]]:
    """The jobs of one seed under names that no other seed's have, and whether each is done."""
    name = lambda job: f"s{seed}/{job}"  # noqa: E731
    return [
        (replace(j, name=name(j.name), needs=tuple(map(name, j.needs))), is_done(run.path, j.name))
        for j in make_jobs(run.path, study, study.identity())
    ]


def _claim(plan: StudyPlan, out: Path) -> None:
    """`study.json` says whose directory it is; seeds may be added later."""
    document, path = plan.model_dump(mode="json"), out / "study.json"
    if path.is_file():
        theirs = parse(StudyPlan, read_json(path), str(path)).model_dump(mode="json")
        if _but_seeds(theirs) != _but_seeds(document):
            raise RunDirectoryError(f"{out} belongs to another study ({theirs['study']['name']}); choose another --out")
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunDirectoryError(f"{out} is not empty and holds no study; choose another --out")
    write_json(path, document)


def _but_seeds(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "study": {**document["study"], "seeds": None}}
