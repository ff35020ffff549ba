"""What can be run: the built-in plans, the recipes and the studies."""

from __future__ import annotations

from typing import Any

from mopd_diag.errors import BadInput
from mopd_diag.recipes import RECIPES
from mopd_diag.study.joined import study_of
from mopd_diag.study.resolve import builtin_names, find_plan, study_names
from mopd_diag.study.studies import find_study


def listed() -> list[dict[str, Any]]:
    """One row a plan, recipe or study: name, kind, teachers, domains, summary.

    A plan that needs what is not installed stands there with the reason, and no numbers.
    """
    rows = []
    for kind, names in (("plan", builtin_names()), ("recipe", RECIPES)):
        for name in names:
            try:
                study = find_plan(name)
            except BadInput as error:
                rows.append({"name": name, "kind": kind, "teachers": None, "domains": None, "summary": str(error)})
                continue
            rows.append(
                {
                    "name": name,
                    "kind": kind,
                    "teachers": len(study.teachers()),
                    "domains": len(study.world.domains),
                    "summary": study.plan.summary,
                }
            )
    for name in study_names():
        plan = find_study(name)
        assert plan is not None
        study = study_of(plan, plan.study.seeds[0])
        rows.append(
            {
                "name": name,
                "kind": "study",
                "teachers": len(study.teachers()),
                "domains": len(study.world.domains),
                "summary": plan.study.summary,
            }
        )
    return rows
