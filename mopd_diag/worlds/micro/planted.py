"""The planted worlds: what the domains do to one another is known by construction, so that a diagnosis can be tested against it.

*Conflict.* Two domains share every prompt to the letter and want different answers: no response is right in both, and their
accuracies cannot sum to more than one. *Help.* Two domains share prompts and right answers, but one is right as soon as the first
part of the working is: whoever is right in the whole is right in the part. Domains of different pairs share no prompt: nothing is
planted between them, which does not say that nothing happens.

The world `planted` has open conflicts: nearly every token of the two answers differs. In `entangled` the two sides want the same
working, digit for digit, and then repeat a different digit of the prompt: most of what each learns helps the other, and one token at
the end takes it back. Where the fight is about which position to read, a specialist carries it to the other pairs too.

Both sides of a pair hold out the same prompts, or training on one would show the other's.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mopd_diag.types import Item
from mopd_diag.worlds.domain import Domain, Split, split_of
from mopd_diag.worlds.micro.addition import Addition
from mopd_diag.worlds.micro.corruption import other, wrong_digit
from mopd_diag.worlds.micro.modular import Modular
from mopd_diag.worlds.micro.sorting import Sorting
from mopd_diag.worlds.micro.stack import Stack

Relation = Literal["conflict", "help"]
SLIP = 0.4
"""Share of the demonstrations that go wrong."""


@dataclass(frozen=True)
class Planted(Domain):
    """One side of a pair. `family` is the side, so that a teacher a family never learns both.

    `question` draws a prompt and this side's right answer, `slip` makes a wrong one of it. `until`: only what stands before this
    character is judged, and it must stand there; empty judges everything.
    """

    name: str
    family: str
    summary: str
    pair: str
    """What the two sides share, and the name of their common split."""
    relation: Relation
    question: Callable[[random.Random], tuple[str, str]]
    slip: Callable[[str, str, random.Random], str]
    until: str = ""
    max_new_tokens: int = 12

    def draw(self, rng: random.Random) -> tuple[str, str]:
        return self.question(rng)

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """40 % go wrong; in a pair that helps, in the part that both need, and the error is carried on."""
        return self.slip(prompt, target, rng) if rng.random() < SLIP else target

    def score(self, prompt: str, target: str, response: str) -> float:
        if not self.until:
            return float(response == target)
        part, found, _ = response.partition(self.until)
        return float(bool(found) and part == target.partition(self.until)[0])

    def items(self, split: Split, rng: random.Random) -> Iterator[Item]:
        while True:
            prompt, target = self.draw(rng)
            if split_of(self.pair, prompt) == split:
                yield Item(f"{self.name}:{prompt}", self.name, prompt, target)


# -- questions, and how a demonstration of theirs goes wrong ------------------------------------------------------------------


def _rising(rng: random.Random) -> tuple[str, str]:
    return Sorting().draw(rng)


def _falling(rng: random.Random) -> tuple[str, str]:
    prompt, target = _rising(rng)
    return prompt, target[::-1]


def _larger(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(10, 100), 2)
    return f"G{a},{b}:", str(max(a, b))


def _smaller(rng: random.Random) -> tuple[str, str]:
    prompt, _ = _larger(rng)
    return prompt, min(prompt[1:3], prompt[4:6])


def _forwards(rng: random.Random) -> tuple[str, str]:
    while True:
        digits = "".join(rng.choices("0123456789", k=4))
        if digits != digits[::-1]:
            return f"E{digits}:", digits


def _backwards(rng: random.Random) -> tuple[str, str]:
    prompt, target = _forwards(rng)
    return prompt, target[::-1]


Question = Callable[[random.Random], tuple[str, str]]


def _then(question: Question, end: Callable[[str, str], str], other_end: Callable[[str, str], str]) -> Question:
    """The same question; after the answer, what `end` makes of prompt and answer, never what the other side makes of them."""

    def draw(rng: random.Random) -> tuple[str, str]:
        while True:
            prompt, target = question(rng)
            if end(prompt, target) != other_end(prompt, target):
                return prompt, f"{target};{end(prompt, target)}"

    return draw


def _both(
    question: Question, one: Callable[[str, str], str], two: Callable[[str, str], str]
) -> tuple[Question, Question]:
    return _then(question, one, two), _then(question, two, one)


_FIRST, _LAST = _both(_rising, lambda prompt, _: prompt[1], lambda prompt, _: prompt[4])
_TENS, _ONES = _both(_larger, lambda _, target: target[0], lambda _, target: target[1])
_SECOND, _THIRD = _both(_backwards, lambda prompt, _: prompt[2], lambda prompt, _: prompt[3])


def _a_wrong_digit(prompt: str, target: str, rng: random.Random) -> str:
    return wrong_digit(target, rng)


def _wrong_working(prompt: str, target: str, rng: random.Random) -> str:
    """A wrong digit before the semicolon."""
    working, mark, end = target.partition(";")
    return wrong_digit(working, rng) + mark + end


def _wrong_first(prompt: str, target: str, rng: random.Random) -> str:
    return other("0123456789", target[0], rng) + target[1:]


def _wrong_ones(prompt: str, target: str, rng: random.Random) -> str:
    ones = 10 * int(target[0]) + other(range(10), int(target[1]), rng)
    return f"{ones:02d},{target[3:5]}={10 * int(target[3:5]) + ones % 10}"


def _wrong_middle(prompt: str, target: str, rng: random.Random) -> str:
    middle = other(range(10), int(target[0]), rng)
    c = int(prompt[4])
    return f"{middle};{ {'+': middle + c, '-': middle - c, '*': middle * c}[prompt[5]] % 10 }"


def _wrong_remainders(prompt: str, target: str, rng: random.Random) -> str:
    modulus, last = int(prompt[5]), int(prompt[3])
    second = other(range(modulus), int(target[2]), rng)
    return f"{target[0]},{second};{(10 * second + last) % modulus}"


def _pair(
    pair: str, relation: Relation, slip: Callable[[str, str, random.Random], str],
    *sides: tuple[str, str, Callable[[random.Random], tuple[str, str]], str],
) -> list[Planted]:  # fmt: skip
    return [
        Planted(name, family, summary, pair, relation, question, slip, until)
        for family, (name, summary, question, until) in zip(("one", "other"), sides, strict=True)
    ]


_OPEN = [
    _pair("order", "conflict", _a_wrong_digit, ("rising", "four digits in rising order", _rising, ""),
          ("falling", "the same four digits in falling order", _falling, "")),
    _pair("size", "conflict", _a_wrong_digit, ("larger", "the larger of two numbers", _larger, ""),
          ("smaller", "the smaller of the same two numbers", _smaller, "")),
    _pair("reading", "conflict", _a_wrong_digit, ("forwards", "four digits as they stand", _forwards, ""),
          ("backwards", "the same four digits from the end", _backwards, "")),
]  # fmt: skip

_HIDDEN = [
    _pair("order", "conflict", _wrong_working, ("ordered-first", "rising order, then the digit that stood first", _FIRST, ""),
          ("ordered-last", "rising order, then the digit that stood last", _LAST, "")),
    _pair("size", "conflict", _wrong_first, ("larger-tens", "the larger of two numbers, then its tens again", _TENS, ""),
          ("larger-ones", "the larger of two numbers, then its ones again", _ONES, "")),
    _pair("reading", "conflict", _wrong_first, ("mirrored-second", "from the end, then the second digit again", _SECOND, ""),
          ("mirrored-third", "from the end, then the third digit again", _THIRD, "")),
]  # fmt: skip

_HELP = [
    _pair("sums", "help", _wrong_ones, ("sum", "two-digit sums, all of the working judged", Addition().draw, ""),
          ("ones", "the same sums, only the ones judged", Addition().draw, ",")),
    _pair("machine", "help", _wrong_middle, ("machine", "reverse Polish, all of the working judged", Stack().draw, ""),
          ("middle", "the same programs, only the first result judged", Stack().draw, ";")),
    _pair("division", "help", _wrong_remainders, ("division", "long division, all of the working judged", Modular().draw, ""),
          ("remainders", "the same divisions, only the first two remainders judged", Modular().draw, ";")),
]  # fmt: skip


def _by_side(pairs: list[list[Planted]]) -> dict[str, Planted]:
    """Domains by name: one side of every pair, then the other."""
    return {d.name: d for side in zip(*pairs, strict=True) for d in side}


PLANTED = _by_side(_OPEN + _HELP)
ENTANGLED = _by_side(_HIDDEN + _HELP)


def planted_relations(domains: Iterable[str] = tuple(PLANTED)) -> dict[frozenset[str], Relation | None]:
    """Every two of the domains → what was planted between them, None for nothing."""
    pairs: dict[frozenset[str], Relation] = {
        frozenset(d.name for d in pair): pair[0].relation for pair in _OPEN + _HIDDEN + _HELP
    }
    return {frozenset(two): pairs.get(frozenset(two)) for two in itertools.combinations(domains, 2)}
