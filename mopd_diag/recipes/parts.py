"""Stages and ways to share out domains that several recipes have in common, so that a study can train them once.

A recipe that calls these gets the same stages under the same names at the same budget: the same base, the same specialists.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from mopd_diag.config import Budget, GRPOStage, SFTStage
from mopd_diag.errors import BadInput
from mopd_diag.worlds.world import World

Groups = dict[str, tuple[str, ...]]
"""Teacher → the domains it is trained on."""

SFT: dict[Budget, int] = {"smoke": 200, "small": 250, "full": 500}
"""Steps a domain of the cold start, on imperfect demonstrations."""
CLIMB: dict[Budget, int] = {"smoke": 60, "small": 250, "full": 500}
"""GRPO steps a domain of a specialist."""
DISTILL: dict[Budget, int] = {"smoke": 30, "small": 75, "full": 150}
"""Steps a domain of a student that is distilled, of `ANSWERS` answers each."""
GROUPS, GROUP = 32, 8  # prompts and answers a prompt of a GRPO step
ANSWERS = 128


def cold_start(world: World, budget: Budget) -> SFTStage:
    """The base of every path: supervised fine-tuning on demonstrations of all domains."""
    steps = SFT[budget] * len(world.domains)
    # The gate stops training that has not reached RL's reach; a smoke run is too short to ask for it.
    gate = None if budget == "smoke" else (0.25, 0.70)
    everything = tuple(world.domains)
    return SFTStage(
        name="base", domains=everything, steps=steps, decay=steps // 5, warmup=min(50, steps // 10), gate=gate
    )


def climb(name: str, start: str, domains: tuple[str, ...], steps: int, note: str = "") -> GRPOStage:
    """RL against the verifiers."""
    return GRPOStage(name=name, start=start, domains=domains, steps=steps, prompts=GROUPS, group=GROUP, note=note)


def specialists(groups: Groups, budget: Budget, start: str = "base", note: str = "") -> list[GRPOStage]:
    """One RL specialist a group, all from the same model."""
    return [climb(name, start, domains, CLIMB[budget] * len(domains), note) for name, domains in groups.items()]


def routed(groups: Groups) -> dict[str, str]:
    """Domain → the teacher of its group."""
    return {domain: name for name, domains in groups.items() for domain in domains}


def rollouts_of_the_path(world: World, budget: Budget) -> int:
    """Rollouts of `CLIMB` for every domain and of a student: what `mixed-rl` and `sequential-rl` spend on RL alone."""
    return len(world.domains) * (CLIMB[budget] * GROUPS * GROUP + DISTILL[budget] * ANSWERS)


# -- which domains go to which specialist -------------------------------------------------------------------------------------


def by_family(world: World) -> Groups:
    """One teacher a family of domains."""
    families: Mapping[str, list[str]] = {str(f): names for f, names in world.families().items()}
    return {_name(family): tuple(names) for family, names in families.items()}


def by_domain(world: World) -> Groups:
    """One teacher a domain."""
    return _named([(d,) for d in world.domains])


def by_number(world: World, teachers: int) -> Groups:
    """`teachers` teachers of neighbouring domains, as even as they go; one a domain where the world has fewer domains."""
    domains, n = tuple(world.domains), min(teachers, len(world.domains))
    cuts = [len(domains) * k // n for k in range(n + 1)]
    return _named([domains[a:b] for a, b in itertools.pairwise(cuts)])


def fewer(world: World, groups: Groups, published: int) -> str:
    """One line for a reader when the world has too few domains for the published number of specialists, else empty."""
    if len(groups) >= published:
        return ""
    return f"{len(groups)} specialists, not {published} as published: the world has {len(world.domains)} domains"


def need_two(recipe: str, groups: Groups, world: World) -> None:
    """Raise BadInput unless there are two specialists to merge or to choose from."""
    if len(groups) < 2:
        raise BadInput(
            f"recipe '{recipe}' needs at least 2 specialists, one a family: world '{world.name}' has the domains "
            f"{', '.join(world.domains)} of one family only; add domains of another"
        )


def _named(groups: list[tuple[str, ...]]) -> Groups:
    """Teachers named after their domains; a number makes alike names differ."""
    found: Groups = {}
    for domains in groups:
        name = _name("-".join(domains))
        found[name if name not in found else f"{name[:50]}-{len(found) + 1}"] = domains
    return found


def _name(text: str) -> str:
    return f"teacher-{slug(text)}"


def slug(text: str) -> str:
    """A part of a model's name from any text: names of models allow less than names of domains, and a dot means a checkpoint."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48]
