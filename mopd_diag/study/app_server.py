"""Streamlit's server, with what the pages import fetched while the browser is still opening: `python -m mopd_diag.study.app_server`."""

from __future__ import annotations

import sys
import threading
from importlib import import_module

HEAVY = ("pandas", "pyarrow.parquet", "altair", "duckdb", "mopd_diag.reporting.charts", "mopd_diag.diagnostics.study")
"""What every page needs and takes longest to import; the first page would otherwise pay for it."""


def _fetch() -> None:
    for name in HEAVY:
        import_module(name)


def main() -> None:
    """Serve what the command line says, as `python -m streamlit` does."""
    threading.Thread(target=_fetch, name="fetch", daemon=True).start()
    from streamlit.web.cli import main as streamlit

    sys.exit(streamlit(prog_name="streamlit"))


if __name__ == "__main__":
    main()
