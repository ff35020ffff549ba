"""The probe as a stage: a short RL run from the student on all its domains, beside the plan and not part of it.

Its jobs are those of any stage, of a study that has one stage more. The manifest is not told: the run stays what it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mopd_diag.config import GRPOStage
from mopd_diag.errors import RunDirectoryError
from mopd_diag.recipes.parts import climb
from mopd_diag.runs.directory import PROBE
from mopd_diag.study.counts import Rows, path_count
from mopd_diag.study.resolve import Study

SHARE = 0.1
"""Rollouts of a probe whose length nobody chose, as a share of those of the student's path."""
LEAST = 15
"""Its steps a domain, at least: after fewer, RL had not moved the specialists of a smoke run (docs/probe.md)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How long, and from which draws."""

    steps: int
    seed: int


def settings_path(run: Path) -> Path:
    return run / "probe.json"


def kept(run: Path) -> Settings | None:
    """The settings of the probe that a run has or has begun, as it was asked for beside its plan."""
    path = settings_path(run)
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Settings(int(document["steps"]), int(document["seed"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path} cannot be read ({error}); remove it and ask for the probe again") from None


def planned(run: Path, study: Study) -> Settings | None:
    """The settings of the probe that belongs to the plan, unless another one was asked for since; None for a plan without."""
    steps = study.plan.diagnosis.probe_steps
    return (kept(run) or Settings(steps, study.plan.seed)) if steps else None


def default_steps(study: Study, rows: Rows) -> int:
    """Steps that cost a tenth of the rollouts of the student's path, by the ledger; more where that could not move a model."""
    a_step = _specialist(study)
    share = SHARE * path_count(study, rows, "student", "rollouts") / (a_step.prompts * a_step.group)
    return max(LEAST * len(study.world.domains), round(share))


def probe_stage(study: Study, settings: Settings) -> GRPOStage:
    """GRPO from the student on all domains of the world, with the settings by which the run's own specialists learned."""
    like = _specialist(study)
    own = {
        "steps": settings.steps,
        "warmup": min(like.warmup, settings.steps // 2),
        "match": None,
        "matched_to": "",
        "matched_on": "",
    }
    return like.model_copy(update={"name": PROBE, "start": "student", "domains": (), "note": "", **own})


def probed_identity(identity: dict[str, Any], study: Study, settings: Settings) -> dict[str, Any]:
    """The identity of the same run with the probe as its last stage and the probe's seed; for its jobs only."""
    stages = [*identity["stages"], probe_stage(study, settings).model_dump(mode="json")]
    return {**identity, "plan": {**identity["plan"], "seed": settings.seed}, "stages": stages}


def document(study: Study, settings: Settings) -> dict[str, Any]:
    """What `probe.json` says."""
    return {"schema": 1, **asdict(settings), "stage": probe_stage(study, settings).model_dump(mode="json")}


def _specialist(study: Study) -> GRPOStage:
    """A stage that trained a teacher by GRPO; where there is none, another GRPO stage, else what recipes do."""
    climbs = [s for s in study.stages if isinstance(s, GRPOStage)]
    teachers = study.teachers()
    return next(iter([*(s for s in climbs if s.name in teachers), *climbs]), climb(PROBE, "student", (), 1))
