"""Rollout and validation dumps of verl, TRL and NeMo-RL.

None of them numbers its items (NeMo-RL's `idx` is the row's position), so the prompt is the identity: an item's id is the hash
of its prompt, and equal prompts are samples of one item.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mopd_diag.errors import BadInput, nearest
from mopd_diag.records.build import Rows
from mopd_diag.records.jsonl import objects
from mopd_diag.records.ours import read_frame
from mopd_diag.records.recordset import digest, text_of

STEP = re.compile(r"\d+|completions_\d+|(train|val)_data_step\d+")


def refuse_steps(path: Path, parts: Sequence[Rows]) -> None:
    """Dumps of several training steps are not suites of one checkpoint."""
    steps = [p for p in parts if p.format in ("verl", "trl", "nemo-rl") and STEP.fullmatch(Path(p.path).stem)]
    if len(steps) > 1:
        raise BadInput(
            f"{path} holds {steps[0].format} dumps of {len(steps)} training steps; give one of them ({Path(steps[-1].path).name})"
        )


def read_verl(path: Path, group: str, metric: str | None = None) -> Rows:
    """verl's `rollout_data_dir` or `validation_data_dir`: input, output, score, step, and often gts and reward details."""
    score = metric or "score"
    rows: dict[str, list[Any]] = defaultdict(list)
    keys: set[str] = set()
    for line, table in objects(path):
        if score not in table:
            raise BadInput(f"{path}:{line}: no `{score}`; {nearest(score, table)}")
        if not {"input", "output"} <= table.keys():
            raise BadInput(f"{path}:{line}: no `input` or no `output`; expected verl's keys on every line")
        keys |= table.keys()
        _add(rows, line, text_of(table["input"]), text_of(table["output"]), table[score])
        rows["target_hash"].append(digest(text_of(table["gts"])) if table.get("gts") is not None else "")
        rows["group"].append(text_of(table.get("data_source")) or group)
    told = ("scored by `score`; the file has `acc` too",) if metric is None and "acc" in keys else ()
    return _rows(path, "verl", rows, group, told, named="data_source" in keys)


def is_trl(columns: Sequence[str]) -> bool:
    return {"prompt", "completion", "advantage"} <= set(columns)


def read_trl(path: Path, group: str, metric: str | None = None) -> Rows:
    """The Parquet files of `GRPOTrainer(log_completions=True)`: step, prompt, completion, one column a reward, advantage."""
    frame = read_frame(path)
    names = [str(n) for n in frame.columns]
    rewards = [
        n for n in names[names.index("completion") + 1 : names.index("advantage")] if frame[n].dtype.kind in "fiub"
    ]
    if metric is not None and metric not in rewards:
        raise BadInput(f"{path} has no reward '{metric}'; {nearest(metric, rewards)}")
    if not rewards:
        raise BadInput(f"{path} has no reward between its columns completion and advantage; expected TRL's completions")
    score = metric or rewards[0]
    told = [f"scored by reward '{score}' of {', '.join(rewards)}"] if metric is None and len(rewards) > 1 else []
    values = frame[score].to_numpy(np.float64)
    unscored = np.isnan(values)
    if unscored.any():  # a reward function may return None for prompts of another kind
        told.append(f"{int(unscored.sum())} of {len(values)} answers have no '{score}' and are left out")
    rows: dict[str, list[Any]] = defaultdict(list)
    for i in np.flatnonzero(~unscored).tolist():
        _add(rows, i + 1, _messages(frame["prompt"].iloc[i]), _messages(frame["completion"].iloc[i]), float(values[i]))
    return _rows(path, "trl", rows, group, tuple(told))


def read_nemo(path: Path, group: str, metric: str | None = None) -> Rows:
    """NeMo-RL's `train_data_step*.jsonl` and `val_data_step*.jsonl`: content and rewards, in batches of one."""
    reward = metric or "rewards"
    rows: dict[str, list[Any]] = defaultdict(list)
    for line, table in objects(path):
        if "content" not in table or reward not in table:
            wanted = reward if "content" in table else "content"
            raise BadInput(f"{path}:{line}: no `{wanted}`; {nearest(wanted, table)}")
        prompt, response = turns(only(table["content"]), f"{path}:{line}")
        _add(rows, line, prompt, response, only(table[reward]))
    return _rows(path, "nemo-rl", rows, group, ())


def _add(rows: dict[str, list[Any]], line: int, prompt: str, response: str, score: Any) -> None:
    for name, value in (("line", line), ("prompt", prompt), ("response", response), ("score", score)):
        rows[name].append(value)


def _rows(
    path: Path, form: str, rows: dict[str, list[Any]], group: str, told: tuple[str, ...], *, named: bool = False
) -> Rows:
    if not rows["line"]:
        raise BadInput(f"{path} holds no scored answers; expected {form}'s rollouts")
    hashes: dict[str, str] = {}
    rows["item_id"] = [hashes.get(p) or hashes.setdefault(p, digest(p)) for p in rows["prompt"]]
    rows["prompt_hash"] = rows["item_id"]
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for key in zip(rows.get("group", rows["item_id"]), rows["item_id"], strict=True):
        rows["sample"].append(seen[key])
        seen[key] += 1
    return Rows(str(path), form, {k: v for k, v in rows.items() if k != "line"}, rows["line"], group, told, named)


def only(value: Any) -> Any:
    """The one entry of a batch of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _messages(value: Any) -> str:
    """A text, or the contents of a conversation's messages."""
    if isinstance(value, np.ndarray | list):
        return "\n\n".join(text_of(m.get("content")) if isinstance(m, dict) else text_of(m) for m in value)
    return text_of(value)


def turns(content: Any, at: str) -> tuple[str, str]:
    """Prompt and answer of a conversation: validation dumps name the roles, training dumps only list the turns."""
    if isinstance(content, list) and content and all(isinstance(m, dict) for m in content):
        first = next((i for i, m in enumerate(content) if m.get("role") == "assistant"), len(content))
        return _messages(content[:first]), _messages(content[first:])
    if isinstance(content, list) and len(content) == 2:
        return text_of(content[0]), text_of(content[1])
    raise BadInput(
        f"{at}: `content` does not tell the prompt from the answer; expected messages with roles (val_data_step*.jsonl) or two turns"
    )
