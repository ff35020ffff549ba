"""What a worker process does for a study: train a stage, evaluate a model, trace its answers, compare the domains' gradients.

Each job reads what earlier jobs left in the run directory and writes its own result whole; `done/NAME.json` marks it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from mopd_diag.diagnostics.attribution import attribute
from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.engines.scoring import Part, joined, score_parts
from mopd_diag.engines.vllm_sampler import VLLMSampler, sampled_by
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.device import device_name
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.runs.directory import RunDirectory, write_json, write_table
from mopd_diag.seeds import seed_of
from mopd_diag.study.learn import train_stage
from mopd_diag.study.resolve import Study, resolve_identity
from mopd_diag.study.shards import drop_shards, take_shard
from mopd_diag.study.trace_shards import read_shard, shard_path, shards_there, traced_under
from mopd_diag.study.weights import device_of, load_model, members_of, run_tokenizer
from mopd_diag.training.algorithm import Work
from mopd_diag.training.explore import Answers, answer
from mopd_diag.training.loop import Progress
from mopd_diag.types import Item, Record
from mopd_diag.worlds.documents import content_hash

JobKind = Literal["train", "evaluate", "trace", "geometry"]
GATE_ANSWERS = 256


def done_path(run: Path, kind: JobKind, name: str) -> Path:
    return run / "done" / f"{kind}-{name}.json"


def run_job(run: Path, identity: dict[str, Any], kind: JobKind, name: str, since: float, progress: Progress) -> None:
    """Do one job in this process and mark it done. `since` is the clock reading (time.time) at which the run began."""
    study = resolve_identity(identity)
    started, began, model_began = time.time() - since, time.perf_counter(), MODEL_TIME.seconds
    job = {"train": _train, "evaluate": _evaluate, "trace": _trace, "geometry": _geometry}[kind]
    with sampled_by(sampler_of(study)):
        work, algorithm, parents, extra = job(RunDirectory(run), study, name, progress)
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
        "started": extra.pop("started", started),
        "device": extra.pop("device", None) or device_name(device_of(study)),
        "matched_to": stage.matched_to if stage else "",
        "matched_on": stage.matched_on if stage else "",
    }
    write_json(done_path(run, kind, name), {"ledger": row, **extra})


def sampler_of(study: Study) -> VLLMSampler | None:
    """Who samples for a study; None: our own decoder."""
    if study.plan.compute.sampler == "torch":
        return None
    context = max(study.prompt_tokens[d] + study.world.domains[d].max_new_tokens for d in study.world.domains)
    return VLLMSampler(context, "bfloat16" if study.plan.compute.precision == "bf16" else "float32")


Result = tuple[Work, str, tuple[str, ...], dict[str, Any]]


# -- train ------------------------------------------------------------------------------------------------------------------


def _train(run: RunDirectory, study: Study, name: str, progress: Progress) -> Result:
    stage = study.stage(name)
    work, extra = train_stage(run, study, name, progress)
    return work, stage.algorithm, stage.parents, extra


# -- evaluate -----------------------------------------------------------------------------------------------------------------


def evaluation_items(study: Study, domain: str) -> list[Item]:
    """The held-out items of a domain: the same for every model and for every seed, so that trainings can be paired."""
    return study.world.evaluation_items(domain, study.plan.evaluation.items, ("evaluation",))


def _evaluate(run: RunDirectory, study: Study, name: str, progress: Progress) -> Result:
    work, records, tokens_of, loaded = Work(), list[Record](), list[dict[str, Any]](), None
    for number, domain in enumerate(study.world.domains):
        shard = take_shard(run.path, name, number)
        if shard is None:
            loaded = loaded or load_evaluated(run, study, name)
            answered, tokens, cost = evaluate_domain(*loaded, study, name, domain)
        else:
            answered, tokens, cost = [Record(**r) for r in shard["records"]], shard["tokens"], Work(**shard["work"])
        work += cost
        records += answered
        tokens_of += tokens
        progress(number + 1, len(study.world.domains), {"reward": sum(r.score for r in answered) / len(answered)})
    if study.plan.model.path is not None:  # characters are their own tokens
        write_table(tokens_path(run, name), pd.DataFrame(tokens_of))
    run.write_records(name, records)
    return work, "evaluate", (name,), drop_shards(run.path, "evaluate", name)


def load_evaluated(run: RunDirectory, study: Study, name: str) -> tuple[Decoder, Tokenizer]:
    return load_model(run, study, name), run_tokenizer(run, study, name)


def evaluate_domain(
    model: Decoder, tokenizer: Tokenizer, study: Study, name: str, domain: str
) -> tuple[list[Record], list[dict[str, Any]], Work]:
    """Sampled, scored answers to the held-out items of one domain, with their tokens: nothing here depends on other domains."""
    settings = study.plan.evaluation
    n = settings.samples if settings.temperature > 0 else 1
    seed = seed_of(study.plan.seed, "evaluation", name, domain)
    items = evaluation_items(study, domain)
    answers = answer(model, tokenizer, study.world, items, seed=seed, n=n, temperature=settings.temperature)
    tokens, finished = answers.rollouts.own_NL.sum(1).tolist(), answers.rollouts.finished_N.tolist()
    records = [
        Record(
            name, domain, item.item_id, content_hash(item.prompt), content_hash(item.target), row % n, item.prompt,
            answers.texts[row], answers.scores[row], tokens[row], not finished[row],
        )
        for row, item in enumerate(answers.items)
    ]  # fmt: skip
    return records, _tokens(answers, n), answers.work


def tokens_path(run: RunDirectory, model: str) -> Path:
    return run.path / "tokens" / f"{model}.parquet"


def _tokens(answers: Answers, n: int) -> list[dict[str, Any]]:
    """The sampled tokens of each answer: its text can be cut into others, and special tokens leave none in it."""
    rollouts = answers.rollouts
    first_N, own_NL = rollouts.prompt_N.tolist(), rollouts.own_NL.tolist()
    return [
        {
            "item_id": item.item_id,
            "sample": row % n,
            "token_ids": ids,
            "own": own_NL[row][first_N[row] : first_N[row] + len(ids)],
        }
        for row, (item, ids) in enumerate(zip(answers.items, rollouts.responses(), strict=True))
    ]


# -- trace --------------------------------------------------------------------------------------------------------------------


def _trace(run: RunDirectory, study: Study, name: str, progress: Progress) -> Result:
    """Score some of the model's sampled answers under the whole cast and attribute them."""
    tokenizer, teachers, members = run_tokenizer(run, study, name), list(study.teachers()), traced_under(study, name)
    chosen, rollouts = traced_answers(run, study, name)
    scored = joined(rollouts, members, name, teachers, _parts(run, study, name, rollouts))
    progress(1, 2, {})
    tokens = pd.DataFrame({"token_id": scored.token_T, "token": [tokenizer.token(int(t)) for t in scored.token_T]})
    attribution = attribute(scored.evidence, chosen, tokens, routed=study.route())
    write_table(run.trace_path(name), attribution.tokens)
    answers = attribution.answers.assign(drawn=chosen["drawn"].to_numpy())
    write_table(run.attribution_path(name), answers)
    progress(2, 2, {})
    work = Work(tokens_scored=scored.tokens_scored, flops=scored.flops)
    return work, "trace", members, drop_shards(run.path, "trace", name)


