"""The gym world: reasoning-gym's generators, as a curated suite for small models or by name."""

from mopd_diag.worlds.gym.domain import GymDomain, gym_domains
from mopd_diag.worlds.gym.suite import SUITE

__all__ = ["SUITE", "GymDomain", "gym_domains"]
