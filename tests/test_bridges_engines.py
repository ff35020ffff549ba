"""verl and NeMo-RL themselves, where they are: do they understand what is exported? See docs/bridges.md."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from bridged import DOMAINS, study, write_models

from mopd_diag.bridges.reward import compute_score
from mopd_diag.bridges.write import export_plan
from mopd_diag.config import MOPDStage

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def test_the_reward_function_is_the_worlds_verifier(models: Path, tmp_path: Path) -> None:
    export_plan(study(), "verl", tmp_path / "out", models=models)
    told = yaml.safe_load((tmp_path / "out/mopd.yaml").read_text())["reward"]["custom_reward_function"]["reward_kwargs"]
    for row in pq.read_table(tmp_path / "out/eval.parquet").to_pylist():
        right = row["reward_model"]["ground_truth"]
        asked = {"data_source": row["data_source"], "ground_truth": right, "extra_info": row["extra_info"], **told}
        assert compute_score(solution_str=right, **asked) == 1.0
        assert compute_score(solution_str=right + "0", **asked) == 0.0


def asked_of(python: str, script: str, *arguments: str, path: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": path, "NO_VCS_VERSION": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, str(ROOT / "tests" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"form": "sampled", "alpha": 0.5, "group": 4, "weight_low": 0.8, "weight_high": 1.25}]
)
def test_verl_understands_the_export(settings: dict[str, Any], models: Path, tmp_path: Path) -> None:
    python = os.environ.get("MOPD_DIAG_VERL_PYTHON")
    if not python:
        pytest.skip("set MOPD_DIAG_VERL_PYTHON to the python of an environment that has verl (docs/bridges.md)")
    export_plan(study(**settings), "verl", tmp_path / "out", models=models)
    found = asked_of(python, "check_verl.py", str(tmp_path / "out"), path=str(ROOT))
    assert found["unknown"] == []
    assert found["teachers"] == {f"teacher-{d}": str(models / f"teacher-{d}") for d in DOMAINS}
    assert found["pool"] == found["footprint"] == 2
    assert (found["loss"], found["lr"], found["betas"], found["right"], found["wrong"]) == (
        "k1",
        3e-4,
        [0.9, 0.95],
        1.0,
        0.0,
    )
    stage = MOPDStage.model_validate({"name": "student", "teachers": {}, **settings})
    assert (found["n"], found["task_rewards"]) == (stage.group, stage.alpha > 0)
    sampled = stage.form == "sampled"
    assert found["weights"]["rollout_is"] == ("token" if sampled else None)
    assert not sampled or found["weights"]["rollout_is_threshold"] == "0.8_1.25"


@pytest.mark.slow
def test_nemo_rl_understands_the_exports(models: Path, tmp_path: Path) -> None:
    python, checkout = os.environ.get("MOPD_DIAG_NEMO_RL_PYTHON"), os.environ.get("MOPD_DIAG_NEMO_RL")
    if not python or not checkout:
        pytest.skip("set MOPD_DIAG_NEMO_RL_PYTHON and MOPD_DIAG_NEMO_RL, a checkout of NeMo-RL (docs/bridges.md)")
    path = f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    export_plan(study(form="sampled"), "nemo-rl", tmp_path / "many", models=models)
    many = asked_of(python, "check_nemo_rl.py", str(tmp_path / "many"), checkout, path=path)
    assert many["unknown"] == []
    assert many["teachers"] == {f"agent_{d}": str(models / f"teacher-{d}") for d in DOMAINS}
    assert (many["estimator"], many["gate"], many["prompts"], many["nodes"]) == ("opd", ["icepop", 0.5, 2.0], 8, 4)
    export_plan(study(("stack",), form="topk"), "nemo-rl", tmp_path / "one", models=models)
    one = asked_of(python, "check_nemo_rl.py", str(tmp_path / "one"), checkout, path=path)
    assert one["unknown"] == []
    assert (one["teacher"], one["k"], one["kl"]) == (str(models / "teacher-stack"), 8, "reverse")
