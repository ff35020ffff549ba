"""Multi-teacher on-policy distillation beside the paths it must be compared with, all from one base.

Read top to bottom: cold start → one RL specialist a family → the student, distilled from them on its own samples. Then the
rivals from the same base: RL on all domains mixed, RL on one domain after the other, off-policy distillation from the same
teachers, and the average of the teachers' parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from mopd_diag.config import Budget, GRPOStage, MergeStage, MOPDStage, SeqKDStage, SFTStage, Stage
from mopd_diag.worlds.world import World

SUMMARY = (
    "base, one RL teacher a family, MOPD student, rivals: mixed RL, sequential RL, off-policy distillation, average"
)


@dataclass(frozen=True, slots=True)
class Size:
    """Training steps a domain, and prompts a step, at one budget."""

    sft: int
    teacher: int
    student: int
    prompts: int


SIZES: dict[Budget, Size] = {
    "smoke": Size(sft=200, teacher=60, student=30, prompts=128),
    "small": Size(sft=250, teacher=250, student=75, prompts=128),
    "full": Size(sft=500, teacher=500, student=150, prompts=128),
}
GROUPS, GROUP = 32, 8  # prompts and answers a prompt of a GRPO step


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world: as many teachers as it has families."""
    size, everything = SIZES[budget], tuple(world.domains)
    families = {family: tuple(names) for family, names in world.families().items()}
    route = {domain: f"teacher-{family}" for family, names in families.items() for domain in names}

    sft = size.sft * len(everything)
    # The gate stops training that has not reached RL's reach; a smoke run is too short to ask for it.
    gate = None if budget == "smoke" else (0.25, 0.70)
    base = SFTStage(name="base", domains=everything, steps=sft, decay=sft // 5, warmup=min(50, sft // 10), gate=gate)

    teachers = [
        GRPOStage(
            name=f"teacher-{family}",
            start="base",
            domains=names,
            steps=size.teacher * len(names),
            prompts=GROUPS,
            group=GROUP,
        )
        for family, names in families.items()
    ]
    student = MOPDStage(
        name="student",
        start="base",
        domains=everything,
        teachers=route,
        steps=size.student * len(everything),
        prompts=size.prompts,
    )

    rollouts = sum(t.steps for t in teachers) * GROUPS * GROUP + student.steps * student.prompts
    path = "all teachers and the student together"
    mixed = GRPOStage(
        name="rival-mixed-rl", start="base", domains=everything, steps=rollouts // (GROUPS * GROUP), prompts=GROUPS,
        group=GROUP, matched_to=path, matched_on="rollouts",
    )  # fmt: skip
    phases: list[GRPOStage] = []
    for number, domain in enumerate(everything, 1):
        name = "rival-sequential-rl" if domain == everything[-1] else f"rival-sequential-rl.{number}-{domain}"
        phase = GRPOStage(
            name=name, start=phases[-1].name if phases else "base", domains=(domain,), steps=mixed.steps // len(everything),
            prompts=GROUPS, group=GROUP, matched_to=path, matched_on="rollouts",
        )  # fmt: skip
        phases.append(phase)
    seqkd = SeqKDStage(
        name="rival-seqkd", start="base", domains=everything, teachers=route, steps=student.steps, batch=student.prompts,
        decay=student.steps // 5, matched_to="the student (both use the same teachers)", matched_on="sequences trained",
    )  # fmt: skip
    average = MergeStage(
        name="rival-average", models=tuple(t.name for t in teachers),
        matched_to="the teachers (nothing is trained after them)", matched_on="rollouts",
    )  # fmt: skip
    return (base, *teachers, student, mixed, *phases, seqkd, average)
