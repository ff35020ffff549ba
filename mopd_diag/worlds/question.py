"""Domains of questions in words, as opposed to the micro world's formulas."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from mopd_diag.errors import BadInput
from mopd_diag.types import Item
from mopd_diag.worlds.domain import Domain, Split, split_of
from mopd_diag.worlds.form import Form


@dataclass(frozen=True, slots=True)
class Question:
    """`text` is the question alone; `source` is what its split is hashed with; `answer` is None where no right one is known."""

    id: str
    source: str
    text: str
    answer: str | None

    @property
    def split(self) -> Split:
        """By the question alone: another template or another domain does not move it to the other side."""
        return split_of(self.source, self.text)


class QuestionDomain(Domain):
    """Questions in one `Form`. It judges the questions that it has drawn itself, in this process: their text alone is not enough."""

    shapes = True

    def __init__(self, name: str, family: str, summary: str, max_new_tokens: int, form: Form) -> None:
        self.name = name
        self.family = family
        self.summary = summary
        self.max_new_tokens = max_new_tokens
        self.form = form
        self._known: dict[str, Question] = {}

    @abstractmethod
    def ask(self, rng: random.Random) -> Question:
        """One question from the whole domain."""

    @abstractmethod
    def grade(self, question: Question, answer: str) -> float:
        """A score in [0, 1], where 1 is right, for an answer freed of its form."""

    def draw(self, rng: random.Random) -> tuple[str, str]:
        item = self._item(self.ask(rng))
        return item.prompt, item.target

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        """The right answer, as it stands: nothing is known of the mistakes that should be in reach.

        Raises BadInput where no right answer is known.
        """
        if not target:
            raise BadInput(
                f"domain '{self.name}' has a question without a right answer to show; start from a trained model, or leave it "
                "out of the `sft` stages"
            )
        return target

    def score(self, prompt: str, target: str, response: str) -> float:
        """1.0 when the answer in the response is right, else 0.0; partial credit counts in `reward` only."""
        return self.judge(prompt, target, response)[0]

    def judge(self, prompt: str, target: str, response: str) -> tuple[float, float]:
        """The reward is the verifier's grade, partial credit included, and with tags a tenth for the form; see `Form.shaped`."""
        grade = self._grade(prompt, response)
        return float(grade >= 1.0), self.form.shaped(grade, response)

    def items(self, split: Split, rng: random.Random) -> Iterator[Item]:
        while True:
            question = self.ask(rng)
            if question.split == split:
                yield self._item(question)

    def _grade(self, prompt: str, response: str) -> float:
        if prompt not in self._known:
            raise BadInput(
                f"domain '{self.name}' did not draw the prompt {prompt[:60]!r}; draw its items from this world first"
            )
        answer = self.form.answer(response)
        return 0.0 if answer is None else self.grade(self._known[prompt], answer)

    def _item(self, question: Question) -> Item:
        prompt = self.form.prompt(question.text)
        self._known[prompt] = question
        target = "" if question.answer is None else self.form.response(question.answer)
        return Item(f"{self.name}:{question.id}", self.name, prompt, target)
