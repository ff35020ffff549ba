"""Run jobs as Ray tasks, on this machine or on a cluster: the same jobs in the same order with the same results as `run_jobs`.

Ray places tasks and starts a lost one again, which goes on from what its job saved. The order is ours, and so is the disk: jobs
hand on their results as files, so every node must see the run directory, which is tried before anything starts.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mopd_diag
from mopd_diag.errors import BadInput, ResourceError, writing
from mopd_diag.runs.scheduler import Job, Message, Watcher, by_urgency, one_thread, startable, telling

RETRIES = 3
"""How often a job may lose its worker and start again."""
ANSWER_SECONDS = 120.0
"""How long a node may take to start a process and look into the run directory."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
"""No statistics sent; no copy of the working directory sent to the nodes when this process was started by `uv run`."""
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""A cluster for one run: on the loopback address (what this variable, named for others, switches), for those who know the token."""


@dataclass(frozen=True, slots=True)
class RayScheduler:
    """Called like `run_jobs`. `folder` is the directory that all jobs work in.

    Without `address` a cluster is started for the jobs, and stopped after them; otherwise it is one that is there, `auto` or
    HOST:PORT. A programme that is connected to Ray already stays so, and its cluster is used.
    """

    folder: Path
    address: str | None = None
    retries: int = RETRIES

    def __post_init__(self) -> None:
        """Raises BadInput when Ray is missing or the address is of a kind that cannot be used."""
        if importlib.util.find_spec("ray") is None:
            raise BadInput(
                "--scheduler ray needs Ray, which is not installed; pip install 'mopd-diag[ray]', or use local"
            )
        if self.address not in (None, "auto") and not re.fullmatch(r"[^\s/]+:\d+", self.address):
            raise BadInput(
                f"Ray address {self.address!r} cannot be used, expected HOST:PORT, or auto on a node of the cluster; "
                "run this on a machine that sees the run directory and the cluster"
            )

    def __call__(self, jobs: Sequence[Job], workers: int | None, watcher: Watcher) -> None:
        """Run all jobs, at most `workers` side by side; without a number, as many as the cluster has cores.

        Raises what a job raised; BadInput when nothing answers at the address or a node does not see `folder`;
        ResourceError when the cluster cannot hold a job or has lost one too often. The jobs beside it are stopped.
        """
        if not jobs:
            return
        at_least = max(workers or os.cpu_count() or 1, *(j.cores for j in jobs))
        with connected(self.address, at_least) as ray:
            nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
            jobs = placed(jobs, [n["Resources"] for n in nodes])
            with _shared(ray, nodes, self.folder.absolute()) as token:
                cores = int(sum(n["Resources"]["CPU"] for n in nodes))
                _Tasks(ray, token, self.retries, watcher).run(jobs, workers or cores)


# -- the cluster --------------------------------------------------------------------------------------------------------------


@contextmanager
def connected(address: str | None = None, workers: int | None = None) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address`, or to one of `workers` cores that lives as long as the context."""
    local = address is None
    os.environ.update(QUIET)
    if local and "ray" not in sys.modules:  # read when it is imported; a programme that did so has chosen
        for name, value in {**ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    # Paths of sockets below it may not be longer than 107 bytes, and the usual folder for such things may be deep.
    scratch = tempfile.mkdtemp(prefix="mopd-ray-", dir=min(tempfile.gettempdir(), "/tmp", key=len)) if local else None
    try:
        _connect(ray, address, scratch, workers)
        yield ray
    finally:
        ray.shutdown()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _connect(ray: Any, address: str | None, scratch: str | None, workers: int | None) -> None:
    settings: dict[str, Any] = {}
    if address is None:
        settings = {
            "include_dashboard": False,
            "num_cpus": workers or os.cpu_count() or 1,
            "object_store_memory": 80 * 2**20,  # results are files
            "_temp_dir": scratch,
        }
    elif address != "auto":
        _knock(address)
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **settings)
    except (ConnectionError, RuntimeError, ValueError, AssertionError, OSError) as error:
        said = str(error).strip().partition("\n")[0]
        if address is None:
            raise ResourceError(
                f"Ray did not start on this machine ({said}); try again, or --scheduler local"
            ) from error
        raise _no_cluster(address, said) from error