def traced_answers(run: RunDirectory, study: Study, name: str) -> tuple[pd.DataFrame, Rollouts]:
    """Records of the model's answers that are traced, and the same with their tokens."""
    chosen = _chosen(run.records(name), study.plan.diagnosis.attribution_items)
    return chosen, retokenize(chosen, run_tokenizer(run, study, name), study, run)


def _parts(run: RunDirectory, study: Study, name: str, rollouts: Rollouts) -> Iterator[Part]:
    """The scoring: shards where some are there, what they lack scored here."""
    count, there = shards_there(run.path, name)
    for number in there:
        path = shard_path(run.path, name, number, count)
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["tokens"]:
            yield read_shard(path, document["flops"])
    if left := [number for number in range(count) if number not in there]:
        models = members_of(run, study, traced_under(study, name))
        for number in left:
            yield from score_parts(rollouts, models, name, list(study.teachers()), share=(number, count))


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


def retokenize(records: pd.DataFrame, tokenizer: Tokenizer, study: Study, run: RunDirectory) -> Rollouts:
    """Recorded answers of one model as rollouts, the world's replies not own: the very tokens that were sampled where the run kept
    them, else the text's, with the end-of-sequence put back where an answer ended by itself."""
    prompts = tokenizer.encode_all(records["prompt"].tolist())
    kept = _kept(run, records)
    answers = kept if kept is not None else _from_text(records, tokenizer, study)
    rollouts = pack(prompts, [ids for ids, _ in answers], tokenizer.pad_id)
    for row, (ids, own) in enumerate(answers):
        first = len(prompts[row])
        rollouts.own_NL[row, first : first + len(ids)] = torch.tensor(own, dtype=torch.bool)
    return rollouts


Tokens = list[tuple[list[int], list[bool]]]
"""Of each answer the token ids, and which of them the model chose."""


def _kept(run: RunDirectory, records: pd.DataFrame) -> Tokens | None:
    """The sampled tokens of recorded answers of one model; None where its run kept none."""
    path = tokens_path(run, str(records["model"].iloc[0])) if len(records) else None
    if path is None or not path.is_file():
        return None
    table = pd.read_parquet(path).set_index(["item_id", "sample"])
    found = [table.loc[key] for key in zip(records["item_id"], records["sample"], strict=True)]
    return [(row["token_ids"].tolist(), row["own"].tolist()) for row in found]


def _from_text(records: pd.DataFrame, tokenizer: Tokenizer, study: Study) -> Tokens:
    targets = {i.item_id: i.target for d in study.world.domains for i in evaluation_items(study, d)}
    found: Tokens = []
    for record in records.itertuples():
        item = Item(record.item_id, record.domain, record.prompt, targets[record.item_id])
        ids, own = tokenizer.encode_turns(record.response, study.world.world_spans(item, record.response))
        end = [] if record.truncated else [tokenizer.eos_id]
        found.append(([*ids, *end], own + [True] * len(end)))
    return found


# -- geometry -----------------------------------------------------------------------------------------------------------------


def _geometry(run: RunDirectory, study: Study, name: str, progress: Progress) -> Result:
    from mopd_diag.study.geometry import geometry  # it reads answers as this file does

    return geometry(run, study, name, progress)
