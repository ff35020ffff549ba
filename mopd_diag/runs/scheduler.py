"""Run jobs that wait for one another, as many side by side as there are cores, each in a process of one thread."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any, Protocol

from mopd_diag.errors import ResourceError


@dataclass(frozen=True, slots=True)
class Job:
    """A picklable call that may start when the jobs it needs are done. `weight` is its expected share of the work."""

    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    weight: float = 1.0


class Watcher(Protocol):
    """Told, in the parent process, of each job's beginning, progress and end."""

    def started(self, job: Job) -> None: ...
    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None: ...
    def finished(self, job: Job) -> None: ...


def run_jobs(jobs: Sequence[Job], workers: int, watcher: Watcher) -> None:
    """Run all jobs. The heaviest chain of work still to come starts first.

    Raises what a job raised, or ResourceError when a worker process was lost; the jobs beside it are stopped. Jobs that were
    done stay done: the caller leaves them out next time.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    messages: Queue[tuple[str, int, int, dict[str, float]]] = context.Queue()
    urgency = _urgency(jobs)
    waiting = sorted(jobs, key=lambda j: -urgency[j.name])
    names = {j.name for j in jobs}
    done: set[str] = set()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _prepare_worker, (messages, os.getpid()))
    running: dict[Future[None], Job] = {}
    try:
        while waiting or running:
            for job in list(waiting):
                if len(running) < workers and all(n in done or n not in names for n in job.needs):
                    waiting.remove(job)
                    watcher.started(job)
                    running[pool.submit(_call, job.name, job.call, job.arguments)] = job
            ended, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(messages, watcher)
            for future in ended:
                job = running.pop(future)
                future.result()
                done.add(job.name)
                watcher.finished(job)
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


def _urgency(jobs: Sequence[Job]) -> dict[str, float]:
    """Job → weight of the heaviest chain that starts with it."""
    children: dict[str, list[Job]] = {}
    for job in jobs:
        for need in job.needs:
            children.setdefault(need, []).append(job)
    found: dict[str, float] = {}

    def chain(job: Job) -> float:
        if job.name not in found:
            found[job.name] = job.weight + max((chain(c) for c in children.get(job.name, [])), default=0.0)
        return found[job.name]

    for job in jobs:
        chain(job)
    return found


def _drain(messages: Queue[tuple[str, int, int, dict[str, float]]], watcher: Watcher) -> None:
    while True:
        try:
            watcher.moved(*messages.get_nowait())
        except queue.Empty:
            return


_MESSAGES: Any = None


def _prepare_worker(messages: Any, parent: int) -> None:
    """One thread; die with the parent; keep freed memory, which small tensors ask for again at once."""
    global _MESSAGES
    _MESSAGES = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        os.environ[name] = "false" if name.startswith("TOK") else "1"
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
        keep_memory(libc)
    import torch

    torch.set_num_threads(1)


def keep_memory(libc: ctypes.CDLL) -> None:
    """Tell glibc not to give freed blocks back (8 % of a training step here goes to page faults otherwise)."""
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _call(name: str, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import time

    told = 0.0

    def progress(step: int, steps: int, metrics: dict[str, float]) -> None:
        nonlocal told
        if step == steps or time.monotonic() - told > 0.2:
            told = time.monotonic()
            _MESSAGES.put((name, step, steps, metrics))

    call(*arguments, progress)
