"""What a verifier is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mopd_diag.errors import BadInput


@dataclass(frozen=True, slots=True)
class Verifier:
    """`verify(prompt, answer, response)` is a score in [0, 1], where 1 is right; `response` is data, whatever it says.

    `check(answer)` raises BadInput for an answer that the verifier cannot use; it is called for every line of a file before
    anything is trained. `shows`: the answer itself is a right response, and can be shown to a model as a demonstration.
    """

    name: str
    verify: Callable[[str, str, str], float]
    check: Callable[[str], None]
    shows: bool = True


def some_text(answer: str) -> None:
    """The least an answer must be."""
    if not answer.strip():
        raise BadInput("the answer is empty; nothing could be compared with it")
