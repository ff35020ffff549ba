"""How a question in words is shown to a model, and where its answer stands in the response."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mopd_diag.errors import BadInput, nearest

# Published chat formats without a system message. `{prompt}` is the question.
TEMPLATES = {
    "plain": "{prompt}\n",
    "chatml": "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}
MARK = re.compile(r"<\|.*?\|>")
ASKED_FOR = "\nGive only the final answer between <answer> and </answer>."
OPEN, CLOSE = "<answer>", "</answer>"
FORMAT_SHARE = 0.1
"""Share of the training reward that well-formed tags earn."""


@dataclass(frozen=True, slots=True)
class Form:
    """`template` is a name of `TEMPLATES` or a text with `{prompt}` in it; with `tags` the answer stands between <answer> tags."""

    template: str = "plain"
    tags: bool = False

    def __post_init__(self) -> None:
        if self.text.count("{prompt}") != 1:
            raise BadInput(
                f"template {self.template!r} is none of {', '.join(TEMPLATES)} and holds {{prompt}} "
                f"{self.text.count('{prompt}')} times, expected once; {nearest(self.template, TEMPLATES)}"
            )

    @property
    def text(self) -> str:
        return TEMPLATES.get(self.template, self.template)

    def prompt(self, question: str) -> str:
        """What the model reads. Raises BadInput for a question that spells one of the template's own marks."""
        for mark in dict.fromkeys(MARK.findall(self.text)):
            if mark in question:
                raise BadInput(
                    f"a question holds {mark}, a mark of template {self.template!r}; take it out of the question"
                )
        return self.text.replace("{prompt}", question + ASKED_FOR if self.tags else question)

    def response(self, answer: str) -> str:
        """The right response that holds `answer`."""
        return f"{OPEN}{answer}{CLOSE}" if self.tags else answer

    def answer(self, response: str) -> str | None:
        """What is judged: with tags the text between the last two, None without any; else the response, blanks cut off."""
        if not self.tags:
            return response.strip()
        before, closed, _ = response.rpartition(CLOSE)
        _, opened, answer = before.rpartition(OPEN)
        return answer.strip() if opened and closed else None

    def well_formed(self, response: str) -> bool:
        """One pair of tags, and nothing after it."""
        return response.count(OPEN) == 1 == response.count(CLOSE) and response.rstrip().endswith(CLOSE)

    def shaped(self, grade: float, response: str) -> float:
        """The training reward: the grade itself, or with tags 0.9 · grade + 0.1 for well-formed tags. It is 1 only for a right
        answer in the right form; the form alone earns 0.1, and a right answer beside stray tags 0.9."""
        return (1 - FORMAT_SHARE) * grade + FORMAT_SHARE * self.well_formed(response) if self.tags else grade
