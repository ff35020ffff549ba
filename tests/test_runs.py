"""Runs: what they leave behind, that they go on after a stop, and that the same plan gives the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from mopd_diag.config import Plan, parse
from mopd_diag.errors import BadInput, ResourceError, RunDirectoryError
from mopd_diag.runs.directory import RECORD_COLUMNS, RunDirectory
from mopd_diag.runs.scheduler import Job, run_jobs
from mopd_diag.study import preflight
from mopd_diag.study.resolve import Study, resolve
from mopd_diag.study.run import claim, run_study

TOML = """
name = "tiny"
seed = {seed}
[world]
domains = ["stack", "brackets"]
[evaluation]
items = 24
samples = 2
[diagnosis]
attribution_items = 12
[[stages]]
name = "base"
algorithm = "sft"
steps = 60
decay = 10
[[stages]]
name = "teacher-code"
algorithm = "grpo"
start = "base"
steps = 6
prompts = 8
[[stages]]
name = "student"
algorithm = "mopd"
start = "base"
steps = 5
prompts = 16
[stages.teachers]
stack = "teacher-code"
brackets = "teacher-code"
[[stages]]
name = "rival-mixed-rl"
algorithm = "grpo"
start = "base"
steps = 6
prompts = 8
"""
MODELS = ["base", "rival-mixed-rl", "student", "teacher-code"]


def tiny(seed: int = 0) -> Study:
    import tomllib

    return resolve(parse(Plan, tomllib.loads(TOML.format(seed=seed)), "tiny"))


def command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mopd_diag.cli", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run started in the background ignores Ctrl-C, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_study(tiny(), tmp_path_factory.mktemp("runs") / "tiny", workers=2)


def same_records(a: RunDirectory, b: RunDirectory) -> None:
    pd.testing.assert_frame_equal(a.records(), b.records())
    for name in MODELS:
        file = f"models/{name}/model.safetensors"
        assert (a.path / file).read_bytes() == (b.path / file).read_bytes()


def test_a_run_leaves_what_the_contract_names(finished: RunDirectory) -> None:
    manifest = finished.manifest()
    assert manifest["schema"] == 1
    assert {"plan", "versions", "git", "seeds", "hardware", "stages"} <= manifest.keys()
    records = finished.records()
    assert list(records.columns) == RECORD_COLUMNS
    assert sorted(records["model"].unique()) == MODELS
    assert (records.groupby(["model", "domain"]).size() == 24 * 2).all()
    assert records.groupby("item_id")["prompt_hash"].nunique().max() == 1
    assert set(records["score"]) <= {0.0, 1.0}
    for name in MODELS:
        assert {p.name for p in (finished.path / "models" / name).iterdir()} >= {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        }
    trace = finished.trace("student")
    contract = {"item_id", "sample", "position", "token_id", "token", "share_own", "label", "confidence"}
    members = {"logp_student", "logp_base", "logp_teacher-code", "kl_teacher-code", "share_teacher-code"}
    assert contract | members <= set(trace.columns)
    drawn = finished.attribution("student").query("drawn")
    assert drawn.groupby("domain")["item_id"].nunique().to_dict() == {"stack": 12, "brackets": 12}
    failed = finished.records("student").query("score < 1")
    assert set(failed["item_id"]) & set(trace["item_id"])
    document = json.loads((finished.path / "findings.json").read_text())
    assert document["schema"] == 1
    assert {"attribution", "cap", "interference", "preflight"} <= {f["kind"] for f in document["findings"]}
    assert len({f["id"] for f in document["findings"]}) == len(document["findings"])
    assert (finished.path / "report.html").stat().st_size > 10_000
    assert (finished.path / "report.md").is_file()


def test_the_ledger_counts(finished: RunDirectory) -> None:
    ledger = finished.ledger().set_index("stage")
    teacher, student = ledger.loc["teacher-code"], ledger.loc["student"]
    assert teacher["rollouts"] == 6 * 8 * 8
    assert student["rollouts"] == 5 * 16
    assert student["tokens_trained"] == student["tokens_scored"] == student["tokens_sampled"] > 0
    assert ledger.loc["base", "tokens_sampled"] == 0
    assert ledger.loc["base", "tokens_trained"] > 0
    assert (ledger["seconds"] >= ledger["seconds_model"]).all()
    assert (ledger.loc[["base", "teacher-code", "student"], "flops"] > 0).all()
    assert set(str(student["parents"]).split(",")) == {"base", "teacher-code"}


def test_same_plan_same_numbers_whatever_the_number_of_workers(finished: RunDirectory, tmp_path: Path) -> None:
    same_records(finished, run_study(tiny(), tmp_path / "again", workers=1))


def test_another_seed_gives_other_numbers(finished: RunDirectory, tmp_path: Path) -> None:
    other = run_study(tiny(seed=1), tmp_path / "other", workers=2)
    assert not finished.records("base")["response"].equals(other.records("base")["response"])


def test_a_killed_run_goes_on_and_ends_the_same(finished: RunDirectory, tmp_path: Path) -> None:
    plan, out = tmp_path / "tiny.toml", tmp_path / "run"
    plan.write_text(TOML.format(seed=0))
    process = command("run", str(plan), "--out", str(out), cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (out / "done" / "train-base.json").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "findings.json").is_file()
    stamp = (out / "models" / "base" / "model.safetensors").stat().st_mtime_ns
    process = command("run", str(plan), "--out", str(out), "--json", cwd=tmp_path)
    document, progress = process.communicate()
    assert process.returncode == 0, progress
    assert "going on" in progress
    assert json.loads(document)["accuracy"].keys() >= set(MODELS)
    assert (out / "models" / "base" / "model.safetensors").stat().st_mtime_ns == stamp
    same_records(finished, RunDirectory(out))


def test_a_run_stopped_from_the_keyboard_says_how_to_go_on(tmp_path: Path) -> None:
    plan, out = tmp_path / "tiny.toml", tmp_path / "run"
    plan.write_text(TOML.format(seed=0))
    process = command("run", str(plan), "--out", str(out), cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (out / "manifest.json").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("mopd-diag: stopped; what was done is kept, repeat the command to go on\n")
    assert "Traceback" not in said


def test_a_finished_run_is_not_run_again(finished: RunDirectory) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.path.glob("models/*/model.safetensors")}
    run_study(tiny(), finished.path, workers=2)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_lost_product_is_made_again(finished: RunDirectory) -> None:
    records = finished.record_path("student")
    whole = records.read_bytes()
    records.unlink()
    run_study(tiny(), finished.path, workers=1)
    assert pd.read_parquet(records).equals(pd.read_parquet(__import__("io").BytesIO(whole)))


def test_a_directory_of_another_plan_is_refused(finished: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match="its seed is 0, this one's is 5"):
        run_study(tiny(seed=5), finished.path)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match="not empty and holds no run"):
        claim(tmp_path, tiny(), {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirectoryError, match="is a file"):
        claim(tmp_path / "file", tiny(), {})


def test_a_directory_in_use_is_refused(finished: RunDirectory) -> None:
    import fcntl

    with (finished.path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunDirectoryError, match="in use"):
            run_study(tiny(), finished.path)


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": 1')
    with pytest.raises(RunDirectoryError, match="not JSON"):
        RunDirectory.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema": 99}')
    with pytest.raises(RunDirectoryError, match="schema 99, expected 1"):
        RunDirectory.open(tmp_path)


def test_a_batch_that_cannot_fit_is_refused_before_anything_trains(tmp_path: Path) -> None:
    study = resolve(
        parse(Plan, {"name": "big", "stages": [{"name": "base", "algorithm": "sft", "batch": 10**9}]}, "big")
    )
    with pytest.raises(BadInput, match="GiB for one batch"):
        run_study(study, tmp_path / "big")
    assert not (tmp_path / "big").exists()


def test_a_full_disk_is_refused_before_anything_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shutil import _ntuple_diskusage  # type: ignore[attr-defined]

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: _ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(ResourceError, match="1 MiB free"):
        run_study(tiny(), tmp_path / "full")


# -- the scheduler by itself ----------------------------------------------------------------------------------------------


class Noted:
    def __init__(self) -> None:
        self.order: list[str] = []

    def started(self, job: Job) -> None:
        self.order.append(f"start {job.name}")

    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        self.order.append(f"move {name}")

    def finished(self, job: Job) -> None:
        self.order.append(f"end {job.name}")


def touch(path: Path, progress) -> None:
    progress(1, 1, {})
    path.write_text("x")


def refuse(message: str, progress) -> None:
    raise BadInput(message)


def die(progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_jobs_wait_for_what_they_need_and_the_longest_chain_starts_first(tmp_path: Path) -> None:
    noted = Noted()
    jobs = [
        Job("short", touch, (tmp_path / "a",), (), 1.0),
        Job("first", touch, (tmp_path / "b",), (), 1.0),
        Job("second", touch, (tmp_path / "c",), ("first",), 50.0),
    ]
    run_jobs(jobs, 1, noted)
    starts = [e for e in noted.order if e.startswith("start")]
    assert starts == ["start first", "start second", "start short"]
    assert noted.order.index("end first") < noted.order.index("start second")
    assert "move first" in noted.order


def test_a_jobs_error_reaches_the_caller(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such thing"):
        run_jobs([Job("a", refuse, ("no such thing",))], 1, Noted())


def test_a_lost_worker_is_one_line() -> None:
    with pytest.raises(ResourceError, match="worker process was lost during a"):
        run_jobs([Job("a", die, ())], 1, Noted())
