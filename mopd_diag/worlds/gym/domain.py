"""Domains made of reasoning-gym's generators, judged by its own verifiers."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import Any

from mopd_diag.errors import BadInput, ResourceError, nearest
from mopd_diag.worlds.form import Form
from mopd_diag.worlds.gym.suite import SUITE, Entry, Source
from mopd_diag.worlds.question import Question, QuestionDomain
from mopd_diag.worlds.verifiers.judge import judge, needs

QUESTIONS = 1_000_000
"""Numbers that questions are drawn from; a generator's question is a pure function of its settings and its number."""
DRAW_SECONDS, GRADE_SECONDS = 60.0, 5.0
MAX_NEW_TOKENS = 256
"""For a data set by name, whose answers may be long."""


class GymDomain(QuestionDomain):
    """One or more generators, each drawn equally often.

    `split_of` is hashed with the data set and not with the domain: a question has one side wherever it is asked.
    """

    def __init__(self, name: str, entry: Entry, max_new_tokens: int | None, form: Form) -> None:
        super().__init__(name, entry.family, entry.summary, max_new_tokens or entry.max_new_tokens, form)
        self.sources = entry.sources
        self._where: dict[str, dict[str, Any]] = {}

    def ask(self, rng: random.Random) -> Question:
        source, number = rng.choice(self.sources), rng.randrange(QUESTIONS)
        where = _where(source, number)
        said = _helper({"ask": "question", **where}, DRAW_SECONDS, source.dataset)
        text, answer = said["question"].strip(), said["answer"]
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        question = Question(
            f"{source.dataset}-{digest}", source.dataset, text, answer if answer is None else str(answer)
        )
        self._where[question.id] = where
        return question

    def unshown(self) -> str:
        """The suite's questions all have answers; of other data sets one question is asked, for a generator knows its answers or not."""
        for source in self.sources if self.name not in SUITE else ():
            said = _helper({"ask": "question", **_where(source, 0)}, DRAW_SECONDS, source.dataset)
            if said["answer"] is None:
                return f"questions of {source.dataset} without one"
        return ""

    def grade(self, question: Question, answer: str) -> float:
        """The verifier's score, partial credit included; 0 where it cannot read the answer or takes too long over it."""
        said = judge("gym").ask({"ask": "grade", "answer": answer, **self._where[question.id]}, GRADE_SECONDS)
        return float(said) if isinstance(said, int | float) else 0.0


def gym_domains(
    names: Sequence[str] | None = None, form: Form | None = None, max_new_tokens: int | None = None
) -> dict[str, GymDomain]:
    """The domains of the suite, or those named: of the suite or any data set of reasoning-gym by its own name.

    Raises BadInput for a name that neither has, or when reasoning-gym is absent.
    """
    needs("reasoning_gym", "the domains of the gym world")
    entries = dict(SUITE) if names is None else {n: SUITE[n] for n in SUITE if n in names}
    others = [n for n in names or () if n not in SUITE]
    if others:
        known = _helper({"ask": "names"}, DRAW_SECONDS, "names")
        for name in others:
            if name not in known:
                raise BadInput(f"world 'gym' has no domain or data set '{name}'; {nearest(name, [*SUITE, *known])}")
            entries[name] = Entry(known[name], f"reasoning-gym's {name}", (Source(name),), MAX_NEW_TOKENS)
    return {name: GymDomain(name, entry, max_new_tokens, form or Form()) for name, entry in entries.items()}


def _where(source: Source, number: int) -> dict[str, Any]:
    """A question's place, as the helper is asked for it."""
    return {"dataset": source.dataset, "settings": dict(source.settings), "number": number}


def _helper(request: dict[str, Any], seconds: float, what: str) -> dict[str, Any]:
    said = judge("gym").ask(request, seconds)
    if said is None:
        raise ResourceError(f"reasoning-gym gave no question of {what} within {seconds:.0f} s; leave that data set out")
    if "error" in said:
        raise BadInput(f"reasoning-gym cannot make {json.dumps(what)}: {said['error']}")
    return said
