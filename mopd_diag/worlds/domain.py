"""A domain: prompts with one right answer, imperfect demonstrations, an exact verifier, perhaps a world's replies."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

from mopd_diag.types import Item

Split = Literal["train", "eval"]
Family = str
"""Domains of one family share a teacher. The micro world's: math, code, agent, knowledge."""

EVAL_SHARE = 5  # one prompt in five is held out for evaluation

TURN = "~"  # a model ends a call with it; the world's reply follows and carries no loss


def split_of(domain: str, prompt: str) -> Split:
    """The split a prompt belongs to, by its content alone, so that no seed can leak a held-out prompt into training."""
    digest = hashlib.blake2b(f"{domain}\0{prompt}".encode(), digest_size=4).digest()
    return "eval" if int.from_bytes(digest, "big") % EVAL_SHARE == 0 else "train"


class Domain(ABC):
    """One procedural domain. Stateless: every draw takes its generator, so equal seeds give equal items."""

    name: str
    family: Family
    summary: str
    max_new_tokens: int
    """Upper bound on the tokens of one whole answer: the model's, the world's replies and the end-of-sequence."""

    @abstractmethod
    def draw(self, rng: random.Random) -> tuple[str, str]:
        """One question from the whole domain, as (prompt, target); the target is the whole right transcript."""

    @abstractmethod
    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """An imperfect demonstration for the cold start: often right, else wrong in ways RL can repair.

        A whole transcript: where the model has called, the world's true reply follows.
        """

    def score(self, prompt: str, target: str, response: str) -> float:
        """1.0 when the whole response (the world's replies included) is right, else 0.0."""
        return float(response == target)

    shapes = False
    """Whether the reward may differ from the score."""

    def judge(self, prompt: str, target: str, response: str) -> tuple[float, float]:
        """(score, reward) of a response, from one look of the verifier: the reward is what training may learn from instead of
        the score, such as partial credit or the form of an answer. The score itself by default."""
        score = self.score(prompt, target, response)
        return score, score

    def reward(self, prompt: str, target: str, response: str) -> float:
        """The second of `judge`."""
        return self.judge(prompt, target, response)[1]

    def unshown(self) -> str:
        """Why right answers cannot be shown, in words that follow "has"; empty where they can."""
        return ""

    def reply(self, prompt: str, target: str, transcript: str) -> str | None:
        """The world's answer to a transcript that has just ended in `TURN`.

        None when there is nothing to answer: the `TURN` was then an ordinary character, and the model goes on writing.
        """
        return None

    @property
    def replies(self) -> bool:
        """Whether the world may have something to say within an answer."""
        return type(self).reply is not Domain.reply

    def world_spans(self, prompt: str, target: str, transcript: str) -> list[tuple[int, int]]:
        """Character spans [start, end) of `transcript` that the world wrote, found by replaying it.

        These characters carry no loss and no attribution. A reply cut off by the token limit counts as far as it goes;
        text that differs from what the world would have said is the model's own invention and is no span.
        """
        spans: list[tuple[int, int]] = []
        turn = transcript.find(TURN)
        while turn >= 0:
            start = end = turn + len(TURN)
            reply = self.reply(prompt, target, transcript[:start])
            if reply:
                heard = transcript[start : start + len(reply)]
                if heard and reply.startswith(heard):
                    end = start + len(heard)
                    spans.append((start, end))
            turn = transcript.find(TURN, end)
        return spans

    def items(self, split: Split, rng: random.Random) -> Iterator[Item]:
        """An endless stream of items of one split; a prompt may come back."""
        name = self.name
        while True:
            prompt, target = self.draw(rng)
            if split_of(name, prompt) == split:
                yield Item(f"{name}:{prompt}", name, prompt, target)

    def distinct(self, split: Split, n: int, rng: random.Random) -> list[Item]:
        """Up to `n` different items of one split; fewer when the domain has no more (stops after a long dry spell).

        The items for a smaller `n` are the first ones for a larger `n`.
        """
        found: dict[str, Item] = {}
        dry = 0
        items = self.items(split, rng)
        while len(found) < n and dry <= 20 * (len(found) + 10):
            item = next(items)
            dry = dry + 1 if item.item_id in found else 0
            found.setdefault(item.item_id, item)
        return list(found.values())
