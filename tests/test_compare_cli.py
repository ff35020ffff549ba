"""`mopd-diag compare` as a user meets it: paths of any kind, gates and exit codes, reasons of lost items, one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from cast_models import save_models
from synthetic_run import write_synthetic_run

import mopd_diag
from mopd_diag.cli import main
from mopd_diag.diagnostics.failures import KEY
from mopd_diag.runs.directory import RunDirectory, write_table
from mopd_diag.study import lost as lost_items
from mopd_diag.study.compare import Source


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def document(capsys, *arguments: object) -> dict:
    code, out, _ = call(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def write(path: Path, correct: dict[str, str], **more: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, "correct": c, **more}) + "\n" for i, c in correct.items()))
    return path


@pytest.fixture
def nightly(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories of files, one group a file; `code` loses 12 of 60 items."""
    rng = np.random.default_rng(0)
    for name, drop in (("mon", 0), ("tue", 12)):
        write(tmp_path / name / "math.jsonl", {f"m{i}": "1" if i < 40 else "0" for i in range(60)})
        write(tmp_path / name / "code.jsonl", {f"c{i}": "1" if drop <= i < 50 else "0" for i in rng.permutation(60)})
    return tmp_path / "mon", tmp_path / "tue"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run in which the student and the routed teacher give the same wrong answer to four items that a rival solves."""
    made = write_synthetic_run(tmp_path_factory.mktemp("runs") / "quick", items=25, samples=2)
    domain, teacher = next(iter(made.manifest()["route"].items()))
    records = made.records("student")
    planted = records.loc[records["domain"] == domain, "item_id"].unique()[:4]
    for model, score in (("student", 0.0), (teacher, 0.0), ("rival-mixed-rl", 1.0)):
        records = made.records(model)
        rows = records["item_id"].isin(planted)
        records.loc[rows, "score"] = score
        records.loc[rows, "response"] = "the same slip" if score == 0 else "right"
        write_table(made.record_path(model), records)
    return made


# -- gates and outputs ----------------------------------------------------------------------------------------------------


def test_a_gate_that_fails_is_exit_code_1_with_the_reason(capsys, nightly) -> None:
    code, out, err = call(capsys, *nightly, "--gate", "overall.delta.low > -0.2 and no group worse", "--json")
    assert code == 1 and "gate failed" in err and "code is worse" in err
    found = json.loads(out)
    assert found["gate"]["passed"] is False and found["groups"]["code"]["verdict"] == "worse"
    assert found["groups"]["code"]["lost"] == len(found["lost_items"]) == 12 and found["joined"] == 120
    code, out, err = call(capsys, *nightly, "--gate", "group math.lost == 0 and lost <= 12")
    assert code == 0 and "gate holds" in err and "code" in out


def test_a_broken_gate_is_exit_code_2_before_anything_is_read(capsys) -> None:
    code, out, err = call(capsys, "nowhere", "nowhere", "--gate", "no group wors")
    assert code == 2 and not out and "at character 10" in err and err.count("\n") == 1


def test_reports_are_written(capsys, nightly, tmp_path) -> None:
    code, out, err = call(capsys, *nightly, "--out", tmp_path / "report", "--gate", "no group worse", "--json")
    assert code == 1 and json.loads(out)["joined"] == 120 and "gate failed" in err
    written = {p.name for p in (tmp_path / "report").iterdir()}
    assert {"comparison.html", "comparison.md", "comparison.json", "junit.xml"} <= written
    assert "code" in (tmp_path / "report" / "comparison.md").read_text()
    assert json.loads((tmp_path / "report" / "comparison.json").read_text())["overall"]["verdict"] == "worse"
    ElementTree.parse(tmp_path / "report" / "junit.xml")


def test_reruns_and_margin_reach_the_statistics(capsys, nightly) -> None:
    found = document(capsys, nightly[0], nightly[1], "--rerun", nightly[0], "--margin", "0.5", "--seed", "3")
    assert found["overall"]["noise_floor"]["value"] == 0 and found["overall"]["verdict"] == "unchanged"
    assert found["settings"]["margin"] == 0.5 and found["settings"]["seed"] == 3


# -- trends ---------------------------------------------------------------------------------------------------------------


def test_a_trend_over_checkpoints_and_a_gate_between_its_ends(capsys, tmp_path) -> None:
    scores = ["1" * 30, "1" * 25 + "0" * 5, "1" * 10 + "0" * 20]
    steps = [write(tmp_path / f"step-{k}.jsonl", {f"q{i}": s[i] for i in range(30)}) for k, s in enumerate(scores)]
    code, out, err = call(capsys, *steps, "--trend", "--json", "--gate", "overall not worse")
    assert code == 1 and "overall is worse" in err
    found = json.loads(out)
    assert found["before"] == "step-0" and found["after"] == "step-2" and found["overall"]["lost"] == 20
    assert found["trend"]["checkpoints"] == ["step-0", "step-1", "step-2"]
    assert [x["lost_at"] for x in found["trend"]["lost"]] == [1] * 5 + [2] * 15
    code, out, _ = call(capsys, *steps, "--trend")
    assert code == 0 and "20 of 30 items lost for good, most at step-2 (15)" in out
    code, _, err = call(capsys, *steps)
    assert code == 2 and "--trend" in err


# -- why items were lost --------------------------------------------------------------------------------------------------


def test_without_models_the_command_that_would_find_out_is_given(capsys, nightly) -> None:
    note = document(capsys, *nightly)["why"]["note"]
    assert f"mopd-diag compare {nightly[0]} {nightly[1]} --cast cast.toml" in note and "log the samples" in note
    _, out, _ = call(capsys, *nightly)
    assert "--cast cast.toml" in " ".join(out.split()) and "lost 12" in out


def test_lost_items_of_a_run_directory_name_the_teacher(capsys, run) -> None:
    found = document(capsys, f"{run.path}:rival-mixed-rl", run.path)
    assert found["before"].endswith(":rival-mixed-rl") and found["verified"]
    causes = found["lost_by_cause"]
    assert sum(c["items"] for c in causes) == found["overall"]["lost"] > 0
    domain, teacher = next(iter(run.manifest()["route"].items()))
    inherited = [c for c in causes if c["failure"] == "inherited" and c["group"] == domain]
    assert [(c["teacher"], c["items"]) for c in inherited] == [(teacher, 4)]
    assert any(f"4 inherited from {teacher}" in s for s in found["why"]["sentences"])
    assert "answers alone" in found["why"]["note"]
    by_path = document(capsys, run.record_path("rival-mixed-rl"), run.record_path("student"))
    assert by_path["lost_by_cause"] == causes


def test_attribution_in_the_run_makes_failures_the_students_own(capsys, run) -> None:
    student = run.records("student")
    own = student[KEY].assign(label="own", share_own=0.9)
    write_table(run.attribution_path("student"), own)
    try:
        found = document(capsys, f"{run.path}:rival-mixed-rl", run.path)
    finally:
        run.attribution_path("student").unlink()
    kinds = {c["failure"] for c in found["lost_by_cause"]}
    assert "own" in kinds and "lost" not in kinds and "attribution" in found["why"]["note"]
    assert any(" own" in s for s in found["why"]["sentences"])


def test_a_teachers_own_failures_come_from_nobody(capsys, run) -> None:
    found = document(capsys, run.path, f"{run.path}:teacher-math")
    assert "is a teacher" in found["why"]["note"] and not any(x["failure"] for x in found["lost_items"])


def test_a_cast_attributes_the_lost_answers(capsys, tmp_path, monkeypatch) -> None:
    save_models(tmp_path)
    items = [
        {"id": f"q{i}", "prompt": f"M{10 + i}+{90 - i}:", "domain": "math" if i % 2 else "code"} for i in range(12)
    ]
    for name, score in (("before", 1), ("after", 0)):
        lines = [json.dumps({**x, "score": score if i < 8 else 1, "response": f"{i}+7=1"}) for i, x in enumerate(items)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "cast.toml").write_text(
        f'[base]\npath = "{tmp_path}/base"\n[student]\npath = "{tmp_path}/math"\n'
        f'[teachers.math]\npath = "{tmp_path}/math"\ndomains = ["math"]\n'
        f'[teachers.code]\npath = "{tmp_path}/code"\ndomains = ["code"]\n'
    )
    arguments = (tmp_path / "before.jsonl", tmp_path / "after.jsonl", "--cast", tmp_path / "cast.toml")
    found = document(capsys, *arguments)
    kinds = {(c["group"], c["failure"], c["teacher"]) for c in found["lost_by_cause"]}
    assert ("math", "inherited", "teacher-math") in kinds and ("code", "leaked", "teacher-math") in kinds
    assert "8 lost answers" in found["why"]["note"] and all(x["reason"] for x in found["lost_items"])
    monkeypatch.setattr(lost_items, "AFFORDABLE", 1.0)
    found = document(capsys, *arguments)
    assert "FLOPs" in found["why"]["note"] and "mopd-diag attribute" in found["why"]["note"]


def test_records_without_answers_cannot_be_attributed(capsys, nightly, tmp_path) -> None:
    save_models(tmp_path)
    cast = tmp_path / "cast.toml"
    text = '[base]\npath = "{0}/base"\n[student]\npath = "{0}/math"\n[teachers.math]\npath = "{0}/math"\ndomains = ["math"]\n'
    cast.write_text(text.format(tmp_path))
    assert "log the samples" in document(capsys, *nightly, "--cast", cast)["why"]["note"]


# -- what is given --------------------------------------------------------------------------------------------------------


def test_a_side_is_a_path_or_a_model_of_a_run(run, tmp_path) -> None:
    one, two = Source.parse(run.path), Source.parse(f"{run.path}:base")
    assert (one.model, one.run) == ("student", run.path) and (two.model, two.run, two.path) == (
        "base",
        run.path,
        run.path,
    )
    odd = tmp_path / "a:b.jsonl"
    odd.write_text("")
    assert Source.parse(odd).path == odd and Source.parse(odd).run is None
    assert Source.parse(run.record_path("base")).model == "base"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("nowhere", "mon", "no file"),
        ("mon", "mon:base", "no run directory"),
        ("RUN:bse", "RUN", "did you mean 'base'"),
        ("RUN", "mon", "no item in common"),
    ],
)
def test_mistakes_are_one_line(capsys, nightly, run, before, after, words) -> None:
    sides = [s.replace("RUN", str(run.path)).replace("mon", str(nightly[0])) for s in (before, after)]
    code, out, err = call(capsys, *sides)
    assert code == 2 and not out and words in err and err.count("\n") == 1


def test_frames_and_paths_mix(nightly) -> None:
    frame = pd.DataFrame({"item_id": [f"m{i}" for i in range(60)], "domain": "math", "score": 1.0})
    found = mopd_diag.compare(nightly[0], frame)
    assert found.groups["math"].won == 20 and len(found.joined.only_before) == 60
    assert "AFTER.jsonl" in mopd_diag.compare(frame, frame.assign(score=0.0)).why_note
