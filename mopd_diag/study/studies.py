"""Run a study: every seed in its own run directory, all their jobs side by side, then one table over recipes and seeds."""

from __future__ import annotations

import json
import os
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
from mopd_diag.runs.progress import RunProgress
from mopd_diag.runs.scheduler import Job, run_jobs
from mopd_diag.study.joined import join, study_of
from mopd_diag.study.preflight import check_fit
from mopd_diag.study.resolve import Study, located, study_names
from mopd_diag.study.results import results
from mopd_diag.study.run import claim, finish, is_done, lock, make_jobs
from mopd_diag.study_plan import StudyPlan
from mopd_diag.worlds.world import world_of, world_table

SCHEMA = 1


def find_study(
    name: str, *, seed: int | None = None, budget: Budget | None = None, world: str | None = None
) -> StudyPlan | None:
    """A study by built-in name or by the path of a TOML file with a [study] table; None when it is a plan.

    `seed` asks for that seed alone. Raises BadInput for what cannot be run: an unknown recipe, a seed that repeats, a recipe
    that the world does not fit.
    """
    path = Path(name)
    if name in study_names():
        with resources.as_file(resources.files(plans).joinpath("studies", f"{name}.toml")) as file:
            table = read_toml(file)
    elif path.suffix == ".toml" and path.is_file() and "study" in read_toml(path):
        table = located(read_toml(path), path.parent)
    else:
        return None
    if world is not None:
        table |= located({"world": world_table(world)}, Path())
    if isinstance(table["study"], dict):
        given = {"seeds": None if seed is None else [seed], "budget": budget}
        table["study"] = table["study"] | {k: v for k, v in given.items() if v is not None}
    plan = parse(StudyPlan, table, name)
    for recipe in (plan.study.reference, *plan.study.recipes):
        if recipe not in RECIPES:
            raise BadInput(f"study '{plan.study.name}': no recipe '{recipe}'; {nearest(recipe, RECIPES)}")
    study_of(plan, plan.study.seeds[0])  # everything resolves before anything trains
    return plan


def run_studies(
    plan: StudyPlan, out: Path, *, workers: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Train, evaluate and diagnose all seeds under `out`; a repeated call goes on. Returns the results document, also written there.

    `out/seed-N` is a run like any other, with a report of its own. Raises RunDirectoryError when `out` belongs to another study.
    """
    console = console or Console(stderr=True, quiet=True)
    found = {seed: study_of(plan, seed) for seed in plan.study.seeds}
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
        with RunProgress(console, sum(j.weight for j in left)) as watcher:
            run_jobs(left, workers or os.cpu_count() or 1, watcher)
        for seed, run in runs.items():
            finish(run, found[seed])
        document = {"schema": SCHEMA, **results(plan, found, runs)}
        write_json(out / "results.json", document)
    return document


def folder(out: Path, seed: int) -> Path:
    """The run directory of one seed."""
    return out / f"seed-{seed}"


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
        theirs = parse(StudyPlan, _read_json(path), str(path)).model_dump(mode="json")
        if _but_seeds(theirs) != _but_seeds(document):
            raise RunDirectoryError(f"{out} belongs to another study ({theirs['study']['name']}); choose another --out")
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunDirectoryError(f"{out} is not empty and holds no study; choose another --out")
    write_json(path, document)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirectoryError(f"{path} is not JSON ({error}); restore it or choose another --out") from error


def _but_seeds(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "study": {**document["study"], "seeds": None}}
