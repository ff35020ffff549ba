"""InstructGPT (2203.02155): supervised fine-tuning → a reward model on preference pairs → PPO with a penalty for leaving the first.

Read top to bottom. The world's verifiers stand in for the people who rank answers; PPO then sees the reward model only. Left out of
the paper: the mix of pretraining gradients into PPO (there is no pretraining here), a value network of its own (a head on the
policy's trunk instead), more than one pair a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from mopd_diag.config import Budget, PPOStage, RewardModelStage, SFTStage, Stage
from mopd_diag.worlds.world import World

SUMMARY = "SFT, reward model on preference pairs, PPO with value head, GAE and KL penalty"


@dataclass(frozen=True, slots=True)
class Size:
    """Per domain: steps of fine-tuning and of the reward model, samplings of PPO."""

    sft: int
    judge: int
    samplings: int


SIZES: dict[Budget, Size] = {
    "smoke": Size(sft=200, judge=20, samplings=60),
    "small": Size(sft=250, judge=50, samplings=250),
    "full": Size(sft=500, judge=100, samplings=500),
}
PAIRS, GROUP = 32, 8  # prompts of a reward-model step, and answers a prompt
ANSWERS, MINIBATCHES = 256, 4  # one answer to each prompt of a sampling, used once


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world."""
    size, everything = SIZES[budget], tuple(world.domains)
    n = len(everything)
    sft = size.sft * n
    gate = None if budget == "smoke" else (0.25, 0.70)
    base = SFTStage(name="base", domains=everything, steps=sft, decay=sft // 5, warmup=min(50, sft // 10), gate=gate)
    steps = size.judge * n
    judge = RewardModelStage(
        name="student.judge", start="base", domains=everything, steps=steps, decay=steps // 5, warmup=min(10, steps // 5),
        prompts=PAIRS, group=GROUP,
    )  # fmt: skip
    student = PPOStage(
        name="student", start="base", domains=everything, reward=judge.name, steps=size.samplings * n * MINIBATCHES,
        prompts=ANSWERS, minibatches=MINIBATCHES,
    )  # fmt: skip
    return (base, judge, student)
