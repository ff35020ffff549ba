"""Jobs on a real Ray cluster on this machine: the same results as without it, whatever is lost on the way."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_runs import TOML, Noted, command, same_records, tiny

if importlib.util.find_spec("ray") is None:  # importing it here would be too early for its settings
    pytest.skip("Ray is not installed", allow_module_level=True)

from mopd_diag.errors import BadInput, ResourceError
from mopd_diag.runs import ray_scheduler
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.runs.ray_scheduler import RayScheduler, connected, placed
from mopd_diag.runs.scheduler import Job, run_jobs
from mopd_diag.study import trace_shards
from mopd_diag.study.run import claim, is_done, ledger, make_jobs, run_study
from mopd_diag.study.shards import sharded

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with connected(workers=2) as ray:
        yield ray


# What workers run. They find this module where pytest found it.


def touch(path: Path, progress) -> None:
    progress(1, 1, {"reward": 0.5})
    path.write_text("x")


def refuse(error: Exception, progress) -> None:
    raise error


def die(once: Path | None, progress) -> None:
    if once is None or not once.exists():
        if once is not None:
            once.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def sleep(progress) -> None:
    progress(1, 2, {})
    time.sleep(600)


def settings(path: Path, progress) -> None:
    import torch

    path.write_text(f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']} {Path.cwd()}")


def gpus(path: Path, progress) -> None:
    path.write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}:{os.getpid()}")


def die_first(once: Path, call, *arguments) -> None:
    die(once, None)
    call(*arguments)


def saving_often(call, *arguments) -> None:
    from mopd_diag.training import loop

    loop.SAVE_EVERY_SECONDS = 0.0
    call(*arguments)


def workers_named(name: str) -> list[int]:
    """Process ids of the Ray workers that do the task of this name now."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(f"ray::{name}".encode()):
            found.append(int(entry.name))
    return found


# -- order, errors, losses ----------------------------------------------------------------------------------------------------


