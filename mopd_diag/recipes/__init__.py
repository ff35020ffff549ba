"""Published post-training recipes, one readable file each; `RECIPES` names them."""

from __future__ import annotations

from collections.abc import Callable

from mopd_diag.config import Budget, Stage
from mopd_diag.recipes import instructgpt, llama3, mopd
from mopd_diag.worlds.world import World

RECIPES: dict[str, tuple[Callable[[World, Budget], tuple[Stage, ...]], str]] = {
    "instructgpt": (instructgpt.stages, instructgpt.SUMMARY),
    "llama-3": (llama3.stages, llama3.SUMMARY),
    "mopd": (mopd.stages, mopd.SUMMARY),
}
"""Name → (stages of a world and a budget, one-line summary)."""
