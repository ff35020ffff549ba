"""Train one stage of a study: what it begins with, by which algorithm, in how many processes, and what is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

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
from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.errors import CheckpointError
from mopd_diag.models.checkpoint import load_decoder, save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.device import device_name
from mopd_diag.models.first import FirstModel
from mopd_diag.models.scalar import ScalarDecoder, load_scalar
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.runs.directory import RunDirectory, write_json, write_table
from mopd_diag.seeds import seed_of
from mopd_diag.study.counts import allowance, counted
from mopd_diag.study.preflight import asked_device
from mopd_diag.study.resolve import Study, resolve_identity
from mopd_diag.study.weights import device_of, hold, keep, run_tokenizer
from mopd_diag.training.algorithm import Algorithm, PartAlgorithm, Work
from mopd_diag.training.distill import MOPD
from mopd_diag.training.dpo import DPO
from mopd_diag.training.explore import answer
from mopd_diag.training.grpo import GRPO
from mopd_diag.training.loop import Progress, Schedule, TrainingState, Until, train
from mopd_diag.training.merge import average, task_arithmetic, ties
from mopd_diag.training.plant import Plant
from mopd_diag.training.ppo import PPO
from mopd_diag.training.rejection import Rejection
from mopd_diag.training.reward_model import RewardModel
from mopd_diag.training.seqkd import SeqKD
from mopd_diag.training.sft import SFT

GATE_ANSWERS = 256

Trained = tuple[Work, dict[str, Any]]
"""What a stage cost, and what its job's mark says besides."""


def train_stage(run: RunDirectory, study: Study, name: str, progress: Progress) -> Trained:
    """Train a stage and keep its model in the run; over several processes where the plan's `[compute]` says so."""
    stage = study.stage(name)
    count = study.plan.compute.processes
    if count == 1 or isinstance(stage, MergeStage | CheckpointStage):
        return _learn(run, study, stage, progress, None)
    from mopd_diag.training.sharded import over

    told = _told(run.path, name)
    over(
        count,
        _member,
        (str(run.path), study.identity(), name),
        asked_device(study.plan.compute.device, study.plan.model.path),
        progress,
    )
    document = json.loads(told.read_text(encoding="utf-8"))
    told.unlink()
    return Work(**document["work"]), document["extra"]


def _member(mesh: Any, progress: Progress | None, run: str, identity: dict[str, Any], name: str) -> None:
    """One of the processes that train a stage together; the first one tells."""
    study = resolve_identity(identity)
    work, extra = _learn(RunDirectory(Path(run)), study, study.stage(name), progress, mesh)
    if mesh.get_rank() == 0:
        write_json(_told(Path(run), name), {"work": asdict(work), "extra": extra})


def _told(run: Path, name: str) -> Path:
    return run / "saved" / f"{name}.done.json"


def _learn(run: RunDirectory, study: Study, stage: Stage, progress: Progress | None, mesh: Any) -> Trained:
    device = _device(study, stage, mesh)
    said = {"device": device_name(device)}
    first = _first(study) if stage.start is None and not isinstance(stage, MergeStage) else None
    tokenizer = first.tokenizer if first else run_tokenizer(run, study, *stage.parents)

    def load(model: str) -> Decoder:
        judge = isinstance(study.stage(model), RewardModelStage)
        return (load_scalar if judge else load_decoder)(run.path / "models" / model, device=device)

    if isinstance(stage, MergeStage):
        save_checkpoint(_merged(stage, load), tokenizer, run.path / "models" / stage.name)
        return Work(), said
    model = _begun(stage, study, tokenizer, first, load).to(device)
    if isinstance(stage, CheckpointStage):
        save_checkpoint(model, tokenizer, run.path / "models" / stage.name)
        return Work(), said
    if isinstance(stage, RewardModelStage | PPOStage):
        model = ScalarDecoder.of(model)
    held = hold(run, study, stage, model, mesh)
    algorithm = _algorithm(stage, study, tokenizer, {m: load(m) for m in stage.models_used})
    schedule = Schedule(stage.steps, stage.learning_rate, stage.warmup, getattr(stage, "decay", 0))
    saved = run.path / "saved" / f"{stage.name}.safetensors"
    began, model_began = time.perf_counter(), MODEL_TIME.seconds
    extend = _gate(stage, study, tokenizer) if isinstance(stage, SFTStage) and stage.gate else None
    until = Until(stage.match.on, allowance(study, stage, counted(run.path))) if stage.match else None
    state = train(
        held.model, algorithm, schedule, saved=saved, progress=progress, extend=extend, until=until, held=held
    )
    before = (state.seconds - (time.perf_counter() - began), state.seconds_model - (MODEL_TIME.seconds - model_began))
    with held.whole():
        if held.writes:
            write_table(run.path / "metrics" / f"{stage.name}.parquet", pd.DataFrame(state.log))
            keep(run, stage, held, tokenizer)
            saved.unlink(missing_ok=True)
    extra = {
        **said,
        "steps": state.step,
        **state.extra,
        "seconds_before": max(0.0, before[0]),
        "seconds_model_before": max(0.0, before[1]),
    }
    return state.work, extra


