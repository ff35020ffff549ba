"""python-tests: a program written by a model passes its tests, or fails, and can do nothing else."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from mopd_diag.errors import BadInput, ResourceError
from mopd_diag.worlds.verifiers import VERIFIERS, confined, sandbox
from mopd_diag.worlds.verifiers.sandbox import Limits, run_tests

confinable = pytest.mark.skipif(bool(sandbox.refusal()), reason=f"the limits cannot be set here: {sandbox.refusal()}")
SHORT = Limits(seconds=0.5)
FLOOD = """
import os
while True:
    for stream in range(16):
        try:
            os.write(stream, b"x" * 9999)
        except OSError:
            pass
"""


@confinable
def test_a_right_program_passes_and_a_wrong_one_fails() -> None:
    tests = "assert double(2) == 4\nassert double(-1) == -2"
    assert run_tests("def double(x):\n    return 2 * x", tests).why == "passed"
    assert run_tests("def double(x):\n    return x * x", tests).why == "failed"
    assert run_tests("def double(x) return", tests).why == "failed"
    common = (
        "import collections, datetime, decimal, fractions, heapq, itertools, json, math, random, re, string, typing"
    )
    assert run_tests(common, "assert math.comb(4, 2) == 6").passed


@confinable
@pytest.mark.parametrize(
    "program",
    ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit", "import os; os.write(1, b'passed')"],
)
def test_leaving_early_is_no_pass(program: str) -> None:
    assert not run_tests(program, "assert False").passed


@confinable
@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)", FLOOD])
def test_an_endless_program_is_stopped(program: str) -> None:
    """Also one that floods what the verdict comes through."""
    start = time.monotonic()
    assert run_tests(program, "", SHORT).why == "time limit"
    assert time.monotonic() - start < 3


@confinable
def test_a_fork_bomb_starts_no_process() -> None:
    bomb = (
        "import os\nwhile True:\n    try:\n        os.fork()\n        started = True\n"
        "    except PermissionError:\n        started = False\n        break"
    )
    assert run_tests(bomb, "assert not started").passed
    refused = "try:\n    {}\n    done = True\nexcept (OSError, RuntimeError):\n    done = False"
    for how in (
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import threading; threading.Thread(target=print).start()",
        "import os; os.kill(os.getppid(), 0)",
    ):
        assert run_tests(refused.format(how), "assert not done").passed, how


@confinable
def test_a_big_allocation_ends_the_program_and_nothing_else() -> None:
    assert run_tests("x = bytearray(10**10)", "").why == "failed"
    assert not run_tests("x = []\nwhile True:\n    x.append(bytearray(10**6))", "", Limits(5.0, 128 * 2**20)).passed
    raised = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))"
    assert not run_tests(raised, "").passed


@confinable
def test_nothing_is_written_and_nothing_of_the_user_is_read(tmp_path: Path) -> None:
    secret, new = tmp_path / "secret", tmp_path / "new"
    secret.write_text("key")
    for program in (
        f"open({str(new)!r}, 'w')",
        f"open({str(secret)!r}, 'a')",
        "open('here', 'w')",
        f"import os; os.open({str(secret)!r}, os.O_RDONLY | os.O_TRUNC)",
        f"import os; os.remove({str(secret)!r})",
        f"import os; os.rename({str(secret)!r}, {str(new)!r})",
        f"import os; os.mkdir({str(new)!r})",
        f"import os; os.symlink('/', {str(new)!r})",
        f"open({str(secret)!r}).read()",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
    ):
        assert run_tests(program, "").why == "failed", program
    assert secret.read_text() == "key" and not new.exists()


@confinable
def test_no_connection_leaves_the_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = server.getsockname()
        heard = []
        listener = threading.Thread(target=lambda: heard.append(_accepted(server)))
        listener.start()
        connect = "import socket\ntry:\n    socket.create_connection({!r})\n    out = True\nexcept PermissionError:\n    out = False"
        assert run_tests(connect.format(address), "assert not out").passed
        listener.join()
    assert heard == [False]
    # Without Python's own library, by the number of the call: 41 and 198 are socket() on x86-64 and aarch64.
    direct = "import ctypes\nlibc = ctypes.CDLL(None)\nsaid = [libc.syscall(n, 2, 1, 0) for n in (41, 198)]"
    assert run_tests(direct, "assert said == [-1, -1]").passed


def _accepted(server: socket.socket) -> bool:
    try:
        server.accept()
    except TimeoutError:
        return False
    return True


@confinable
def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert run_tests("import os", "assert set(os.environ) <= {'PYTHONHASHSEED', 'LC_CTYPE'}").passed


@confinable
def test_the_verifier_takes_the_last_fenced_block() -> None:
    verify = VERIFIERS["python-tests"].verify
    assert (
        verify("", "assert f() == 2", "First:\n```python\nf = 1\n```\nBetter:\n```\ndef f():\n    return 2\n```\nDone.")
        == 1.0
    )
    assert verify("", "assert f() == 2", "def f():\n    return 2") == 1.0
    assert verify("", "assert f() == 2", "I cannot do that.") == 0.0


def test_without_limits_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(confined, "unsupported", lambda: "this kernel or container has no Landlock")
    sandbox.refusal.cache_clear()
    try:
        with pytest.raises(ResourceError, match="runs no code here.*no Landlock.*another verifier"):
            run_tests(f"open({str(tmp_path / 'run')!r}, 'w')", "")
        with pytest.raises(ResourceError):
            VERIFIERS["python-tests"].check("assert True")
    finally:
        sandbox.refusal.cache_clear()
    assert not list(tmp_path.iterdir())


def test_tests_that_are_no_program_are_refused() -> None:
    with pytest.raises(BadInput, match="not a Python program"):
        VERIFIERS["python-tests"].check("assert")
