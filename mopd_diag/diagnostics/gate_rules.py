"""The parts of a parsed gate, each of which holds, does not hold, or cannot be told, and says why."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mopd_diag.diagnostics.comparison import OVERALL
from mopd_diag.errors import BadInput, nearest

Truth = bool | None
"""None: an undefined number makes it impossible to say."""

ESTIMATES = ("before", "after", "delta", "noise_floor")
FIELDS = (*ESTIMATES, "lost", "won", "p_value", "p_adjusted", "q_value", "mde", "margin", "n_items")
TOTALS = ("joined", "only_before", "only_after")
"""Numbers of the whole document, of no group."""
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
SHOWN = 8
"""Groups that a reason names."""


class Node(Protocol):
    """A part of a rule."""

    def check(self, document: dict[str, Any], group: str | None = None) -> tuple[Truth, str]:
        """Whether it holds of the document, and the reason in words; `group` is the one that a quantifier is at."""
        ...


@dataclass(frozen=True, slots=True)
class Number:
    value: float
    text: str

    def of(self, document: dict[str, Any], group: str | None) -> float | None:
        return self.value

    def said(self, document: dict[str, Any], group: str | None) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Field:
    """A number of a group; `group` None is the one that a quantifier is at, "" the whole document."""

    group: str | None
    name: str
    part: str

    def of(self, document: dict[str, Any], group: str | None) -> float | None:
        """The number, or None when it is undefined or was not measured."""
        if self.group == "":
            found = document[self.name]
            return float(len(found) if isinstance(found, list) else found)
        table = _table(document, self.group if self.group is not None else group or OVERALL)
        found = table[f"{self.name}_estimate" if self.name in ("before", "after") and self.part else self.name]
        if isinstance(found, dict):
            found = found[self.part or "value"]
        return None if found is None else float(found)

    def said(self, document: dict[str, Any], group: str | None) -> str:
        where = self.group if self.group is not None else group or ""
        name = ".".join(p for p in (where, self.name, self.part) if p)
        value = self.of(document, group)
        return f"{name} = {'undefined' if value is None else f'{value:.4g}'}"


@dataclass(frozen=True, slots=True)
class Compare:
    left: Field | Number
    op: str
    right: Field | Number

    def check(self, document: dict[str, Any], group: str | None = None) -> tuple[Truth, str]:
        sides = [x.of(document, group) for x in (self.left, self.right)]
        said = [x.said(document, group) for x in (self.left, self.right)]
        if sides[0] is None or sides[1] is None:
            return None, f"cannot tell {said[0]} {self.op} {said[1]}"
        truth = OPERATORS[self.op](sides[0], sides[1])
        return truth, f"{said[0]}, {'' if truth else 'not '}{self.op} {said[1]}"


@dataclass(frozen=True, slots=True)
class Verdicts:
    group: str | None
    wanted: tuple[str, ...]

    def check(self, document: dict[str, Any], group: str | None = None) -> tuple[Truth, str]:
        name = self.group if self.group is not None else group or OVERALL
        verdict = _table(document, name)["verdict"]
        truth = verdict in self.wanted
        return truth, f"{name} is {verdict}" + ("" if truth else f", not {' or '.join(self.wanted)}")


@dataclass(frozen=True, slots=True)
class Quantified:
    """`no`, `any` or `every` group."""

    quantifier: str
    claim: Node

    def check(self, document: dict[str, Any], group: str | None = None) -> tuple[Truth, str]:
        found = [self.claim.check(document, name) for name in document["groups"]]
        decides = self.quantifier != "every"  # one group that it is true of decides `any` and `no`
        truth = _decided([t for t, _ in found], decides)
        telling = [why for t, why in found if t is (decides if truth is decides else truth)]
        if truth is not decides and truth is not None and self.quantifier != "any":
            telling = [f"holds of all {len(found)}"]
        elif len(telling) > SHOWN:
            telling = [*telling[:SHOWN], f"and {len(telling) - SHOWN} more"]
        if self.quantifier == "no" and truth is not None:
            truth = not truth
        return truth, f"{self.quantifier} group: {'; '.join(telling)}"


@dataclass(frozen=True, slots=True)
class Not:
    node: Node

    def check(self, document: dict[str, Any], group: str | None = None) -> tuple[Truth, str]:
        truth, why = self.node.check(document, group)
        return None if truth is None else not truth, why


@dataclass(frozen=True, slots=True)
class All:
    nodes: tuple[Node, ...]

    def check(self, document: dict[str, Any], group: str | None = None) -> tuple[Truth, str]:
        return _joined([n.check(document, group) for n in self.nodes], decides=False)


@dataclass(frozen=True, slots=True)
class AnyOf:
    nodes: tuple[Node, ...]

    def check(self, document: dict[str, Any], group: str | None = None) -> tuple[Truth, str]:
        return _joined([n.check(document, group) for n in self.nodes], decides=True)


def _joined(found: list[tuple[Truth, str]], *, decides: bool) -> tuple[Truth, str]:
    """`and` is decided by a part that is False, `or` by one that is True; else by one that cannot be told."""
    truth = _decided([t for t, _ in found], decides)
    return truth, "; ".join(why for t, why in found if t is truth)


def _decided(truths: list[Truth], decides: bool) -> Truth:
    return decides if decides in truths else None if None in truths else not decides


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    if name == OVERALL:
        return document["overall"]
    if name not in document["groups"]:
        raise BadInput(f"gate: no group '{name}' in this comparison; {nearest(name, document['groups'])}")
    return document["groups"][name]
