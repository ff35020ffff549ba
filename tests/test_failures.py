"""Failures by teacher, on a table of answers small enough to be read."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from mopd_diag.diagnostics.failures import failures, findings
from mopd_diag.errors import BadInput

ROUTE = {"sum": "teacher-math", "stack": "teacher-code"}


def records(**answers: list[str]) -> pd.DataFrame:
    """`model=[four samples to sum-1, four to sum-2, …]`; the right answer is `ok`."""
    rows = []
    for model, items in answers.items():
        for i, said in enumerate(items, 1):
            for sample, response in enumerate(said.split()):
                cell = {"model": model.replace("_", "-"), "domain": "sum", "item_id": f"sum-{i}", "sample": sample}
                rows.append(cell | {"response": response, "score": float(response == "ok")})
    return pd.DataFrame(rows)


CAST = records(
    student=["7 ok ok ok"] * 6,
    base=["ok 8 8 ok", "ok ok 1 ok", "7 7 ok 7", "1 2 3 4", "1 2 3 4", "7 7 7 7"],
    teacher_math=["7 7 ok 7", "ok ok ok ok", "5 5 ok 5", "1 2 3 4", "3 3 3 7", "7 7 7 7"],
    teacher_code=["7 7 7 7"] * 6,
)


def classes(found: pd.DataFrame) -> dict[str, str]:
    return dict(zip(found["item_id"], found["failure"], strict=True))


def test_each_class_by_its_definition() -> None:
    found = failures(CAST, ROUTE)
    assert classes(found) == {
        "sum-1": "inherited",  # the routed teacher's most common answer
        "sum-2": "lost",  # it solves the item
        "sum-3": "pre-existing",  # the base's most common answer
        "sum-4": "undetermined",  # another teacher says so, but nothing names it
        "sum-5": "inherited",  # one sample of an item that the routed teacher does not solve
        "sum-6": "pre-existing",  # base and teacher alike: the teacher added nothing
    }
    assert list(found["teacher"]) == ["teacher-math", "teacher-math", "", "", "teacher-math", ""]
    assert found["strength"].between(0, 1).all()
    assert found.loc[found["item_id"] == "sum-4", "reason"].item() != ""


def test_attribution_decides_between_candidates() -> None:
    attributed = pd.DataFrame({"item_id": ["sum-2", "sum-4", "sum-6"], "domain": "sum", "sample": 0, "share_own": 0.1,
                               "label": ["teacher:code", "teacher:code", "teacher:math"]})  # fmt: skip
    found = failures(CAST, ROUTE, attributed=attributed)
    assert classes(found)["sum-4"] == "leaked"
    assert classes(found)["sum-2"] == "leaked", "a teacher that is not the routed one, and attribution names it"
    assert classes(found)["sum-6"] == "inherited", "attribution tells the teacher from the base"
    assert found.set_index("item_id").loc["sum-4", "teacher"] == "teacher-code"
    assert found["share_own"].notna().sum() == 3


def test_only_the_student_and_only_its_failures() -> None:
    found = failures(CAST, ROUTE)
    assert set(found["sample"]) == {0}
    assert failures(CAST[CAST["score"] == 1], ROUTE).empty
    assert findings(failures(CAST[CAST["score"] == 1], ROUTE)) == []


def test_missing_models_are_no_evidence() -> None:
    alone = CAST[CAST["model"].isin(["student", "base"])]
    found = failures(alone, ROUTE)
    assert set(found["failure"]) == {"pre-existing", "undetermined"}
    assert found["same_teacher-math"].isna().all()
    assert "no record of a routed teacher" in set(found["reason"])
    assert set(failures(CAST, {})["failure"]) == {"pre-existing", "undetermined"}


def test_spaces_do_not_make_another_answer() -> None:
    spaced = CAST.assign(response=CAST["response"].where(CAST["model"] != "teacher-math", CAST["response"] + " "))
    assert classes(failures(spaced, ROUTE)) == classes(failures(CAST, ROUTE))


PIVOTS = pd.DataFrame({"item_id": ["sum-1", "sum-2", "sum-3", "sum-5"], "domain": "sum", "sample": 0, "pivot": [2.0, 1.0, -1.0, 0.0],
                       "conflict": ["teacher-code", "teacher-code", "", ""], "conflict_strength": [0.6, 0.5, 0.0, 0.0]})  # fmt: skip


def test_a_fight_at_the_pivot_takes_from_lost_and_undetermined_only() -> None:
    found = failures(CAST, ROUTE, pivots=PIVOTS).set_index("item_id")
    assert found.loc["sum-2", ["failure", "teacher", "strength"]].to_list() == ["conflict", "teacher-code", 0.5]
    assert found.loc["sum-1", "failure"] == "inherited", "the routed teacher itself gives that answer"
    assert found["pivot"].to_dict() == pytest.approx(
        {"sum-1": 2, "sum-2": 1, "sum-3": -1, "sum-4": float("nan"), "sum-5": 0, "sum-6": float("nan")}, nan_ok=True
    )
    unsolved = PIVOTS.assign(item_id=["sum-1", "sum-4", "sum-3", "sum-5"])
    assert classes(failures(CAST, ROUTE, pivots=unsolved))["sum-4"] == "conflict"


def test_findings_say_in_how_many_a_conflict_was_looked_for() -> None:
    found = failures(CAST, ROUTE, pivots=PIVOTS)
    finding = findings(found)[0]
    assert finding.evidence["counts"]["conflict"] == 1
    assert "conflict was looked for in 4 of them" in finding.evidence["note"]
    assert finding.evidence["cases"]["conflict"][0]["pivot"] == 1
    assert "pivot" not in finding.evidence["cases"]["pre-existing"][-1], "no pivot was sure or looked for"
    assert "conflict" not in findings(failures(CAST, ROUTE))[0].evidence["counts"], "not looked for is not none"
    json.dumps(finding.to_dict(), allow_nan=False)


def test_one_item_with_many_failed_answers_decides_no_verdict() -> None:
    """Estimate and verdict weigh items alike: five items are lost once each, one is inherited four times."""
    cast = records(student=["7 7 7 7", *["7 ok ok ok"] * 3, "7 ok ok ok", "7 ok ok ok"], base=["ok ok ok ok"] * 6,
                   teacher_math=["7 7 7 7", *["ok ok ok ok"] * 5])  # fmt: skip
    finding = findings(failures(pd.concat([cast, cast.assign(item_id="more-" + cast["item_id"])]), ROUTE))[0]
    assert finding.evidence["counts"]["inherited"] == 8
    assert finding.verdict == "lost"
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(10 / 12)


def test_findings_count_and_point_to_cases() -> None:
    found = {f.subject: f for f in findings(failures(CAST, ROUTE))}
    assert set(found) == {"student/sum", "student/overall"}
    finding = found["student/sum"]
    assert finding.kind == "failure"
    assert finding.verdict == "inherited", "the first class in order among equally common ones"
    assert finding.evidence["counts"] == {"inherited": 2, "leaked": 0, "pre-existing": 2, "lost": 1, "undetermined": 1}
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(2 / 6)
    assert finding.estimate.low < 2 / 6 < finding.estimate.high
    assert (finding.evidence["item_id"], finding.evidence["sample"]) == ("sum-1", 0), (
        "the clearest case: three of four samples"
    )
    assert finding.evidence["agreement"]["teacher-code"] == 1
    assert finding.evidence["agreement"]["teacher-math"] == pytest.approx(2 / 6)
    json.dumps([f.to_dict() for f in found.values()], allow_nan=False)


def test_few_failures_have_no_verdict() -> None:
    few = CAST[CAST["item_id"].isin(["sum-1", "sum-2"])]
    finding = findings(failures(few, ROUTE))[0]
    assert finding.verdict == "undetermined"
    assert "only 2 items" in finding.evidence["note"]


def test_records_without_scores_are_refused() -> None:
    with pytest.raises(BadInput, match="score"):
        failures(CAST.drop(columns="score"), ROUTE)
