"""Merges: the specialists of `mopd`, and a student made of them by arithmetic on parameters; nothing is trained after them.

`average` (model soups, 2203.05482), `task-arithmetic` (2212.04089), `ties` (2306.01708). The scale of task arithmetic is tuned on
held-out data in its paper; here it is fixed, so that no recipe sees what it is judged on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from mopd_diag.config import Budget, MergeStage, Stage
from mopd_diag.recipes.parts import by_family, cold_start, need_two, specialists
from mopd_diag.worlds.world import World

Method = Literal["average", "task-arithmetic", "ties"]
SCALE: dict[Method, float] = {"average": 1.0, "task-arithmetic": 0.5, "ties": 1.0}

SUMMARIES: dict[Method, str] = {
    "average": "SFT, one RL teacher a family, the average of their parameters",
    "task-arithmetic": "SFT, one RL teacher a family, the base and half the sum of their shifts",
    "ties": "SFT, one RL teacher a family, their shifts trimmed, signs elected, merged",
}


def stages_of(method: Method) -> Callable[[World, Budget], tuple[Stage, ...]]:
    """The recipe of one way to merge."""

    def stages(world: World, budget: Budget) -> tuple[Stage, ...]:
        groups = by_family(world)
        need_two(method, groups, world)
        student = MergeStage(name="student", start="base", models=tuple(groups), method=method, scale=SCALE[method])
        return (cold_start(world, budget), *specialists(groups, budget), student)

    return stages
