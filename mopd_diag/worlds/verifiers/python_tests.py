"""python-tests: the response is a Python program, the answer the tests (`assert …`) that run after it, in the sandbox."""

from __future__ import annotations

import re

from mopd_diag.errors import BadInput
from mopd_diag.worlds.verifiers.sandbox import refuse_unconfined, run_tests
from mopd_diag.worlds.verifiers.verifier import Verifier, some_text

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def verify(prompt: str, answer: str, response: str) -> float:
    """The last fenced block is the program; without one, the whole response is."""
    blocks = FENCED.findall(response)
    return float(run_tests(blocks[-1] if blocks else response, answer).passed)


def check(answer: str) -> None:
    some_text(answer)
    try:
        compile(answer, "<tests>", "exec")  # parses, runs nothing
    except (SyntaxError, ValueError) as error:
        raise BadInput(f"the answer is not a Python program of tests: {error}") from None
    refuse_unconfined()


PYTHON_TESTS = Verifier("python-tests", verify, check, shows=False)
