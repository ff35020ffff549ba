"""Answers that a trainer logged while it trained, as rollouts to attribute: TRL's completions, verl's and NeMo-RL's dumps.

None of them says a prompt's domain (verl's `data_source` aside), so prompts with domains can be given beside; equal text joins them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mopd_diag.errors import BadInput
from mopd_diag.prompts import Prompt, check_prompts, read_prompts
from mopd_diag.records.jsonl import objects
from mopd_diag.records.ours import columns_of, read_frame
from mopd_diag.records.rollouts import only, turns

Told = Callable[[str], None]
SUPPORTED = "JSON lines with id, prompt and response; TRL's completions_*.parquet; verl's or NeMo-RL's rollout dumps"


def read_rollouts(path: Path, domains: Path | None = None, say: Told = lambda _: None) -> list[Prompt]:
    """The answers in a file of ours or of a trainer's, recognised by content. Line numbers are the ids of a trainer's answers.

    `domains` is a file of prompts with domains; `say` hears for how many answers it has none. Raises BadInput in one line for a
    file that holds no answers.
    """
    read = _reader(path)
    found = (
        read_prompts(path, responses=True)
        if read is None
        else check_prompts(list(read(path)), str(path), responses=True)
    )
    if domains is None:
        return found
    known = _domains(domains)
    found = [replace(p, domain=p.domain or known.get(p.prompt, "")) for p in found]
    unknown = sum(not p.domain for p in found)
    if unknown == len(found):
        raise BadInput(
            f"none of the {len(found)} prompts of {path} is in {domains}; give the prompts that were trained on"
        )
    if unknown:
        say(f"{unknown} of {len(found)} answers have no domain: {domains} has other prompts")
    return found


Tables = Iterator[dict[str, Any]]


def _reader(path: Path) -> Callable[[Path], Tables] | None:
    """Who reads this file; None for rollouts of our own format, and for what is not there."""
    if path.is_dir():
        raise BadInput(f"{path} is a directory; give one file of answers: {SUPPORTED}")
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PAR1":
        return _trl
    if head == b"" or not head.lstrip().startswith(b"{"):
        return None
    keys = next(objects(path))[1].keys()
    if "prompt" in keys:
        return None
    return _verl if {"input", "output"} <= keys else _nemo if "content" in keys else None


def _trl(path: Path) -> Tables:
    """`log_completions=True` of GRPOTrainer and DistillationTrainer: step, prompt, completion, a GRPO run's rewards and advantage."""
    columns = columns_of(path)
    if not {"prompt", "completion"} <= set(columns):
        raise BadInput(f"{path} has the columns {', '.join(columns)}; expected TRL's prompt and completion")
    frame = read_frame(path)
    rewards: list[str] = []
    if "advantage" in columns:
        between = columns[columns.index("completion") + 1 : columns.index("advantage")]
        rewards = [n for n in between if frame[n].dtype.kind in "fiub"]
    for n, row in enumerate(frame.to_dict("records"), 1):
        if not isinstance(row["prompt"], str) or not isinstance(row["completion"], str):
            raise BadInput(
                f"{path}: row {n} is a conversation, whose text depends on a chat template; log prompts and completions as text"
            )
        given = row.get("domain") if isinstance(row.get("domain"), str) else None
        yield _table(n, row["prompt"], row["completion"], row[rewards[0]] if rewards else None, given)


def _verl(path: Path) -> Tables:
    """`trainer.rollout_data_dir` or `validation_data_dir`: input, output, score."""
    for n, row in objects(path):
        if not isinstance(row.get("input"), str) or not isinstance(row.get("output"), str):
            raise BadInput(f"{path}:{n}: no text in `input` or `output`; expected verl's keys on every line")
        yield _table(n, row["input"], row["output"], row.get("score"), row.get("data_source"))


def _nemo(path: Path) -> Tables:
    """`train_data_step*.jsonl` and `val_data_step*.jsonl`: the turns of a conversation, and a reward where there is one."""
    for n, row in objects(path):
        prompt, response = turns(only(row.get("content")), f"{path}:{n}")
        yield _table(n, prompt, response, only(row.get("rewards")), None)


def _table(line: int, prompt: str, response: str, score: Any, domain: str | None) -> dict[str, Any]:
    number = isinstance(score, int | float) and math.isfinite(score)
    return {
        "id": str(line),
        "prompt": prompt,
        "response": response,
        "score": float(score) if number else None,
        "domain": domain,
    }


def _domains(path: Path) -> Mapping[str, str]:
    """Prompt → domain. More keys and repeated prompts are fine: a trainer's own data set may be given."""
    if not path.is_file():
        raise BadInput(f"no file {path}: expected JSON lines with prompt and domain; check the path")
    known: dict[str, str] = {}
    for n, row in objects(path):
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("domain"), str):
            raise BadInput(f"{path}:{n}: no text in `prompt` or `domain`; expected both on every line")
        if known.setdefault(row["prompt"], row["domain"]) != row["domain"]:
            raise BadInput(f"{path}:{n}: this prompt had domain '{known[row['prompt']]}' before, now '{row['domain']}'")
    return known
