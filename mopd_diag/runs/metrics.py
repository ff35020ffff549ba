"""The step metrics of a run's training stages, streamed to trackers: TensorBoard, wandb, trackio, mlflow.

The whole log of a stage stays in `metrics/STAGE.parquet`; trackers see what the parent process hears, a few steps a second, and
every step since when a stage ends.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pyarrow.parquet as pq

from mopd_diag.errors import BadInput, nearest
from mopd_diag.runs.scheduler import Job, Watcher

TRAIN = "train-"


class Tracker(Protocol):
    """Takes numbers of a stage at a step, in the order of steps within a stage."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run directory, one folder a stage so that curves lie over one another."""

    def __init__(self, out: Path, name: str) -> None:
        summary = _imported("tensorboard.summary", "tensorboard")
        self.make: Callable[[str], Any] = summary.Writer
        self.out, self.writers = out / "tensorboard", dict[str, Any]()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self.writers:
            self.writers[stage] = self.make(str(self.out / stage))
        for key, value in values.items():
            self.writers[stage].add_scalar(key, value, step)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class Wandb:
    """One wandb run. Offline, below the run directory, unless WANDB_MODE says otherwise."""

    def __init__(self, out: Path, name: str) -> None:
        wandb = _imported("wandb", "wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        quiet = wandb.Settings(silent=True)
        self.run = wandb.init(project="mopd-diag", name=name, dir=str(out), mode=mode, settings=quiet)
        self.stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self.stages:  # stages train side by side: each has its own step
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({f"{stage}/{key}": value for key, value in values.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """One trackio run in its local data base (TRACKIO_DIR, by default below the run directory)."""

    def __init__(self, out: Path, name: str) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((out / "trackio").resolve()))  # read when it is imported
        trackio = _imported("trackio", "trackio")
        self.run = trackio.init(project="mopd-diag", name=name, embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.run.log({f"{stage}/{key}": value for key, value in values.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """One mlflow run in the data base that MLFLOW_TRACKING_URI names, by default `mlflow.db` of the run directory."""

    def __init__(self, out: Path, name: str) -> None:
        client = _imported("mlflow.tracking", "mlflow").MlflowClient
        place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(out / 'mlflow.db').resolve()}")
        self.client = client(tracking_uri=place)
        found = self.client.get_experiment_by_name("mopd-diag")
        experiment = found.experiment_id if found else self.client.create_experiment("mopd-diag")
        self.run = self.client.create_run(experiment, run_name=name).info.run_id

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.client.log_metric(self.run, f"{stage}/{key}", value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


TRACKERS: dict[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def tracker_names(text: str | None) -> tuple[str, ...]:
    """The trackers of `--metrics tensorboard,wandb`. Raises BadInput for a name that is none of them.

    >>> tracker_names("tensorboard, wandb")
    ('tensorboard', 'wandb')
    """
    names = tuple(dict.fromkeys(n.strip() for n in (text or "").split(",") if n.strip()))
    for name in names:
        if name not in TRACKERS:
            raise BadInput(f"no tracker is called '{name}'; {nearest(name, TRACKERS)}")
    return names


def _imported(module: str, package: str) -> ModuleType:
    """A tracker's module, or BadInput with the line that installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(
            f"{package} is not installed ({error}): pip install {package}, or 'mopd-diag[metrics]' for TensorBoard"
        ) from None


class Streamed:
    """A watcher that passes on what it hears, and tells trackers the metrics of training jobs."""

    def __init__(self, watcher: Watcher, trackers: Sequence[Tracker], folders: Mapping[str, Path]) -> None:
        self.watcher, self.trackers = watcher, trackers
        self.folders = folders
        """Prefix of a job's name (`s0/` in a study, empty in a run) → its run directory."""
        self.last: dict[str, int] = {}

    def started(self, job: Job) -> None:
        self.watcher.started(job)

    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        self.watcher.moved(name, step, steps, metrics)
        if (stage := _stage(name)) is not None and step > self.last.get(stage, 0):
            self._log(stage, step, metrics)

    def finished(self, job: Job) -> None:
        """The steps that were not heard of since the last, from the stage's log."""
        self.watcher.finished(job)
        stage = _stage(job.name)
        if stage is None:
            return
        seed, slash, model = stage.rpartition("/")
        path = self.folders[seed + slash] / "metrics" / f"{model}.parquet"
        if not path.is_file():  # merges and checkpoints train nothing
            return
        for row in pq.read_table(path).to_pylist():
            if (step := int(row["step"])) > self.last.get(stage, 0):
                self._log(stage, step, row)

    def _log(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        self.last[stage] = step
        finite = {k: float(v) for k, v in metrics.items() if k != "step" and v is not None and math.isfinite(v)}
        with redirect_stdout(sys.stderr):  # standard output is the command's own
            for tracker in self.trackers:
                tracker.log(stage, step, finite)


def _stage(job: str) -> str | None:
    """The stage that a job trains, with the seed of a study before it; None for other jobs."""
    seed, slash, kind = job.rpartition("/")
    return f"{seed}{slash}{kind.removeprefix(TRAIN)}" if kind.startswith(TRAIN) else None


@contextmanager
def streaming(names: Sequence[str], watcher: Watcher, out: Path, folders: Mapping[str, Path]) -> Iterator[Watcher]:
    """The watcher itself without trackers, else one that streams to them; they are closed however the run ends."""
    if not names:
        yield watcher
        return
    trackers: list[Tracker] = []
    try:
        with redirect_stdout(sys.stderr):
            trackers += [TRACKERS[n](out, out.resolve().name) for n in names]
        yield Streamed(watcher, trackers, folders)
    finally:
        with redirect_stdout(sys.stderr):
            for tracker in trackers:
                tracker.close()
