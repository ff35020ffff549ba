"""The pages Regression, Caps, Interference and Cost, and what they read: choices, uploads with their checks, stored comparisons."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from app_pages import open_page, serve_run, value, words
from synthetic_comparison import synthetic_comparison

from app import changed, sources, stored, uploads
from app.data import ServedFolder
from app.uploads import Upload
from app.views import caps, interference
from mopd_diag.diagnostics.gate import Gate
from mopd_diag.errors import BadInput
from mopd_diag.records.read import read_records
from mopd_diag.reporting.comparison import write_comparison
from mopd_diag.reporting.schedule import as_if_unlimited
from mopd_diag.runs.directory import RunDirectory

LOGS = Path(__file__).parent / "fixtures" / "records" / "lm_eval"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    serve_run(folder, "friendly", items=24)
    friendly = synthetic_comparison()
    write_comparison(friendly, folder / "release", Gate.parse("no group worse").check(friendly.to_dict()))
    (folder / "logs").symlink_to(LOGS.parent, target_is_directory=True)  # leads out of the folder
    return folder


@pytest.fixture(scope="module")
def logs() -> dict[str, list[Upload]]:
    return {s: [Upload(p.name, p.read_bytes()) for p in sorted((LOGS / s).glob("*"))] for s in ("before", "after")}


# -- uploads ----------------------------------------------------------------------------------------------------------------------


def test_an_uploaded_log_is_what_the_same_folder_is(logs):
    mine, theirs = uploads.read_upload(logs["before"], "before"), read_records(LOGS / "before")
    pd.testing.assert_frame_equal(mine.frame, theirs.frame)
    assert mine.name == "before"
    assert mine.warnings == theirs.warnings


def _zip(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples.json", b"0" * size)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.pickle", b"\x80\x04", "of no supported kind"),
        ("answers.parquet", b"<script>", "is no Parquet file"),
        ("answers.parquet", b"PAR1 and then nothing", "broken Parquet file"),
        ("answers.jsonl", b"PAR1", "is a Parquet file"),
        ("answers.jsonl", _zip(10), "is a zip file"),
        ("log.eval", b"{}", "is no zip file"),
        ("log.eval", b"PK\x03\x04 and then nothing", "broken zip file"),
        ("..", b"{}", "cannot be used"),
        ("../.ssh", b"{}", "cannot be used"),
        ("a\nb.jsonl", b"{}", "cannot be used"),
        ("answers.jsonl", b"", "is empty"),
        ("answers.jsonl", b"\x00\x01\x02", "neither text, nor Parquet"),
    ],
)
def test_what_cannot_be_records_is_refused_in_one_line(name, content, said):
    with pytest.raises(BadInput, match=said) as refused:
        uploads.read_upload([Upload(name, content)], "before")
    assert "\n" not in str(refused.value)
    assert "/tmp" not in str(refused.value), "where it lay while it was read is nobody's business"


def test_sizes_are_limited_also_when_unpacked(monkeypatch):
    with pytest.raises(BadInput, match="201 MB uploaded, expected at most 200"):
        uploads.checked([Upload("a.jsonl", bytes(201 << 20))])
    monkeypatch.setattr(uploads, "UNPACKED_MB", 1)
    with pytest.raises(BadInput, match="2 MB unpacked, expected at most 1"):
        uploads.checked([Upload("log.eval", _zip(2 << 20))])
    frame = io.BytesIO()
    pd.DataFrame({"item_id": np.random.default_rng(0).integers(0, 1 << 60, 1 << 18)}).to_parquet(frame)
    with pytest.raises(BadInput, match="2 MB unpacked, expected at most 1"):
        uploads.checked([Upload("answers.parquet", frame.getvalue())])


def test_a_name_is_taken_without_its_folders_and_only_once():
    line = b'{"item_id": "a", "score": 1}\n'
    assert uploads.checked([Upload("..\\..\\before.jsonl", line)])[0].name == "before.jsonl"
    with pytest.raises(BadInput, match="uploaded twice"):
        uploads.checked([Upload("x/a.jsonl", line), Upload("a.jsonl", line)])


# -- choices ----------------------------------------------------------------------------------------------------------------------


def test_models_and_loose_files_are_offered_and_links_out_are_not(tmp_path):
    serve_run(tmp_path, "run", items=4)
    (tmp_path / "nightly").mkdir()
    (tmp_path / "nightly" / "before.jsonl").write_text('{"item_id": "a", "score": 1}\n')
    (tmp_path / "logs").symlink_to(LOGS)
    offered = sources.choices(ServedFolder(tmp_path))
    assert offered["run:student"] == "student · run"
    assert "nightly/before.jsonl" in offered
    assert not [c for c in offered if c.startswith("logs")]


@pytest.mark.parametrize(
    "choice", ["../x", "/etc/passwd", "friendly:../../../../etc/passwd", "logs/lm_eval/before", "friendly:nobody"]
)
def test_a_choice_outside_the_folder_is_refused(root, choice):
    with pytest.raises(BadInput, match="served folder"):
        sources.picked(ServedFolder(root), choice)


# -- the page ---------------------------------------------------------------------------------------------------------------------


def test_two_models_are_compared_and_the_gate_is_judged(root, monkeypatch):
    app = open_page(root, "regression", monkeypatch, before="friendly:student", after="friendly:base")
    said = words(app)
    assert "▼</span> Worse overall" in said
    assert "✗ Gate failed" in said
    app.text_area(key="rule-box").set_value("overall.lost < 1000").run()
    assert "✓ Gate passed" in words(app)
    assert value(app, "rule") == "overall.lost < 1000"
    app.text_area(key="rule-box").set_value("no <b>group</b>").run()
    assert "✗ The rule cannot be read" in words(app)
    assert "<b>group" not in words(app)


def test_a_link_opens_an_item_with_both_answers(root, monkeypatch):
    query = {"before": "friendly:base", "after": "friendly:student", "change": "won"}
    before, after = (sources.picked(ServedFolder(root), query[side]) for side in ("before", "after"))
    flips = sources.compared(before, after).flips
    won = flips[flips["change"] == "won"].iloc[0]
    app = open_page(root, "regression", monkeypatch, **query, flip=f"{won['group']} / {won['item_id']}")
    assert words(app).count("class='pane'") == 3, "asked, before and after"
    assert ">asked</h3>" in words(app)
    assert value(app, "change") == "won"


def test_three_checkpoints_are_followed(root, monkeypatch):
    then = json.dumps(["friendly:rival-average"])
    app = open_page(root, "regression", monkeypatch, before="friendly:base", after="friendly:student", then=then)
    assert "Checkpoints in order" in words(app)
    assert "lost for good" in words(app)


def test_nothing_chosen_says_what_to_do(root, monkeypatch):
    assert "Choose two record sets" in words(open_page(root, "regression", monkeypatch))


def test_filters_are_and_ed_and_text_is_no_pattern():
    flips = synthetic_comparison().flips.assign(cause="")
    assert len(changed.filtered(flips, "code", "lost", "", "")) == 40
    assert len(changed.filtered(flips, "code", "won", "", "")) == 2
    assert len(changed.filtered(flips, "", "", "", "[code] Add 0 and 0.")) == 1
    assert changed.filtered(flips, "", "", "", "[code].*").empty


# -- stored comparisons -------------------------------------------------------------------------------------------------------------


def test_a_stored_comparison_gives_back_its_groups(root):
    found, made = stored.groups_of(stored.read(root / "release" / "comparison.json")), synthetic_comparison()
    assert list(found) == [*made.groups, "overall"]
    for name, group in made.groups.items():
        assert found[name].row() == pytest.approx(group.row() | {"noise_floor": float("nan")}, nan_ok=True)


def test_a_stored_comparison_is_shown_and_judged_anew(root, monkeypatch):
    app = open_page(root, "regression", monkeypatch, stored="release", rule="group 'math' is better")
    assert "Worse in code, undetermined overall" in words(app)
    assert "✓ Gate passed" in words(app)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"groups": {}, "overall": {"verdict": "fine"}}'])
def test_what_is_no_comparison_is_refused(tmp_path, text):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(BadInput, match="is no comparison"):
        stored.read(tmp_path / "comparison.json")


# -- caps, interference, cost -------------------------------------------------------------------------------------------------------


def test_a_bar_opens_to_items_that_are_what_it_says(root):
    folder, teachers = ServedFolder(root), ["teacher-math", "teacher-code", "teacher-agent", "teacher-style"]
    run = folder.open("friendly")
    items = caps.items_of(folder, run, "stack", "teacher-code", teachers).set_index("item_id")
    records = run.records().query("domain == 'stack'")
    solved = records.groupby(["model", "item_id"])["score"].mean().unstack(0) > 0.5
    assert set(items.index) == set(solved.index)
    lost = solved.index[~solved["student"] & solved["teacher-code"]]
    assert set(items.index[items["part"] == "lost"]) == set(lost)
    assert set(items.index[items["part"] == "surpassing"]) == set(
        solved.index[solved["student"] & ~solved[teachers].any(axis=1)]
    )


def test_an_item_shows_the_answers_of_student_teacher_and_base(root, monkeypatch):
    item = RunDirectory(root / "friendly").records("student").query("domain == 'stack'")["item_id"].iloc[0]
    said = words(open_page(root, "caps", monkeypatch, run="friendly", domain="stack", item=item))
    for model in ("student", "teacher-code", "base"):
        assert f"{model}: " in said
    assert "of 4 samples right" in said


def test_token_shares_sum_to_one_and_are_those_of_the_records(root):
    folder = ServedFolder(root)
    run = folder.open("friendly")
    shares = interference.shares_of(folder, run, folder.view(run))
    records = run.records("student")
    tokens = records.groupby("domain")["n_tokens"].sum() / records["n_tokens"].sum()
    assert {d: row["tokens"] for d, row in shares.items()} == pytest.approx(tokens.to_dict())
    assert sum(row["prompts"] for row in shares.values()) == pytest.approx(1)


def test_with_a_team_for_each_stage_only_parents_are_waited_for():
    ledger = pd.DataFrame({
        "stage": ["base", "a", "b", "student", "evaluate:b"], "parents": ["", "base", "base", "base,a,b", "b"],
        "seconds": [2.0, 5.0, 3.0, 4.0, 1.0], "started": [0.0, 2.0, 7.0, 10.0, 14.0],
    })  # fmt: skip
    assert as_if_unlimited(ledger)["started"].tolist() == [0.0, 2.0, 2.0, 7.0, 5.0]


@pytest.mark.parametrize("schedule", ["ran", "teams"])
def test_cost_tells_the_critical_path(root, monkeypatch, schedule):
    said = words(open_page(root, "cost", monkeypatch, run="friendly", schedule=schedule))
    assert "longest chain to the student" in said
    assert "base → teacher-style → student" in said
    assert "Something went wrong" not in said
