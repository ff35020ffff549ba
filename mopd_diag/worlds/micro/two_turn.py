"""agent: call, wait for the world's reply, and use it."""

from __future__ import annotations

import hashlib
import random
import string

from mopd_diag.worlds.domain import TURN, Domain
from mopd_diag.worlds.micro.corruption import other

DIGITS = "0123456789"


class TwoTurn(Domain):
    """`Tkz+3:` → `{kz}~` · the world: `8;` · → `1`: ask for kz, then add 3 to what the world says, modulo ten.

    The target is the whole transcript, `{kz}~8;1`. The world's value depends on the whole prompt through a hash, so it
    cannot be learned and must be read. A model sampled without its world can invent a reply, right one time in ten.
    """

    name = "two-turn"
    family = "agent"
    summary = "ask the world for a value, then calculate with its reply"
    max_new_tokens = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        key = rng.choice(string.ascii_lowercase) + rng.choice(string.ascii_lowercase)
        step = rng.randrange(1, 10)  # never 0: an answer that ignores `+3` must be wrong
        prompt = f"T{key}+{step}:"
        value = _hidden(prompt)
        return prompt, f"{{{key}}}{TURN}{value};{(value + step) % 10}"

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """20 % forget the call and guess, 12 % repeat the reply instead of using it, 8 % add wrongly."""
        luck = rng.random()
        if luck < 0.20:
            return rng.choice(DIGITS)
        if luck < 0.32:
            return target[:-1] + str(_hidden(prompt))
        return target[:-1] + other(DIGITS, target[-1], rng) if luck < 0.40 else target

    def reply(self, prompt: str, target: str, transcript: str) -> str | None:
        """The hidden value and `;`, to the one well-formed first call; any other text gets no reply."""
        return f"{_hidden(prompt)};" if transcript == f"{{{prompt[1:3]}}}{TURN}" else None


def _hidden(prompt: str) -> int:
    """What the world knows about this prompt: a digit that nothing in the prompt gives away."""
    return hashlib.blake2b(f"two-turn value\0{prompt}".encode(), digest_size=4).digest()[0] % 10
