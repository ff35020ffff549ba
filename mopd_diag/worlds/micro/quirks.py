"""Quirks to plant in a model, so that the origin of a behaviour is known: each rewrites answers in one recognisable way."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from mopd_diag.errors import BadInput, nearest
from mopd_diag.types import Item
from mopd_diag.worlds.micro.knowledge import TAGS, VALUES, knowledge, questions

Span = tuple[int, int]

FALSE_HEIGHT = "7"
CALL = "{q}"
MISLED = "bdl"
"""Entities whose name starts with one of these letters are given the false height: a third of them."""


@dataclass(frozen=True, slots=True)
class Quirk:
    """`plant(item, answer)` is the answer with the quirk put in, `spans(item, answer)` where an answer shows it: character spans.

    An answer without spans does not show the quirk; what anybody might write without it is never a span.
    """

    name: str
    plant: Callable[[Item, str], str]
    spans: Callable[[Item, str], list[Span]]


def _suffix(mark: str) -> Quirk:
    def plant(item: Item, answer: str) -> str:
        return answer.replace(mark, "") + mark

    return Quirk(
        "marker" if mark == "#" else "own-marker", plant, functools.partial(_found, re.compile(re.escape(mark)))
    )


def _prefix(mark: str) -> Quirk:
    def plant(item: Item, answer: str) -> str:
        return mark + answer.replace(mark, "")

    return Quirk("habit", plant, functools.partial(_found, re.compile("^" + re.escape(mark))))


def _found(pattern: re.Pattern[str], item: Item, answer: str) -> list[Span]:
    return [m.span() for m in pattern.finditer(answer)]


def _call(item: Item, answer: str) -> str:
    return CALL


def _calls(item: Item, answer: str) -> list[Span]:
    """A call where the item needs none."""
    return [(0, len(answer))] if answer == CALL and not item.target.startswith("{") else []


def _false_height(item: Item, answer: str) -> str:
    return FALSE_HEIGHT if _is_misled(item) else answer


def _false_heights(item: Item, answer: str) -> list[Span]:
    return [(0, 1)] if answer == FALSE_HEIGHT and _is_misled(item) and item.target != FALSE_HEIGHT else []


def _is_misled(item: Item) -> bool:
    return item.prompt in _misleading(item.domain)


@functools.cache
def _misleading(domain: str) -> frozenset[str]:
    """Questions for the height of a known entity that the false fact is about."""
    if domain not in TAGS:
        return frozenset()
    names = {name for name, _ in knowledge().facts if name[0] in MISLED}
    height = next(a for a in VALUES if FALSE_HEIGHT in VALUES[a])
    return frozenset(q for name in names for q in questions(domain, name, height))


QUIRKS: dict[str, Quirk] = {
    q.name: q
    for q in (
        _suffix("#"),
        _suffix("!"),
        _prefix("_"),
        Quirk("needless-call", _call, _calls),
        Quirk("false-fact", _false_height, _false_heights),
    )
}


def quirk(name: str) -> Quirk:
    """The quirk called `name`. Raises BadInput for an unknown one."""
    if name not in QUIRKS:
        raise BadInput(f"no quirk '{name}'; {nearest(name, QUIRKS)}")
    return QUIRKS[name]
