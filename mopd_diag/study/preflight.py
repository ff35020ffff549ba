"""Before anything trains: does the plan fit this machine and this folder?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mopd_diag.config import (
    DPOStage,
    GRPOStage,
    MOPDStage,
    PlantStage,
    PPOStage,
    RejectionStage,
    RewardModelStage,
    SeqKDStage,
    SFTStage,
    Stage,
)
from mopd_diag.errors import BadInput, ResourceError
from mopd_diag.study.resolve import Study

BYTES_A_RECORD = 200
SPARE_BYTES = 50 << 20


def memory_bytes() -> int:
    """Memory of this machine, or of its container when that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def batch_bytes(stage: Stage, study: Study) -> int:
    """An upper estimate of the memory one step's batch needs: caches, token tables and one head chunk's logits."""
    c = study.plan.model
    match stage:
        case GRPOStage() | MOPDStage() | RewardModelStage() | PPOStage() | DPOStage() | RejectionStage():
            rows = stage.prompts * stage.group
        case SFTStage() | PlantStage():
            rows = stage.batch
        case SeqKDStage():
            rows = stage.batch * 10
        case _:
            rows = 0
    length = 16 + max(study.world.domains[d].max_new_tokens for d in study.domains(stage))
    cache = 2 * c.layers * c.key_value_heads * c.head_width * 4
    return rows * length * (cache + 200)


def check_fit(study: Study, out: Path) -> None:
    """Raise BadInput when a stage's batch cannot fit in memory, ResourceError when the disk has no room for the run."""
    memory = memory_bytes()
    for stage in study.stages:
        need = batch_bytes(stage, study)
        if need > 0.8 * memory:
            raise BadInput(
                f"stage '{stage.name}' needs about {need / 2**30:,.0f} GiB for one batch, this machine has {memory / 2**30:,.0f}; "
                "lower its prompts, group or batch"
            )
    models, domains = len(study.stages), len(study.world.domains)
    evaluation = study.plan.evaluation
    need = SPARE_BYTES + models * (
        domains * evaluation.items * evaluation.samples * BYTES_A_RECORD + 4 * _parameters(study)
    )
    folder = out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ResourceError(
            f"{out}: {free / 2**20:,.0f} MiB free on its disk, this run needs about {need / 2**20:,.0f}; "
            "free some space or choose another --out"
        )


def _parameters(study: Study) -> int:
    c = study.plan.model
    attention = c.hidden * c.head_width * (2 * c.heads + 2 * c.key_value_heads)
    return c.layers * (attention + 3 * c.hidden * c.feed_forward) + 128 * c.hidden
