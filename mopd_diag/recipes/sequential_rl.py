"""RL on one domain after another, in the world's order: no teachers. As many rollouts as `mixed-rl`, shared out evenly."""

from __future__ import annotations

from mopd_diag.config import Budget, Stage
from mopd_diag.recipes.parts import GROUP, GROUPS, climb, cold_start, rollouts_of_the_path, slug
from mopd_diag.worlds.world import World

SUMMARY = "SFT, then RL on one domain after another"


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world: a phase a domain, the last one makes the student."""
    domains = tuple(world.domains)
    steps = rollouts_of_the_path(world, budget) // (GROUPS * GROUP) // len(domains)
    path: list[Stage] = [cold_start(world, budget)]
    for number, domain in enumerate(domains, 1):
        name = "student" if number == len(domains) else f"student.{number}-{slug(domain)}"
        path.append(climb(name, path[-1].name, (domain,), steps))
    return tuple(path)
