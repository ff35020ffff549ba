"""MAI-Thinking-1 (2026): three specialist climbs → their traces learned by fine-tuning → one last climb on everything. No MOPD.

Read top to bottom. Known to us from summaries only. The traces are checked answers of the specialists to the prompts of their own
domains, learned from the base, as rejection sampling with the specialists as sources; the last climb is RL against the verifiers.
"""

from __future__ import annotations

from mopd_diag.config import Budget, RejectionStage, Stage
from mopd_diag.recipes.parts import CLIMB, by_number, climb, cold_start, fewer, routed, specialists
from mopd_diag.worlds.world import World

SUMMARY = "three specialist climbs, SFT on their traces, a last climb on everything; no MOPD"
SPECIALISTS = 3
TRACES: dict[Budget, int] = {"smoke": 15, "small": 40, "full": 80}
"""Steps a domain of the fine-tuning on traces."""


def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
    """The stages of this recipe on a world: three climbs, or one a domain where it has fewer."""
    everything = tuple(world.domains)
    n, groups = len(everything), by_number(world, SPECIALISTS)
    climbs = specialists(groups, budget, note=fewer(world, groups, SPECIALISTS))
    traces = RejectionStage(
        name="student.1-traces", start="base", domains=everything, sources=routed(groups), steps=TRACES[budget] * n,
        decay=TRACES[budget] * n // 5, warmup=min(10, TRACES[budget] * n // 5),
    )  # fmt: skip
    last = climb("student", traces.name, everything, CLIMB[budget] // 2 * n)
    return (cold_start(world, budget), *climbs, traces, last)
