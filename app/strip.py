"""The strip of an answer: coloured tokens with their marks, the pivot, and the value curve under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from app import parts, state
from mopd_diag.reporting import text
from mopd_diag.reporting.evidence import Token
from mopd_diag.reporting.look import LABELS, LIGHT, Cast, stylesheet_classes

STATIC = Path(__file__).parent / "static"
PINS = {"pivot": "▲", "candidate": "?"}
Curve = Mapping[int, tuple[float, float, float]]
"""Position -> value, low, high after that token; −1 is before the first."""


def curves(document: Mapping[str, Any]) -> dict[str, Curve]:
    """Each member's value after each token of an explained answer; behind the last one it is 0, because the answer failed."""
    found: dict[str, Curve] = {}
    for member, curve in (document.get("values") or {}).items():
        numbers = [*((c["value"], c["low"], c["high"]) for c in curve), (0.0, 0.0, 0.0)]
        found[member] = dict(zip([-1, *(c["position"] for c in curve)], numbers, strict=True))
    return found


def pins(document: Mapping[str, Any] | None) -> dict[int, str]:
    """Position -> `pivot`, or `candidate` where no token is named."""
    pivot = (document or {}).get("pivot")
    if not pivot:
        return {}
    return (
        {int(pivot["position"]): "pivot"}
        if pivot["position"] is not None
        else dict.fromkeys(map(int, pivot["candidates"]), "candidate")
    )


def strip_data(
    tokens: Sequence[Token], cast: Cast, pinned: Mapping[int, str], values: Mapping[str, Curve], selected: int | None
) -> dict[str, Any]:
    """Everything the strip shows, as plain data; odd characters are visible already, and the page sets all of it as text."""
    students = next(iter(values), None)
    members = [{"name": m, "key": LIGHT.key(cast, m), "dash": m != students} for m in values]
    cells, before = [], {m: curve.get(-1) for m, curve in values.items()}
    for n, token in enumerate(tokens):
        after = {m: curve.get(token.position, before[m]) for m, curve in values.items()}
        label = LABELS.get(token.label, token.label)
        sure = "" if token.confidence != token.confidence else f", confidence {text.percent(token.confidence)}"
        pin = pinned.get(token.position, "")
        said = f"token {token.position + 1}: {token.shown}, {label}{sure}" + (f", {pin}" if pin else "")
        curve = {m: [before[m], after[m]] for m in values if before[m] and after[m]}
        told = [f"{m} {text.percent(a[0])} [{text.percent(a[1])}, {text.percent(a[2])}]" for m, a in after.items() if a]
        value = f" · success after it: {', '.join(told)}" if told else ""
        cells.append({
            "position": token.position, "shown": token.shown, "key": token.key, "mark": token.mark, "pin": PINS.get(pin, ""),
            "said": said + value, "what": f"“{token.shown}” · {label}{sure}{value}", "rows": member_rows(token, cast), "curve": curve,
            "first": n == 0,
        })  # fmt: skip
        before = after
    places = [t.position for t in tokens]
    focus = places.index(selected) if selected in places else 0
    return {
        "tokens": cells,
        "members": members,
        "selected": selected,
        "focus": focus,
        "label": "tokens of the answer, arrow keys move",
    }


def member_rows(token: Token, cast: Cast) -> list[list[str]]:
    """Model, log-probability, divergence of the student from it, share of the student's shift; a dash where there is none."""
    return [
        [LABELS.get(m, m), _told(token.logp.get(m), 2), _told(token.kl.get(m), 3), _percent(token.share.get(m))]
        for m in dict.fromkeys([*token.logp, *token.kl, *token.share])
    ]


def _told(value: float | None, digits: int) -> str:
    return "–" if value is None or value != value else text.fixed(value, digits)


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else text.percent(value)


def legend(tokens: Sequence[Token], values: Mapping[str, Curve], pinned: Mapping[int, str]) -> None:
    """What colours, marks, lines and signs mean."""
    labels = {t.label: t for t in tokens}
    shown = [
        parts.Markup('<span class="key k-{}"><b>{}</b> {}</span>').format(
            t.key, t.mark, parts.escaped(LABELS.get(m, m))
        )
        for m, t in labels.items()
    ]
    if values:
        names = list(values)
        said = f"— chance of success when {names[0]} goes on from there" + (
            f"; - - when {names[1]} does" if len(names) > 1 else ""
        )
        shown.append(parts.Markup('<span class="key">{}</span>').format(parts.escaped(said)))
    words = {"pivot": "▲ pivot: from here on it fails", "candidate": "? possible pivot"}
    shown += [parts.Markup('<span class="key">{}</span>').format(words[p]) for p in dict.fromkeys(pinned.values())]
    parts.html(parts.Markup('<p class="legend">{}</p>').format(parts.Markup("").join(shown)))


def show(data: dict[str, Any], key: str) -> None:
    """Mount the strip; a click puts the token's position into the URL."""

    def clicked() -> None:
        place = getattr(st.session_state.get(key), "token", None)
        if isinstance(place, int):
            state.set(token=place)

    mounted = component(
        "mopd_diag_strip",
        css=stylesheet_classes() + (STATIC / "strip.css").read_text(),
        js=(STATIC / "strip.js").read_text(),
    )
    mounted(key=key, data=data, on_token_change=clicked)
