"""Before anything trains: does the plan fit this machine and this folder?"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd_diag.config import (
    CheckpointStage,
    DPOStage,
    GRPOStage,
    MergeStage,
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
FLOAT = 4
SPARE_BYTES = 50 << 20
USABLE = 0.8
"""Share of the machine's memory that a run may plan with."""
TURN_BYTES, ACTIVATION_BYTES = 2 << 30, 1 << 30
"""As in `engines.sampling` and `training.algorithm`, which are not imported here: they bring torch. A test holds them together."""


def memory_bytes() -> int:
    """Memory of this machine, or of its container when that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


@dataclass(frozen=True, slots=True)
class Sizes:
    """What memory and disk are asked for: widths of the keys of all layers together, and the number of parameters."""

    keys: int
    parameters: int
    checkpoint: bool
    """Whether it came from a checkpoint; a micro model's weights are nothing beside its batch."""


def sizes(study: Study) -> Sizes:
    """Of the model that stages without parents begin with."""
    if (first := study.first) is not None:
        c = first.config
        attention = c.hidden_size * c.head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
        heads = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
        parameters = c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size) + heads
        return Sizes(c.num_hidden_layers * c.num_key_value_heads * c.head_dim, parameters, checkpoint=True)
    m = study.plan.model
    attention = m.hidden * m.head_width * (2 * m.heads + 2 * m.key_value_heads)
    parameters = m.layers * (attention + 3 * m.hidden * m.feed_forward) + 128 * m.hidden
    return Sizes(m.layers * m.key_value_heads * m.head_width, parameters, checkpoint=False)


def batch_bytes(stage: Stage, study: Study) -> int:
    """An upper estimate of the memory one step's batch needs: caches and token tables."""
    match stage:
        case GRPOStage() | MOPDStage() | RewardModelStage() | PPOStage() | DPOStage() | RejectionStage():
            rows = stage.prompts * stage.group
        case SFTStage() | PlantStage():
            rows = stage.batch
        case SeqKDStage():
            rows = stage.batch * 10
        case _:
            rows = 0
    length = max(study.prompt_tokens[d] + study.world.domains[d].max_new_tokens for d in study.domains(stage))
    size = sizes(study)
    cache = 2 * size.keys * FLOAT * length
    if size.checkpoint:  # larger models answer in turns
        return rows * length * 200 + min(rows * cache, TURN_BYTES)
    return rows * (cache + length * 200)


def stage_bytes(stage: Stage, study: Study) -> int:
    """An upper estimate of what the process of a stage holds: its batch, and with a checkpoint the weights.

    Of the model in training: weights, gradients, two moments, and what a backward pass keeps (with an adapter: weights, a copy of those
    it changes, and little more); of every model that is read: its weights; and once more the weights of the one that samples, with its
    norms folded in. Several processes share what is trained, and each holds the rest.
    """
    size, need = sizes(study), batch_bytes(stage, study)
    if not size.checkpoint:
        return need
    models = max(2, 1 + len(stage.models_used))
    if isinstance(stage, MergeStage | CheckpointStage):
        return need + models * FLOAT * size.parameters
    whole = stage.start is None or isinstance(stage, RewardModelStage | PPOStage)
    trained = 4 if whole or study.plan.model.lora is None else 2.2
    each = need + models * FLOAT * size.parameters + ACTIVATION_BYTES
    return int(study.plan.compute.processes * each + trained * FLOAT * size.parameters)


def workers_that_fit(study: Study) -> int:
    """One process a core, or as many of the largest stage as memory holds side by side."""
    largest = max(stage_bytes(stage, study) for stage in study.stages)
    return max(1, min(os.cpu_count() or 1, int(USABLE * memory_bytes() / max(1, largest))))


def asked_device(device: str, checkpoint: str | None) -> str:
    """What a plan asks for. Models that begin from no checkpoint are small: to start a GPU's kernels would take longer than to run them,
    so `auto` leaves them on the CPU."""
    return "cpu" if device == "auto" and checkpoint is None else device


def asked(identity: dict[str, Any], stage: Stage | None = None) -> dict[str, Any]:
    """Cores and GPUs of the job that trains a stage, or of one that runs models, as arguments of `Job`; of the plan's `[compute]`.

    A stage asks for a core a process, and so for GPUs where `device` names them, or where it is auto and the cluster has them; a
    stage's own `gpus` goes before. What only copies or adds weights is done on the CPU.
    """
    plan = identity["plan"]
    compute = {"device": "auto", "processes": 1} | plan.get("compute", {})
    compute["device"] = asked_device(compute["device"], plan.get("model", {}).get("path"))
    own = 0.0 if stage is None else stage.gpus
    if isinstance(stage, MergeStage | CheckpointStage):
        return {"gpus": own}
    count, wanted = 1 if stage is None else compute["processes"], "gpus_if_there"
    if compute["device"].startswith("cuda"):
        wanted = "gpus"
    gpus = {"gpus": own} if own else {wanted: 0.0 if compute["device"] == "cpu" else float(count)}
    return {"cores": count, **gpus}


def check_fit(study: Study, out: Path) -> None:
    """Raise BadInput when a stage's batch cannot fit in memory or vLLM cannot sample what the plan asks of it, ResourceError when the disk
    has no room for the run."""
    if study.plan.compute.sampler == "vllm":
        _check_vllm(study)
    memory = memory_bytes()
    for stage in study.stages:
        need = stage_bytes(stage, study)
        if need > USABLE * memory:
            raise BadInput(
                f"stage '{stage.name}' needs about {need / 2**30:,.0f} GiB for one batch, this machine has {memory / 2**30:,.0f}; "
                "lower its prompts, group or batch"
            )
    models, domains = len(study.stages), len(study.world.domains)
    evaluation = study.plan.evaluation
    size = sizes(study)
    need = SPARE_BYTES + models * (
        domains * evaluation.items * evaluation.samples * BYTES_A_RECORD + FLOAT * size.parameters
    )
    if size.checkpoint:  # a training saves its weights and both moments
        need += 3 * FLOAT * size.parameters * min(models, os.cpu_count() or 1)
    folder = out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ResourceError(
            f"{out}: {free / 2**20:,.0f} MiB free on its disk, this run needs about {need / 2**20:,.0f}; "
            "free some space or choose another --out"
        )


def _check_vllm(study: Study) -> None:
    talking = [name for name, domain in study.world.domains.items() if domain.replies]
    if talking:
        raise BadInput(
            f"the world answers within the answers of '{talking[0]}', which vLLM cannot sample; leave the domain out, or [compute] sampler"
        )
    if importlib.util.find_spec("vllm") is None:
        raise BadInput(
            "[compute] sampler = 'vllm', but vLLM is not installed: pip install 'mopd-diag[vllm]' on a GPU machine, see docs/install.md "
            "for one without, or leave sampler out"
        )
