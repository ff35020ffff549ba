"""Start the Streamlit pages on loopback."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from mopd_diag.errors import BadInput

FOLDER = "MOPD_DIAG_APP_FOLDER"
"""The environment variable in which the pages are told what to serve: no text of a user on a command line."""
NEEDED = ("streamlit", "duckdb")
HOST = "127.0.0.1"
SETTINGS: Mapping[str, str | tuple[str, ...]] = {
    "server.address": HOST,
    "server.headless": "true",  # opens no browser and asks for no e-mail address
    "server.fileWatcherType": "none",
    "server.allowedHosts": (HOST, "localhost"),  # a page elsewhere that points its own name here is refused
    "server.maxUploadSize": "200",
    "browser.gatherUsageStats": "false",
    "browser.serverAddress": HOST,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "theme.light.primaryColor": "#0072b2",
    "theme.light.backgroundColor": "#ffffff",
    "theme.light.secondaryBackgroundColor": "#f3f5f7",
    "theme.light.textColor": "#1a1d21",
    "theme.light.linkColor": "#00598a",
    "theme.dark.primaryColor": "#4fa8e0",
    "theme.dark.backgroundColor": "#121519",
    "theme.dark.secondaryBackgroundColor": "#1b1f25",
    "theme.dark.textColor": "#e8eaed",
    "theme.dark.linkColor": "#7cc0ec",
}


def app_folder() -> Path:
    """Where the pages are: `app/` of a source checkout, or the copy inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_app" / "app", package.parent / "app"):
        if (folder / "main.py").is_file():
            return folder
    raise BadInput(
        f"the pages of the app are not beside {package}; install mopd-diag anew: pip install 'mopd-diag[app]'"
    )


def command(port: int) -> list[str]:
    """The command that serves the pages."""
    settings = [
        f"--{name}={v}" for name, value in SETTINGS.items() for v in ([value] if isinstance(value, str) else value)
    ]
    return [
        sys.executable,
        "-m",
        "mopd_diag.study.app_server",
        "run",
        str(app_folder() / "main.py"),
        f"--server.port={port}",
        *settings,
    ]


def check(folder: Path) -> Path:
    """The folder to serve. Raises BadInput when there is none or when the pages' packages are not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"the app needs {' and '.join(missing)}, not installed here; install it: pip install 'mopd-diag[app]'"
        )
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "no folder"
        raise BadInput(
            f"{folder} is {kind}, expected a folder of runs; make one: mopd-diag run quickstart --out runs/quickstart"
        )
    return folder.resolve()


def serve(folder: Path, port: int) -> NoReturn:
    """Serve the pages until they are stopped. This process becomes the server: signals and the exit code are its own."""
    served = check(folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAMLIT_")} | {FOLDER: str(served)}
    os.execve(sys.executable, command(port), environment)
