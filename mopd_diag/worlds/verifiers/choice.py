"""choice: the letter of a multiple-choice question, in the few ways in which models write it.

Right are the bare letter and `(B)`, `B.`, `B) because …`, `**B**`, `Answer: B`, `The answer is B …`. The last "answer is" counts;
without one, the letter must open the response. A sentence that begins with the word "A" names no choice.
"""

from __future__ import annotations

import re

from mopd_diag.errors import BadInput
from mopd_diag.worlds.verifiers.verifier import Verifier

STATED = re.compile(r"\banswer(?:\s+is)?\s*:?\s*[(*\[\"']{0,3}([A-Za-z])(?![A-Za-z'’])", re.IGNORECASE)
OPENING = re.compile(r"\s*[(*\[\"']{0,3}([A-Za-z])(?:[)*\]\"'.:,]|\s*$)")


def verify(prompt: str, answer: str, response: str) -> float:
    stated = STATED.findall(response)
    opening = OPENING.match(response)
    chosen = stated[-1] if stated else opening[1] if opening else ""
    return float(chosen.upper() == answer.strip().upper())


def check(answer: str) -> None:
    if not re.fullmatch(r"\s*[A-Za-z]\s*", answer):
        raise BadInput(f"the answer of a choice is {answer!r}, expected one letter")


CHOICE = Verifier("choice", verify, check)