def _knock(address: str) -> None:
    """Ray itself goes on trying for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, said: str) -> BadInput:
    return BadInput(
        f"no Ray cluster to be used at {address} ({said}); start one with `ray start --head` and give its HOST:PORT, "
        "or leave --ray-address out"
    )


def placed(jobs: Sequence[Job], nodes: Sequence[Mapping[str, float]]) -> list[Job]:
    """The jobs with the GPUs that each asks this cluster for. `nodes`: what each node has, by Ray's names.

    Raises ResourceError for a job that fits on no node: it would wait for ever.
    """
    most = max((n.get("GPU", 0.0) for n in nodes), default=0.0)
    found = [replace(j, gpus=j.gpus_if_there) if 0 < j.gpus_if_there <= most else j for j in jobs]
    for job in found:
        if not any(n.get("CPU", 0.0) >= job.cores and n.get("GPU", 0.0) >= job.gpus for n in nodes):
            cores, counted = max((n.get("CPU", 0.0) for n in nodes), default=0.0), "cores" if job.cores > 1 else "core"
            raise ResourceError(
                f"{job.name} asks for {job.cores} {counted} and {job.gpus:g} GPUs of one node, but nodes of the Ray cluster have at "
                f"most {cores:g} and {most:g}; add such a node, or ask for less in the plan"
            )
    return found


# -- one disk -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _shared(ray: Any, nodes: Sequence[dict[str, Any]], folder: Path) -> Iterator[Path]:
    """A file in `folder` that every node has seen, and every task sees; each node's answer beside it was seen from here."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = folder / f".ray-{secrets.token_hex(8)}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text("shared", encoding="ascii")
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        places = {n["NodeID"]: NodeAffinitySchedulingStrategy(n["NodeID"], soft=False) for n in nodes}
        asked = {node: look.options(scheduling_strategy=at).remote(token, node) for node, at in places.items()}
        for node in nodes:
            _check_node(ray, node["NodeManagerHostname"], token, asked[node["NodeID"]], node["NodeID"])
        yield token
    finally:
        for left in folder.glob(f"{token.name}*"):
            left.unlink(missing_ok=True)


