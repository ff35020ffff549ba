"""What every test gets: one thread, no network, repeatable property tests, and a browser where there is one."""

from __future__ import annotations

import os

# Before anything imports torch or transformers. Two threads in a process collapse when a neighbour uses the other core.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", RAY_USAGE_STATS_ENABLED="0"
)

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# No deadlines, because the machine may be busy; no random seeds, because a red build must be red again.
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The system's browser for Playwright's `executable_path`. Its absence skips at home and fails on CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        message = "no Chromium: install it (Debian: apt-get install chromium) to run the browser tests"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return Path(found)
