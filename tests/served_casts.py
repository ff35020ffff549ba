"""Casts with a served teacher, and answers asked of its server. Shared by the tests of served teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cast_models import PROMPTS, paths
from small_server import SmallServer
from tiny import TOKENIZER

import mopd_diag
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.engines.served import score_served
from mopd_diag.engines.served_cache import Cache
from mopd_diag.engines.served_http import Address, Client, Described
from mopd_diag.engines.top_tokens import TopTokens

KEY = "sk-very-secret-1234"
ANSWERS = ["15,09=95;M:77", "(3*4)-2 is 10", "stop", "no", "12=12", "7"]
LINES = [{**p, "response": r} for p, r in zip(PROMPTS, ANSWERS, strict=False)]


def cast_of(models: Path, server: SmallServer, **more: Any) -> dict[str, Any]:
    """Student and one teacher local, the teacher `math` served."""
    cast = paths(models)
    cast["teachers"]["math"] = {"url": server.url, "model": "math-rl", "domains": ["math"], **more}
    return cast


def attributed(cast: dict[str, Any], lines: list[dict[str, Any]] = LINES, **how: Any):
    said: list[str] = []
    return mopd_diag.attribute(cast, rollouts=lines, warn=said.append, **how), said


def rollouts(answers: list[str] = ANSWERS) -> Rollouts:
    return pack([TOKENIZER.encode("M1+2:")] * len(answers), [[*TOKENIZER.encode(a), 1] for a in answers], 0)


def asked(server: SmallServer, given: Rollouts, cache: Cache, k: int = 5, **how: Any) -> TopTokens:
    address = Address("teacher-math", server.url, "math-rl", **how)
    with Client(address, backoff_s=0.001) as client:
        return score_served(client, given, k, TOKENIZER, cache, Described(), lambda _: None)
