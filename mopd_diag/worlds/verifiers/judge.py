"""A helper process that reads model-written text with big libraries, so that a hostile answer costs a time limit and no more.

math-verify and reasoning-gym calculate with what an answer says: `9^9^9^9` takes all time and memory there is. The helper has
both limited, is killed when it does not answer in time, and starts again with the next question.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mopd_diag
from mopd_diag.errors import BadInput, ResourceError

START_SECONDS = 120.0
"""For importing the library on a busy machine."""
LIBRARY = {"text": "jsonschema", "math": "math_verify", "gym": "reasoning_gym"}


class Judge:
    """One kind of helper. `ask` is thread-safe; after a fork the child starts its own."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any], seconds: float) -> Any:
        """The helper's answer; None when it took more than `seconds`, ran out of memory or died.

        What the library itself complains about comes back as {"error": text}.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = _line(process, seconds)
            except BrokenPipeError:
                line = None
            if line is None:
                self._stop()
            return None if line is None else json.loads(line)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        needs(LIBRARY[self.kind], f"'{self.kind}' verdicts")
        root = str(Path(mopd_diag.__file__).parents[1])
        # Some generators iterate over sets: a fixed hash seed makes equal seeds give equal questions.
        environment = {"PYTHONPATH": root, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "mopd_diag.worlds.verifiers.judging", self.kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip
        self._process, self._owner = process, os.getpid()
        if _line(process, START_SECONDS) is None:
            self._stop()
            raise ResourceError(
                f"the helper that gives '{self.kind}' verdicts did not start within {START_SECONDS:.0f} s; "
                f"see what `python -m mopd_diag.worlds.verifiers.judging {self.kind}` says"
            )
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@functools.cache
def judge(kind: str) -> Judge:
    """The helper for `text` (regular expressions, JSON schemas), `math` or `gym`."""
    helper = Judge(kind)
    atexit.register(helper._stop)
    return helper


def needs(module: str, what: str) -> None:
    """Raise BadInput that names the extra when an optional library is absent."""
    if importlib.util.find_spec(module) is None:
        raise BadInput(f"{what} need {module.replace('_', '-')}, which is not installed: pip install 'mopd-diag[gym]'")


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """One whole line from the helper; None at the deadline or at its end."""
    assert process.stdout is not None
    said, deadline, stream = b"", time.monotonic() + seconds, process.stdout.fileno()
    while not said.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        heard = os.read(stream, 65536) if ready else b""
        if not heard:
            return None
        said += heard
    return said
