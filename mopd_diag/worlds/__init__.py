"""Worlds: where prompts come from and how answers are judged. Nothing here knows about models."""

from mopd_diag.worlds.domain import TURN, Domain, Family, Split, split_of
from mopd_diag.worlds.world import World, load_world

__all__ = ["TURN", "Domain", "Family", "Split", "World", "load_world", "split_of"]
