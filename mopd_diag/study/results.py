"""The document of a study: each recipe's final model over all seeds, against the reference's, beside what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mopd_diag.diagnostics.accuracy import OVERALL, accuracy
from mopd_diag.diagnostics.caps import CapsReport, caps
from mopd_diag.diagnostics.interference import InterferenceReport, Measure, interference
from mopd_diag.diagnostics.rivalry import Rivalry, pooled, rivalry
from mopd_diag.reporting.paths import COUNTS, CostPoint, critical_path, pareto
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.study.counts import Rows, counted, path_count
from mopd_diag.study.joined import Joined, join
from mopd_diag.study.resolve import Study
from mopd_diag.study.untested import untested
from mopd_diag.study_plan import StudyPlan
from mopd_diag.types import Estimate
from mopd_diag.worlds.world import world_of

MATCHED_WITHIN = 0.05
"""A rival whose count is off by more, in any seed, is reported as not matched."""
AXES = ("flops", "tokens_sampled", "critical_seconds")
"""Costs against which results are set."""


def results(plan: StudyPlan, studies: Mapping[int, Study], runs: Mapping[int, RunDirectory]) -> dict[str, Any]:
    """JSON-ready, all that terminal, page and app show; `docs/run-directory.md` names the keys."""
    joined, margin = join(plan, world_of(plan.world)), plan.diagnosis.margin
    first, finals = next(iter(studies.values())), list(joined.finals.values())
    records = [run.records(*_cast(studies[seed])) for seed, run in runs.items()]
    compared = rivalry(records, finals, "student", margin=margin)
    teachers = first.teachers()
    reports = {m: caps(records, teachers, student=m, margin=margin) for m in finals} if teachers else {}
    lost = _interference([run.records() for run in runs.values()], first, finals, margin)
    each = [_measured(run) for run in runs.values()]
    rows = {seed: counted(run.path) for seed, run in runs.items()}
    means = [accuracy(r) for r in records]
    models = {}
    for recipe, model in joined.finals.items():
        report, costs = reports.get(model), _costs(studies, rows, model)
        models[model] = {
            "recipe": recipe,
            "accuracy": [m[model][OVERALL].value for m in means],
            "accuracy_over_seeds": compared.accuracy[model][OVERALL].to_dict(),
            **_against_reference(compared, model),
            **_caps(report),
            **_matched(plan, studies, rows, model, merged=first.stage(model).match is None),
            "costs": costs,
            "regret": _measure(lost.regret[model], [m.get((model, "regret")) for m in each]),
            "forgetting": _measure(lost.forgetting[model], [m.get((model, "forgetting")) for m in each]),
            "shares": list(joined.shared.get(recipe, ())),
            "domains": _domains(compared, report, model),
        }
    document = {
        "study": plan.model_dump(mode="json")["study"], "world": first.world.name, "domains": list(first.world.domains),
        "runs": [str(run.path) for run in runs.values()], "matched_within": MATCHED_WITHIN, "margin": margin,
        "base": [m["base"][OVERALL].value for m in means], "models": models, "winner": _winner(compared, joined),
        "seeds": [_seed(seed, run.path) for seed, run in runs.items()],
        "pareto": {axis: _front(models, axis) for axis in AXES},
    }  # fmt: skip
    return document | {"untested": untested(plan, first, document)}


def _cast(study: Study) -> list[str]:
    return [m for m, t in study.roles.items() if t["role"] != "checkpoint"]


# -- results ------------------------------------------------------------------------------------------------------------------


def _against_reference(compared: Rivalry, model: str) -> dict[str, Any]:
    """`reference_minus_this` over all domains with what it amounts to; null for the reference itself."""
    found = compared.overall.get(model)
    told = found.to_dict() if found else {"delta": None}
    return {"reference_minus_this": told.pop("delta"), "reference_against_this": told or None}


def _domains(compared: Rivalry, report: CapsReport | None, model: str) -> dict[str, Any]:
    """Domain → accuracy, reference − it, and recovery."""
    found = {}
    for domain, estimate in compared.accuracy[model].items():
        if domain != OVERALL:
            contest = compared.by_domain.get(model, {}).get(domain)
            recovery = report.caps[domain].cap.recovery.to_dict() if report else None
            found[domain] = {
                "accuracy": estimate.to_dict(),
                "reference_minus_this": contest.to_dict() if contest else None,
                "recovery": recovery,
            }
    return found


def _caps(report: CapsReport | None) -> dict[str, Any]:
    if report is None:
        return {"recovery": None, "gap_to_best_teacher": None, "verdict": None}
    means = {"recovery": report.mean_recovery.to_dict(), "gap_to_best_teacher": report.mean_gap.to_dict()}
    return means | {"verdict": report.verdict}


def _winner(compared: Rivalry, joined: Joined) -> dict[str, Any]:
    """The path with the highest mean, its lead over every other, and the single domains on which another surely beats it."""
    recipes = {m: r for r, m in joined.finals.items()}
    beaten = [
        {"domain": d, "model": m, "recipe": recipes[m], **c.to_dict()}
        for m, row in compared.single.items()
        for d, c in row.items()
        if c.verdict == "behind"
    ]
    leads = {m: c.to_dict() for m, c in compared.leads.items()}
    return {"model": compared.winner, "recipe": recipes[compared.winner], "leads": leads, "beaten_on": beaten}


def _interference(runs: Sequence[pd.DataFrame], study: Study, finals: Sequence[str], margin: float) -> InterferenceReport:  # fmt: skip
    paths = {m: m for m in finals}
    return interference(pooled(runs), study.teachers(), paths=paths, sequence=study.sequence(), margin=margin)


def _measured(run: RunDirectory) -> dict[tuple[str, str], Estimate | None]:
    """(model, regret or forgetting) → what the seed's own diagnosis found in its worst domain."""
    found = [f for f in run.findings() if "measure" in f.evidence and f.kind == "interference"]
    return {(f.evidence["model"], f.evidence["measure"]): f.estimate for f in found}


