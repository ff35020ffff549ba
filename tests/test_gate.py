"""The gate's small language: what holds, what fails and says why, and what is no rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd_diag.diagnostics.gate import Gate
from mopd_diag.errors import BadInput


def group(value: float | None, low: float | None, high: float | None, verdict: str, lost: int = 0) -> dict[str, Any]:
    estimate = {"value": value, "low": low, "high": high}
    level = {"value": 0.5, "low": 0.4, "high": 0.6}
    return {
        "before": 0.5, "after": 0.5, "delta": estimate, "before_estimate": level, "after_estimate": level, "p_value": 0.1,
        "p_adjusted": 0.2, "q_value": 0.2, "won": 1, "lost": lost, "mde": 0.05, "margin": 0.02, "n_items": 100,
        "verdict": verdict, "noise_floor": None,
    }  # fmt: skip


DOCUMENT = {
    "joined": 200, "only_before": [], "only_after": [{"group": "code", "item_id": "x"}],
    "groups": {
        "code": group(-0.05, -0.08, -0.02, "worse", 14), "math": group(0.01, -0.01, 0.03, "undetermined"),
        "two turn": group(None, None, None, "undetermined"),
    },
    "overall": group(-0.02, -0.04, 0.0, "undetermined", 14),
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        ("overall.delta.low > -0.01 and no group worse", False),
        ("overall.delta.low > -0.05", True),
        ("overall.delta.low > -5%", True),
        ("delta.low > -5%", True),  # of overall, unless a group is named
        ("group code.delta.value >= 0", False),
        ("group code.delta < 0", True),
        ("group 'math'.delta.high > group code.delta.high", True),
        ("no group worse", False),
        ("not any group worse", False),
        ("no group better", True),
        ("any group better", False),
        ("every group not better", True),
        ("every group worse or undetermined", True),
        ("every group unchanged or better or lost < 20", True),
        ("no group lost > 14", True),
        ("any group lost > 3", True),
        ("lost <= 3", False),
        ("lost <= 14", True),
        ("lost == 14 and won != 0", True),
        ("overall is not worse", True),
        ("group code is worse", True),
        ("group code worse or better", True),
        ("joined >= 100 and only_before == 0 and only_after == 1", True),
        ("before.low > 0.39 and before == 0.5", True),
        ("not (overall worse or lost > 20)", True),
        ("not not overall undetermined", True),
        ("3 < lost", True),
        ("lost < 3 or joined > 100 and won == 1", True),
    ],
)
def test_rules(rule, passes) -> None:
    result = Gate.parse(rule).check(DOCUMENT)
    assert result.passed is passes and result.reason and result.to_dict()["rule"] == rule


def test_a_failed_gate_says_what_failed_with_the_numbers() -> None:
    reason = Gate.parse("overall.delta.low > -0.01 and no group worse and lost < 50").check(DOCUMENT).reason
    assert "overall.delta.low = -0.04" in reason and "code is worse" in reason and "lost" not in reason


@pytest.mark.parametrize(
    "rule",
    [
        "group 'two turn'.delta >= 0", "not group 'two turn'.delta < 0", "no group delta < -0.9", "every group delta > -0.9",
        "noise_floor < 1",
    ],
)  # fmt: skip
def test_what_is_undefined_never_passes(rule) -> None:
    result = Gate.parse(rule).check(DOCUMENT)
    assert not result.passed and "undefined" in result.reason


def test_the_unknown_matters_only_where_it_decides() -> None:
    assert Gate.parse("lost > 1 or noise_floor < 1").check(DOCUMENT).passed
    assert not Gate.parse("lost < 1 and noise_floor < 1").check(DOCUMENT).passed
    assert Gate.parse("any group delta < 0").check(DOCUMENT).passed


@pytest.mark.parametrize(
    ("rule", "at", "words"),
    [
        ("overall.delta.lw > 1", 15, "low or high"),
        ("overall.dela > 0", 9, "did you mean 'delta'"),
        ("no group wors", 10, "did you mean 'worse'"),
        ("no grup worse", 4, "expected 'group'"),
        ("overall", 8, "the rule ends"),
        ("delta >", 8, "the rule ends"),
        ("(lost < 3", 10, "expected ')'"),
        ("lost < 3 3", 10, "'and', 'or' or the end"),
        ("lost = 3", 6, "cannot read '='"),
        ("p_value.low < 1", 9, "no parts"),
        ("lost <= 3 or", 13, "the rule ends"),
        ("group mmlu.math.delta > 0", 12, "expected a field"),
        ("__import__('os')", 1, "expected a field"),
        ("lost < 3; import os", 9, "cannot read ';'"),
        ("not " * 80 + "lost < 3", 201, "deep"),
    ],
)
def test_what_is_no_rule_is_one_line_with_the_position(rule, at, words) -> None:
    with pytest.raises(BadInput) as caught:
        Gate.parse(rule)
    said = str(caught.value)
    assert f"at character {at}" in said and words in said and "\n" not in said


def test_empty_and_endless_rules_are_refused() -> None:
    for rule, words in (("", "empty"), ("  ", "empty"), ("lost < 3 and " * 2000, "characters")):
        with pytest.raises(BadInput, match=words):
            Gate.parse(rule)


def test_a_group_that_is_not_there_is_an_error_not_a_pass() -> None:
    with pytest.raises(BadInput, match="did you mean 'code'"):
        Gate.parse("group cod worse").check(DOCUMENT)


@given(st.text(max_size=60) | st.lists(st.sampled_from(
    ["no", "any", "every", "group", "code", "worse", "or", "and", "not", "(", ")", ".", "delta", "low", "<", "3", "overall", "is", "'math'"]
), max_size=12).map(" ".join))  # fmt: skip
def test_any_text_is_a_rule_or_bad_input(text) -> None:
    try:
        result = Gate.parse(text).check(DOCUMENT)
    except BadInput as error:
        assert "\n" not in str(error).replace(text, "")
    else:
        assert isinstance(result.passed, bool) and not math.isnan(len(result.reason))
