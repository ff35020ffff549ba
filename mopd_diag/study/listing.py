"""What can be run: the built-in plans and the recipes."""

from __future__ import annotations

from typing import Any

from mopd_diag.recipes import RECIPES
from mopd_diag.study.resolve import builtin_names, find_plan


def listed() -> list[dict[str, Any]]:
    """One row a plan or recipe: name, kind, teachers, domains, summary."""
    rows = []
    for kind, names in (("plan", builtin_names()), ("recipe", RECIPES)):
        for name in names:
            study = find_plan(name)
            rows.append(
                {
                    "name": name,
                    "kind": kind,
                    "teachers": len(study.teachers()),
                    "domains": len(study.world.domains),
                    "summary": study.plan.summary,
                }
            )
    return rows
