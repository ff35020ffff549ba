"""lm-eval 0.4.x: the `samples_*.jsonl` files that `--log_samples` writes, one a task.

An item is a `doc_id`, checked by the hashes that lm-eval writes beside it. Where a task has several metrics, `exact_match` is
taken, else `acc`, else the first that is one number an item; where it has several filters, the first. Filters are never
averaged; `metric` chooses: a metric, a filter, or both as "metric,filter", as lm-eval's own tables call them. Items of our worlds are
called as the worlds call them (`lm_eval_worlds`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from mopd_diag.errors import BadInput
from mopd_diag.records.build import Rows
from mopd_diag.records.jsonl import objects
from mopd_diag.records.lm_eval_worlds import answers
from mopd_diag.records.recordset import digest, text_of

FORMAT = "lm-eval"
PREFERRED = ("exact_match", "acc")
# Lower is better (lm_eval.api.metrics): a rise would be reported as an improvement.
LOWER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter", "brier_score"}
OWN_KEYS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip
TAKEN = ("item_id", "sample", "prompt_hash", "target_hash", "prompt", "response", "limit")
NAME = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[0-9.:-]+")


class NotInTask(BadInput):
    """The metric or filter that was asked for is not among this task's."""


def is_results(path: Path) -> bool:
    return bool(_files(path, "samples_*.jsonl") or _files(path, "results_*.json"))


def read_results(path: Path, metric: str | None = None) -> list[Rows]:
    """A results directory: the latest samples of every task, one group a task."""
    files = _files(path, "samples_*.jsonl")
    if not files:
        raise BadInput(f"{path} has lm-eval results without samples; repeat lm-eval with --log_samples")
    folders = sorted({f.parent.name for f in files})
    if len(folders) > 1:
        raise BadInput(f"{path} holds several models ({', '.join(folders)}); give one of these directories")
    latest = {task_of(f): f for f in files}  # sorted by name, so by date within a task
    notes = [
        f"{task}: several runs in {path}, the latest is taken ({file.name})"
        for task, file in latest.items()
        if sum(task_of(f) == task for f in files) > 1
    ]
    parts, missing = [], []
    for task, file in latest.items():
        try:
            rows = read_samples(file, task, metric)
        except NotInTask as error:
            rows = read_samples(file, task)
            missing.append(str(error))
            notes += [f"{error}; its default is taken"] if len(rows.lines) else []
        parts.append(replace(rows, named=True))
    if len(missing) == len(parts):
        raise BadInput("; ".join(missing[:3]) + (f"; and {len(missing) - 3} more tasks" if len(missing) > 3 else ""))
    parts[0] = replace(parts[0], warnings=(*notes, *parts[0].warnings))
    return parts


def read_samples(path: Path, group: str, metric: str | None = None) -> Rows:
    """One samples file. Has no rows, and a warning, when the task has no score that can be compared item by item.

    Raises NotInTask when the task has neither a metric nor a filter of that name.
    """
    found = NAME.fullmatch(path.stem)
    group = found["task"] if found else group
    rows = [(line, item) for line, table in objects(path) for item in answers(table, _item(table))]
    filters = list(dict.fromkeys(item["filter"] for _, item in rows))
    numbers = [n for _, item in rows[:100] for n, v in item["scores"].items() if isinstance(v, int | float)]
    chosen, chosen_filter, warning = _choose(group, list(dict.fromkeys(numbers)), filters, metric)
    if not chosen:
        return Rows(str(path), FORMAT, {}, [], group, (warning,))
    kept = [(line, item) for line, item in rows if item["filter"] == chosen_filter]
    columns = {name: [item[name] for _, item in kept] for name in TAKEN}
    columns["score"] = [item["scores"].get(chosen) for _, item in kept]
    if all("group" in item for _, item in kept):
        columns["group"] = [item["group"] for _, item in kept]
    named = bool(found) or "group" in columns
    return Rows(str(path), FORMAT, columns, [line for line, _ in kept], group, (warning,) if warning else (), named)


def task_of(file: Path) -> str:
    found = NAME.fullmatch(file.stem)
    return found["task"] if found else file.stem.removeprefix("samples_")


