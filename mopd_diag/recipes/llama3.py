"""Llama 3 (2407.21783): six rounds of reward model → rejection sampling → supervised fine-tuning → DPO; no online RL.

Read top to bottom. In every round the best model so far, which is the last round's, is sampled for the reward model's pairs, for the
answers to choose from and for the pairs of DPO; fine-tuning begins anew from the base, as it does in the paper. The verifiers stand
in for the annotators. Left out of the paper: human-written and synthetic data in the mix, averaging of checkpoints, the masking of
format tokens in DPO.
"""

from __future__ import annotations

from dataclasses import dataclass

from mopd_diag.config import Budget, DPOStage, RejectionStage, RewardModelStage, SFTStage, Stage
from mopd_diag.worlds.world import World

SUMMARY = "six rounds of reward model, rejection sampling, SFT and DPO, the best model of a round feeding the next"
ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Size:
    """Steps a domain: of the cold start, and in each round of reward model, rejection sampling and DPO."""

    sft: int
    judge: int
    rejection: int
    dpo: int


SIZES: dict[Budget, Size] = {
    "smoke": Size(sft=200, judge=4, rejection=5, dpo=3),
    "small": Size(sft=250, judge=10, rejection=20, dpo=10),
    "full": Size(sft=500, judge=20, rejection=40, dpo=20),
}
PROMPTS, GROUP = 32, 8  # of every step that samples


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world."""
    size, everything = SIZES[budget], tuple(world.domains)
    n = len(everything)
    sft = size.sft * n
    gate = None if budget == "smoke" else (0.25, 0.70)
    base = SFTStage(name="base", domains=everything, steps=sft, decay=sft // 5, warmup=min(50, sft // 10), gate=gate)

    path: list[Stage] = [base]
    best = base.name
    for number in range(1, ROUNDS + 1):
        judge = RewardModelStage(
            name=f"student.{number}-judge", start="base", sampled_from=best, domains=everything, steps=size.judge * n,
            decay=size.judge * n // 5, warmup=min(10, size.judge * n // 5), prompts=PROMPTS, group=GROUP,
        )  # fmt: skip
        tuned = RejectionStage(
            name=f"student.{number}-sft", start="base", sources=dict.fromkeys(everything, best), reward=judge.name,
            filters=("finished",), domains=everything, steps=size.rejection * n, decay=size.rejection * n // 5,
            warmup=min(10, size.rejection * n // 5), prompts=PROMPTS, group=GROUP,
        )  # fmt: skip
        aligned = DPOStage(
            name="student" if number == ROUNDS else f"student.{number}", start=tuned.name, sampled_from=best, nll=0.2,
            domains=everything, steps=size.dpo * n, decay=size.dpo * n // 5, warmup=min(10, size.dpo * n // 5),
            prompts=PROMPTS, group=GROUP,
        )  # fmt: skip
        path += [judge, tuned, aligned]
        best = aligned.name
    return tuple(path)
