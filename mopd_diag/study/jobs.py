"""The three things a worker process does for a study: train a stage, evaluate a model, trace its answers.

Each job reads what earlier jobs left in the run directory and writes its own result whole; `done/NAME.json` marks it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from mopd_diag.config import (
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
from mopd_diag.diagnostics.attribution import attribute
from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.engines.scoring import score
from mopd_diag.models.checkpoint import load_decoder, save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.scalar import ScalarDecoder, load_scalar, save_scalar
from mopd_diag.models.tokenizer import Tokenizer, character_tokenizer
from mopd_diag.runs.directory import RunDirectory, write_json, write_table
from mopd_diag.seeds import seed_of
from mopd_diag.study.counts import allowance, counted
from mopd_diag.study.resolve import Study, resolve_identity
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
from mopd_diag.types import Item, Record

JobKind = Literal["train", "evaluate", "trace"]
GATE_ANSWERS = 256


def content_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def done_path(run: Path, kind: JobKind, name: str) -> Path:
    return run / "done" / f"{kind}-{name}.json"


def run_job(run: Path, identity: dict[str, Any], kind: JobKind, name: str, since: float, progress: Progress) -> None:
    """Do one job in this process and mark it done. `since` is the clock reading (time.time) at which the run began."""
    study = resolve_identity(identity)
    started, began, model_began = time.time() - since, time.perf_counter(), MODEL_TIME.seconds
    work, algorithm, parents, extra = {"train": _train, "evaluate": _evaluate, "trace": _trace}[kind](
        RunDirectory(run), study, name, progress
    )
    seconds = time.perf_counter() - began + extra.pop("seconds_before", 0.0)
    seconds_model = MODEL_TIME.seconds - model_began + extra.pop("seconds_model_before", 0.0)
    stage = study.stage(name) if kind == "train" else None
    row = {
        "stage": name if kind == "train" else f"{kind}:{name}",
        "algorithm": algorithm,
        "parents": ",".join(parents),
        **{field: getattr(work, field) for field in Work.__slots__},
        "seconds": seconds,
        "seconds_model": seconds_model,
        "started": started,
        "device": "cpu",
        "matched_to": stage.matched_to if stage else "",
        "matched_on": stage.matched_on if stage else "",
    }
    write_json(done_path(run, kind, name), {"ledger": row, **extra})


Result = tuple[Work, str, tuple[str, ...], dict[str, Any]]


# -- train ------------------------------------------------------------------------------------------------------------------


def _train(run: RunDirectory, study: Study, name: str, progress: Progress) -> Result:
    stage = study.stage(name)
    tokenizer = character_tokenizer()

    def load(model: str) -> Decoder:
        judge = isinstance(study.stage(model), RewardModelStage)
        return (load_scalar if judge else load_decoder)(run.path / "models" / model)

    if isinstance(stage, MergeStage):
        save_checkpoint(_merged(stage, load), tokenizer, run.path / "models" / name)
        return Work(), stage.algorithm, stage.parents, {}
    model = _fresh(stage, study, tokenizer) if stage.start is None else load(stage.start)
    if isinstance(stage, RewardModelStage | PPOStage):
        model = ScalarDecoder.of(model)
    algorithm = _algorithm(stage, study, tokenizer, {m: load(m) for m in stage.models_used})
    schedule = Schedule(stage.steps, stage.learning_rate, stage.warmup, getattr(stage, "decay", 0))
    saved = run.path / "saved" / f"{name}.safetensors"
    began, model_began = time.perf_counter(), MODEL_TIME.seconds
    extend = _gate(stage, study, tokenizer) if isinstance(stage, SFTStage) and stage.gate else None
    until = Until(stage.match.on, allowance(study, stage, counted(run.path))) if stage.match else None
    state = train(model, algorithm, schedule, saved=saved, progress=progress, extend=extend, until=until)
    before = (state.seconds - (time.perf_counter() - began), state.seconds_model - (MODEL_TIME.seconds - model_began))
    write_table(run.path / "metrics" / f"{name}.parquet", pd.DataFrame(state.log))
    if isinstance(stage, RewardModelStage) and isinstance(model, ScalarDecoder):
        save_scalar(model, tokenizer, run.path / "models" / name)
    else:  # a value head is no part of the policy
        save_checkpoint(model, tokenizer, run.path / "models" / name)
    saved.unlink(missing_ok=True)
    extra = {
        "steps": state.step,
        **state.extra,
        "seconds_before": max(0.0, before[0]),
        "seconds_model_before": max(0.0, before[1]),
    }
    return state.work, stage.algorithm, stage.parents, extra


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


# -- evaluate -----------------------------------------------------------------------------------------------------------------


def evaluation_items(study: Study, domain: str) -> list[Item]:
    """The held-out items of a domain: the same for every model and for every seed, so that trainings can be paired."""
    return study.world.evaluation_items(domain, study.plan.evaluation.items, ("evaluation",))


def _evaluate(run: RunDirectory, study: Study, name: str, progress: Progress) -> Result:
    model, tokenizer = load_decoder(run.path / "models" / name), character_tokenizer()
    settings, work, records = study.plan.evaluation, Work(), []
    n = settings.samples if settings.temperature > 0 else 1
    for done, domain in enumerate(study.world.domains, 1):
        seed = seed_of(study.plan.seed, "evaluation", name, domain)
        items = evaluation_items(study, domain)
        answers = answer(model, tokenizer, study.world, items, seed=seed, n=n, temperature=settings.temperature)
        work += answers.work
        tokens = answers.rollouts.own_NL.sum(1).tolist()
        finished = answers.rollouts.finished_N.tolist()
        for row, item in enumerate(answers.items):
            records.append(
                Record(
                    name, domain, item.item_id, content_hash(item.prompt), content_hash(item.target), row % n, item.prompt,
                    answers.texts[row], answers.scores[row], tokens[row], not finished[row],
                )
            )  # fmt: skip
        progress(done, len(study.world.domains), {"reward": sum(answers.scores) / len(answers.scores)})
    run.write_records(name, records)
    return work, "evaluate", (name,), {}


# -- trace --------------------------------------------------------------------------------------------------------------------


def _trace(run: RunDirectory, study: Study, name: str, progress: Progress) -> Result:
    """Score some of the model's sampled answers under the whole cast and attribute them."""
    tokenizer = character_tokenizer()
    teachers = list(study.teachers())
    chosen = _chosen(run.records(name), study.plan.diagnosis.attribution_items)
    rollouts = retokenize(chosen, tokenizer, study)
    # Models that never saw a teacher are the null, but for the one that is judged.
    members = dict.fromkeys((name, "base", *teachers, *study.controls()))
    models = {m: load_decoder(run.path / "models" / m) for m in members}
    scored = score(rollouts, models, name, teachers)
    progress(1, 2, {})
    tokens = pd.DataFrame({"token_id": scored.token_T, "token": [tokenizer.token(int(t)) for t in scored.token_T]})
    attribution = attribute(scored.evidence, chosen, tokens, routed=study.route())
    write_table(run.trace_path(name), attribution.tokens)
    answers = attribution.answers.assign(drawn=chosen["drawn"].to_numpy())
    write_table(run.attribution_path(name), answers)
    progress(2, 2, {})
    return Work(tokens_scored=scored.tokens_scored, flops=scored.flops), "trace", tuple(members), {}


