"""Before anything trains: is every stage's budget enough for the stage to do what it says?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mopd_diag.config import (
    CheckpointStage,
    DPOStage,
    GRPOStage,
    MergeStage,
    MOPDStage,
    PPOStage,
    RejectionStage,
    RewardModelStage,
    SeqKDStage,
    SFTStage,
    Stage,
)
from mopd_diag.errors import BadInput
from mopd_diag.study.counts import allowance

if TYPE_CHECKING:
    from mopd_diag.study.resolve import Study


SAMPLED_EVERY = 10
"""Steps of `seqkd` that its teachers' answers are sampled for at once."""


def check_affordable(study: Study) -> None:
    """Raise BadInput for a schedule longer than its stage, and for a matched stage that could not take a single step.

    Only rollouts are known from a plan; what is matched on another count is known when the reference has trained, and then the
    results say that it was not matched.
    """
    for stage in study.stages:
        _check_schedule(stage)
    rows: dict[str, dict[str, float]] = {}
    for stage in study.stages:
        rows[stage.name] = {"rollouts": rollouts(stage)}
        if stage.match is None or stage.match.on != "rollouts":
            continue
        known = [rows[n]["rollouts"] for n in {*study.ancestry(stage.name), *study.ancestry(stage.match.to)}]
        at_once = SAMPLED_EVERY if isinstance(stage, SeqKDStage) else getattr(stage, "updates", 1)
        step = rollouts(stage) / getattr(stage, "steps", 1) * at_once
        if any(map(math.isnan, known)) or not step:
            continue
        left = allowance(study, stage, rows)
        if left < step:
            raise BadInput(
                f"stage '{stage.name}' may sample {max(0, left):,.0f} answers to match '{stage.match.to}' on rollouts, and one step takes "
                f"{step:,.0f}; raise the budget, lower its prompts or group, or match on another count"
            )
        rows[stage.name] = {"rollouts": step * round(left / step)}


def rollouts(stage: Stage) -> float:
    """Answers that a stage samples in its planned steps, as the ledger counts them; NaN where a plan does not say."""
    match stage:
        case SFTStage() | MergeStage() | CheckpointStage():
            return 0.0
        case SeqKDStage():
            return float(stage.steps * stage.batch)
        case PPOStage():
            return stage.steps / stage.updates * stage.prompts * stage.group
        case GRPOStage() | MOPDStage() | DPOStage() | RejectionStage() | RewardModelStage():
            return float(stage.steps * stage.prompts * stage.group)
    return math.nan


def _check_schedule(stage: Stage) -> None:
    """Only what a plan writes itself: defaults are for stages of the default length."""
    written = {f: getattr(stage, f) for f in ("warmup", "decay") if f in stage.model_fields_set and hasattr(stage, f)}
    steps = getattr(stage, "steps", 0)
    if steps and sum(written.values()) > steps:
        parts = " and ".join(f"{name} {n}" for name, n in written.items() if n)
        raise BadInput(
            f"stage '{stage.name}' has {steps} steps, fewer than its {parts}: it would never train at its learning rate; "
            "raise steps or lower them"
        )
