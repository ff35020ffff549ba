"""Whole verbs on another device than the CPU (`second_device`): a run's jobs, attribution, checks, explanations."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bigram import DOMAINS as DOMAINS_OF_CHAINS
from bigram import write_planted_run
from cast_models import PROMPTS, paths, save_models
from rich.console import Console
from second_device import registered
from test_compute import study_of

import mopd_diag
from mopd_diag.cli import main
from mopd_diag.config import Cast, parse
from mopd_diag.diagnostics.explained import explanation_path, failed_answers
from mopd_diag.models import device as devices
from mopd_diag.models.checkpoint import load_decoder
from mopd_diag.prompts import Prompt
from mopd_diag.study import cast as casts
from mopd_diag.study import weights
from mopd_diag.study.check import check_cast
from mopd_diag.study.explain import explain_all
from mopd_diag.study.jobs import run_job
from mopd_diag.worlds.world import BUILT_IN

SECOND = registered()


@pytest.mark.parametrize("model", ["", "lora = { rank = 2, alpha = 4 }"])
def test_every_job_of_a_run(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {}
    for where in (torch.device("cpu"), SECOND):
        folder = tmp_path / where.type
        folder.mkdir()
        study = study_of(folder, model=model)
        monkeypatch.setattr(weights, "pick", lambda _asked, where=where: where)
        jobs: list[Any] = [(kind, s.name) for s in study.stages for kind in ("train", "evaluate")]
        for kind, name in [*jobs, ("trace", "student"), ("geometry", "base")]:
            run_job(folder, study.identity(), kind, name, time.time(), lambda *_: None)
            row = json.loads((folder / "done" / f"{kind}-{name}.json").read_text())["ledger"]
            assert row["device"] == where.type
        runs[where] = folder
    one, two = runs.values()
    for name in ("base", "teacher-math", "teacher-code", "student"):
        for p, q in zip(*(load_decoder(f / "models" / name).parameters() for f in (one, two)), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=3e-5)
        records = [pd.read_parquet(f / "records" / f"{name}.parquet") for f in (one, two)]
        assert (
            records[0]["response"] == records[1]["response"]
        ).mean() > 0.95  # a draw at an edge may fall to either side
    traces = [pd.read_parquet(f / "traces" / "student.parquet") for f in (one, two)]
    np.testing.assert_allclose(*(t["logp_teacher-math"].head(20) for t in traces), atol=1e-2)
    geometry = [json.loads((f / "geometry.json").read_text())["gradients"] for f in (one, two)]
    np.testing.assert_allclose(geometry[0]["whole"], geometry[1]["whole"], atol=0.02)


def test_a_cast_is_attributed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cast = paths(save_models(tmp_path))
    found = []
    for device in (torch.device("cpu"), SECOND):
        monkeypatch.setattr(casts, "pick", lambda _asked, device=device: device)
        found.append(mopd_diag.attribute(cast, prompts=PROMPTS, max_new_tokens=10, warn=lambda _: None))
    one, two = (f.answers for f in found)
    assert one["response"].tolist() == two["response"].tolist() and one["label"].tolist() == two["label"].tolist()
    np.testing.assert_allclose(one["share_teacher-math"], two["share_teacher-math"], atol=1e-4)


def test_a_cast_is_checked_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cast = parse(
        Cast, {r: {"path": p} if r != "teachers" else p for r, p in paths(save_models(tmp_path)).items()}, "cast"
    )
    prompts = [Prompt(**p) for p in PROMPTS]
    found = []
    for where in (torch.device("cpu"), SECOND):
        monkeypatch.setattr(devices, "pick", lambda _asked, where=where: where)
        found.append({f.id: f for f in check_cast(cast, prompts, 0)})
    one, two = found
    assert {n: f.verdict for n, f in one.items()} == {n: f.verdict for n, f in two.items()}
    for name in ("preflight-share-math", "preflight-share-code"):
        assert one[name].evidence["gradient_share"] == pytest.approx(two[name].evidence["gradient_share"], rel=1e-3)


def test_a_failure_is_explained_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN, "planted", DOMAINS_OF_CHAINS)
    run = write_planted_run(tmp_path / "run")
    row = failed_answers(run).iloc[0].to_dict()
    found = []
    for where in (torch.device("cpu"), SECOND):
        monkeypatch.setattr(weights, "pick", lambda _asked, where=where: where)
        (document,) = explain_all(run, [row], rollouts=16, seed=0, console=Console(quiet=True))
        explanation_path(run, row["item_id"], row["sample"]).unlink()
        found.append({k: v for k, v in document.items() if k in ("values", "pivot", "counterfactual")})
    assert found[0] == found[1] and found[0]["values"]


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = save_models(tmp_path)
    lines = [
        "[base]",
        f'path = "{folder}/base"',
        "[student]",
        f'path = "{folder}/math"',
        "[teachers.code]",
        f'path = "{folder}/code"',
    ]
    (tmp_path / "cast.toml").write_text("\n".join(lines))
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    cast, asked = str(tmp_path / "cast.toml"), ["--prompts", str(tmp_path / "prompts.jsonl")]
    for arguments in (
        ["attribute", cast, *asked, "--out", str(tmp_path / "a"), "--device", "cuda"],
        ["check", cast, *asked, "--device", "cuda"],
        [
            "eval",
            cast,
            "--tasks",
            "mopd_micro_addition",
            "--limit",
            "1",
            "--out",
            str(tmp_path / "e"),
            "--device",
            "cuda",
        ],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert "device 'cuda' is not here: torch sees 0 GPUs; choose auto, cpu" in capsys.readouterr().err.replace(
            "\n", " "
        )
