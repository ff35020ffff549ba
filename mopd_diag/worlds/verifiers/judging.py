"""The helper process of `judge.py`: import the library, take on limits, then answer one line of JSON with another.

Nothing that a model wrote is evaluated here as Python: see `gym_verdicts` for the data sets that would.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from mopd_diag.worlds.verifiers import confined
from mopd_diag.worlds.verifiers.sandbox import readable

MEMORY = 4 * 2**30  # bytes of address space; reasoning-gym with its data takes one
Operation = Callable[[dict[str, Any]], Any]


def _text() -> Operation:
    jsonschema, referencing = importlib.import_module("jsonschema"), importlib.import_module("referencing")

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def answer(request: dict[str, Any]) -> Any:
        if "pattern" in request:
            return float(re.search(request["pattern"], request["response"]) is not None)
        schema = json.loads(request["schema"])
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        try:
            value = json.loads(request["response"], parse_constant=constant)
        except ValueError:
            return 0.0
        # An empty registry: no schema is fetched from anywhere.
        return float(kind(schema, registry=referencing.Registry()).is_valid(value))

    return answer


def _math() -> Operation:
    math_verify = importlib.import_module("math_verify")
    logging.disable()  # it warns that its own time limits are off; the caller has one
    read = lambda text: math_verify.parse(text, parsing_timeout=None)  # noqa: E731

    def answer(request: dict[str, Any]) -> Any:
        right = request["answer"]
        gold = read(right) if "$" in right or "\\boxed" in right else read(f"${right}$") or read(right)
        if all(isinstance(each, str) for each in gold):  # text is what it falls back on
            return {"error": "no number, expression or set is found in it"}
        return float(math_verify.verify(gold, read(request["response"]), timeout_seconds=None))

    return answer


def _gym() -> Operation:
    return importlib.import_module("mopd_diag.worlds.gym.library").answer


KINDS: dict[str, Callable[[], Operation]] = {"text": _text, "math": _math, "gym": _gym}


def main(kind: str) -> None:
    answer, said = KINDS[kind](), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not become a verdict
    confined.limit(memory=MEMORY)
    if not confined.unsupported():  # elsewhere the limits of memory and time must do
        roots = {p for p in (*sys.path, sys.prefix, sys.base_prefix) if p and os.path.exists(p)}  # noqa: PTH110
        confined.restrict(sorted({*readable(), *roots}))
    print(json.dumps("ready"), file=said, flush=True)
    for line in sys.stdin:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = answer(json.loads(line))
        except Exception as error:  # a library met text that it cannot read
            result = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(result), file=said, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
