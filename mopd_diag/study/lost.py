"""Why were items lost? From the records and the attribution of a run directory, or from the models of a cast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mopd_diag.config import Cast
from mopd_diag.diagnostics.comparison import OWN, UNDETERMINED
from mopd_diag.diagnostics.explained import explanations, pivots_of
from mopd_diag.diagnostics.failures import CLASSES, INHERITED, KEY, LEAKED, LOST, failures
from mopd_diag.diagnostics.provenance import label_of
from mopd_diag.prompts import Prompt
from mopd_diag.runs.directory import RunDirectory

COLUMNS = ["group", "item_id", "failure", "teacher", "reason"]
AFFORDABLE = 3e14
"""FLOPs that a comparison spends on attribution by itself: about an hour of two CPU cores."""
CHARACTERS_A_TOKEN = 3
WEIGHTS = {".safetensors", ".bin", ".pt", ".gguf"}
Told = Callable[[str], None]


def why_in_run(run: RunDirectory, model: str, lost: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Failure class and teacher of the lost items (group, item_id) of a run's model, and what they rest on.

    Of an item's failed samples, the commonest class counts; `own` is a failure that neither teacher nor base shares and
    that the attribution gives to the student's own shift.
    """
    manifest = run.manifest()
    roles = {name: table["role"] for name, table in manifest["models"].items()}
    teachers = [name for name, role in roles.items() if role == "teacher"]
    if roles.get(model) in ("teacher", "base"):
        return _nothing(), f"{model} is a {roles[model]}, so its failures come from no teacher"
    if not teachers or "base" not in roles or model not in roles:
        return _nothing(), f"{run.path} has no cast for {model} (base and teachers), so nobody can be named"
    records = run.records(*dict.fromkeys(["base", *teachers, model]))
    asked = pd.MultiIndex.from_frame(lost[["group", "item_id"]])
    records = records[pd.MultiIndex.from_frame(records[["domain", "item_id"]]).isin(asked)]
    attributed = run.attribution(model) if run.attribution_path(model).is_file() else None
    failed = failures(
        records, manifest.get("route") or {}, student=model, teachers=teachers, attributed=attributed,
        pivots=_pivots(run, records) if model == "student" else None,
    )  # fmt: skip
    own = (failed["attributed"] == "own") & failed["failure"].isin([LOST, UNDETERMINED])
    failed = failed.assign(failure=failed["failure"].where(~own, OWN), teacher=failed["teacher"].where(~own, ""))
    basis = "records" if attributed is None else "records and attribution"
    note = f"from the {basis} of {run.path}"
    if attributed is None:
        note += f"; {model} was not attributed there, so answers alone were compared"
    return _by_item(failed), note


def why_from_cast(cast: Cast, lost: pd.DataFrame, *, told: Told, warn: Told) -> tuple[pd.DataFrame, str]:
    """Failure class and teacher of the lost items by attribution of their answers (group, item_id, prompt, response_after).

    Nothing is computed, and the note says so, without answers or when it would take more than `AFFORDABLE` FLOPs.
    """
    usable = lost[(lost["prompt"] != "") & (lost["response_after"] != "")]
    if usable.empty:
        return _nothing(), "the records hold no prompts and answers of the lost items; log the samples to find out"
    names = usable["group"] + "/" + usable["item_id"]
    rows = zip(names, usable["prompt"], usable["group"], usable["response_after"], strict=True)
    prompts = [Prompt(id=i, prompt=p, domain=g, response=r) for i, p, g, r in rows]
    flops = _flops(cast, prompts)
    if flops > AFFORDABLE:
        note = f"attributing {len(prompts)} lost answers would take about {flops:.0e} FLOPs; write them as JSON lines and run"
        return _nothing(), f"{note}: mopd-diag attribute CAST --rollouts lost.jsonl --out DIR (on a GPU)"
    from mopd_diag.study.cast import attribute_cast

    attribution = attribute_cast(cast, prompts, told=told, warn=warn)
    route = {domain: f"teacher-{name}" for name, member in cast.teachers.items() for domain in member.domains}
    teachers = {label_of(t): t for t in attribution.teachers}
    answers = attribution.answers
    teacher = answers["label"].map(teachers).fillna("")
    routed = answers["domain"].map(route).fillna("")
    failure = np.select(
        [(teacher != "") & ((teacher == routed) | (routed == "")), teacher != "", answers["label"].isin(["own", "pre-existing"])],
        [INHERITED, LEAKED, answers["label"]],
        UNDETERMINED,
    )  # fmt: skip
    reason = answers["reason"].where(answers["reason"] != "", "attributed to " + answers["label"].astype(str))
    found = pd.DataFrame({"failure": failure, "teacher": teacher, "reason": reason}).set_axis(usable.index)
    note = f"by attribution of {len(prompts)} lost answers to the cast; the teachers' own answers were not sampled"
    return usable[["group", "item_id"]].join(found)[COLUMNS], note


def how_to_find_out(command: Sequence[str], *, answers: bool) -> str:
    """What to say when there are no models: the command that would name the teachers."""
    said = (
        f"no models at hand, so nobody is named; find out with: mopd-diag compare {' '.join(command)} --cast cast.toml"
    )
    said += " (cast.toml names base, student and teachers)"
    return said if answers else f"{said}, once the records hold prompts and answers: log the samples"


def _pivots(run: RunDirectory, records: pd.DataFrame) -> pd.DataFrame | None:
    """Pivots that `mopd-diag explain` kept in the run, of answers that are still its answers."""
    found = pivots_of(explanations(run))
    told = records.loc[records["model"] == "student", [*KEY, "response"]]
    return None if found is None else found.merge(told, on=[*KEY, "response"])


def _by_item(failed: pd.DataFrame) -> pd.DataFrame:
    """One row an item: the commonest class and teacher among its failed samples, the first class of equals."""
    order = {name: k for k, name in enumerate((*CLASSES[:-1], OWN, CLASSES[-1]))}
    rows = []
    for (group, item), part in failed.groupby(["domain", "item_id"], sort=True):
        counts = Counter(zip(part["failure"], part["teacher"], strict=True))
        kind, teacher = min(counts, key=lambda c: (-counts[c], order[c[0]], c[1]))
        reason = next(iter(part.loc[part["failure"] == kind, "reason"]), "")
        share = f"{counts[kind, teacher]} of {len(part)} failed answers"
        rows.append((group, item, kind, teacher, "; ".join(r for r in (reason, share if len(part) > 1 else "") if r)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _flops(cast: Cast, prompts: Sequence[Prompt]) -> float:
    """Two FLOPs a weight and token and member, from the size of the checkpoints at two bytes a weight."""
    tokens = sum(len(p.prompt) + len(p.response or "") for p in prompts) / CHARACTERS_A_TOKEN
    members = {name: m for name, m in cast.members().items() if not name.startswith("rival-")}
    return sum(_weight_bytes(m) / 2 for m in members.values()) * 2 * tokens


def _weight_bytes(member: Any) -> int:
    if member.path is None:
        return 0
    path = Path(member.path)
    files = [path] if path.is_file() else [p for p in path.glob("*") if p.suffix in WEIGHTS] if path.is_dir() else []
    return sum(f.stat().st_size for f in files)


def _nothing() -> pd.DataFrame:
    return pd.DataFrame(columns=COLUMNS)
