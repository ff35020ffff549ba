"""Off-policy distillation: the specialists of `mopd`, and a student fine-tuned on answers that they wrote (1606.07947)."""

from __future__ import annotations

from mopd_diag.config import Budget, SeqKDStage, Stage
from mopd_diag.recipes.parts import ANSWERS, DISTILL, by_family, cold_start, routed, specialists
from mopd_diag.worlds.world import World

SUMMARY = "SFT, one RL teacher a family, SFT of the student on their answers"


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world."""
    everything, groups = tuple(world.domains), by_family(world)
    steps = DISTILL[budget] * len(everything)
    student = SeqKDStage(
        name="student", start="base", domains=everything, teachers=routed(groups), steps=steps, batch=ANSWERS,
        decay=steps // 5,
    )  # fmt: skip
    return (cold_start(world, budget), *specialists(groups, budget), student)
