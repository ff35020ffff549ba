"""A job for tests of schedulers, in a module that a worker imports at once."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from mopd_diag.runs.scheduler import WORKER


def meet(folder: Path, name: str, progress: Any) -> None:
    """Write this worker's number, and wait for the other worker's."""
    (folder / name).write_text(os.environ[WORKER])
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
