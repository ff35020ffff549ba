"""DeepSeek-R1 (2501.12948): cold start → RL on reasoning → rejection-sampling fine-tuning → RL on everything → a smaller model.

Read top to bottom. The large model's path makes the teacher; the student is a smaller model that learns the teacher's answers by
fine-tuning alone. Each of the two sizes has its own cold start, and `base` is the student's. Reasoning are the families math and
code. Not as published: checked answers of every domain go into the fine-tuning (there, other data for what is no reasoning), rewards
are the verifiers' throughout (there, reward models for what cannot be checked).
"""

from __future__ import annotations

from mopd_diag.config import Budget, RejectionStage, SeqKDStage, Stage
from mopd_diag.errors import BadInput
from mopd_diag.recipes.parts import ANSWERS, CLIMB, DISTILL, climb, cold_start
from mopd_diag.worlds.world import World

SUMMARY = (
    "cold start, GRPO on reasoning, rejection-sampling SFT, RL on everything, SFT of a smaller model on its answers"
)
REASONING = ("math", "code")
SHRINK = 0.625
"""Narrower by this: about half the parameters of the default model."""
CHECKED: dict[Budget, int] = {"smoke": 15, "small": 40, "full": 80}
"""Steps a domain of the fine-tuning on checked answers."""


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world that has domains of reasoning."""
    everything, n = tuple(world.domains), len(world.domains)
    reasoning = tuple(d.name for d in world.domains.values() if d.family in REASONING)
    if not reasoning:
        raise BadInput(
            f"recipe 'deepseek-r1' climbs on reasoning first, families {' and '.join(REASONING)}: world '{world.name}' with "
            f"{', '.join(everything)} has no such domain; add one"
        )
    start = cold_start(world, budget)
    large = start.model_copy(update={"name": "teacher-r1.1-cold-start"})
    reasoner = climb("teacher-r1.2-reasoning", large.name, reasoning, CLIMB[budget] * len(reasoning))
    checked = RejectionStage(
        name="teacher-r1.3-checked", start=large.name, domains=everything, sources=dict.fromkeys(everything, reasoner.name),
        filters=("finished", "correct", "unrepetitive"), steps=CHECKED[budget] * n, decay=CHECKED[budget] * n // 5,
        warmup=min(10, CHECKED[budget] * n // 5),
    )  # fmt: skip
    teacher = climb("teacher-r1", checked.name, everything, CLIMB[budget] // 2 * n)

    base = start.model_copy(update={"shrink": SHRINK})
    student = SeqKDStage(
        name="student", start=base.name, domains=everything, teachers=dict.fromkeys(everything, teacher.name),
        steps=DISTILL[budget] * n, batch=ANSWERS, decay=DISTILL[budget] * n // 5,
    )  # fmt: skip
    return (base, large, reasoner, checked, teacher, student)
