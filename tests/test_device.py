"""Which device is taken, and in a process of their own the tests on a second device: torch keeps a device that it was told of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from second_device import ASKED


@pytest.mark.parametrize("what", ["engines", "study"])
def test_on_a_second_device(what: str, tmp_path: Path) -> None:
    """`second_device_engines.py` and `second_device_study.py`, each of whose tests must pass."""
    file = Path(__file__).with_name(f"second_device_{what}.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        f"--basetemp={tmp_path / 'there'}",
        str(file),
    ]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, ASKED: "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
