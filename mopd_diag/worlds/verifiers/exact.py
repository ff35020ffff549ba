"""exact: the response is the answer to the letter, blanks around it aside."""

from __future__ import annotations

from mopd_diag.worlds.verifiers.verifier import Verifier, some_text


def verify(prompt: str, answer: str, response: str) -> float:
    return float(response.strip() == answer.strip())


EXACT = Verifier("exact", verify, some_text)