def test_jobs_run_in_our_order_and_tell_how_far_they_are(cluster, tmp_path: Path) -> None:
    noted = Noted()
    jobs = [
        Job("short", touch, (tmp_path / "a",), (), 1.0),
        Job("first", touch, (tmp_path / "b",), (), 1.0),
        Job("second", settings, (tmp_path / "c",), ("first",), 50.0),
    ]
    RayScheduler(tmp_path)(jobs, 1, noted)
    starts = [e for e in noted.order if e.startswith("start")]
    assert starts == ["start first", "start second", "start short"]
    assert noted.order.index("end first") < noted.order.index("start second")
    assert "move first" in noted.order
    assert (tmp_path / "c").read_text().startswith("1 1 ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]  # and no token is left


def test_relative_paths_are_ours_and_not_the_workers(cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    RayScheduler(Path("run"))([Job("a", touch, (Path("run/a"),))], 1, Noted())
    assert (tmp_path / "run" / "a").is_file()


@pytest.mark.parametrize("error", [BadInput("no such thing; do this"), ResourceError("no room; free some")], ids=repr)
def test_a_jobs_error_is_the_one_of_the_local_scheduler(cluster, tmp_path: Path, error: Exception) -> None:
    for runner in (RayScheduler(tmp_path), run_jobs):
        with pytest.raises(type(error)) as caught:
            runner([Job("a", refuse, (error,))], 1, Noted())
        assert type(caught.value) is type(error)
        assert str(caught.value) == str(error)


def test_a_lost_worker_is_replaced(cluster, tmp_path: Path) -> None:
    noted = Noted()
    RayScheduler(tmp_path)([Job("a", die, (tmp_path / "once",))], 1, noted)
    assert noted.order[-1] == "end a"


def test_a_job_that_loses_every_worker_is_one_line(cluster, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="lost during a and again in each retry.*repeat the command"):
        RayScheduler(tmp_path, retries=1)([Job("a", die, (None,))], 1, Noted())


@linux
def test_an_error_stops_the_jobs_beside_it(cluster, tmp_path: Path) -> None:
    class FailLater(Noted):
        def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RayScheduler(tmp_path)([Job("long-sleep", sleep, ())], 2, FailLater())
    assert not workers_named("long-sleep")


def test_a_job_that_fits_nowhere_is_refused(cluster, tmp_path: Path) -> None:
    noted = Noted()
    with pytest.raises(ResourceError, match="a asks for 1 core and 64 GPUs of one node, but nodes"):
        RayScheduler(tmp_path)([Job("a", touch, (tmp_path / "a",), gpus=64)], 1, noted)
    assert noted.order == []


def test_without_ray_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_scheduler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="pip install 'mopd-diag\\[ray\\]'"):
        RayScheduler(tmp_path)


def test_an_address_where_nothing_answers_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = command("run", "quickstart", "--scheduler", "ray", "--ray-address", address, cwd=tmp_path)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.startswith(f"mopd-diag: no Ray cluster to be used at {address}")
    assert said.count("\n") == 1


def test_a_scheduler_for_a_probe_that_was_not_asked_for_is_one_line(tmp_path: Path) -> None:
    process = command("caps", "run", "--scheduler", "ray", cwd=tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.startswith("mopd-diag: --scheduler ray is about the probe, which was not asked for")


# -- the same results ---------------------------------------------------------------------------------------------------------


def test_results_are_those_of_the_local_scheduler(cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = run_study(tiny(), tmp_path / "local", workers=2)
    monkeypatch.setattr(trace_shards, "SHARD_FLOPS", 1.0)
    monkeypatch.setattr(trace_shards, "MOST_SHARDS", 2)
    there = run_study(tiny(), tmp_path / "ray", ray=RayScheduler(tmp_path / "ray"))
    same_records(local, there)
    for name in ("traces/student", "attribution/student", "records/base"):
        assert (local.path / f"{name}.parquet").read_bytes() == (there.path / f"{name}.parquet").read_bytes()
    counts = ["stage", "tokens_sampled", "tokens_trained", "tokens_scored", "rollouts", "flops"]
    rows = [ledger(run)[counts].sort_values("stage", ignore_index=True) for run in (local, there)]
    assert rows[0].equals(rows[1])
    assert not list(there.path.glob(".ray-*"))
    same_trace_after_a_kill(local, there)
    same_weights_after_a_kill(local, tmp_path / "killed")


def same_trace_after_a_kill(local: RunDirectory, there: RunDirectory) -> None:
    """Kill the process that scores the first shard of a trace, before it has scored."""
    for path in ("done/trace-student.json", "traces/student.parquet"):
        (there.path / path).unlink()
    jobs = [j for j in make_jobs(there.path, tiny(), tiny().identity()) if not is_done(there.path, j.name)]
    shard, *others = sharded(jobs)
    assert [shard.name, *(j.name for j in others)] == [
        "trace-student/1-of-2",
        "trace-student/2-of-2",
        "trace-student",
    ]
    once = there.path / "killed"
    killed = replace(shard, call=die_first, arguments=(once, shard.call, *shard.arguments))
    RayScheduler(there.path)([killed, *others], 2, Noted())
    assert once.exists()
    assert (local.path / "traces/student.parquet").read_bytes() == (there.path / "traces/student.parquet").read_bytes()


def same_weights_after_a_kill(local: RunDirectory, out: Path) -> None:
    """Kill the process that trains the base amid its training."""
    run, identity = claim(out, tiny(), tiny().identity()), tiny().identity()
    base = next(j for j in make_jobs(run.path, tiny(), identity) if j.name == "train-base")
    job = replace(base, call=saving_often, arguments=(base.call, *base.arguments))
    killer = Killer("train-base", step=8)
    RayScheduler(out)([job], 1, killer)
    assert len(killer.killed) == 1
    after = killer.steps[killer.at :]
    assert after[-1] == 60
    assert min(after) > 8  # it went on, and did not begin anew
    file = "models/base/model.safetensors"
    assert (out / file).read_bytes() == (local.path / file).read_bytes()


class Killer(Noted):
    """Kills a job's process when it has come to some step."""

    def __init__(self, job: str, step: int) -> None:
        super().__init__()
        self.job, self.step = job, step
        self.killed: list[int] = []
        self.steps: list[int] = []
        self.at = 0

    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        if not self.killed and step >= self.step:
            self.killed = workers_named(self.job)
            for process in self.killed:
                os.kill(process, signal.SIGKILL)
            self.at = len(self.steps) + 1
        self.steps.append(step)


# -- the command line, and nodes that see other files -------------------------------------------------------------------------


@linux
def test_ctrl_c_stops_the_tasks_and_says_how_to_go_on(cluster, tmp_path: Path) -> None:
    plan, out = tmp_path / "tiny.toml", tmp_path / "run"
    plan.write_text(TOML.format(seed=0).replace("steps = 60", "steps = 60000"))
    address = cluster.get_runtime_context().gcs_address
    asked = ["run", str(plan), "--out", str(out), "--scheduler", "ray", "--ray-address", address]
    process = command(*asked, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not workers_named("train-base") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers_named("train-base")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.endswith("mopd-diag: stopped; what was done is kept, repeat the command to go on\n")
    assert "Traceback" not in said
    assert not workers_named("train-base")
    assert not list(out.glob(".ray-*"))


NODE = """
import sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams
Node(RayParams(gcs_address=sys.argv[1], node_ip_address="127.0.0.1", num_cpus=1, num_gpus=int(sys.argv[2]),
                 object_store_memory=80 * 2**20), head=False)
time.sleep(600)
"""  # `ray start` refuses to join a cluster that is on the loopback address


@contextmanager
def another_node(cluster: Any, log: Path, gpus: int = 0, prefix: tuple[str, ...] = ()) -> Iterator[None]:
    """A second node on this machine, started by `prefix`, that says it has so many GPUs."""
    before = {n["NodeID"] for n in cluster.nodes() if n["Alive"]}
    start = [*prefix, sys.executable, "-c", NODE, cluster.get_runtime_context().gcs_address, str(gpus)]
    with log.open("w") as file:
        node = subprocess.Popen(start, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 120
        while not ({n["NodeID"] for n in cluster.nodes() if n["Alive"]} - before) and node.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert {n["NodeID"] for n in cluster.nodes() if n["Alive"]} > before, log.read_text()
        yield
    finally:
        node.terminate()
        node.wait(timeout=60)
        deadline = time.monotonic() + 60
        while {n["NodeID"] for n in cluster.nodes() if n["Alive"]} > before and time.monotonic() < deadline:
            time.sleep(0.2)


@linux
def test_a_node_that_sees_other_files_is_refused_before_anything_starts(cluster, tmp_path: Path) -> None:
    """A second node in a mount namespace of its own, where another file system lies over the run directory."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not unshare mounts here")
    hidden = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path} && exec "$@"', "sh")
    with another_node(cluster, tmp_path.parent / "node.log", prefix=hidden):
        noted = Noted()
        with pytest.raises(BadInput, match="sees other files than this machine.*all nodes share"):
            RayScheduler(tmp_path)([Job("a", touch, (tmp_path / "a",))], 2, noted)
        assert noted.order == []
        assert list(tmp_path.iterdir()) == []


# -- cores and GPUs -----------------------------------------------------------------------------------------------------------


@linux
def test_a_job_asks_for_a_gpu_where_the_cluster_has_one(cluster, tmp_path: Path) -> None:
    """GPUs as Ray counts them: it shows a task those that it was given, and none to the others."""
    jobs = [Job(name, gpus, (tmp_path / name,), gpus_if_there=1.0) for name in ("one", "two")]
    jobs.append(Job("merge", gpus, (tmp_path / "merge",)))

    def seen() -> dict[str, list[str]]:
        return {j.name: (tmp_path / j.name).read_text().split(":") for j in jobs}

    RayScheduler(tmp_path)(jobs, 2, Noted())
    assert [devices for devices, _ in seen().values()] == ["", "", ""]
    with another_node(cluster, tmp_path.parent / "gpus.log", gpus=1):
        RayScheduler(tmp_path)(jobs, 3, Noted())
    assert [devices for devices, _ in seen().values()] == ["0", "0", ""]
    assert len({process for _, process in seen().values()}) == 3  # what one left in the GPU's memory is gone with it


def test_gpus_are_asked_for_only_where_a_node_has_as_many() -> None:
    job = Job("a", print, (), cores=2, gpus_if_there=2.0)
    two = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert placed([job], two)[0].gpus == 0.0
    assert placed([job], [*two, {"CPU": 4.0, "GPU": 2.0}])[0].gpus == 2.0


def test_cores_and_gpus_must_be_on_one_node() -> None:
    apart = [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 2.0}]
    with pytest.raises(ResourceError, match="a asks for 2 cores and 1 GPUs of one node"):
        placed([Job("a", print, (), cores=2, gpus=1.0)], apart)
