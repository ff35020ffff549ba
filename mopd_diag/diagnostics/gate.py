"""Gates: rules over a comparison's document, such as `overall.delta.low > -0.01 and no group worse`.

    rule       := conjunct { "or" conjunct }
    conjunct   := negation { "and" negation }
    negation   := "not" negation | "(" rule ")" | statement
    statement  := quantifier "group" claim | value claim
    quantifier := "no" | "any" | "every"
    claim      := ["is"] ["not"] verdict { "or" verdict } | operator value      (after a quantifier: field operator value)
    value      := number ["%"] | ["overall" "."] field | "group" name "." field
    field      := delta.low, delta.value, delta.high, before, after, p_adjusted, lost, won, mde, ..., joined, only_before
    operator   := < <= > >= == !=
    verdict    := better | worse | unchanged | undetermined

A number that is undefined makes its comparison neither true nor false, also under `not`; a rule that is not true fails.
The parser is ours: nothing of a rule is ever executed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

from mopd_diag.diagnostics.comparison import CHANGES, OVERALL
from mopd_diag.diagnostics.gate_rules import (
    ESTIMATES,
    FIELDS,
    OPERATORS,
    TOTALS,
    All,
    AnyOf,
    Compare,
    Field,
    Node,
    Not,
    Number,
    Quantified,
    Verdicts,
)
from mopd_diag.errors import BadInput, nearest

TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?%?)|(?P<quoted>'[^']*'|\"[^\"]*\")"
    r"|(?P<word>[A-Za-z_][\w-]*)|(?P<op><=|>=|==|!=|<|>)|(?P<mark>[().]))"
)
QUANTIFIERS = ("no", "any", "every")
LONGEST = 10_000
DEEPEST = 50


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether the rule held, and which parts of it did or did not, with their numbers."""

    rule: str
    passed: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {"rule": self.rule, "passed": self.passed, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Gate:
    """A parsed rule."""

    rule: str
    node: Node

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Raises BadInput, in one line with the position, for anything that is not a rule."""
        if len(text) > LONGEST:
            raise BadInput(f"gate: the rule has {len(text)} characters, expected at most {LONGEST}")
        parser = _Parser(text)
        node = parser.rule()
        parser.end()
        return cls(text, node)

    def check(self, document: dict[str, Any]) -> GateResult:
        """Hold a comparison's document (`Comparison.to_dict()`) against the rule. Raises BadInput for an unknown group."""
        truth, reason = self.node.check(document)
        return GateResult(self.rule, truth is True, reason)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


class _Parser:
    """Recursive descent over the tokens; positions in messages count characters from 1."""

    def __init__(self, text: str) -> None:
        self.text, self.next, self.depth = text, 0, 0
        self.tokens = [*_tokens(text), _Token("end", "", len(text.rstrip()))]
        if len(self.tokens) == 1:
            raise BadInput("gate: the rule is empty; expected one such as 'no group worse'")

    # -- grammar --------------------------------------------------------------------------------------------------------

    def rule(self) -> Node:
        parts = [self.conjunct()]
        while self.take("or"):
            parts.append(self.conjunct())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def conjunct(self) -> Node:
        parts = [self.negation()]
        while self.take("and"):
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def negation(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"nested more than {DEEPEST} deep")
        node = self._negation()
        self.depth -= 1
        return node

    def _negation(self) -> Node:
        if self.take("not"):
            return Not(self.negation())
        if self.take("("):
            node = self.rule()
            if not self.take(")"):
                self.fail("expected ')'")
            return node
        return self.statement()

    def statement(self) -> Node:
        token = self.peek()
        if token.kind == "word" and token.text in QUANTIFIERS:
            self.next += 1
            if not self.take("group"):
                self.fail(f"expected 'group' after '{token.text}'")
            return Quantified(token.text, self.claim(None))
        if token.kind == "word" and token.text in (OVERALL, "group"):
            group = self.group()
            return self.compared(Field(group, *self.field())) if self.take(".") else self.verdicts(group)
        return self.compared(self.value())

    def claim(self, group: str | None) -> Node:
        """What is said of each group: verdicts, or a field compared with a value."""
        if self.peek().text in ("is", "not", *CHANGES):
            return self.verdicts(group)
        token = self.peek()
        if token.kind == "word" and token.text not in FIELDS:
            self.fail(f"expected a verdict or a field; {nearest(token.text, (*CHANGES, *FIELDS))}")
        return self.compared(Field(group, *self.field()))

    def verdicts(self, group: str | None) -> Node:
        self.take("is")
        negated = self.take("not")
        wanted = [self.verdict()]
        while self.peek().text == "or" and self.peek(1).text in CHANGES and self.peek(1).kind == "word":
            self.next += 1
            wanted.append(self.verdict())
        node = Verdicts(group, tuple(wanted))
        return Not(node) if negated else node

    def verdict(self) -> str:
        token = self.peek()
        if token.kind != "word" or token.text not in CHANGES:
            self.fail(f"expected a verdict ({', '.join(CHANGES)}) or '.' and a field")
        self.next += 1
        return token.text

    def compared(self, left: Field | Number) -> Node:
        token = self.peek()
        if token.kind != "op" or token.text not in OPERATORS:
            self.fail(f"expected one of {' '.join(OPERATORS)}")
        self.next += 1
        return Compare(left, token.text, self.value())

    def value(self) -> Field | Number:
        token = self.peek()
        if token.kind == "number":
            self.next += 1
            share = token.text.endswith("%")
            return Number(float(token.text.rstrip("%")) / (100 if share else 1), token.text)
        if token.kind == "word" and token.text in (OVERALL, "group"):
            group = self.group()
            if not self.take("."):
                self.fail("expected '.' and a field, such as .delta.low")
            return Field(group, *self.field())
        if token.kind == "word" and token.text in TOTALS:
            self.next += 1
            return Field("", token.text, "")
        if token.kind == "word":
            return Field(OVERALL, *self.field())
        self.fail("expected a number, a field, or 'no group', 'any group', 'every group'")

    def group(self) -> str:
        """`overall`, or the name that follows `group`."""
        if self.take(OVERALL):
            return OVERALL
        self.next += 1
        token = self.peek()
        if token.kind not in ("word", "quoted"):
            self.fail("expected a group's name; quote one that has dots or spaces, or starts with a digit")
        self.next += 1
        return token.text[1:-1] if token.kind == "quoted" else token.text

    def field(self) -> tuple[str, str]:
        token = self.peek()
        if token.kind != "word" or token.text not in FIELDS:
            known = nearest(token.text, FIELDS) if token.kind == "word" else f"valid: {', '.join(FIELDS)}"
            self.fail(f"expected a field; {known}")
        self.next += 1
        if not self.take("."):
            return token.text, ""
        part = self.peek()
        if token.text not in ESTIMATES:
            self.fail(f"'{token.text}' is a plain number and has no parts")
        if part.text not in ("value", "low", "high"):
            self.fail("expected value, low or high")
        self.next += 1
        return token.text, part.text

    # -- tokens ---------------------------------------------------------------------------------------------------------

    def peek(self, ahead: int = 0) -> _Token:
        return self.tokens[min(self.next + ahead, len(self.tokens) - 1)]

    def take(self, text: str) -> bool:
        token = self.peek()
        taken = token.kind in ("word", "mark") and token.text == text
        self.next += taken
        return taken

    def end(self) -> None:
        if self.peek().kind != "end":
            self.fail("expected 'and', 'or' or the end of the rule")

    def fail(self, expected: str) -> NoReturn:
        token = self.peek()
        got = "the rule ends" if token.kind == "end" else f"got '{token.text}'"
        raise BadInput(f"gate, at character {token.at + 1}: {got}, {expected}")


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while text[at:].strip():
        match = TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise BadInput(
                f"gate, at character {at + 1}: cannot read {text[at]!r}; quote names and see the documentation"
            )
        kind = match.lastgroup or ""
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        at = match.end()
    return tokens
