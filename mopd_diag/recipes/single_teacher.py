"""On-policy distillation from one generalist: is it the many teachers that help, or the distillation?

Read top to bottom. The teacher climbs on all domains with the steps that the specialists of `mopd` have together; the student is
that of `mopd` but for its one teacher. DN-MOPD (2609.35347) asks the same with each specialist alone as the teacher of everything.
"""

from __future__ import annotations

from mopd_diag.config import Budget, MOPDStage, Stage
from mopd_diag.recipes.parts import ANSWERS, CLIMB, DISTILL, climb, cold_start
from mopd_diag.worlds.world import World

SUMMARY = "SFT, one RL teacher of all domains, on-policy distillation from it"


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world."""
    everything, n = tuple(world.domains), len(world.domains)
    teacher = climb("teacher-generalist", "base", everything, CLIMB[budget] * n)
    student = MOPDStage(
        name="student", start="base", domains=everything, teachers=dict.fromkeys(everything, teacher.name),
        steps=DISTILL[budget] * n, prompts=ANSWERS,
    )  # fmt: skip
    return (cold_start(world, budget), teacher, student)
