"""What the reader looks at, kept in the URL: a link that is sent shows the same thing.

Values in a URL come from anywhere: `choice` takes only what is offered, and pages look the rest up by equality.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from mopd_diag.reporting import text

KEPT = ("run",)
"""What stays when the reader goes to another page."""


def get(name: str, default: str = "") -> str:
    """One value of the URL."""
    return str(st.query_params.get(name, default))


def set(**values: Any) -> None:
    """Put values into the URL; None and "" take theirs out."""
    for name, value in values.items():
        if value is None or value == "":
            st.query_params.pop(name, None)
        elif st.query_params.get(name) != str(value):
            st.query_params[name] = str(value)


def number(name: str, default: int = 0) -> int:
    """A whole number of the URL; anything else is the default."""
    found = get(name)
    return int(found) if found.isdecimal() and len(found) < 10 else default


def choice(name: str, options: Sequence[str], default: str = "") -> str:
    """A value of the URL if it is one of `options`."""
    found = get(name, default)
    return found if found in options else default


def link(page: str, **values: Any) -> str:
    """The address of a view, relative to the app's root. `run` is taken along."""
    told = {k: get(k) for k in KEPT if get(k)} | values
    query = urlencode({k: str(v) for k, v in told.items() if v is not None and v != ""})
    return f"{page}?{query}" if query else page


def keep() -> None:
    """Bring back after a change of page what stays; remember it for the next."""
    for name in KEPT:
        if get(name):
            st.session_state[f"kept-{name}"] = get(name)
        elif st.session_state.get(f"kept-{name}"):
            set(**{name: st.session_state[f"kept-{name}"]})


def select(
    label: str, name: str, options: Sequence[str], *,
    words: dict[str, str] | None = None, all_: str = "all", clears: Sequence[str] = (),
) -> str:  # fmt: skip
    """A select box whose value is in the URL; "" is everything. A change takes `clears` out of the URL."""
    key = f"{name}-box"
    here = choice(name, options)
    st.session_state[key] = here  # the URL leads: a link was followed, or the box has just changed it

    def changed() -> None:
        set(**dict.fromkeys(clears), **{name: st.session_state[key]})

    shown = words or {}
    return str(
        st.selectbox(
            label, ["", *options], key=key, on_change=changed,
            format_func=lambda v: all_ if v == "" else text.visible(shown.get(str(v), str(v))),
        )
    )  # fmt: skip


def switch(label: str, name: str, options: Sequence[str], default: str, *, words: dict[str, str] | None = None) -> str:
    """A row of buttons, one of which is pressed; which one is in the URL."""
    key = f"{name}-switch"
    st.session_state[key] = choice(name, options, default)
    shown = words or {}
    picked = st.segmented_control(
        label, options, key=key, required=True, on_change=lambda: set(**{name: st.session_state[key]}),
        format_func=lambda v: text.visible(shown.get(str(v), str(v))),
    )  # fmt: skip
    return str(picked or default)
