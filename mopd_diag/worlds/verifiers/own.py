"""A user's own verifier: a Python callable by import path, `package.module:function`.

`function(prompt, answer, response)` gives a score in [0, 1], where 1 is right; `answer` is "" where a line has none. The path comes
from the plan, never from a file of prompts: such a file is data, and may have been written by anyone.
"""

from __future__ import annotations

import importlib
import math
from numbers import Real

from mopd_diag.errors import BadInput
from mopd_diag.worlds.verifiers.verifier import Verifier


def own_verifier(path: str) -> Verifier:
    """Import the callable. Raises BadInput when there is none."""
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise BadInput(f"verifier '{path}' cannot be imported ({error}); expected package.module:function") from None
    if not callable(function):
        raise BadInput(
            f"verifier '{path}' is a {type(function).__name__}, expected a function(prompt, answer, response)"
        )

    def verify(prompt: str, answer: str, response: str) -> float:
        score = function(prompt, answer, response)
        if not isinstance(score, Real) or not 0 <= float(score) <= 1 or math.isnan(float(score)):
            raise BadInput(f"verifier '{path}' gave {score!r}, expected a number from 0 to 1")
        return float(score)

    return Verifier(path, verify, lambda answer: None)
