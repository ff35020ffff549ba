"""json-schema: the answer is a JSON schema, and the whole response a JSON text that satisfies it (needs jsonschema)."""

from __future__ import annotations

from mopd_diag.errors import BadInput
from mopd_diag.worlds.verifiers.asking import complaint, verdict
from mopd_diag.worlds.verifiers.verifier import Verifier


def verify(prompt: str, answer: str, response: str) -> float:
    return verdict("text", {"schema": answer, "response": response})


def check(answer: str) -> None:
    problem = complaint("text", {"schema": answer, "response": "null"})
    if problem:
        raise BadInput(f"the answer is no JSON schema: {problem}")


JSON_SCHEMA = Verifier("json-schema", verify, check, shows=False)
