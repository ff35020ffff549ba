"""Run jobs that wait for one another, as many side by side as there are cores, each in a process of one thread."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any, Protocol

from mopd_diag.errors import ResourceError

WORKER = "MOPD_DIAG_WORKER"
"""Environment variable: a worker's number among those of this machine, from 0."""


@dataclass(frozen=True, slots=True)
class Job:
    """A picklable call that may start when the jobs it needs are done. `weight` is its expected share of the work.

    It is given its `cores`. GPUs are asked for on a Ray cluster only: `gpus` always, `gpus_if_there` instead of them where a node of the
    cluster has so many.
    """

    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    weight: float = 1.0
    gpus: float = 0.0
    cores: int = 1
    gpus_if_there: float = 0.0


class Watcher(Protocol):
    """Told, in the parent process, of each job's beginning, progress and end."""

    def started(self, job: Job) -> None: ...
    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None: ...
    def finished(self, job: Job) -> None: ...


Message = tuple[str, int, int, dict[str, float]]
"""(name of a job, step, steps, metrics of the step)"""


def run_jobs(jobs: Sequence[Job], workers: int, watcher: Watcher) -> None:
    """Run all jobs on this machine. The heaviest chain of work still to come starts first.

    Raises what a job raised, or ResourceError when a worker process was lost; the jobs beside it are stopped. Jobs that were
    done stay done: the caller leaves them out next time.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    messages: Queue[Message] = context.Queue()
    started = context.Value("i", 0)
    waiting = by_urgency(jobs)
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _prepare_worker, (messages, os.getpid(), started))
    running: dict[Future[None], Job] = {}
    try:
        while waiting or running:
            for job in startable(waiting, running.values(), workers):
                waiting.remove(job)
                watcher.started(job)
                running[pool.submit(_call, job.name, job.call, job.arguments)] = job
            ended, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(messages, watcher)
            for future in ended:
                future.result()
                watcher.finished(running.pop(future))
    except BrokenProcessPool:
        lost = ", ".join(j.name for j in running.values()) or "a job"
        raise ResourceError(
            f"a worker process was lost during {lost} (killed, or out of memory); repeat the command to go on from there"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):
            if running:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def startable(waiting: Sequence[Job], running: Collection[Job], workers: int) -> list[Job]:
    """The waiting jobs to start now, in their order, of those that need no job still to be done: as many as the free workers have
    cores for. One that asks for more cores than there are workers runs alone. None overtakes one that waits for cores, which it
    might do for ever."""
    undone = {j.name for j in (*waiting, *running)}
    used, found = sum(j.cores for j in running), []
    for job in waiting:
        if not undone.isdisjoint(job.needs):
            continue
        if used and used + job.cores > workers:
            break
        used += job.cores
        found.append(job)
    return found


def by_urgency(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, those first with which the heaviest chain of work begins."""
    children: dict[str, list[Job]] = {}
    for job in jobs:
        for need in job.needs:
            children.setdefault(need, []).append(job)
    found: dict[str, float] = {}

    def chain(job: Job) -> float:
        if job.name not in found:
            found[job.name] = job.weight + max((chain(c) for c in children.get(job.name, [])), default=0.0)
        return found[job.name]

    return sorted(jobs, key=lambda j: -chain(j))


def _drain(messages: Queue[Message], watcher: Watcher) -> None:
    while True:
        try:
            watcher.moved(*messages.get_nowait())
        except queue.Empty:
            return


_MESSAGES: Any = None


def _prepare_worker(messages: Any, parent: int, started: Any) -> None:
    """One thread; die with the parent; keep freed memory, which small tensors ask for again at once; know one's number, by which
    `models.device` shares out GPUs."""
    global _MESSAGES
    _MESSAGES = messages
    with started.get_lock():
        os.environ[WORKER] = str(started.value)
        started.value += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    one_thread()


def one_thread() -> None:
    """Compute on one thread in this process, and keep its freed memory."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        os.environ[name] = "false" if name.startswith("TOK") else "1"
    if sys.platform == "linux":
        keep_memory(ctypes.CDLL(None))
    import torch

    torch.set_num_threads(1)


def keep_memory(libc: ctypes.CDLL) -> None:
    """Tell glibc not to give freed blocks back (8 % of a training step here goes to page faults otherwise)."""
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _call(name: str, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    call(*arguments, telling(name, _MESSAGES.put))


def telling(name: str, put: Callable[[Message], object]) -> Callable[[int, int, dict[str, float]], None]:
    """The progress function of a job: puts a message about the last step, and a few times a second before."""
    told = 0.0

    def progress(step: int, steps: int, metrics: dict[str, float]) -> None:
        nonlocal told
        if step == steps or time.monotonic() - told > 0.2:
            told = time.monotonic()
            put((name, step, steps, metrics))

    return progress
