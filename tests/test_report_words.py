"""Numbers, sentences, ledger sums and charts of the report, each on its own."""

from __future__ import annotations

import itertools
import json
import math

import pandas as pd
import pytest
from synthetic_run import ACCURACY, CONTROL, NAMES, TAUGHT, _findings, _interval, _ledger, _manifest

from mopd_diag.reporting import charts, charts_cost, evidence, markdown, text, words
from mopd_diag.reporting.look import CSS, DARK, LABELS, LIGHT, Cast
from mopd_diag.reporting.paths import critical_path, model_share, parents_of, path_cost
from mopd_diag.reporting.reading import Reading, reason_of
from mopd_diag.reporting.svg import static_svg
from mopd_diag.types import Estimate, Finding

CAST = Cast.of(_manifest(0))


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
    for f in _findings():
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
    findings = [f for f in _findings() if f.id != "attribution-student"]
    compared = {"excess": {CONTROL: excess.to_dict()}}
    overall = Finding(
        "attribution-student", "attribution", "student/overall", verdict, "info", Estimate(0.6, 0.5, 0.7), compared
    )
    answer = words.provenance_answer(Reading.of([*findings, overall], NAMES), CAST)
    assert said in answer.caveat
    assert "Teaching is told from likeness on stack." in answer.detail


def test_without_a_control_likeness_is_not_origin():
    reading = Reading.of([f for f in _findings() if CONTROL not in f.subject], NAMES)
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
    assert "student 1 point [−3, 5] (addition) and rival-sequential-rl 42 points [38, 46] (addition)" in answer.sentence


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
    assert "rival-x" not in words.interference_answer(Reading.of([*_findings(), step])).sentence
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
    ledger = _ledger().set_index("stage", drop=False)
    cost = path_cost(_ledger(), "student")
    assert set(cost.stages) == {"student", *(f"teacher-{t}" for t in TAUGHT)}
    assert cost.counts["flops"] == pytest.approx(ledger.loc[list(cost.stages), "flops"].sum())
    assert path_cost(_ledger(), "base").counts["flops"] == 0
    assert path_cost(_ledger(), CONTROL).counts["flops"] == ledger.loc[CONTROL, "flops"]


def test_critical_path_waits_for_the_slowest_teacher():
    line, seconds = critical_path(_ledger(), "student")
    assert line == ["base", "teacher-style", "student"]
    assert seconds == 24 + 63 + 58
    assert critical_path(_ledger())[0][-1] == "rival-sequential-rl"


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


# -- the look -------------------------------------------------------------------------------------------------------------


def test_labels_in_every_spelling_are_one_member():
    assert {CAST.member(x) for x in ("teacher:math", "teacher-math", "math")} == {"teacher-math"}
    assert CAST.member("several:math,style") == "several"
    assert CAST.member("own") == "own"


def test_a_teacher_may_be_called_like_a_label():
    cast = Cast({"teacher-abstain": "teacher", "student": "student"}, {}, ())
    assert cast.member("abstain") == "abstain"
    assert cast.member("teacher:abstain") == "teacher-abstain"
    assert cast.column("abstain") == "teacher-abstain"
    assert LIGHT.key(cast, "abstain") != LIGHT.key(cast, "teacher:abstain")


def test_marks_are_short_and_unique():
    names = ["teacher-math", "teacher-maths", "teacher-ma", "teacher-code"]
    cast = Cast(dict.fromkeys(names, "teacher"), {}, ())
    marks = [cast.mark(n) for n in (*names, *LABELS)]
    assert len(set(marks)) == len(marks)


def _linear(colour: str) -> list[float]:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def _contrast(a: str, b: str) -> float:
    lights = sorted(sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), _linear(x), strict=True)) for x in (a, b))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


