"""The worlds' verifiers as a reward function of verl (`reward.custom_reward_function`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mopd_diag.config import WorldConfig, parse
from mopd_diag.types import Item
from mopd_diag.worlds.world import World, world_of


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    world: Mapping[str, Any],
    **_: Any,
) -> float:
    """What the world's verifier gives the answer `solution_str` to the prompt in `extra_info`: 0 to 1.

    The arguments' names are verl's. `world` is a plan's [world] table.
    """
    told = extra_info or {}
    item = Item(str(told.get("id", "")), data_source, str(told.get("prompt", "")), ground_truth)
    return _world(json.dumps(_plain(world), sort_keys=True)).reward(item, solution_str)


def _plain(value: Any) -> Any:
    """Hydra hands over its own mappings and lists, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else [_plain(v) for v in value]


@lru_cache(maxsize=4)
def _world(table: str) -> World:
    return world_of(parse(WorldConfig, json.loads(table), "world"))