def _files(path: Path, pattern: str) -> list[Path]:
    """lm-eval writes into a directory of the model's name below the one it was given."""
    return sorted([*path.glob(pattern), *path.glob(f"*/{pattern}")])


def _item(table: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a line; the document, and contexts repeated for every choice, are most of it."""
    listed = table.get("metrics")  # older versions do not list theirs
    metrics = [str(n) for n in listed] if isinstance(listed, list) else [k for k in table if k not in OWN_KEYS]
    return {
        "filter": str(table.get("filter", "none")),
        "scores": {n: table.get(n) for n in metrics},
        "item_id": text_of(table.get("doc_id")),
        "sample": 0,
        "prompt_hash": _prompt_hash(table),
        "target_hash": text_of(table.get("target_hash")),
        "prompt": _prompt(table),
        "response": _response(table),
        "limit": _limit(table),
    }


def _choose(task: str, names: list[str], filters: list[str], wanted: str | None) -> tuple[str, str, str]:
    """The metric and the filter to take ("" for none), and what to tell about it."""
    usable = [n for n in names if n not in LOWER]
    name, _, filtered = (wanted or "").partition(",")
    if name in filters and name not in names and not filtered:
        name, filtered = "", name
    if (name and name not in names) or (filtered and filtered not in filters):
        raise NotInTask(
            f"{task} has no '{wanted}': its metrics are {', '.join(names) or 'none'}, its filters {', '.join(filters)}"
        )
    if name in LOWER or not (name or usable):
        reason = (
            f"{name or ', '.join(names)} is better when lower" if name or names else "it has no score for single items"
        )
        return "", "", f"{task} is left out: {reason}"
    chosen = name or next((n for n in PREFERRED if n in usable), usable[0])
    chosen_filter = filtered or filters[0]
    told = []
    if not filtered and len(filters) > 1:
        told.append(f"filter '{chosen_filter}' of {', '.join(filters)}")
    if not name and len(usable) > 1:
        told.append(f"metric '{chosen}' of {', '.join(usable)}")
    return chosen, chosen_filter, f"{task}: scored by {' and '.join(told)}" if told else ""


def _arguments(table: dict[str, Any]) -> list[list[Any]]:
    """The requests of one item, each a context and a continuation or generation settings."""
    arguments = table.get("arguments")
    requests = (
        list(arguments.values()) if isinstance(arguments, dict) else arguments if isinstance(arguments, list) else []
    )
    return [list(r.values()) if isinstance(r, dict) else r if isinstance(r, list) else [r] for r in requests]


def _limit(table: dict[str, Any]) -> int | None:
    """The most tokens an answer could have; None where none were generated."""
    requests = _arguments(table)
    settings = requests[0][1] if requests and len(requests[0]) > 1 else None
    limit = settings.get("max_gen_toks") if isinstance(settings, dict) else None
    return limit if isinstance(limit, int) else None


def _choices(table: dict[str, Any]) -> list[str]:
    """The continuations that were compared; empty for generation."""
    requests = _arguments(table)
    choices = [r[1] for r in requests if len(r) > 1 and isinstance(r[1], str)]
    return choices if len(choices) == len(requests) else []


def _prompt_hash(table: dict[str, Any]) -> str:
    """lm-eval hashes the first context alone; other choices are another question."""
    given = text_of(table.get("prompt_hash"))
    choices = _choices(table)
    return digest(given, *choices) if given and choices else given


def _prompt(table: dict[str, Any]) -> str:
    requests = _arguments(table)
    context = text_of(requests[0][0]) if requests and requests[0] else ""
    choices = _choices(table)
    return "\n".join([context, *(f"({i}){c}" for i, c in enumerate(choices))]) if len(choices) > 1 else context


def _response(table: dict[str, Any]) -> str:
    """The sampled text, or the choice of the highest likelihood."""
    choices, filtered = _choices(table), table.get("filtered_resps")
    if len(choices) > 1 and isinstance(filtered, list) and len(filtered) == len(choices):
        try:
            likelihoods = [float(r[0] if isinstance(r, list) else r) for r in filtered]
        except (TypeError, ValueError, IndexError):
            return ""
        return choices[likelihoods.index(max(likelihoods))]
    response = table.get("resps")
    while isinstance(response, list) and response:
        response = response[0]
    return text_of(response)
