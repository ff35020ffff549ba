"""The look and the charts of the report: marks, colours, valid specifications, pictures that any name survives."""

from __future__ import annotations

import itertools
import json
import math

import pandas as pd
import pytest
from synthetic_findings import ACCURACY, NAMES, interval
from synthetic_run import synthetic_ledger, synthetic_manifest

from mopd_diag.reporting import charts, charts_cost
from mopd_diag.reporting.look import CSS, DARK, LABELS, LIGHT, Cast
from mopd_diag.reporting.svg import static_svg
from mopd_diag.types import Estimate

CAST = Cast.of(synthetic_manifest(0))


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
    accuracy = {m: {d: interval(v[i], 0.03, "share") for i, d in enumerate(NAMES)} for m, v in ACCURACY.items()}
    accuracy["student"]["overall"] = Estimate.undefined("x")
    points = [charts_cost.CostPoint(m, c, interval(0.9, 0.02, "share")) for m, c in (("base", 0.0), ("student", 4e12))]
    curves = {"student": pd.DataFrame({"step": range(20), "reward": [i / 20 for i in range(20)]})}
    cells = [
        ("addition", "stack", interval(-0.2, 0.05, "difference"), True),
        ("stack", "addition", Estimate.undefined("no items"), False),
    ]
    return {
        "accuracy": charts.accuracy_chart(accuracy, CAST, LIGHT),
        "recovery": charts.recovery_chart(
            {"addition": interval(0.9, 0.1, "ratio"), "lookup": Estimate.undefined("no headroom")}
        ),
        "transfer": charts.transfer_chart(cells),
        "provenance": charts.provenance_chart({"student": {"stack": {"teacher:code": 0.7, "own": 0.3}}}, CAST),
        "cost": charts_cost.cost_chart(points, CAST),
        "timeline": charts_cost.timeline_chart(synthetic_ledger(), ["base"], CAST),
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
    cells = [(f"t{i}", f"d{k}", interval(0.1, 0.05, "difference"), True) for i in range(4) for k in range(12)]
    encoding = charts.transfer_chart(cells).to_dict()["layer"][0]["encoding"]
    assert encoding["y"]["field"] == "evaluated on"
    assert encoding["x"]["field"] == "trained on"


def test_numbers_in_doubt_stand_in_brackets():
    cells = [
        ("a", "b", interval(0.02, 0.05, "difference"), False),
        ("b", "a", interval(0.2, 0.05, "difference"), True),
    ]
    document = json.dumps(charts.transfer_chart(cells).to_dict(), ensure_ascii=False)
    assert '"(+2)"' in document
    assert '"+20"' in document


def test_static_picture_follows_the_theme_and_escapes_names():
    hostile = '</svg><script>alert(1)</script>"\u202e'
    svg = static_svg(charts.recovery_chart({hostile: interval(0.9, 0.1, "ratio")}, CSS), "test")
    assert "<script" not in svg
    assert "\u202e" not in svg
    assert 'stroke="var(--student)"' in svg
    assert "&lt;/svg&gt;" in svg
    assert "style=" not in svg


@pytest.mark.parametrize(
    "name", ["😀" * 40, "constructor", "__proto__", "", " · ", "{{x}}", "a" * 3000, "]]>", "\\", "שלום", "\x07"]
)
def test_any_name_can_be_drawn(name):
    cell = (name, name, interval(0.1, 0.05, "difference"), True)
    cast = Cast(CAST.roles, CAST.taught, (name,))
    for chart in (
        charts.recovery_chart({name: interval(0.9, 0.1, "ratio")}, CSS),
        charts.transfer_chart([cell, (name, "b", *cell[2:])], CSS),
        charts.provenance_chart({"student": {name: {name: 0.5}}, name: {name: {"own": 0.5}}}, cast, CSS),
    ):
        assert "<svg" in static_svg(chart, "test")


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
