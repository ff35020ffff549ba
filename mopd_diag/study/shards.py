"""Jobs handed out: to this machine's processes, or to Ray, and there an evaluation as one job a domain.

Answers to a domain's items are drawn from a seed of their own, so domains evaluated apart are, joined, the whole evaluation to the
last bit. A shard waits as JSON under `saved/` until the evaluation joins it; one that a stopped run has left is not made again.
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
    """The jobs, each evaluation of several domains after one more job for each domain that is not evaluated yet."""
    found: list[Job] = []
    for job in jobs:
        if len(job.arguments) != 5 or job.arguments[2] != "evaluate":
            found.append(job)
            continue
        run, identity, _, name, since = job.arguments
        domains = identity["plan"]["world"]["domains"]
        shards = [
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
        needs = (*job.needs, *(s.name for s in shards))
        found += [*shards, replace(job, needs=needs, weight=job.weight * (1 - len(shards) / len(domains)))]
    return found


def shard_path(run: Path, name: str, number: int) -> Path:
    """Of the world's domain with this number, whose own name may hold what a file's may not."""
    return run / "saved" / f"evaluate-{name}" / f"{number}.json"


def evaluate_shard(
    run: Path, identity: dict[str, Any], name: str, domain: str, since: float, progress: Callable[..., None]
) -> None:
    """Evaluate one model in one domain, in this process."""
    from mopd_diag.engines.clock import MODEL_TIME
    from mopd_diag.study.jobs import evaluate_domain, load_evaluated

    study = resolve_identity(identity)
    started, began, model_began = time.time() - since, time.perf_counter(), MODEL_TIME.seconds
    records, tokens, work = evaluate_domain(*load_evaluated(RunDirectory(run), study, name), study, name, domain)
    document = {
        "records": [asdict(r) for r in records],
        "tokens": tokens,
        "work": asdict(work),
        "started": started,
        "seconds": time.perf_counter() - began,
        "seconds_model": MODEL_TIME.seconds - model_began,
    }
    write_json(shard_path(run, name, list(study.world.domains).index(domain)), document)
    progress(1, 1, {"reward": sum(r.score for r in records) / len(records)})


def take_shard(run: Path, name: str, number: int) -> dict[str, Any] | None:
    """What `evaluate_shard` left; None where it was not asked."""
    path = shard_path(run, name, number)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def drop_shards(run: Path, name: str) -> dict[str, Any]:
    """Remove the shards, which are joined now; returns when the first began and what all took, for the ledger."""
    folder = shard_path(run, name, 0).parent
    shards = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")]
    shutil.rmtree(folder, ignore_errors=True)
    took = {f"{key}_before": sum(s[key] for s in shards) for key in ("seconds", "seconds_model")}
    return {"started": min(s["started"] for s in shards), **took} if shards else {}
