"""Who is evaluated: the models of a cast file, or those of a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mopd_diag.config import load_cast
from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.runs.directory import RunDirectory

KIND = "evaluation"
"""`kind` in the manifest of what an evaluation writes; a run that was trained has none."""


@dataclass(frozen=True, slots=True)
class Member:
    """One model. `role` is base, student, teacher, rival or control; `domains` are what it teaches."""

    name: str
    role: str
    domains: tuple[str, ...]
    path: Path


def members_of(cast: Path) -> list[Member]:
    """Base and student first. Raises BadInput for a served member, or for a run that has not trained its models yet."""
    members = _of_run(RunDirectory.open(cast)) if cast.is_dir() else _of_cast(cast)
    missing = [m for m in members if not m.path.exists()]
    if missing:
        what = "the run is not finished: repeat `mopd-diag run`" if cast.is_dir() else "check the path"
        raise CheckpointError(f"{missing[0].name}: no checkpoint at {missing[0].path}; {what}")
    return members


def _of_cast(path: Path) -> list[Member]:
    found = []
    for name, member in load_cast(path).members().items():
        if member.path is None:
            raise BadInput(
                f"{name} is a served model (`url`), expected a `path`: answers to tasks are generated and scored here; evaluate the "
                "server with lm-eval's own `local-completions` model, whose results `compare` reads"
            )
        role = name.split("-")[0]
        found.append(Member(name, role, tuple(member.domains), member.path))
    return found


def _of_run(run: RunDirectory) -> list[Member]:
    manifest = run.manifest()
    if manifest.get("kind") == KIND:
        raise BadInput(f"{run.path} is an evaluation itself; give the cast or the run that it evaluated")
    trained = {n: t for n, t in manifest["models"].items() if t["role"] != "checkpoint"}
    order = sorted(trained, key=lambda n: ("base", "student").index(n) if n in ("base", "student") else 2)
    return [Member(n, trained[n]["role"], tuple(trained[n]["domains"]), run.path / "models" / n) for n in order]