def _check_node(ray: Any, host: str, token: Path, task: Any, node: str) -> None:
    try:
        seen, version = ray.get(task, timeout=ANSWER_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise ResourceError(
            f"Ray node {host} did not answer for {ANSWER_SECONDS:.0f} s; look at it, or leave it out of the cluster"
        ) from None
    except ray.exceptions.RayError as error:
        raise BadInput(
            f"Ray node {host} cannot run our tasks ({_line(error)}); install mopd-diag {mopd_diag.__version__} there"
        ) from error
    if version != mopd_diag.__version__:
        raise BadInput(
            f"Ray node {host} has mopd-diag {version}, this machine {mopd_diag.__version__}; install the same on all"
        )
    if not seen or not _answer(token, node).is_file():
        raise _other_files(token.parent, host)


def _look(token: Path, node: str) -> tuple[bool, str]:
    """On a node: is the file there, and may one be put beside it?"""
    seen = token.is_file()
    if seen:
        try:
            _answer(token, node).write_text("seen", encoding="ascii")
        except OSError:
            seen = False
    return seen, mopd_diag.__version__


def _answer(token: Path, node: str) -> Path:
    return token.with_name(f"{token.name}.{node[:16]}")


def _other_files(folder: Path, host: str) -> BadInput:
    return BadInput(
        f"Ray node {host} sees other files than this machine (not ours, or not writable, in {folder}); "
        "put --out on a file system that all nodes share"
    )


# -- the tasks ----------------------------------------------------------------------------------------------------------------


class _Tasks:
    """Jobs as tasks of a connected Ray, and what they say on their way."""

    def __init__(self, ray: Any, token: Path, retries: int, watcher: Watcher) -> None:
        self.ray, self.token, self.watcher = ray, token, watcher
        self.retries = retries
        self.mailbox = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox).remote()
        self.running: dict[Any, Job] = {}

    def run(self, jobs: Sequence[Job], workers: int) -> None:
        waiting = by_urgency(jobs)
        # CUDA keeps the memory and the devices that a process began with, so with GPUs each job gets a process of its own.
        often = {"max_calls": 1} if any(j.gpus for j in jobs) else {}
        work = self.ray.remote(max_retries=self.retries, retry_exceptions=False, **often)(_work)
        try:
            while waiting or self.running:
                for job in startable(waiting, self.running.values(), workers):
                    waiting.remove(job)
                    self.watcher.started(job)
                    self.running[self._start(work, job)] = job
                ended, _ = self.ray.wait(list(self.running), timeout=0.2)
                self._drain()
                for task in ended:
                    job = self.running.pop(task)
                    self._result(job, task)
                    self.watcher.finished(job)
        finally:
            self._stop()

    def _start(self, work: Any, job: Job) -> Any:
        # The tasks' working directory is not ours.
        arguments = tuple(a.absolute() if isinstance(a, Path) else a for a in job.arguments)
        task = work.options(name=job.name, num_cpus=job.cores, num_gpus=job.gpus)
        call = (
            job.call.__module__,
            job.call.__qualname__,
        )  # named, because its module is found only once the path is set
        return task.remote(self.mailbox, self.token, job.name, sys.path, call, arguments)

    def _drain(self) -> None:
        try:
            messages = self.ray.get(self.mailbox.empty.remote(), timeout=5.0)
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.GetTimeoutError):
            return  # its node was lost, or is slow: bars stand still, jobs go on
        for message in messages:
            self.watcher.moved(*message)

    def _result(self, job: Job, task: Any) -> None:
        """Raise what the job raised, as `run_jobs` would."""
        errors = self.ray.exceptions
        try:
            self.ray.get(task)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, Exception) and not isinstance(cause, errors.RayError):
                raise cause from error
            raise ResourceError(f"{job.name} failed on the Ray cluster ({_line(error)})") from error
        except errors.RayError as error:
            raise ResourceError(
                f"a worker of the Ray cluster was lost during {job.name} and again in each retry (killed, or out of memory: "
                f"{type(error).__name__}); repeat the command to go on from there"
            ) from error

    def _stop(self) -> None:
        """End what still runs, and wait for it: the run directory is not ours to give up while something writes there."""
        for task in self.running:
            self.ray.cancel(task, force=True)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=30.0)
        self.ray.kill(self.mailbox)


class Mailbox:
    """An actor that holds the jobs' messages until they are asked for."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def put(self, message: Message) -> None:
        self.messages.append(message)

    def empty(self) -> list[Message]:
        messages, self.messages = self.messages, []
        return messages


def _work(
    mailbox: Any, token: Path, name: str, path: list[str], call: tuple[str, str], arguments: tuple[Any, ...]
) -> None:
    """A task: a call that our processes would do, found where they would find it."""
    if not token.is_file():  # a node that joined the cluster late was not asked what it sees
        raise _other_files(token.parent, os.uname().nodename)
    import ray

    if not ray.get_gpu_ids():  # it asked for none: those of the node belong to others
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path += [folder for folder in path if folder not in sys.path]
    one_thread()
    module, function = call
    getattr(importlib.import_module(module), function)(*arguments, telling(name, mailbox.put.remote))


def _line(error: Exception) -> str:
    """The last line of what Ray says, which is the exception of the task."""
    return str(error).strip().splitlines()[-1].strip()
