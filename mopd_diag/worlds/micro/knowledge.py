"""The knowledge base that `facts` and `abstain` share: sixty invented names with a height and a colour each."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mopd_diag.worlds.domain import split_of

N_ENTITIES = 60
VALUES: dict[str, tuple[str, ...]] = {
    "h": tuple("0123456789"),
    "c": ("ash", "bay", "dun", "ivy", "jet", "red", "sky", "tan"),
}
# Ways of asking for attribute {a} of entity {e}.
TEMPLATES = ("{a}.{e}:", "{e}.{a}:", "{a}({e}):", "{e},{a}?:", "?{a}/{e}:", "{e}'{a}:")
TAGS = {"facts": "F", "abstain": "U"}
SEED = "mopd-diag knowledge base 1"


@dataclass(frozen=True, slots=True)
class Knowledge:
    """`facts[name, attribute]` is the value; `unknown` are names of the same kind about which nothing is known."""

    facts: Mapping[tuple[str, str], str]
    unknown: tuple[str, ...]


def questions(domain: str, name: str, attribute: str) -> list[str]:
    """Every prompt of `domain` that asks for one fact, one a template."""
    return [TAGS[domain] + template.format(a=attribute, e=name) for template in TEMPLATES]


@functools.cache
def knowledge() -> Knowledge:
    """The one knowledge base, from a fixed seed.

    A name becomes known only if, in both domains, each of its facts is asked in training by at least one template and
    in evaluation by at least one other. So every fact can be learned, and is examined in words it was not learned in.
    """
    rng = random.Random(SEED)
    consonants, vowels = "bdlmnrvwz", "aeiou"
    names = [first + vowel + last for first in consonants for vowel in vowels for last in consonants]
    rng.shuffle(names)
    known = [name for name in names if _in_both_splits(name)][:N_ENTITIES]
    facts = {(name, attribute): rng.choice(values) for name in known for attribute, values in VALUES.items()}
    return Knowledge(facts, tuple(sorted(set(names) - set(known))))


def _in_both_splits(name: str) -> bool:
    def splits(prompts: Iterable[str], domain: str) -> set[str]:
        return {split_of(domain, prompt) for prompt in prompts}

    return all(len(splits(questions(domain, name, attribute), domain)) == 2 for domain in TAGS for attribute in VALUES)
