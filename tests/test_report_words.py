"""Numbers, sentences, ledger sums and evidence of the report, each on its own."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from synthetic_findings import CONTROL, NAMES, TAUGHT, synthetic_findings
from synthetic_run import synthetic_ledger, synthetic_manifest

from mopd_diag.reporting import evidence, markdown, text, words
from mopd_diag.reporting.look import Cast
from mopd_diag.reporting.paths import critical_path, model_share, parents_of, path_cost
from mopd_diag.reporting.reading import Reading, reason_of
from mopd_diag.types import Estimate, Finding

CAST = Cast.of(synthetic_manifest(0))


# -- numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.share(Estimate(0.973, 0.951, 0.984)), "97% [95, 98]"),
        (text.points(Estimate(-0.212, -0.26, -0.158)), "−21 points [−26, −16]"),
        (text.points(Estimate(0.01, -0.03, 0.05)), "+1 point [−3, +5]"),
        (text.points(Estimate(-0.001, -0.03, 0.03)), "0 points [−3, +3]"),
        (text.ratio(Estimate(1.0, 0.96, 1.04)), "1.00 [0.96, 1.04]"),
        (text.share(Estimate.undefined("no items")), "unknown"),
        (text.points(Estimate.undefined("no items")), "unknown"),
        (text.share(Estimate(0.5, math.nan, math.nan)), "50% (no interval)"),
        (text.estimate(Estimate(0.1312, 0.1, 0.2, unit="nats")), "0.131 nats [0.100, 0.200]"),
        (text.estimate(Estimate(-0.2, -0.3, -0.1, unit="difference")), "−20 points [−30, −10]"),
        (text.estimate(None), "–"),
        (text.count(3_252_000), "3.25 M"), (text.count(4.1e12), "4.1 T"), (text.count(64_000), "64 k"), (text.count(812), "812"),
        (text.duration(401), "6 min 41 s"), (text.duration(24), "24 s"), (text.duration(7500), "2 h 05 min"),
        (text.duration(0.24), "0.2 s"), (text.duration(0.01), "< 0.1 s"),
        (text.listed(["a", "b", "c"]), "a, b and c"),
    ],
)  # fmt: skip
def test_number_formats(shown, expected):
    assert shown == expected


def test_visible_text_hides_nothing():
    assert (
        text.visible("a\n\t\x1b\x7f\u202e\u200b\ufeff\u2028") == "a↵⇥‹U+001B›‹U+007F›‹U+202E›‹U+200B›‹U+FEFF›‹U+2028›"
    )
    assert text.visible("\u0301x") == "◌\u0301x"
    assert text.visible("a b", spaces=True) == "a␣b"
    assert text.visible("héllo שלום 中文 😀") == "héllo שלום 中文 😀"
    assert text.visible("\ud800") == "‹U+D800›"
    assert text.basic("😀") == "‹U+1F600›"


@pytest.mark.parametrize("hostile", ["a`b", "``", "`", "x|y", "", "a\nb"])
def test_code_spans_hold_any_text(hostile):
    span = markdown.code(hostile)
    assert "\n" not in span
    assert "|" not in span.replace("\\|", "")
    if "`" in hostile:
        fence = span[: len(span) - len(span.lstrip("`"))]
        assert fence not in span[len(fence) : -len(fence)].strip()


# -- the three answers ----------------------------------------------------------------------------------------------------


def _with(*, excess: bool = True, **changes: Estimate | None) -> Reading:
    """The synthetic findings with other estimates, by id with `_` for `-`, or without the comparison with the control."""
    findings = []
    for f in synthetic_findings():
        key = f.id.replace("-", "_")
        value = changes.get(key, f.estimate)
        evidence = {k: v for k, v in f.evidence.items() if excess or k != "excess"}
        findings.append(Finding(f.id, f.kind, f.subject, f.verdict, f.severity, value, evidence))
    return Reading.of(findings, NAMES)


def test_attribution_is_never_told_without_the_control():
    answer = words.provenance_answer(_with(), CAST)
    assert answer.figure == "59% [56, 62]"
    assert f"control {CONTROL} never saw a teacher" in answer.sentence
    assert "53% [50, 56]" in answer.sentence


@pytest.mark.parametrize(
    ("control", "verdict"),
    [
        (Estimate(0.58, 0.55, 0.61), "The two intervals overlap, so closeness says nothing about origin here."),
        (Estimate(0.40, 0.37, 0.43), "Only the 19 points between them speak for teaching"),
        (Estimate(0.70, 0.67, 0.73), "That is 11 points more than the student"),
        (Estimate.undefined("too few"), "Only what the student has beyond that can come from teaching."),
    ],
)
def test_what_the_control_allows_to_say(control, verdict):
    assert verdict in words.provenance_answer(_with(excess=False, attribution_rival_mixed_rl=control), CAST).sentence


@pytest.mark.parametrize(
    ("verdict", "excess", "said"),
    [
        (
            "inherited",
            Estimate(2.1, 1.7, 2.6),
            "2.10 [1.70, 2.60] times as much of its shift unexplained as the student: beyond likeness",
        ),
        ("undetermined", Estimate(1.2, 1.0, 1.4), "too little to tell teaching from likeness"),
        ("undetermined", Estimate.undefined("needs 8 items"), "The control cannot be compared: needs 8 items."),
        ("own", Estimate(1.2, 1.0, 1.4), "No listed teacher explains most of it."),
    ],
)
def test_the_verdict_against_the_control_decides(verdict, excess, said):
    findings = [f for f in synthetic_findings() if f.id != "attribution-student"]
    compared = {"excess": {CONTROL: excess.to_dict()}}
    overall = Finding(
        "attribution-student", "attribution", "student/overall", verdict, "info", Estimate(0.6, 0.5, 0.7), compared
    )
    answer = words.provenance_answer(Reading.of([*findings, overall], NAMES), CAST)
    assert said in answer.caveat
    assert "Teaching is told from likeness on stack." in answer.detail


def test_without_a_control_likeness_is_not_origin():
    reading = Reading.of([f for f in synthetic_findings() if CONTROL not in f.subject], NAMES)
    assert "read this as likeness, not as origin" in words.provenance_answer(reading, CAST).sentence


def test_without_an_overall_share_the_range_over_domains_is_told():
    sentence = words.provenance_answer(_with(attribution_student=None), CAST).sentence
    assert "Between 48% [42, 54] (lookup) and 71% [65, 77] (stack)" in sentence


def test_caps_answer():
    answer = words.caps_answer(_with())
    assert answer.sentence == (
        "Recovery 0.94 [0.91, 0.98] of the headroom of 3 domains: 0 is the base, 1 the best teacher. The student stops at its "
        "teacher's level on addition and reversed, stays below it on stack and cannot be placed on lookup."
    )
    unknown = words.caps_answer(_with(cap_overall=Estimate.undefined("no domain has headroom")))
    assert unknown.figure == "unknown"
    assert "The mean recovery is unknown: no domain has headroom." in unknown.sentence


def test_interference_answer_counts_pairs_of_different_domains_only():
    answer = words.interference_answer(_with())
    assert answer.figure == "−38 points [−43, −33]"
    assert (
        "Of 12 pairs of different domains, training on one harmed the other in 8, helped it in 0, left it as it was in 2"
        in answer.sentence
    )
    assert (
        "student lost 1 point [−3, 5] (addition) and rival-sequential-rl lost 42 points [38, 46] (addition)"
        in answer.sentence
    )


def test_a_worst_pair_in_doubt_is_called_so():
    cell = Finding("t", "interference", "a->b", "undetermined", "info", Estimate(-0.06, -0.11, -0.02, unit="difference"),
                   {"trained_on": "a", "evaluated_on": "b", "p_adjusted": 0.08})  # fmt: skip
    reading = Reading.of([cell])
    assert (
        "At worst −6 points [−11, −2]: b after training on a alone, not surely a change."
        in words.interference_answer(reading).lead
    )
    assert "p = 0.08 after correction" in reason_of(cell)


def test_checkpoints_do_not_speak_for_a_path():
    step = Finding("f", "interference", "rival-x.1-a/forgetting", "forgets", "warning", Estimate(0.9, 0.8, 0.95, unit="difference"),
                   {"measure": "forgetting", "model": "rival-x.1-a", "domain": "a"})  # fmt: skip
    assert "rival-x" not in words.interference_answer(Reading.of([*synthetic_findings(), step])).sentence
    cast = Cast.of(
        {
            "models": {
                "rival-x.1-a": {"role": "checkpoint", "domains": ["a"]},
                "rival-x": {"role": "rival", "domains": ["b"]},
            }
        }
    )
    assert list(cast.roles) == ["rival-x"]
    assert cast.taught["rival-x"] == ("a", "b")


def test_open_questions_keep_their_reason():
    reading = _with(cap_stack=Estimate.undefined("only one item"))
    assert {f.id for f in reading.unknown} >= {"cap-stack", "cap-lookup", "attribution-abstain"}
    assert all(
        f.verdict == "undetermined" or f.estimate is None or not f.estimate.defined or "abstain" in f.id
        for f in reading.unknown
    )


# -- the ledger -----------------------------------------------------------------------------------------------------------


def test_a_student_pays_for_its_teachers_once_and_not_for_the_shared_base():
    ledger = synthetic_ledger().set_index("stage", drop=False)
    cost = path_cost(synthetic_ledger(), "student")
    assert set(cost.stages) == {"student", *(f"teacher-{t}" for t in TAUGHT)}
    assert cost.counts["flops"] == pytest.approx(ledger.loc[list(cost.stages), "flops"].sum())
    assert path_cost(synthetic_ledger(), "base").counts["flops"] == 0
    assert path_cost(synthetic_ledger(), CONTROL).counts["flops"] == ledger.loc[CONTROL, "flops"]


def test_critical_path_waits_for_the_slowest_teacher():
    line, seconds = critical_path(synthetic_ledger(), "student")
    assert line == ["base", "teacher-style", "student"]
    assert seconds == 24 + 63 + 58
    assert critical_path(synthetic_ledger())[0][-1] == "rival-sequential-rl"


def test_a_ledger_that_runs_in_circles_ends():
    ledger = pd.DataFrame({"stage": ["a", "b"], "parents": ["b", "a"], "seconds": [1.0, 2.0], "flops": [1.0, 1.0]})
    assert set(path_cost(ledger, "a").stages) == {"a", "b"}
    assert critical_path(ledger, "a")[1] == 3.0
    assert math.isnan(model_share(ledger))


@pytest.mark.parametrize(
    "written", ["a,b", "a, b", '["a", "b"]', ["a", "b"], ("a", "b"), pd.Series(["a", "b"]).to_numpy()]
)
def test_parents_in_every_form(written):
    assert parents_of(written) == ["a", "b"]
    assert parents_of(None) == parents_of(math.nan) == parents_of("") == []


# -- evidence -------------------------------------------------------------------------------------------------------------


def _tiny() -> tuple[pd.DataFrame, pd.DataFrame]:
    trace = pd.DataFrame({
        "item_id": ["a", "a", "b", "c"], "sample": 0, "position": [1, 0, 0, 0], "token": ["y", "x", "z", "w"],
        "label": ["own", "teacher:math", "several", "own"], "confidence": [0.9, 0.4, 0.2, 0.8],
        "logp_student": [-0.1, -0.2, -0.3, -0.4], "kl_math": 0.1, "share_math": 0.6, "share_own": 0.4,
    })  # fmt: skip
    records = pd.DataFrame({
        "model": "student", "domain": "addition", "item_id": ["a", "b", "c"], "sample": 0, "prompt": "p", "response": "xy",
        "score": [0.0, 0.0, 1.0],
    })  # fmt: skip
    return trace, records


def test_only_failed_answers_are_failures_and_the_sure_ones_come_first():
    found = evidence.failures(*_tiny(), CAST)
    assert [(f.item_id, f.label) for f in found] == [("a", "own"), ("b", "several")]
    assert [t.shown for t in found[0].tokens] == ["x", "y"]
    assert found[0].tokens[0].label == "teacher-math"
    assert found[0].tokens[0].kl == {"teacher-math": 0.1}
    assert found[0].tokens[0].share == {"teacher-math": 0.6, "own": 0.4}


def test_a_finding_puts_its_answer_first_and_marks_the_pivot():
    finding = Finding(
        "f", "failure", "student/addition", "lost", "warning", None, {"item_id": "b", "sample": 0, "pivot": 0}
    )
    found = evidence.failures(*_tiny(), CAST, Reading.of([finding]).cases)
    assert [f.item_id for f in found] == ["b", "a"]
    assert found[0].case is not None
    assert found[0].case.words == "lost"
    assert [t.pivot for t in found[0].tokens] == [True]


def test_a_long_answer_is_shown_around_its_pivot():
    rows = pd.DataFrame({"position": range(1000), "token": "x", "label": "own", "confidence": 0.5, "share_own": 1.0})
    tokens = evidence.window(evidence.tokens_of(rows, CAST, pivot=700), 100)
    assert len(tokens) == 100
    assert tokens[0].position < 700 < tokens[-1].position
