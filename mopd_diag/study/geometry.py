"""The job `geometry`: how the domains pull at the same weights, where teachers disagree, who pulls how much. One small file.

Everything is measured where the specialists begin, at the base; what cannot be measured is null, with its reason.

Axis letters: D domains, M modules, K specialists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mopd_diag.config import MOPDStage
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.gradients import first_order_effects, gradient_geometry
from mopd_diag.estimators.interference import task_geometry
from mopd_diag.models.decoder import Decoder
from mopd_diag.runs.directory import SCHEMA, RunDirectory, write_text
from mopd_diag.study.gradients import BATCHES, affordable_items, module_gradients, pieces, task_vectors
from mopd_diag.study.jobs import Result, retokenize
from mopd_diag.study.resolve import Study
from mopd_diag.study.shares import disagreement, step_shares
from mopd_diag.study.weights import load_model, run_tokenizer
from mopd_diag.training.algorithm import Work
from mopd_diag.training.distill import MOPD
from mopd_diag.training.loop import Progress
from mopd_diag.worlds.world import World

KEEP = 0.2
"""Share of its largest moves that TIES leaves a task vector (2306.01708)."""
ANSWERS = 32
"""Answers of the base a domain on which teachers are compared."""
DIGITS = 4


def geometry(run: RunDirectory, study: Study, name: str, progress: Progress) -> Result:
    """Measure, and write `geometry.json`. `name` is the model at which gradients are taken, the base."""
    work = Work()
    base = load_model(run, study, name)
    teachers = {t: load_model(run, study, t) for t in study.teachers()}
    document: dict[str, Any] = {"schema": SCHEMA, "at": name, "domains": list(study.world.domains)}
    parts = {
        "gradients": lambda: _gradients(run, study, base, work),
        "task_vectors": lambda: _task_vectors(study, base, teachers),
        "disagreement": lambda: _disagreement(run, study, teachers, work),
        "shares": lambda: _shares(run, study, teachers, work),
    }
    for done, (key, measure) in enumerate(parts.items(), 1):
        document[key] = measure()
        progress(done, len(parts), {})
    write_text(
        run.path / "geometry.json", json.dumps(document, allow_nan=False) + "\n"
    )  # matrices, a number a line is no help
    return work, "geometry", (name, *teachers), {}


def _gradients(run: RunDirectory, study: Study, base: Decoder, work: Work) -> dict[str, Any]:
    domains = {n: d for n, d in study.world.domains.items() if not d.unshown()}
    if len(domains) < 2:
        return {
            "reason": f"{len(domains)} of the domains have written right answers; gradients are compared between 2 or more"
        }
    world, tokenizer, seed = World(study.world.name, domains), run_tokenizer(run, study, "base"), study.plan.seed
    items = affordable_items(base, tokenizer, world)
    of = {
        o: module_gradients(base, tokenizer, world, objective=o, seed=seed, items=items, work=work)
        for o in ("likelihood", "accuracy")
    }
    found = gradient_geometry(of["likelihood"], seed=seed)
    kept = sum(g.shape[2] for g in of["likelihood"].values()) / sum(p.numel() for p in base.parameters())
    return {
        "domains": list(domains), "batches": BATCHES, "items": items, "parameters_kept": round(kept, DIGITS),
        "modules": list(found.modules),
        "cosine": plain(found.cosine_MDD), "energy": plain(found.energy_MD), "control": plain(found.control_M), "rank": plain(found.rank_M),
        "whole": plain(found.whole_DD), "conflict": plain(found.conflict_DD), "synergy": plain(found.synergy_DD),
        
        "conflict_error": plain(found.conflict_error_DD), "synergy_error": plain(found.synergy_error_DD),
        "effect": plain(first_order_effects(of["accuracy"])),
    }  # fmt: skip


def _task_vectors(study: Study, base: Decoder, teachers: Mapping[str, Decoder]) -> dict[str, Any]:
    alike = {t: m for t, m in teachers.items() if m.config == base.config}
    if len(alike) < 2:
        return {"reason": f"{len(alike)} specialists of the base's size; task vectors are compared between 2 or more"}
    vectors_KP = task_vectors(base, alike.values(), pieces(base, 2 * len(alike)))
    document: dict[str, Any] = {"models": list(alike), "trained_on": [study.teachers()[t] for t in alike], "keep": KEEP}
    for key, keep in (("all", 1.0), ("trimmed", KEEP)):
        found = task_geometry(vectors_KP, keep=keep)
        document[key] = {
            "cosine": plain(found.cosine_MM), "conflict": plain(found.conflict_MM), "conflict_energy": plain(found.conflict_energy_MM),
        }  # fmt: skip
    return document


def _disagreement(run: RunDirectory, study: Study, teachers: Mapping[str, Decoder], work: Work) -> dict[str, Any]:
    if len(teachers) < 2:
        return {"reason": f"{len(teachers)} teachers; 2 or more can disagree"}
    records = run.records("base")
    first = records[records["sample"] == 0].groupby("domain", sort=False).head(ANSWERS).reset_index(drop=True)
    rollouts = retokenize(first, run_tokenizer(run, study, "base"), study, run)
    kl_TK, row_T = disagreement(rollouts, teachers, work)
    tokens_N = np.bincount(row_T, minlength=len(first))
    mean_NK = (
        np.stack([np.bincount(row_T, kl, minlength=len(first)) for kl in kl_TK.T], 1) / np.maximum(tokens_N, 1)[:, None]
    )
    by_domain = {}
    for number, domain in enumerate(study.world.domains):
        rows = np.flatnonzero((first["domain"] == domain).to_numpy() & (tokens_N > 0))
        drawn = Bootstrap.of(mean_NK[rows].mean(1), seed=[study.plan.seed, number], bounds=None)
        by_domain[domain] = {
            "divergence": drawn.column(0, unit="nats a token").to_dict(),
            "by_teacher": dict(zip(teachers, plain(mean_NK[rows].mean(0)), strict=True)) if len(rows) else {},
        }
    return {
        "on": "base",
        "answers": ANSWERS,
        "teachers": list(teachers),
        "most": float(np.log(len(teachers))),
        "domains": by_domain,
    }


def _shares(run: RunDirectory, study: Study, teachers: Mapping[str, Decoder], work: Work) -> dict[str, Any]:
    stage = next((s for s in study.stages if s.name == "student"), None)
    if not isinstance(stage, MOPDStage) or stage.start is None:
        return {"reason": "the student was not distilled from teachers on its own answers"}
    load = lambda m: teachers[m] if m in teachers else load_model(run, study, m)  # noqa: E731
    algorithm = MOPD(
        stage, run_tokenizer(run, study, stage.start), study.world, study.domains(stage), study.plan.seed,
        {t: load(t) for t in stage.teachers_used}, load(stage.reference_used) if stage.reference_used else None,
    )  # fmt: skip
    found = step_shares(algorithm, load_model(run, study, stage.start), work)
    columns = {
        "prompts": found.prompts_D,
        "tokens": found.tokens_D,
        "gradient": found.gradient_D,
        "along": found.along_D,
    }
    table = {d: {k: plain(v)[n] for k, v in columns.items()} for n, d in enumerate(found.domains)}
    return {"stage": stage.name, "at": stage.start, "domains": table}


def plain(array: npt.ArrayLike) -> Any:
    """Nested lists with a few digits; null for what is not a number."""
    values = np.asarray(array, dtype=float)
    if values.ndim == 0:
        return round(float(values), DIGITS) if np.isfinite(values) else None
    return [plain(v) for v in values]