def _device(study: Study, stage: Stage, mesh: Any) -> torch.device:
    """Where a stage is made: sums of weights and copies on the CPU, one of several processes on its own GPU if it has one."""
    if isinstance(stage, MergeStage | CheckpointStage):
        return torch.device("cpu")
    if mesh is None:
        return device_of(study)
    from mopd_diag.training.sharded import member_device

    return member_device(mesh)


def _first(study: Study) -> FirstModel | None:
    """The checkpoint that the run starts from, if it starts from one; the same weights as when the run began."""
    first = study.first
    if first is not None and first.hash != study.model:
        raise CheckpointError(
            f"{study.plan.model.path} holds other weights than when the run began; put the old ones back, or start a new run"
        )
    return first


def _begun(
    stage: Stage, study: Study, tokenizer: Tokenizer, first: FirstModel | None, load: Callable[[str], Decoder]
) -> Decoder:
    """The model that a stage begins with: another's, the run's first checkpoint, or fresh weights."""
    if stage.start is not None:
        return load(stage.start)
    return _fresh(stage, study, tokenizer) if first is None else first.load()


def _fresh(stage: Stage, study: Study, tokenizer: Tokenizer) -> Decoder:
    c = study.plan.model.shrunk(getattr(stage, "shrink", None))
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=c.hidden, num_hidden_layers=c.layers, num_attention_heads=c.heads,
        num_key_value_heads=c.key_value_heads, head_dim=c.head_width, intermediate_size=c.feed_forward, qk_norm=c.architecture == "qwen3",
    )  # fmt: skip
    return Decoder.fresh(config, torch.Generator().manual_seed(seed_of(study.plan.seed, "weights")), c.init_std)


def _merged(stage: MergeStage, load: Callable[[str], Decoder]) -> Decoder:
    models = [load(m) for m in stage.models]
    match stage.method, stage.start:
        case "task-arithmetic", str(base):
            return task_arithmetic(load(base), models, stage.scale)
        case "ties", str(base):
            return ties(load(base), models, stage.scale, stage.density)
    return average(models)


def _algorithm(
    stage: Stage, study: Study, tokenizer: Tokenizer, models: Mapping[str, Decoder]
) -> Algorithm | PartAlgorithm:
    """The algorithm of a stage, given the models that it reads besides the one it trains, by name."""
    shared = (tokenizer, study.world, study.domains(stage), study.plan.seed)
    judge = models.get(getattr(stage, "reward", None) or "")
    reward = judge if isinstance(judge, ScalarDecoder) else None
    start = stage.start or ""
    match stage:
        case SFTStage():
            return SFT(stage, *shared)
        case GRPOStage():
            return GRPO(stage, *shared)
        case MOPDStage():
            teachers = {t: models[t] for t in stage.teachers_used}
            return MOPD(stage, *shared, teachers, models[stage.reference_used] if stage.reference_used else None)
        case SeqKDStage():
            return SeqKD(stage, *shared, models)
        case PlantStage():
            return Plant(stage, *shared, models[start])
        case RewardModelStage():
            return RewardModel(stage, *shared, models[stage.sampled_from or start])
        case PPOStage():
            return PPO(stage, *shared, models[stage.reference or start], reward)
        case DPOStage():
            return DPO(stage, *shared, models[stage.sampled_from or start], models[stage.reference or start], reward)
        case RejectionStage():
            return Rejection(stage, *shared, models, reward)
    raise AssertionError(f"no algorithm for {stage!r}")


def _gate(stage: SFTStage, study: Study, tokenizer: Tokenizer):
    """Asks for another fifth of the training while some domain is sampled right less often than the gate's low end."""
    low, _ = stage.gate or (0.0, 1.0)

    def extend(model: Decoder, state: TrainingState) -> int:
        rounds = int(state.extra.get("rounds", 0))
        accuracy = {}
        for domain in study.domains(stage):
            address = (study.plan.seed, stage.name, "gate", rounds)
            items = study.world.draw_batch([domain], GATE_ANSWERS, address)
            answers = answer(model, tokenizer, study.world, items, seed=seed_of(*address, domain))
            state.work += answers.work
            accuracy[domain] = sum(answers.scores) / len(answers.scores)
        state.extra |= {"rounds": rounds + 1, "gate_accuracy": accuracy}
        # Before the decay a model samples worse than after it; four fifths of the gate is what that costs.
        behind = min(accuracy.values()) < 0.8 * low and rounds < stage.extensions
        return stage.steps // 5 if behind else 0

    return extend
