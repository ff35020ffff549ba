"""RL on all domains at once, from the base: no teachers. As many rollouts as the specialists and the student of `mopd` together."""

from __future__ import annotations

from mopd_diag.config import Budget, Stage
from mopd_diag.recipes.parts import GROUP, GROUPS, climb, cold_start, rollouts_of_the_path
from mopd_diag.worlds.world import World

SUMMARY = "SFT, then RL on all domains mixed"


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world."""
    steps = rollouts_of_the_path(world, budget) // (GROUPS * GROUP)
    return (cold_start(world, budget), climb("student", "base", tuple(world.domains), steps))
