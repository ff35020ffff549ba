"""Nemotron 3 Ultra (2606.15007): fine-tuning → RLVR on everything → warm-up fine-tuning → two rounds of MOPD.

Read top to bottom. The first round's teachers climb from the RLVR model, the second round's from the first round's student. Both
rounds use the sampled-token loss and one answer a prompt. The warm-up learns checked answers of the first teachers, so that the
student's own answers lie where the teachers know what to say. Not as published: every teacher is renewed for the second round (there,
some are kept), all teachers are of one lineage (there, some saw other models' data), the importance weight is cut to zero outside
its bounds (there, the ratio is clipped and masked besides).
"""

from __future__ import annotations

from mopd_diag.config import Budget, MOPDStage, RejectionStage, Stage
from mopd_diag.recipes.parts import ANSWERS, CLIMB, DISTILL, by_domain, climb, cold_start, fewer, routed
from mopd_diag.worlds.world import World

SUMMARY = "RLVR, warm-up SFT, two rounds of MOPD; the second round's teachers climb from the first round's student"
TEACHERS = 11  # "more than ten"
WARM: dict[Budget, int] = {"smoke": 5, "small": 15, "full": 30}
"""Steps a domain of the warm-up."""


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world: as many teachers a round as it has domains."""
    everything = tuple(world.domains)
    n, groups = len(everything), by_domain(world)
    base = cold_start(world, budget)
    rlvr = climb("student.1-rlvr", base.name, everything, CLIMB[budget] // 2 * n)

    first = {f"{name}.1": domains for name, domains in groups.items()}
    teachers_1 = [climb(name, rlvr.name, domains, CLIMB[budget] // 2) for name, domains in first.items()]
    warm = RejectionStage(
        name="student.2-warm-up", start=rlvr.name, domains=everything, sources=routed(first), steps=WARM[budget] * n,
        decay=WARM[budget] * n // 5, warmup=min(10, WARM[budget] * n // 5),
    )  # fmt: skip
    round_1 = MOPDStage(
        name="student.3-mopd", start=warm.name, domains=everything, teachers=routed(first), form="sampled",
        steps=DISTILL[budget] // 2 * n, prompts=ANSWERS, note=fewer(world, groups, TEACHERS),
    )  # fmt: skip

    teachers_2 = [climb(name, round_1.name, domains, CLIMB[budget] // 2) for name, domains in groups.items()]
    round_2 = MOPDStage(
        name="student", start=round_1.name, domains=everything, teachers=routed(groups), form="sampled",
        steps=DISTILL[budget] // 2 * n, prompts=ANSWERS,
    )  # fmt: skip
    return (base, rlvr, *teachers_1, warm, round_1, *teachers_2, round_2)
