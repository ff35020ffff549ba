"""Who is evaluated: the models of a cast file, or those of a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mopd_diag import config
from mopd_diag.config import load_cast
from mopd_diag.engines.served_http import Address, key_from
from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.runs.directory import RunDirectory

KIND = "evaluation"
"""`kind` in the manifest of what an evaluation writes; a run that was trained has none."""


@dataclass(frozen=True, slots=True)
class Member:
    """One model. `role` is base, student, teacher, rival or control; `domains` are what it teaches.

    `path` is its checkpoint; of a served member, which has a `server`, the student's: they share the tokenizer. `base` is what an
    adapter that names no base belongs on.
    """

    name: str
    role: str
    domains: tuple[str, ...]
    path: Path
    base: Path | None = None
    server: Address | None = None

    def place(self) -> dict[str, str]:
        """Where the model is, in words that may be written down: no key is among them."""
        if self.server is None:
            return {"path": str(self.path.resolve())}
        return {"url": self.server.url, "served": self.server.model}


def members_of(cast: Path) -> list[Member]:
    """Base and student first. Raises BadInput for a served student, a key that is not set, or a run that has not trained its models yet."""
    members = _of_run(RunDirectory.open(cast)) if cast.is_dir() else _of_cast(cast)
    missing = [m for m in members if not m.path.exists()]
    if missing:
        what = "the run is not finished: repeat `mopd-diag run`" if cast.is_dir() else "check the path"
        raise CheckpointError(f"{missing[0].name}: no checkpoint at {missing[0].path}; {what}")
    return members


def _of_cast(path: Path) -> list[Member]:
    cast = load_cast(path)
    if cast.student.path is None:
        raise BadInput(
            "student: got a served model (`url`), expected a `path`: served members are asked in the tokens of its tokenizer"
        )
    return [_member(name, member, cast.student.path, cast.base.path) for name, member in cast.members().items()]


def _member(name: str, member: config.Member, student: Path, base: Path | None) -> Member:
    role, domains = name.split("-")[0], tuple(member.domains)
    if member.url is None or member.model is None:
        return Member(name, role, domains, member.path or student, base)
    key = key_from(name, member.key_env)
    server = Address(name, member.url.rstrip("/"), member.model, key, member.concurrency, member.timeout_s)
    return Member(name, role, domains, student, base, server)


def _of_run(run: RunDirectory) -> list[Member]:
    manifest = run.manifest()
    if manifest.get("kind") == KIND:
        raise BadInput(f"{run.path} is an evaluation itself; give the cast or the run that it evaluated")
    trained = {n: t for n, t in manifest["models"].items() if t["role"] != "checkpoint"}
    order = sorted(trained, key=lambda n: ("base", "student").index(n) if n in ("base", "student") else 2)
    return [Member(n, trained[n]["role"], tuple(trained[n]["domains"]), run.path / "models" / n) for n in order]
