"""MiMo-V2-Flash (2601.02780): fine-tuning → six RL specialists → one student, distilled from them with the outcome added.

Read top to bottom. The student's loss is the sampled-token one: the log-ratio to the prompt's teacher plus α times the outcome's
group advantage, under importance weights that are cut outside their bounds. Undisclosed in the paper, so chosen here: α, the
bounds, the number of answers a prompt. Left out: the mixture-of-experts routing replay, and a domain that teaches itself.
"""

from __future__ import annotations

from mopd_diag.config import Budget, MOPDStage, Stage
from mopd_diag.recipes.parts import ANSWERS, DISTILL, by_number, cold_start, fewer, routed, specialists
from mopd_diag.worlds.world import World

SUMMARY = "SFT, six RL specialists, MOPD on sampled tokens with the outcome term"
SPECIALISTS = 6
ALPHA, GROUP = 0.5, 4  # weight of the outcome, and answers a prompt that its advantage is taken over


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world: six specialists, or one a domain where it has fewer."""
    everything = tuple(world.domains)
    groups = by_number(world, SPECIALISTS)
    teachers = specialists(groups, budget)
    student = MOPDStage(
        name="student", start="base", domains=everything, teachers=routed(groups), form="sampled", alpha=ALPHA, group=GROUP,
        steps=DISTILL[budget] * len(everything), prompts=ANSWERS // GROUP, note=fewer(world, groups, SPECIALISTS),
    )  # fmt: skip
    return (cold_start(world, budget), *teachers, student)
