"""DeepSeek V4 (2606.19348): more than ten specialists, each fine-tuned and then climbed → one student, full-vocabulary reverse KL.

Read top to bottom. Distillation takes the place of mixed RL. The exact KL reads the teachers' last hidden states, cached, and their
heads one after another, with the samples sorted by teacher: that is how form `full` works here. Left out of the paper: the
token-level log that lets interrupted rollouts go on (a rollout takes milliseconds here), several teachers a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from mopd_diag.config import Budget, MOPDStage, SFTStage, Stage
from mopd_diag.recipes.parts import ANSWERS, CLIMB, DISTILL, by_domain, climb, cold_start, fewer, routed
from mopd_diag.worlds.world import World

SUMMARY = "one specialist a domain (SFT, then GRPO), full-vocabulary MOPD from all of them"
SPECIALISTS = 11  # "more than ten"


@dataclass(frozen=True, slots=True)
class Size:
    """Steps a domain of a specialist's own fine-tuning."""

    sft: int


SIZES: dict[Budget, Size] = {"smoke": Size(sft=20), "small": Size(sft=50), "full": Size(sft=100)}


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world: as many specialists as it has domains."""
    everything, tuning = tuple(world.domains), SIZES[budget].sft
    groups = by_domain(world)
    path: list[Stage] = [cold_start(world, budget)]
    for name, domains in groups.items():
        tuned = SFTStage(
            name=f"{name}.sft", start="base", domains=domains, steps=tuning, learning_rate=1e-3, warmup=tuning // 10,
            decay=tuning // 5,
        )  # fmt: skip
        path += [tuned, climb(name, tuned.name, domains, CLIMB[budget])]
    student = MOPDStage(
        name="student", start="base", domains=everything, teachers=routed(groups), form="full",
        steps=DISTILL[budget] * len(everything), prompts=ANSWERS, note=fewer(world, groups, SPECIALISTS),
    )  # fmt: skip
    return (*path, student)
