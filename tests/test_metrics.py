"""Training metrics stream to trackers: each one's own files are read back. wandb, trackio and mlflow where they are installed."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mopd_diag.cli import main
from mopd_diag.config import Plan
from mopd_diag.errors import BadInput
from mopd_diag.runs import metrics
from mopd_diag.runs.metrics import Streamed, streaming, tracker_names
from mopd_diag.runs.scheduler import Job
from mopd_diag.study.resolve import resolve
from mopd_diag.study.run import run_study

STEPS = 30
Told = dict[str, dict[int, float]]
"""What a tracker holds: stage/name → step → value."""


class Quiet:
    """A watcher that only counts."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def started(self, job: Job) -> None:
        self.heard.append(f"started {job.name}")

    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        self.heard.append(f"{name} {step}")

    def finished(self, job: Job) -> None:
        self.heard.append(f"finished {job.name}")


def stream(tracker: str, out: Path) -> Quiet:
    """Two stages side by side, one of which is heard of twice and leaves a log of five steps."""
    (out / "metrics").mkdir(parents=True)
    rows = [{"step": float(k), "loss": 1 / k, "odd": None if k == 4 else 1.0} for k in range(1, 6)]
    pd.DataFrame(rows).to_parquet(out / "metrics/student.parquet")
    quiet, job = Quiet(), Job("train-student", print, ())
    with streaming([tracker], quiet, out, {"": out}) as watcher:
        watcher.started(job)
        watcher.moved("train-student", 1, 5, {"loss": 1.0, "odd": float("nan")})
        watcher.moved("train-base", 7, 9, {"loss": 0.25})
        watcher.moved("evaluate-base", 1, 2, {"reward": 0.5})
        watcher.moved("train-student", 3, 5, {"loss": 1 / 3})
        watcher.finished(job)
    return quiet


def tensorboard_of(out: Path) -> Told:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for folder in sorted(p for p in (out / "tensorboard").rglob("*") if any(p.glob("events.*"))):
        events = accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            name = f"{folder.relative_to(out / 'tensorboard')}/{tag}"
            found[name] = {e.step: e.tensor_proto.float_val[0] for e in events.Tensors(tag)}
    return found


def records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def wandb_of(out: Path) -> Told:
    """From the run's own file, which `wandb sync` would send."""
    from wandb.proto import wandb_internal_pb2 as messages

    (path,) = (out / "wandb").glob("offline-run-*/*.wandb")
    found: Told = {}
    for data in records(path):
        record = messages.Record()
        record.ParseFromString(data)
        items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for name, value in items.items():
            stage, slash, key = name.rpartition("/")
            if slash and key != "step":
                found.setdefault(name, {})[items[f"{stage}/step"]] = value
    return found


def trackio_of(out: Path) -> Told:
    found: Told = {}
    with sqlite3.connect(out / "trackio/mopd-diag.db") as connection:
        for step, values in connection.execute("select step, metrics from metrics"):
            for name, value in json.loads(values).items():
                found.setdefault(name, {})[step] = value
    return found


def mlflow_of(out: Path) -> Told:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("mopd-diag").experiment_id])
    assert run.info.status == "FINISHED"
    names = run.data.metrics
    return {n: {m.step: m.value for m in client.get_metric_history(run.info.run_id, n)} for n in names}


READERS: dict[str, Callable[[Path], Told]] = {
    "tensorboard": tensorboard_of,
    "wandb": wandb_of,
    "trackio": trackio_of,
    "mlflow": mlflow_of,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tracker", READERS)
def test_a_tracker_has_every_step_since_it_was_last_told(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "run/trackio"))  # trackio reads it once, when it is imported
    pytest.importorskip(tracker)
    quiet = stream(tracker, tmp_path / "run")
    found = READERS[tracker](tmp_path / "run")
    assert {n: sorted(v) for n, v in found.items()} == {
        "student/loss": [1, 3, 4, 5],
        "student/odd": [5],
        "base/loss": [7],
    }  # fmt: skip (what is not a number is no number: left out)
    assert found["student/loss"] == pytest.approx({1: 1.0, 3: 1 / 3, 4: 0.25, 5: 0.2})
    assert "finished train-student" in quiet.heard and "evaluate-base 1" in quiet.heard, (
        "the watcher inside heard all of it"
    )
    assert capsys.readouterr().out == "", "standard output belongs to the command"


def test_a_real_run_streams_its_training(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    base = {"name": "base", "algorithm": "sft", "steps": STEPS, "batch": 8, "warmup": 2, "decay": 5}
    plan = {
        "name": "tiny",
        "world": {"domains": ["addition"]},
        "model": {"hidden": 16, "layers": 1, "feed_forward": 16},
        "stages": [base],
    }
    small = {"evaluation": {"items": 8, "samples": 1}, "diagnosis": {"attribution_items": 8}}
    run = run_study(resolve(Plan.model_validate(plan | small)), tmp_path / "run", workers=1, trackers=["tensorboard"])
    found = tensorboard_of(run.path)
    logged = pd.read_parquet(run.path / "metrics/base.parquet").set_index("step")
    assert max(found["base/loss"]) == STEPS
    for step, loss in found["base/loss"].items():
        assert loss == pytest.approx(logged.loc[step, "loss"], rel=1e-6)
    assert {"base/loss", "base/gradient_norm"} <= set(found)


def test_the_seeds_of_a_study_are_told_apart(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.rows: list[tuple[str, int]] = []

        def log(self, stage: str, step: int, values: Any) -> None:
            self.rows.append((stage, step))

        def close(self) -> None: ...

    for seed in (0, 1):
        (tmp_path / f"seed-{seed}/metrics").mkdir(parents=True)
        pd.DataFrame({"step": [1.0, 2.0], "loss": [1.0, 2.0]}).to_parquet(
            tmp_path / f"seed-{seed}/metrics/rival-train-x.parquet"
        )
    kept = Kept()
    watcher = Streamed(Quiet(), [kept], {f"s{s}/": tmp_path / f"seed-{s}" for s in (0, 1)})
    watcher.moved("s1/train-rival-train-x", 1, 2, {"loss": 1.0})
    for seed in (0, 1):
        watcher.finished(Job(f"s{seed}/train-rival-train-x", print, ()))
    watcher.finished(Job("s0/train-rival-average", print, ()))  # a merge leaves no log
    assert kept.rows == [("s1/rival-train-x", 1), *(("s0/rival-train-x", k) for k in (1, 2)), ("s1/rival-train-x", 2)]


def test_an_unknown_tracker_is_refused_with_the_nearest(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert tracker_names(None) == ()
    with pytest.raises(SystemExit) as ended:
        main(["run", "quickstart", "--metrics", "tensorbord", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "did you mean 'tensorboard'?" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_tracker_is_one_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(BadInput, match="wandb is not installed .*: pip install wandb"),
        streaming(["wandb"], Quiet(), tmp_path, {}),
    ):
        pass
    assert metrics.TRACKERS.keys() == READERS.keys()
