"""Multi-teacher on-policy distillation beside the paths it must be compared with, all from one base.

Read top to bottom: cold start → one RL specialist a family → the student, distilled from them on its own samples. Then the
rivals from the same base: RL on all domains mixed, RL on one domain after the other, off-policy distillation from the same
teachers, and the average of the teachers' parameters.
"""

from __future__ import annotations

from mopd_diag.config import Budget, GRPOStage, MergeStage, MOPDStage, SeqKDStage, Stage
from mopd_diag.recipes.parts import (
    ANSWERS,
    DISTILL,
    GROUP,
    GROUPS,
    by_family,
    cold_start,
    rollouts_of_the_path,
    routed,
    slug,
    specialists,
)
from mopd_diag.worlds.world import World

SUMMARY = (
    "base, one RL teacher a family, MOPD student, rivals: mixed RL, sequential RL, off-policy distillation, average"
)


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world: as many teachers as it has families. With one family there is nothing to average."""
    everything = tuple(world.domains)
    families = by_family(world)
    route = routed(families)
    base = cold_start(world, budget)
    teachers = specialists(families, budget)
    student = MOPDStage(
        name="student", start="base", domains=everything, teachers=route, steps=DISTILL[budget] * len(everything),
        prompts=ANSWERS, note="" if len(teachers) > 1 else "one family of domains: one teacher, and no average",
    )  # fmt: skip

    path = "all teachers and the student together"
    mixed = GRPOStage(
        name="rival-mixed-rl", start="base", domains=everything,
        steps=rollouts_of_the_path(world, budget) // (GROUPS * GROUP), prompts=GROUPS, group=GROUP, matched_to=path,
        matched_on="rollouts",
    )  # fmt: skip
    phases: list[GRPOStage] = []
    for number, domain in enumerate(everything, 1):
        name = "rival-sequential-rl" if domain == everything[-1] else f"rival-sequential-rl.{number}-{slug(domain)}"
        phase = GRPOStage(
            name=name, start=phases[-1].name if phases else "base", domains=(domain,), steps=mixed.steps // len(everything),
            prompts=GROUPS, group=GROUP, matched_to=path, matched_on="rollouts",
        )  # fmt: skip
        phases.append(phase)
    seqkd = SeqKDStage(
        name="rival-seqkd", start="base", domains=everything, teachers=route, steps=student.steps, batch=student.prompts,
        decay=student.steps // 5, matched_to="the student (both use the same teachers)", matched_on="sequences trained",
    )  # fmt: skip
    if len(teachers) < 2:
        return (base, *teachers, student, mixed, *phases, seqkd)
    average = MergeStage(
        name="rival-average", models=tuple(t.name for t in teachers),
        matched_to="the teachers (nothing is trained after them)", matched_on="rollouts",
    )  # fmt: skip
    return (base, *teachers, student, mixed, *phases, seqkd, average)