def _chosen(records: pd.DataFrame, items: int) -> pd.DataFrame:
    """The first answer to each of the first `items` items of a domain (`drawn`: the estimates rest on them), and failures.

    Failed answers beyond those are traced to be explained, at most as many again a domain; they count in no share.
    """
    first = records[records["sample"] == 0].groupby("domain", sort=False).head(items)
    failed = (
        records[(records["score"] < 1) & ~records.index.isin(first.index)].groupby("domain", sort=False).head(items)
    )
    both = pd.concat([first.assign(drawn=True), failed.assign(drawn=False)])
    return both.sort_index().reset_index(drop=True)


def retokenize(records: pd.DataFrame, tokenizer: Tokenizer, study: Study) -> Rollouts:
    """Recorded answers as rollouts: the end-of-sequence put back where an answer ended by itself, the world's replies not own."""
    prompts = tokenizer.encode_all(records["prompt"].tolist())
    answers = tokenizer.encode_all(records["response"].tolist())
    answers = [a if cut else [*a, tokenizer.eos_id] for a, cut in zip(answers, records["truncated"], strict=True)]
    rollouts = pack(prompts, answers, tokenizer.pad_id)
    targets = {i.item_id: i.target for d in study.world.domains for i in evaluation_items(study, d)}
    for row, record in enumerate(records.itertuples()):
        item = Item(record.item_id, record.domain, record.prompt, targets[record.item_id])
        for start, end in study.world.world_spans(item, record.response):  # one token a character
            rollouts.own_NL[row, len(prompts[row]) + start : len(prompts[row]) + end] = False
    return rollouts
