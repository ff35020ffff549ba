"""The gate editor: a rule over a comparison's document, and what it comes to as it is written."""

from __future__ import annotations

from typing import Any

import streamlit as st
from markupsafe import Markup

from app import parts, state
from mopd_diag.diagnostics.gate import Gate, GateResult
from mopd_diag.errors import BadInput

RULE = "no group worse"
EXAMPLES = (
    "no group worse", "overall.delta.low > -1% and no group worse", "every group lost <= 5", "group 'math' is not worse",
)  # fmt: skip


def gate_editor(document: dict[str, Any]) -> GateResult | None:
    """A rule that can be edited, and what it comes to for this comparison; None while it cannot be read."""
    parts.section("Gate")
    left, right = st.columns([1, 1], gap="large")
    with left:
        rule = st.text_area("Rule", value=state.get("rule", RULE), key="rule-box", height=80)
        codes = Markup(" ").join(Markup("<code>{}</code>").format(e) for e in EXAMPLES)
        parts.html(Markup("<p class='muted such'>Such as {}</p>").format(codes))
    state.set(rule=None if rule == RULE else rule)
    with right:
        try:
            result = Gate.parse(rule).check(document)
        except BadInput as error:
            _gate("loss", "✗ The rule cannot be read", str(error))
            return None
        _gate(*(("gain", "✓ Gate passed") if result.passed else ("loss", "✗ Gate failed")), result.reason)
        return result


def _gate(key: str, title: str, reason: str) -> None:
    words = Markup('<div class="gate k-{}" role="status"><strong>{}</strong><br>{}</div>')
    parts.html(words.format(key, title, parts.escaped(reason)))
