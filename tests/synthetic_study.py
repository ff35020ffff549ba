"""A SYNTHETIC study for the tests of its page: real plans, ledgers and records of invented trainings whose truth is planted.

Nothing here was trained. Every model answers each item at a rate of its own, the same in every seed but for a small shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mopd_diag.config import parse
from mopd_diag.diagnostics.study import diagnose
from mopd_diag.runs.directory import RunDirectory, write_json, write_table, write_text
from mopd_diag.study.conclude import folder
from mopd_diag.study.joined import study_of
from mopd_diag.study.resolve import Study
from mopd_diag.study.run import claim, ledger
from mopd_diag.study_plan import StudyPlan

TRUTH = {
    "base": (0.4, 0.4), "teacher-code": (0.9, 0.4), "teacher-agent": (0.4, 0.8), "student": (0.7, 0.7),
    "rival-mixed-rl": (0.9, 0.8), "rival-seqkd": (0.7, 0.7), "rival-average": (0.2, 0.95),
}  # fmt: skip
"""Model → its accuracy on `stack` and on `lookup`. `rival-average` is the worst path, and the best on `lookup`."""
FLOPS = {
    "base": 9e12, "teacher-code": 2e12, "teacher-agent": 3e12, "student": 5e12, "rival-mixed-rl": 10.2e12, "rival-seqkd": 3e12,
    "rival-average": 0.0,
}  # fmt: skip
SECONDS = {
    "base": 90.0, "teacher-code": 20.0, "teacher-agent": 30.0, "student": 50.0, "rival-mixed-rl": 102.0, "rival-seqkd": 30.0,
    "rival-average": 1.0,
}  # fmt: skip
"""The whole path of mopd costs 10 TFLOP; mixed-rl 2 % more (matched), seqkd 8 (not matched), the average 5 (trains nothing)."""


def study_plan(**section: Any) -> StudyPlan:
    """Of three rivals on two domains, two seeds."""
    table = {
        "study": {"name": "planted", "summary": "rivals of known worth", "recipes": ["mixed-rl", "seqkd", "average"], "seeds": [0, 4],
                  "budget": "smoke", **section},
        "world": {"domains": ["stack", "lookup"]}, "evaluation": {"items": 120, "samples": 4},
    }  # fmt: skip
    return parse(StudyPlan, table, "study.toml")


def write_study(
    out: Path, truth: Mapping[str, tuple[float, float]] = TRUTH, items: int = 120, **section: Any
) -> StudyPlan:
    """A finished study as older versions left it: seeds with records, ledger, findings and reports, and no results."""
    plan = study_plan(**section)
    write_json(out / "study.json", plan.model_dump(mode="json"))
    for seed in plan.study.seeds:
        study = study_of(plan, seed)
        run = claim(folder(out, seed), study, study.identity())
        _train(run, study)
        for model, rates in truth.items():
            write_table(
                run.record_path(model),
                records_of(model, dict(zip(study.world.domains, rates, strict=True)), seed, items),
            )
        write_table(run.path / "ledger.parquet", ledger(run))
        run.write_findings(diagnose(run))
        write_text(run.path / "report.html", "<p>a report of its own</p>")
    return plan


def _train(run: RunDirectory, study: Study) -> None:
    for k, stage in enumerate(study.stages):
        row = {
            "stage": stage.name, "algorithm": stage.algorithm, "parents": ",".join(stage.parents), "tokens_sampled": 1000 * k,
            "tokens_trained": 500, "tokens_scored": 0, "rollouts": 100, "flops": FLOPS[stage.name], "seconds": SECONDS[stage.name],
            "seconds_model": 1.0, "started": float(k), "device": "cpu", "matched_to": stage.matched_to, "matched_on": stage.matched_on,
        }  # fmt: skip
        write_json(run.path / "done" / f"train-{stage.name}.json", {"ledger": row})


def records_of(model: str, rates: Mapping[str, float], seed: int, items: int) -> pd.DataFrame:
    """Items of different difficulty, the same for all models; the seed shifts a model by a point or so."""
    found = []
    for k, (domain, rate) in enumerate(rates.items()):
        ease_I = np.random.default_rng(k).uniform(-0.1, 0.1, items)
        draw = np.random.default_rng([seed, k, *map(ord, model)])
        p_I = np.clip(rate + ease_I + draw.normal(0, 0.005), 0, 1)
        score_IS = (draw.random((items, 4)) < p_I[:, None]).astype(float)
        for i in range(items):
            for s in range(4):
                name = f"{domain}-{i}"
                found.append((model, domain, name, name, name, s, f"{domain} {i}", "7", score_IS[i, s], 2, False))
    columns = [
        "model",
        "domain",
        "item_id",
        "prompt_hash",
        "target_hash",
        "sample",
        "prompt",
        "response",
        "score",
        "n_tokens",
        "truncated",
    ]
    return pd.DataFrame(found, columns=columns)
