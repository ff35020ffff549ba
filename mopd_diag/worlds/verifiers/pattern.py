"""regex: the answer is a regular expression that is found somewhere in the response; anchor it with ^ and $ to fit the whole."""

from __future__ import annotations

import re

from mopd_diag.errors import BadInput
from mopd_diag.worlds.verifiers.asking import verdict
from mopd_diag.worlds.verifiers.verifier import Verifier


def verify(prompt: str, answer: str, response: str) -> float:
    """In the helper process: some patterns take all time there is on some texts."""
    return verdict("text", {"pattern": answer, "response": response})


def check(answer: str) -> None:
    try:
        re.compile(answer)
    except re.error as error:
        raise BadInput(f"the answer is no regular expression: {error}") from None


REGEX = Verifier("regex", verify, check, shows=False)
