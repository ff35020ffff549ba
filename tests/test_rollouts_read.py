"""Answers that trainers logged, read as rollouts: TRL, verl, NeMo-RL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mopd_diag.errors import BadInput
from mopd_diag.records.answers import read_rollouts


def test_a_grpo_runs_completions_bring_their_reward(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "step": [1, 1],
            "prompt": ["1+1=", "1+2="],
            "completion": ["2", "4"],
            "right": [1.0, None],
            "advantage": [0.7, -0.7],
        }
    )
    frame.to_parquet(tmp_path / "completions_00001.parquet")
    found = read_rollouts(tmp_path / "completions_00001.parquet")
    assert [(p.prompt, p.response, p.score) for p in found] == [("1+1=", "2", 1.0), ("1+2=", "4", None)]


def test_dumps_of_verl_and_nemo_rl_are_read(tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"id": "1", "prompt": "1+1=", "domain": "addition", "teacher": "x"}) + "\n")
    verl = tmp_path / "1.jsonl"
    verl.write_text(json.dumps({"input": "1+1=", "output": "2", "gts": "2", "score": 1.0, "step": 1}) + "\n")
    nemo = tmp_path / "train_data_step1.jsonl"
    nemo.write_text(json.dumps({"content": ["1+1=", "2"], "input_lengths": 5, "idx": 0}) + "\n")
    for path, score in ((verl, 1.0), (nemo, None)):
        (found,) = read_rollouts(path, asked)
        assert (found.prompt, found.response, found.domain, found.score) == ("1+1=", "2", "addition", score)


def test_bad_dumps_are_one_clear_line(tmp_path: Path) -> None:
    verl, other = tmp_path / "1.jsonl", tmp_path / "other.jsonl"
    verl.write_text(json.dumps({"input": "1+1=", "output": "2"}) + "\n")
    other.write_text(json.dumps({"prompt": "9+9=", "domain": "addition"}) + "\n")
    with pytest.raises(BadInput, match=r"none of the 1 prompts .* is in .*other.jsonl"):
        read_rollouts(verl, other)
    other.write_text('{"prompt": "1+1=", "domain": "a"}\n{"prompt": "1+1=", "domain": "b"}\n')
    with pytest.raises(BadInput, match="had domain 'a' before, now 'b'"):
        read_rollouts(verl, other)
    verl.write_text(json.dumps({"input": ["a"], "output": "2"}) + "\n")
    with pytest.raises(BadInput, match="no text in `input`"):
        read_rollouts(verl)
    with pytest.raises(BadInput, match="is a directory"):
        read_rollouts(tmp_path)
    with pytest.raises(BadInput, match="no file"):
        read_rollouts(tmp_path / "nothing.jsonl")
