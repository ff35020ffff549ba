"""`eval` of a checkpoint behind a real vLLM server, against the same checkpoint here."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from test_evals import CHOICE, DATASET
from test_vllm import python, served  # noqa: F401

from mopd_diag.study.eval_asking import Settings
from mopd_diag.study.evals import evaluate

AGREE = 1e-3
"""Nats between the log-likelihoods of an answer; one token's may differ by half of it (`test_vllm`)."""
TASKS = ["mopd_micro_stack", "mopd_micro_brackets", "mopd_micro_two-turn", "colours"]


@pytest.mark.slow
def test_a_real_server_scores_and_writes_as_its_checkpoint_does(served, monkeypatch, tmp_path: Path) -> None:  # noqa: F811
    folder, url, _ = served
    monkeypatch.setenv("REAL_KEY", "sk-real")
    (tmp_path / "colours.yaml").write_text(CHOICE.replace('"The sky is"', '"The sky {{gold}} is"'))
    (tmp_path / "colours.py").write_text(DATASET)
    members = {
        "here": f'path = "{folder / "math"}"',
        "served": f'url = "{url}"\nmodel = "math-rl"\nkey_env = "REAL_KEY"\nconcurrency = 4',
    }
    for name, where in members.items():
        cast = tmp_path / f"{name}.toml"
        cast.write_text(
            f'[base]\npath = "{folder / "base"}"\n[student]\npath = "{folder / "math"}"\n[teachers.math]\n{where}\n'
        )
        evaluate(cast, TASKS, tmp_path / name, Settings(limit=16), include=[tmp_path])
    here, there = (json.loads(_marks(tmp_path / name)) for name in members)
    assert here.keys() == there.keys() == set(TASKS)
    for task in TASKS:
        assert there[task] == pytest.approx(here[task], abs=1e-6), task
    mine, theirs = (pd.read_parquet(tmp_path / n / "records" / "teacher-math.parquet") for n in members)
    texts = [f.sort_values(["domain", "item_id"])["response"].tolist() for f in (mine, theirs)]
    gaps = [abs(a - b) for a, b in zip(*(_likelihoods(tmp_path / n) for n in members), strict=True)]
    print("greedy texts that are equal:", sum(a == b for a, b in zip(*texts, strict=True)), "of", len(texts[0]))
    print("largest gap of a log-likelihood, nats:", max(gaps), "over", len(gaps))
    assert texts[0] == texts[1] and max(gaps) < AGREE
    sampled = Settings(limit=4, samples=3, temperature=1.0)
    evaluate(tmp_path / "served.toml", TASKS[:1], tmp_path / "drawn", sampled)
    drawn = pd.read_parquet(tmp_path / "drawn" / "records" / "teacher-math.parquet")
    assert len(drawn) == 12 and (drawn.groupby("item_id")["response"].nunique() > 1).all()
    assert not any(b"sk-real" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def _marks(out: Path) -> str:
    marks = (json.loads(p.read_text()) for p in (out / "done").glob("teacher-math--*.json"))
    return json.dumps({m["task"]: m["metrics"] for m in marks})


def _likelihoods(out: Path) -> list[float]:
    (file,) = (out / "teacher-math").glob("samples_colours_*.jsonl")
    return [float(r[0][0]) for line in file.open() for r in json.loads(line)["resps"]]
