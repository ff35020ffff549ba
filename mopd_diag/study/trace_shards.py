"""A model's trace scored in shards: every n-th batch of its answers is one job, and what they leave is joined to the last bit.

How many shards there are follows from the plan alone, so that a run goes on with any number of workers. A shard's numbers wait as
Parquet under `saved/`, and its JSON beside them, written last, says that they are whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mopd_diag.runs.directory import RunDirectory, write_json, write_table
from mopd_diag.study.preflight import sizes
from mopd_diag.study.resolve import Study, resolve_identity

if TYPE_CHECKING:
    from mopd_diag.engines.scoring import Part

SHARD_FLOPS = 2e12
"""At most, of one shard: half a minute of one core, beside which loading the cast once more is little."""
MOST_SHARDS = 64


def shard_count(study: Study, name: str) -> int:
    """Into how many shards the scoring of one model's answers is cut, from the most tokens that the plan lets it have."""
    settings = study.plan.evaluation
    answers = min(2 * study.plan.diagnosis.attribution_items, settings.items * settings.samples)
    tokens = sum(
        answers * (study.prompt_tokens[d] + study.world.domains[d].max_new_tokens) for d in study.world.domains
    )
    flops = 2 * sizes(study).parameters * tokens * len(traced_under(study, name))
    return min(MOST_SHARDS, math.ceil(flops / SHARD_FLOPS))


def traced_under(study: Study, name: str) -> tuple[str, ...]:
    """The models that score the answers of one: those that never saw a teacher are the null, but for the one that is judged."""
    return tuple(dict.fromkeys((name, "base", *study.teachers(), *study.controls())))


def shard_path(run: Path, name: str, number: int, count: int) -> Path:
    return run / "saved" / f"trace-{name}" / f"{number}-of-{count}.json"


def shards_there(run: Path, name: str) -> tuple[int, list[int]]:
    """Into how many shards a trace was cut, and which of them are done; one that is not, where there is none."""
    found: dict[int, list[int]] = {}
    for path in shard_path(run, name, 0, 1).parent.glob("*-of-*.json"):
        number, _, count = path.stem.partition("-of-")
        found.setdefault(int(count), []).append(int(number))
    return max(found.items(), key=lambda cut: len(cut[1]) / cut[0], default=(1, []))


def trace_shard(
    run: Path, identity: dict[str, Any], name: str, number: int, count: int, since: float, progress: Callable[..., None]
) -> None:  # fmt: skip
    """Score every `count`-th batch of a model's answers from batch `number` on, in this process."""
    from mopd_diag.engines.clock import MODEL_TIME
    from mopd_diag.engines.scoring import score_parts
    from mopd_diag.models.device import device_name
    from mopd_diag.study.jobs import traced_answers
    from mopd_diag.study.weights import device_of, members_of

    started, began, model_began = time.time() - since, time.perf_counter(), MODEL_TIME.seconds
    directory, study = RunDirectory(run), resolve_identity(identity)
    _, rollouts = traced_answers(directory, study, name)
    models = members_of(directory, study, traced_under(study, name))
    parts = list(score_parts(rollouts, models, name, list(study.teachers()), share=(number, count)))
    path = shard_path(run, name, number, count)
    if parts:
        write_table(path.with_suffix(".parquet"), _table(parts))
    document = {
        "tokens": sum(len(p.row_T) for p in parts),
        "flops": sum(p.flops for p in parts),
        "device": device_name(device_of(study)),
        "started": started,
        "seconds": time.perf_counter() - began,
        "seconds_model": MODEL_TIME.seconds - model_began,
    }
    write_json(path, document)
    progress(1, 1, {})


def read_shard(path: Path, flops: int) -> Part:
    """The numbers of a shard that has tokens."""
    from mopd_diag.engines.scoring import Part

    table = pq.read_table(path.with_suffix(".parquet")).combine_chunks()
    rows = len(table)
    logp, kl, gram = (
        table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(rows, -1)
        for name in ("logp", "kl", "gram")
    )
    vectors = math.isqrt(gram.shape[1])
    return Part(table["row"].to_numpy(), logp, kl, gram.reshape(rows, vectors, vectors), flops)


def _table(parts: list[Part]) -> pa.Table:
    """A row a token: its place in the whole, and the numbers of all members as lists of one length."""
    numbers = {
        "logp": np.concatenate([p.logp_TM for p in parts]),
        "kl": np.concatenate([p.kl_TM for p in parts]),
        "gram": np.concatenate([p.gram_TJJ.reshape(len(p.row_T), -1) for p in parts]),
    }
    lists = {name: pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1]) for name, x in numbers.items()}
    return pa.table({"row": np.concatenate([p.row_T for p in parts]), **lists})
