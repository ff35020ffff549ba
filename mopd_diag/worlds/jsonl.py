"""The jsonl world: the user's own prompts, one JSON object a line, each with its answer and its verifier."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mopd_diag.errors import BadInput, nearest
from mopd_diag.prompts import Prompt, read_prompts
from mopd_diag.types import Item
from mopd_diag.worlds.domain import Split
from mopd_diag.worlds.form import Form
from mopd_diag.worlds.question import Question, QuestionDomain
from mopd_diag.worlds.verifiers import VERIFIERS, Verifier
from mopd_diag.worlds.verifiers.own import own_verifier

MAX_NEW_TOKENS = 256
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}")  # a teacher's name is made of it
UNNAMED = "prompts"
"""The domain of lines without one."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """How one line is judged: its verifier, and the answer, pattern, schema or tests that it is given."""

    verifier: Verifier
    reference: str


class JsonlDomain(QuestionDomain):
    """The lines of one domain, and the judgement of each by its id. Every domain is its own family, with its own teacher."""

    def __init__(
        self, name: str, questions: Sequence[Question], judged: Mapping[str, Judgement], max_new_tokens: int, form: Form
    ) -> None:
        super().__init__(name, name.lower(), f"{len(questions)} prompts", max_new_tokens, form)
        self.questions = questions
        self.judged = judged
        for question in questions:
            self._item(question)  # all are known from the start, so that answers of an earlier run can be judged

    def ask(self, rng: random.Random) -> Question:
        return rng.choice(self.questions)

    def grade(self, question: Question, answer: str) -> float:
        by = self.judged[question.id]
        return by.verifier.verify(question.text, by.reference, answer)

    def unshown(self) -> str:
        lacking = sum(q.answer is None for q in self.questions)
        return (
            f"{lacking} of {len(self.questions)} prompts without one (a pattern, a schema or tests are none)"
            if lacking
            else ""
        )

    def distinct(self, split: Split, n: int, rng: random.Random) -> list[Item]:
        """`n` different lines of one split, all of them when it has fewer; those for a smaller `n` come first."""
        mine = [q for q in self.questions if q.split == split]
        return [self._item(q) for q in rng.sample(mine, len(mine))[:n]]


def jsonl_domains(
    path: Path, verifier: str | None = None, form: Form | None = None, max_new_tokens: int | None = None
) -> dict[str, JsonlDomain]:
    """Read and check a file of prompts. `verifier` judges lines that name none: a name of `VERIFIERS` or an import path.

    Raises BadInput, with file and line, for what no verifier could judge, and for a domain without held-out prompts.
    """
    default = VERIFIERS["exact"] if verifier is None else _named(verifier, "the world's verifier", trusted=verifier)
    groups: dict[str, list[Question]] = {}
    judged: dict[str, Judgement] = {}
    seen: dict[tuple[str, str], str] = {}
    for line in read_prompts(path, responses=False):
        at, name = f"{path}, prompt '{line.id}'", line.domain or UNNAMED
        if not NAME.fullmatch(name):
            raise BadInput(f"{at}: domain {name!r}; expected letters, digits, `_` and `-`, at most 48")
        if seen.setdefault((name, line.prompt), line.id) != line.id:
            raise BadInput(
                f"{at}: the prompt of '{seen[name, line.prompt]}' again; a prompt has one line in its domain"
            )
        judge = default if line.verifier is None else _named(line.verifier, at, trusted=verifier)
        _check(line, judge, at)
        # A pattern, a schema or tests are for the verifier, not for a model to see.
        groups.setdefault(name, []).append(Question(line.id, name, line.prompt, line.answer if judge.shows else None))
        judged[line.id] = Judgement(judge, line.answer or "")
    form = form or Form()
    domains = {
        name: JsonlDomain(name, questions, judged, max_new_tokens or MAX_NEW_TOKENS, form)
        for name, questions in groups.items()
    }
    for name, domain in domains.items():
        _check_splits(domain, f"{path}, domain '{name}'")
    return domains


def _named(name: str, at: str, trusted: str | None) -> Verifier:
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" not in name:
        raise BadInput(f"{at}: no verifier '{name}'; {nearest(name, VERIFIERS)} (or package.module:function)")
    if name != trusted:
        raise BadInput(
            f"{at}: verifier '{name}' would import code that only the file asks for; to allow it, "
            f'write verifier = "{name}" in the [world] of the plan'
        )
    return own_verifier(name)


def _check(line: Prompt, verifier: Verifier, at: str) -> None:
    if line.answer is None and verifier.name in VERIFIERS:
        raise BadInput(f"{at}: no 'answer'; the verifier '{verifier.name}' needs one")
    try:
        verifier.check(line.answer or "")
    except BadInput as error:
        raise BadInput(f"{at}: {error}") from None


def _check_splits(domain: JsonlDomain, at: str) -> None:
    splits: Mapping[str, int] = {s: sum(q.split == s for q in domain.questions) for s in ("train", "eval")}
    for split, count in splits.items():
        if not count:
            raise BadInput(
                f"{at}: none of its {len(domain.questions)} prompts falls on the {split} side (one in five is held out, by its "
                "text); add prompts"
            )
