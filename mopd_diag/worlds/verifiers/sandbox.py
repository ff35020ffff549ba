"""Runs a program that a model wrote, in a child process that can do nothing but calculate."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mopd_diag.errors import ResourceError
from mopd_diag.worlds.verifiers import confined


@dataclass(frozen=True, slots=True)
class Limits:
    """Wall-clock seconds (processor time: a second more) and bytes of address space."""

    seconds: float = 5.0
    memory: int = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Outcome:
    """`why` is "passed", "failed" (an exception, an exit, a wrong token), "time limit" or "signal N"."""

    passed: bool
    why: str


def run_tests(program: str, tests: str, limits: Limits | None = None) -> Outcome:
    """Whether `program`, and then `tests` in the same namespace, run to their end without an exception.

    The child has an empty environment but for a fixed hash seed and the locale, an empty temporary directory to stand in, and no
    streams. It reads Python's standard library and nothing else, and writes nothing. What it prints is lost. A pass is a random token that
    the harness writes after the last test, so that leaving early is no pass; a program that searches its own process for the
    token can still cheat, but it can do no harm.

    Raises ResourceError when this machine cannot set the limits: then nothing is run.
    """
    refuse_unconfined()
    return _run(program, tests, limits or Limits())


def _run(program: str, tests: str, limits: Limits) -> Outcome:
    token = secrets.token_hex(16)
    job = {"program": program, "tests": tests, "token": token, "seconds": limits.seconds, "memory": limits.memory}
    payload = json.dumps(job | {"readable": readable()}).encode()
    # -P and -S: neither the script's folder nor site-packages; -B: no byte code written.
    command = [sys.executable, "-P", "-s", "-S", "-B", confined.__file__]
    environment = {"PYTHONHASHSEED": "0"}  # the same verdict every time, also where a program iterates over a set
    with tempfile.TemporaryDirectory(prefix="mopd-diag-") as folder:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            cwd=folder, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        with process.stdout:
            with contextlib.suppress(BrokenPipeError), process.stdin:  # a child that ends at once has failed
                process.stdin.write(payload)
            try:
                code = process.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return Outcome(False, "time limit")
            # Never read to the end: 64 KiB is what the pipe holds, and a program that writes more waits for its time limit.
            said = os.read(process.stdout.fileno(), 65536)
    if code < 0:
        return Outcome(False, f"signal {-code}")
    passed = code == 0 and secrets.compare_digest(said, token.encode())
    return Outcome(passed, "passed" if passed else "failed")


def readable() -> list[str]:
    """Python's own library, and the system's zone and locale data it looks up."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("DESTSHARED")}
    paths |= {"/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom"}
    return sorted(str(p) for p in paths if p and Path(p).exists())


@functools.cache
def refusal() -> str:
    """Why nothing can be run here; empty when a program that does nothing passes inside the limits."""
    return confined.unsupported() or (
        "" if _run("", "", Limits(seconds=60)).passed else "an empty program did not pass under them"
    )


def refuse_unconfined() -> None:
    if refusal():
        raise ResourceError(
            f"python-tests runs no code here: its limits cannot be set, because {refusal()}; "
            "verify on another machine, or use another verifier"
        )
