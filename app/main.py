"""The app's frame: which folder is served, which run is looked at, which page. Streamlit runs this file as a script."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

PARENT = str(Path(__file__).resolve().parents[1])
if PARENT not in sys.path:
    sys.path.insert(0, PARENT)  # so that `app` is this package, in a checkout and in the wheel

import streamlit as st  # noqa: E402

from app import figures, parts, state  # noqa: E402
from app.data import ServedFolder  # noqa: E402
from mopd_diag.errors import MopdDiagError  # noqa: E402

FOLDER = "MOPD_DIAG_APP_FOLDER"
PAGES = {
    # name in the URL: title, icon
    "overview": ("Overview", ":material/dashboard:"),
    "failures": ("Failures by teacher", ":material/troubleshoot:"),
    "attribution": ("Attribution", ":material/account_tree:"),
    "caps": ("Caps", ":material/vertical_align_top:"),
    "interference": ("Interference", ":material/grid_on:"),
    "regression": ("Regression", ":material/difference:"),
    "cost": ("Cost", ":material/timeline:"),
}


def guarded(name: str, folder: ServedFolder) -> Callable[[], None]:
    """A page as Streamlit calls it; a mistake becomes a sentence, anything else goes to the server's log."""

    def shown() -> None:
        from importlib import import_module

        try:
            import_module(f"app.views.{name}").page(folder)
        except MopdDiagError as error:
            parts.empty("This cannot be shown", str(error))
        except Exception:  # the boundary: Streamlit's own control flow is no Exception
            logging.getLogger("mopd_diag.app").exception("page %s", name)
            parts.empty(
                "Something went wrong on this page", "The server's log has the details; the other pages still work."
            )

    shown.__name__ = name
    return shown


def main() -> None:
    st.set_page_config(
        page_title="mopd-diag", page_icon=str(Path(__file__).parent / "static" / "icon.svg"), layout="wide"
    )
    folder = ServedFolder(Path(os.environ.get(FOLDER, ".")))
    pages = [
        st.Page(guarded(name, folder), title=title, icon=icon, url_path=name, default=name == "overview")
        for name, (title, icon) in PAGES.items()
    ]
    page = st.navigation(pages)
    parts.styles()
    figures.styles()
    state.keep()
    choose_run(folder)
    page.run()


def choose_run(folder: ServedFolder) -> None:
    """The run box of the sidebar."""
    names = folder.run_names()
    if not state.get("run") and names:
        state.set(run=names[0])
    if names:
        with st.sidebar:
            opened = ("item", "sample", "token", "beside")
            state.select("Run", "run", names, words={".": folder.root.name}, all_="–", clears=opened)


main()
