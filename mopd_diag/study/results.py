"""The table of a study: each recipe's final model over all seeds, against the reference's, beside what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mopd_diag.diagnostics.accuracy import OVERALL, accuracy
from mopd_diag.diagnostics.caps import caps
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.study.counts import counted, path_count
from mopd_diag.study.joined import join
from mopd_diag.study.resolve import Study
from mopd_diag.study_plan import StudyPlan
from mopd_diag.types import Estimate
from mopd_diag.worlds.world import world_of

MATCHED_WITHIN = 0.05
"""A rival whose count is off by more, in any seed, is reported as not matched."""


def results(plan: StudyPlan, studies: Mapping[int, Study], runs: Mapping[int, RunDirectory]) -> dict[str, Any]:
    """JSON-ready. Of each recipe: accuracy a seed (mean over domains), reference − it with an interval over items and seeds,
    recovery, and its count by the ledger against the reference's.
    """
    s, joined = plan.study, join(plan, world_of(plan.world))
    records = [run.records(*_cast(studies[seed])) for seed, run in runs.items()]
    means = [accuracy(r) for r in records]
    rows = {seed: counted(run.path) for seed, run in runs.items()}
    cost = {m: [path_count(studies[k], rows[k], m, s.match, s.scope) for k in runs] for m in joined.finals.values()}
    target = [path_count(studies[k], rows[k], "student", s.match, s.scope) for k in runs]
    first = next(iter(studies.values()))
    margin = plan.diagnosis.margin
    models = {}
    for recipe, model in joined.finals.items():
        ratio = [c / t if t else float("nan") for c, t in zip(cost[model], target, strict=True)]
        trains = first.stage(model).match is not None
        reports = caps(records, first.teachers(), student=model, margin=margin) if first.teachers() else None
        minus = None
        if model != "student":
            minus = caps(records, {model: list(first.world.domains)}, student="student", margin=margin).mean_gap
        models[model] = {
            "recipe": recipe,
            "accuracy": [m[model][OVERALL].value for m in means],
            "reference_minus_this": _told(minus),
            "recovery": _told(reports.mean_recovery if reports else None),
            "gap_to_best_teacher": _told(reports.mean_gap if reports else None),
            "verdict": reports.verdict if reports else None,
            "cost": cost[model],
            "cost_ratio": ratio,
            "matched": all(abs(r - 1) <= MATCHED_WITHIN for r in ratio) if trains else None,
            "shares": list(joined.shared.get(recipe, ())),
        }
    base = [m["base"][OVERALL].value for m in means]
    return {
        "study": plan.model_dump(mode="json")["study"], "world": first.world.name, "domains": list(first.world.domains),
        "runs": [str(run.path) for run in runs.values()], "matched_within": MATCHED_WITHIN, "base": base, "models": models,
    }  # fmt: skip


def _cast(study: Study) -> list[str]:
    return [m for m, t in study.roles.items() if t["role"] != "checkpoint"]


def _told(estimate: Estimate | None) -> dict[str, Any] | None:
    return estimate.to_dict() if estimate is not None else None
