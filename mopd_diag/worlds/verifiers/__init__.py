"""Verifiers: how the answer to a prompt of one's own is judged. One a file; `VERIFIERS` names them."""

from __future__ import annotations

from mopd_diag.worlds.verifiers.choice import CHOICE
from mopd_diag.worlds.verifiers.exact import EXACT
from mopd_diag.worlds.verifiers.json_schema import JSON_SCHEMA
from mopd_diag.worlds.verifiers.mathematics import MATH
from mopd_diag.worlds.verifiers.pattern import REGEX
from mopd_diag.worlds.verifiers.python_tests import PYTHON_TESTS
from mopd_diag.worlds.verifiers.verifier import Verifier

VERIFIERS: dict[str, Verifier] = {v.name: v for v in (EXACT, REGEX, MATH, JSON_SCHEMA, CHOICE, PYTHON_TESTS)}

__all__ = ["VERIFIERS", "Verifier"]
