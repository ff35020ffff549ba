"""Continue given beginnings of answers, all of them in one batch, and count the continuations that the world accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mopd_diag.engines.sampling import sample
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.types import Item
from mopd_diag.worlds.domain import TURN
from mopd_diag.worlds.world import World


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first tokens of an answer to an item, the world's replies included; a prefix that has ended is a whole answer."""

    item: Item
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Continued:
    """Continuations that succeed, one count a prefix, each of `n`; `tokens` is what the model had to choose for all of them."""

    successes: list[int]
    n: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Continuer:
    """What continuing needs beside a model: vocabulary, verifier and temperature."""

    tokenizer: Tokenizer
    world: World
    temperature: float

    def room(self, prefix: Prefix) -> int:
        """Tokens that an answer may still take."""
        return max(0, self.world.domain(prefix.item.domain).max_new_tokens - len(prefix.answer))

    def put_in(self, prefix: Prefix, token: int) -> Prefix:
        """The prefix with one more token; where that ends a call, the world's reply follows."""
        longer = replace(prefix, answer=(*prefix.answer, token))
        if token in self.tokenizer.ending_in(TURN):
            heard = self.world.reply(prefix.item, self.tokenizer.decode(longer.answer))
            longer = replace(longer, answer=(*longer.answer, *self.tokenizer.encode(heard or "")))
        return longer

    def run(self, model: Decoder, prefixes: Sequence[Prefix], n: int, seed: int) -> Continued:
        """`n` continuations of each prefix by `model`. An answer cut by its domain's token limit fails."""
        eos = self.tokenizer.eos_id
        successes = [0] * len(prefixes)
        going = []
        for i, prefix in enumerate(prefixes):
            if prefix.answer and prefix.answer[-1] == eos:
                successes[i] = n * self._right(prefix, ())
            elif self.room(prefix):
                going.append(i)
        if not going:
            return Continued(successes, n, 0)
        asked = [prefixes[i] for i in going]

        def reply(row: int, new: list[int]) -> list[int] | None:
            prefix = asked[row // n]
            text = self.world.reply(prefix.item, self.tokenizer.decode([*prefix.answer, *new]))
            return None if text is None else self.tokenizer.encode(text)

        rollouts = sample(
            model, [[*p.prompt, *p.answer] for p in asked], eos_id=eos, pad_id=self.tokenizer.pad_id,
            max_new_tokens=[self.room(p) for p in asked], generator=torch.Generator().manual_seed(seed),
            temperature=self.temperature, n=n, turn_id=self.tokenizer.ending_in(TURN), reply=reply,
        )  # fmt: skip
        ended = rollouts.finished_N.tolist()
        for row, new in enumerate(rollouts.responses()):
            successes[going[row // n]] += ended[row] and self._right(asked[row // n], new)
        return Continued(successes, n, rollouts.sampled_tokens)

    def _right(self, prefix: Prefix, new: Sequence[int]) -> bool:
        return self.world.score(prefix.item, self.tokenizer.decode([*prefix.answer, *new])) >= 1