def _measure(pooled_: Measure, seeds: Sequence[Estimate | None]) -> dict[str, Any]:
    """Over the pooled seeds, and each seed's own worst domain beside it."""
    return pooled_.to_dict() | {"by_seed": [_number(e.value) if e is not None else None for e in seeds]}


# -- costs --------------------------------------------------------------------------------------------------------------------


def _matched(
    plan: StudyPlan, studies: Mapping[int, Study], rows: Mapping[int, Rows], model: str, *, merged: bool
) -> dict[str, Any]:
    """The counted quantity of a path against the reference's, in every seed; `matched` is null where nothing could be."""
    s = plan.study
    cost, target = ([path_count(studies[k], rows[k], m, s.match, s.scope) for k in studies] for m in (model, "student"))
    ratio = [c / t if t else None for c, t in zip(cost, target, strict=True)]
    matched = None if merged else all(r is not None and abs(r - 1) <= MATCHED_WITHIN for r in ratio)
    return {"cost": cost, "cost_ratio": ratio, "matched": matched}


def _costs(studies: Mapping[int, Study], rows: Mapping[int, Rows], model: str) -> dict[str, list[float]]:
    """Every count of the whole path, a number a seed; `critical_seconds`: with a team of machines for every stage.

    Cold starts, which stand for pretraining, count for nobody.
    """
    found = {c: [path_count(studies[k], rows[k], model, c) for k in studies] for c in COUNTS}
    chains = []
    for seed, study in studies.items():
        trained = [rows[seed][x.name] for x in study.stages if x.parents and x.name in rows[seed]]
        ledger = pd.DataFrame(trained)
        chains.append(critical_path(ledger, model)[1] if len(ledger) else math.nan)
    return found | {"critical_seconds": chains}


def _front(models: Mapping[str, Mapping[str, Any]], axis: str) -> list[str]:
    """The models that no other one beats at the same mean cost or less."""
    mean = lambda numbers: sum(numbers) / len(numbers)  # noqa: E731
    points = []
    for model, row in models.items():
        value = mean(row["accuracy"])
        points.append(CostPoint(model, mean(row["costs"][axis]), Estimate(value, value, value)))
    return [p.model for p in pareto(points)]


def _seed(seed: int, run: Path) -> dict[str, Any]:
    """Where a seed's run lies, as seen from the study's directory."""
    return {"seed": seed, "run": run.name, "report": f"{run.name}/report.html"}


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
