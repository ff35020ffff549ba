"""The curated suite: eight domains in three families that a model of a tenth of a billion parameters can begin to learn.

Settings make the questions of reasoning-gym smaller than its defaults: one step of reasoning, answers of a few tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Source:
    """A data set of reasoning-gym with the settings that differ from its defaults."""

    dataset: str
    settings: Mapping[str, int | float | bool | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One domain of the suite. `max_new_tokens` leaves room for a short sentence around the longest answer, tags included."""

    family: str
    summary: str
    sources: tuple[Source, ...]
    max_new_tokens: int


SUITE: dict[str, Entry] = {
    "arithmetic": Entry(
        "math",
        "sums and products of small numbers",
        (
            Source("chain_sum", {"max_terms": 3, "max_digits": 2}),
            Source("products", {"max_digits": 2}),
        ),
        64,
    ),
    "equations": Entry(
        "math", "one unknown in a small equation", (Source("simple_equations", {"max_terms": 2, "max_value": 20}),), 64
    ),
    "divisors": Entry(
        "math",
        "greatest common divisors and least common multiples",
        (Source("gcd", {"max_value": 60}), Source("lcm", {"max_value": 20})),
        64,
    ),
    "animals": Entry(
        "math",
        "legs of a few animals, counted",
        (Source("leg_counting", {"min_animals": 1, "max_animals": 3, "max_instances": 5}),),
        96,
    ),
    "spelling": Entry(
        "language",
        "words spelt backward, letters counted",
        (
            Source("spell_backward", {"max_word_len": 5}),
            Source("letter_counting", {"min_words": 3, "max_words": 6}),
        ),
        64,
    ),
    "ordering": Entry(
        "language",
        "words and numbers put in order",
        (
            Source("word_sorting", {"max_words": 4, "max_word_length": 6}),
            Source("number_sorting", {"max_numbers": 4, "max_decimals": 0}),
        ),
        96,
    ),
    "relations": Entry(
        "logic", "who is whose cousin in a small family", (Source("family_relationships", {"max_family_size": 5}),), 48
    ),
    "syllogisms": Entry("logic", "does a conclusion follow, yes or no", (Source("syllogism"),), 32),
}
