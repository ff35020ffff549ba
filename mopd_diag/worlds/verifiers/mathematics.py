"""math: the response holds a number, expression or set that equals the answer, read by math-verify (`pip install 'mopd-diag[gym]'`).

Plain text (`1/2`, `3.5`) and LaTeX (`$\\frac12$`, `\\boxed{...}`) are both read; the last boxed or stated result counts.
"""

from __future__ import annotations

from mopd_diag.errors import BadInput
from mopd_diag.worlds.verifiers.asking import complaint, verdict
from mopd_diag.worlds.verifiers.verifier import Verifier, some_text


def verify(prompt: str, answer: str, response: str) -> float:
    return verdict("math", {"answer": answer, "response": response})


def check(answer: str) -> None:
    some_text(answer)
    problem = complaint("math", {"answer": answer, "response": ""})
    if problem:
        raise BadInput(f"the answer {answer!r} cannot be read as mathematics: {problem}")


MATH = Verifier("math", verify, check)
