"""Where things are kept that can be made again: answers of servers, converted checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "MOPD_DIAG_CACHE"
"""Environment variable: the folder of the caches."""


def cache_folder() -> Path:
    """$MOPD_DIAG_CACHE, else where the system keeps a user's caches."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mopd-diag"
    return Path(os.environ.get(VARIABLE) or usual)
