"""Published post-training recipes, one readable file each; `RECIPES` names them."""

from __future__ import annotations

from collections.abc import Callable

from mopd_diag.config import Budget, Stage
from mopd_diag.recipes import (
    deepseek_r1,
    deepseek_v4,
    expd,
    instructgpt,
    llama3,
    mai_thinking_1,
    merges,
    mimo_flash_v2,
    mixed_rl,
    mopd,
    nemotron_3_ultra,
    seqkd,
    sequential_rl,
    single_teacher,
)
from mopd_diag.worlds.world import World

RECIPES: dict[str, tuple[Callable[[World, Budget], tuple[Stage, ...]], str]] = {
    "instructgpt": (instructgpt.stages, instructgpt.SUMMARY),
    "llama-3": (llama3.stages, llama3.SUMMARY),
    "deepseek-r1": (deepseek_r1.stages, deepseek_r1.SUMMARY),
    "mimo-flash-v2": (mimo_flash_v2.stages, mimo_flash_v2.SUMMARY),
    "deepseek-v4": (deepseek_v4.stages, deepseek_v4.SUMMARY),
    "nemotron-3-ultra": (nemotron_3_ultra.stages, nemotron_3_ultra.SUMMARY),
    "mai-thinking-1": (mai_thinking_1.stages, mai_thinking_1.SUMMARY),
    "mopd": (mopd.stages, mopd.SUMMARY),
    "mixed-rl": (mixed_rl.stages, mixed_rl.SUMMARY),
    "sequential-rl": (sequential_rl.stages, sequential_rl.SUMMARY),
    "single-teacher": (single_teacher.stages, single_teacher.SUMMARY),
    "seqkd": (seqkd.stages, seqkd.SUMMARY),
    "average": (merges.stages_of("average"), merges.SUMMARIES["average"]),
    "task-arithmetic": (merges.stages_of("task-arithmetic"), merges.SUMMARIES["task-arithmetic"]),
    "ties": (merges.stages_of("ties"), merges.SUMMARIES["ties"]),
    "expd": (expd.stages, expd.SUMMARY),
}
"""Name → (stages of a world and a budget, one-line summary)."""
