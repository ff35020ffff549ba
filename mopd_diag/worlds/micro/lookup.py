"""agent: look a slot up and hand it over as a tool call."""

from __future__ import annotations

import random
import string

from mopd_diag.worlds.domain import Domain


class Lookup(Domain):
    """`Aa4k7z2?2:` → `{"k":7}`: three key-value pairs; the asked slot (counted from one) as a JSON call.

    Asked by slot and not by key: models of this size learn the first in seconds and the second on few seeds.
    """

    name = "lookup"
    family = "agent"
    summary = "the asked key-value pair as a JSON tool call"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        keys = rng.sample(string.ascii_lowercase, 3)
        values = f"{rng.randrange(1000):03d}"
        slot = rng.randrange(3)
        pairs = "".join(key + value for key, value in zip(keys, values, strict=True))
        return f"A{pairs}?{slot + 1}:", f'{{"{keys[slot]}":{values[slot]}}}'

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """40 % forget the braces, which makes the call unreadable."""
        return target[1:-1] if rng.random() < 0.4 else target