DEFICIENCIES = {  # Machado, Oliveira & Fernandes 2009, severity 1
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


def _lab(colour: str, matrix) -> tuple[float, float, float]:
    rgb = _linear(colour)
    r, g, b = (min(1.0, max(0.0, sum(m * c for m, c in zip(row, rgb, strict=True)))) for row in matrix)
    xyz = (
        0.4124 * r + 0.3576 * g + 0.1805 * b,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        0.0193 * r + 0.1192 * g + 0.9505 * b,
    )
    f = [
        v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116
        for v in (x / w for x, w in zip(xyz, (0.9505, 1, 1.089), strict=True))
    ]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", DEFICIENCIES)
def test_colours_of_six_teachers_are_told_apart(look, eyes):
    labs = [_lab(c, DEFICIENCIES[eyes]) for c in look.teachers[:6]]
    assert min(math.dist(a, b) for a, b in itertools.combinations(labs, 2)) > 14


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out_from_the_card(look):
    assert _contrast(look.ink, look.card) > 12
    assert _contrast(look.muted, look.card) > 4.5
    assert all(
        _contrast(c, look.card) > 3
        for c in (*look.teachers, *look.rivals, look.base, look.student, look.own, look.gain, look.loss)
    )


# -- charts ---------------------------------------------------------------------------------------------------------------


def _drawn() -> dict[str, object]:
    accuracy = {m: {d: _interval(v[i], 0.03, "share") for i, d in enumerate(NAMES)} for m, v in ACCURACY.items()}
    accuracy["student"]["overall"] = Estimate.undefined("x")
    points = [charts_cost.CostPoint(m, c, _interval(0.9, 0.02, "share")) for m, c in (("base", 0.0), ("student", 4e12))]
    curves = {"student": pd.DataFrame({"step": range(20), "reward": [i / 20 for i in range(20)]})}
    cells = [
        ("addition", "stack", _interval(-0.2, 0.05, "difference"), True),
        ("stack", "addition", Estimate.undefined("no items"), False),
    ]
    return {
        "accuracy": charts.accuracy_chart(accuracy, CAST, LIGHT),
        "recovery": charts.recovery_chart(
            {"addition": _interval(0.9, 0.1, "ratio"), "lookup": Estimate.undefined("no headroom")}
        ),
        "transfer": charts.transfer_chart(cells),
        "provenance": charts.provenance_chart({"student": {"stack": {"teacher:code": 0.7, "own": 0.3}}}, CAST),
        "cost": charts_cost.cost_chart(points, CAST),
        "timeline": charts_cost.timeline_chart(_ledger(), ["base"], CAST),
        "curves": charts_cost.curves_chart(curves, CAST),
    }


def test_charts_are_valid_and_hold_no_nan():
    for name, chart in _drawn().items():
        document = json.dumps(chart.to_dict(), allow_nan=False)  # Altair validates against the Vega-Lite schema here
        assert "about" in document or name == "curves"


def test_unknown_values_are_words_in_charts():
    rows = json.dumps(_drawn()["recovery"].to_dict())
    assert "recovery on lookup: unknown: no headroom" in rows
    assert "evaluated on addition: unknown: no items" in json.dumps(_drawn()["transfer"].to_dict())


def test_many_domains_and_few_specialists_make_a_tall_matrix():
    cells = [(f"t{i}", f"d{k}", _interval(0.1, 0.05, "difference"), True) for i in range(4) for k in range(12)]
    encoding = charts.transfer_chart(cells).to_dict()["layer"][0]["encoding"]
    assert encoding["y"]["field"] == "evaluated on"
    assert encoding["x"]["field"] == "trained on"


def test_numbers_in_doubt_stand_in_brackets():
    cells = [
        ("a", "b", _interval(0.02, 0.05, "difference"), False),
        ("b", "a", _interval(0.2, 0.05, "difference"), True),
    ]
    document = json.dumps(charts.transfer_chart(cells).to_dict(), ensure_ascii=False)
    assert '"(+2)"' in document
    assert '"+20"' in document


def test_static_picture_follows_the_theme_and_escapes_names():
    hostile = '</svg><script>alert(1)</script>"\u202e'
    svg = static_svg(charts.recovery_chart({hostile: _interval(0.9, 0.1, "ratio")}, CSS), "test")
    assert "<script" not in svg
    assert "\u202e" not in svg
    assert 'stroke="var(--student)"' in svg
    assert "&lt;/svg&gt;" in svg
    assert "style=" not in svg


def test_pareto_front_leaves_out_what_is_beaten():
    made = {"a": (1.0, 0.5), "b": (2.0, 0.4), "c": (3.0, 0.9), "d": (3.0, 0.8), "e": (4.0, math.nan)}
    points = [charts_cost.CostPoint(m, c, Estimate(v, v, v)) for m, (c, v) in made.items()]
    assert [p.model for p in charts_cost.pareto(points)] == ["a", "c"]


def test_labels_of_close_points_do_not_overlap():
    seats = charts_cost._seats([100, 101, 102, 229, 230], gap=15, limit=230)
    ordered = sorted(seats)
    assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert max(seats) <= 230
    assert [sorted(seats).index(s) for s in seats] == [0, 1, 2, 3, 4]


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
