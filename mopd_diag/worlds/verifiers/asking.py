"""How verifiers that need a big library put their question to its helper process."""

from __future__ import annotations

from typing import Any

from mopd_diag.worlds.verifiers.judge import judge

SECONDS = 5.0


def verdict(kind: str, request: dict[str, Any]) -> float:
    """The helper's score. 0 where it ran out of time or memory, or could not read the response: a wrong answer, no accident."""
    said = judge(kind).ask(request, SECONDS)
    return float(said) if isinstance(said, int | float) else 0.0


def complaint(kind: str, request: dict[str, Any]) -> str:
    """What the helper has against a request; empty when it can judge it."""
    said = judge(kind).ask(request, SECONDS)
    if said is None:
        return f"it took more than {SECONDS:.0f} s"
    return said["error"] if isinstance(said, dict) else ""
