"""Jobs handed out: to this machine's processes, or to Ray, and there evaluations and traces in shards.

Answers to a domain's items are drawn from a seed of their own, so domains evaluated apart are, joined, the whole evaluation to the
last bit. A shard waits under `saved/` until the whole job joins it; one that a stopped run has left is not made again. How a trace is
cut: `study.trace_shards`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mopd_diag.runs.directory import RunDirectory, write_json
from mopd_diag.runs.ray_scheduler import RayScheduler
from mopd_diag.runs.scheduler import Job, Watcher, run_jobs
from mopd_diag.study.preflight import workers_that_fit
from mopd_diag.study.resolve import Study, resolve_identity
from mopd_diag.study.trace_shards import shard_count, trace_shard
from mopd_diag.study.trace_shards import shard_path as trace_path

SCORING = 0.8
"""Share of a trace's work that can be cut into shards; attribution needs all of it."""


def hand_out(
    jobs: Sequence[Job], studies: Iterable[Study], workers: int | None, watcher: Watcher, ray: RayScheduler | None
) -> None:
    """Run all jobs. A cluster elsewhere is given as much as it has cores, this machine what fits its memory too."""
    if ray is not None and ray.address is not None:
        ray(sharded(jobs), workers, watcher)
        return
    workers = workers or min(map(workers_that_fit, studies))
    if ray is not None:
        ray(sharded(jobs), workers, watcher)
    else:
        run_jobs(jobs, workers, watcher)


def sharded(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, evaluations and traces after one more job for each of their shards that is not there yet."""
    found: list[Job] = []
    for job in jobs:
        kind = job.arguments[2] if len(job.arguments) == 5 else ""
        shards = _domains(job) if kind == "evaluate" else _batches(job) if kind == "trace" else []
        needs = (*job.needs, *(s.name for s in shards))
        found += [*shards, replace(job, needs=needs, weight=job.weight - sum(s.weight for s in shards))]
    return found


def _domains(job: Job) -> list[Job]:
    """The shards of an evaluation that are not there: its domains."""
    run, identity, _, name, since = job.arguments
    domains = identity["plan"]["world"]["domains"]
    return [
        replace(
            job,
            name=f"{job.name}/{domain}",
            call=evaluate_shard,
            arguments=(run, identity, name, domain, since),
            weight=job.weight / len(domains),
        )
        for i, domain in enumerate(domains)
        if not shard_path(run, name, i).is_file()
    ]


def _batches(job: Job) -> list[Job]:
    """The shards of a trace that are not there; none of one that is small."""
    run, identity, _, name, since = job.arguments
    count = shard_count(resolve_identity(identity), name)
    return [
        replace(
            job,
            name=f"{job.name}/{number + 1}-of-{count}",
            call=trace_shard,
            arguments=(run, identity, name, number, count, since),
            weight=SCORING * job.weight / count,
        )
        for number in range(count)
        if count > 1 and not trace_path(run, name, number, count).is_file()
    ]


def shard_path(run: Path, name: str, number: int) -> Path:
    """Of the world's domain with this number, whose own name may hold what a file's may not."""
    return run / "saved" / f"evaluate-{name}" / f"{number}.json"


def evaluate_shard(
    run: Path, identity: dict[str, Any], name: str, domain: str, since: float, progress: Callable[..., None]
) -> None:
    """Evaluate one model in one domain, in this process."""
    from mopd_diag.engines.clock import MODEL_TIME
    from mopd_diag.engines.vllm_sampler import sampled_by
    from mopd_diag.models.device import device_name
    from mopd_diag.study.jobs import evaluate_domain, load_evaluated, sampler_of

    study = resolve_identity(identity)
    started, began, model_began = time.time() - since, time.perf_counter(), MODEL_TIME.seconds
    model, tokenizer = load_evaluated(RunDirectory(run), study, name)
    with sampled_by(sampler_of(study)):
        records, tokens, work = evaluate_domain(model, tokenizer, study, name, domain)
    document = {
        "records": [asdict(r) for r in records],
        "tokens": tokens,
        "work": asdict(work),
        "started": started,
        "device": device_name(model.device),
        "seconds": time.perf_counter() - began,
        "seconds_model": MODEL_TIME.seconds - model_began,
    }
    write_json(shard_path(run, name, list(study.world.domains).index(domain)), document)
    progress(1, 1, {"reward": sum(r.score for r in records) / len(records)})


def take_shard(run: Path, name: str, number: int) -> dict[str, Any] | None:
    """What `evaluate_shard` left; None where it was not asked."""
    path = shard_path(run, name, number)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def drop_shards(run: Path, kind: str, name: str) -> dict[str, Any]:
    """Remove the shards, which are joined now; returns when the first began, where they ran and what all took, for the ledger."""
    folder = run / "saved" / f"{kind}-{name}"
    shards = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")]
    shutil.rmtree(folder, ignore_errors=True)
    took = {f"{key}_before": sum(s[key] for s in shards) for key in ("seconds", "seconds_model")}
    if not shards:
        return {}
    devices = dict.fromkeys(s.get("device", "cpu") for s in shards)
    return {"started": min(s["started"] for s in shards), "device": ", ".join(devices), **took}
