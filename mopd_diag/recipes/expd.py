"""Reward extrapolation (ExOPD, G-OPD 2602.12125): MOPD toward targets beyond the teachers, λ > 1.

The specialists of `mopd`; the student is pulled to base · (teacher / base)^λ, renormalised.
"""

from __future__ import annotations

from mopd_diag.config import Budget, MOPDStage, Stage
from mopd_diag.recipes.parts import ANSWERS, DISTILL, by_family, cold_start, routed, specialists
from mopd_diag.worlds.world import World

SUMMARY = "SFT, one RL teacher a family, MOPD past them by reward extrapolation"
LAMBDA = 1.25


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world."""
    everything, groups = tuple(world.domains), by_family(world)
    student = MOPDStage(
        name="student", start="base", domains=everything, teachers=routed(groups), extrapolation=LAMBDA,
        steps=DISTILL[budget] * len(everything), prompts=ANSWERS,
    )  # fmt: skip
    return (cold_start(world, budget), *specialists(groups, budget), student)
