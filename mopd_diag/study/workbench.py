"""What explaining takes: a run's models, and its failed answers cut into prefixes, each ready to be continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer, load_tokenizer
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.study.jobs import evaluation_items, retokenize
from mopd_diag.study.prefixes import Continuer, Prefix
from mopd_diag.study.resolve import Study, resolve_identity
from mopd_diag.study.weights import load_model
from mopd_diag.types import Item

STUDENT, BASE = "student", "base"


@dataclass(frozen=True, slots=True)
class Answer:
    """A recorded answer: its rollout, and for each token the student chose itself the prefix before it, its position and its id."""

    item: Item
    rollout: Rollouts
    prefixes: list[Prefix]
    positions: list[int]
    written: list[int]
    ended: bool


@dataclass(frozen=True)
class Workbench:
    """A run with its models loaded, ready to continue the failed answers in `answers` (by item and sample)."""

    run: RunDirectory
    tokenizer: Tokenizer
    models: dict[str, Decoder]
    teachers: list[str]
    controls: list[str]
    route: Mapping[str, str]
    answers: dict[tuple[str, int], Answer]
    trace: pd.DataFrame
    continuer: Continuer


def open_workbench(run: RunDirectory, failed: Sequence[Mapping[str, Any]]) -> Workbench:
    """Load student, base, teachers and controls of a run, to explain the given answers (rows of `failed_answers`).

    Raises BadInput when the manifest cannot be resolved or a model is missing.
    """
    manifest = run.manifest()
    if "identity" not in manifest:
        raise BadInput(f"{run.path}/manifest.json has no `identity`: expected a run made by `mopd-diag run`")
    study = resolve_identity(manifest["identity"])
    teachers, controls = list(study.teachers()), study.controls()
    tokenizer = load_tokenizer(run.path / "models" / STUDENT)
    models = {m: load_model(run, study, m) for m in (STUDENT, BASE, *teachers, *controls)}
    for name, model in models.items():
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise CheckpointError(
                f"{run.path / 'models' / name} holds NaN or infinite weights; train or copy that model again"
            )
    # Greedy continuations would all be the same one.
    continuer = Continuer(tokenizer, study.world, study.plan.evaluation.temperature or 1.0)
    answers = _answers(run, study, tokenizer, failed)
    trace = run.trace(STUDENT)
    trace = trace[trace["item_id"].isin({i for i, _ in answers})]
    return Workbench(run, tokenizer, models, teachers, controls, manifest["route"], answers, trace, continuer)


def _answers(
    run: RunDirectory, study: Study, tokenizer: Tokenizer, failed: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, int], Answer]:
    keys = pd.DataFrame([{"item_id": r["item_id"], "sample": r["sample"]} for r in failed])
    records = run.records(STUDENT).merge(keys, on=["item_id", "sample"])
    items = {i.item_id: i for d in records["domain"].unique() for i in evaluation_items(study, d)}
    rollouts = retokenize(records, tokenizer, study, run)
    found = {}
    for n, record in enumerate(records.to_dict("records")):
        rollout = rollouts.take(torch.tensor([n]))
        start, end = int(rollout.prompt_N[0]), int(rollout.length_N[0])
        ids, own = rollout.ids_NL[0].tolist(), rollout.own_NL[0, start:end].tolist()
        item = items[record["item_id"]]
        positions = [t for t, mine in enumerate(own) if mine]
        prefixes = [Prefix(item, tuple(ids[:start]), tuple(ids[start : start + t])) for t in positions]
        written = [ids[start + t] for t in positions]
        found[record["item_id"], int(record["sample"])] = Answer(
            item, rollout, prefixes, positions, written, not record["truncated"]
        )
    return found
