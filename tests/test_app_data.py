"""The served folder: nothing outside it is read, tables are filtered where they lie, and a run in progress is told by its files."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from app_pages import serve_run

from app import data, live
from app.data import ServedFolder
from mopd_diag.cli import main
from mopd_diag.errors import BadInput, RunDirectoryError
from mopd_diag.runs.directory import RunDirectory, write_json, write_table
from mopd_diag.study import app as starter
from mopd_diag.study.resolve import find_plan
from mopd_diag.study.run import claim


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    serve_run(folder, "nightly/monday")
    return folder


# -- names ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["..", "../other", "nightly/../../other", "/etc", "nightly/\x00", "..\\other", "~/../.."]
)
def test_a_name_that_leads_out_is_refused(root, name):
    (root.parent / "other").mkdir(exist_ok=True)
    with pytest.raises((BadInput, RunDirectoryError)):
        ServedFolder(root).open(name)


def test_links_out_of_the_folder_are_not_followed(root, tmp_path):
    serve_run(tmp_path, "secret", items=8)
    (tmp_path / "served").mkdir()
    served = ServedFolder(tmp_path / "served")
    (served.root / "link").symlink_to(tmp_path / "secret")
    assert served.run_names() == []
    with pytest.raises(BadInput, match="outside the served folder"):
        served.open("link")


def test_a_table_that_is_a_link_out_is_refused(tmp_path):
    run = serve_run(tmp_path / "served", items=8)
    secret = tmp_path / "secret.parquet"
    run.record_path("student").rename(secret)
    run.record_path("student").symlink_to(secret)
    with pytest.raises(BadInput, match="link out of the served folder"):
        ServedFolder(tmp_path / "served").query(run, "SELECT count(*) FROM records")


def test_runs_are_found_below_the_folder_and_as_the_folder(root):
    assert ServedFolder(root).run_names() == ["nightly/monday"]
    assert ServedFolder(root / "nightly" / "monday").run_names() == ["."]


# -- tables -----------------------------------------------------------------------------------------------------------------


def test_a_query_gives_the_rows_that_a_whole_read_gives(root):
    folder, run = ServedFolder(root), RunDirectory(root / "nightly/monday")
    trace = run.trace("student")
    item = trace["item_id"].iloc[0]
    found = folder.query(
        run, "SELECT position, token FROM traces WHERE model = 'student' AND item_id = ? ORDER BY position", [item]
    )
    expected = trace[trace["item_id"] == item].sort_values("position")[["position", "token"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_a_filter_reaches_the_file(tmp_path, monkeypatch):
    """DuckDB reads only the row groups that can hold the item: far fewer rows than the trace has."""
    run = RunDirectory(tmp_path)
    rows = 300_000
    frame = pd.DataFrame(
        {
            "item_id": [f"i{n // 30:06d}" for n in range(rows)],
            "sample": 0,
            "position": [n % 30 for n in range(rows)],
            "logp": 0.5,
        }
    )
    write_table(run.trace_path("student"), frame)
    write_table(run.trace_path("rival"), frame)
    write_json(tmp_path / "manifest.json", {"schema": 1})
    plan = ServedFolder(tmp_path).query(
        run, "EXPLAIN ANALYZE SELECT * FROM traces WHERE model = 'student' AND item_id = 'i000007'"
    )
    told = "\n".join(plan.astype(str).to_numpy().ravel())
    assert told.count("rival.parquet") == 0, "the other model's file is not opened"
    assert "item_id='i000007'" in told.replace(" ", "").replace("\n", ""), "the filter is part of the scan"


def test_values_never_become_sql(root):
    folder, run = ServedFolder(root), RunDirectory(root / "nightly/monday")
    hostile = "x' OR '1'='1'; DROP VIEW records; --"
    assert folder.query(run, "SELECT * FROM records WHERE item_id = ?", [hostile]).empty


def test_a_query_reads_no_other_file(root, tmp_path):
    (tmp_path / "other.csv").write_text("a\n1\n")
    folder, run = ServedFolder(root), RunDirectory(root / "nightly/monday")
    with pytest.raises(data.duckdb.PermissionException):
        folder.query(run, f"SELECT * FROM read_csv('{tmp_path / 'other.csv'}'), records")


def test_a_model_with_a_quote_in_its_name_is_only_a_name(tmp_path):
    run = serve_run(tmp_path, items=8)
    write_table(run.trace_path("o'brien; --"), run.trace("student").head(3))
    found = ServedFolder(tmp_path).query(run, "SELECT DISTINCT model FROM traces WHERE model = ?", ["o'brien; --"])
    assert list(found["model"]) == ["o'brien; --"]


def test_a_run_without_traces_says_so(tmp_path):
    write_json(tmp_path / "run" / "manifest.json", {"schema": 1})
    with pytest.raises(RunDirectoryError, match="no traces yet"):
        ServedFolder(tmp_path).query(RunDirectory(tmp_path / "run"), "SELECT * FROM traces")


def test_changed_files_are_read_anew(tmp_path):
    folder, run = ServedFolder(tmp_path), serve_run(tmp_path, items=8)
    count = "SELECT count(*) AS n FROM records WHERE model = 'student'"
    before = int(folder.query(run, count)["n"].iloc[0])
    write_table(run.record_path("student"), run.records("student").head(5))
    assert before > int(folder.query(run, count)["n"].iloc[0]) == 5


# -- runs in progress ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path) -> Path:
    """A run of the quickstart with its base trained and a teacher at step 7, and nobody working on it."""
    study = find_plan("quickstart", budget="smoke")
    path = tmp_path / "begun"
    claim(path, study, study.identity())
    write_json(path / "done" / "train-base.json", {"ledger": {}})
    state = {"__metadata__": {"state": json.dumps({"step": 7})}}
    header = json.dumps(state).encode()
    (path / "saved").mkdir()
    (path / "saved" / "teacher-math.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (path / ".lock").touch()
    return path


def test_a_run_that_nobody_works_on_is_stopped(begun):
    card = live.card_of(begun, "begun")
    assert (card.state, card.done, card.working) == ("stopped", 1, ())
    assert card.total > 20


@pytest.mark.skipif(not Path("/proc/locks").is_file(), reason="this system does not list its locks")
def test_a_locked_run_is_running_and_shows_what_can_be_in_work(begun):
    with (begun / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        card = live.card_of(begun, "begun")
    assert card.state == "running"
    assert "train-teacher-math, step 7" in card.working
    assert "evaluate-base" in card.working
    assert not any(w.startswith(("train-student", "trace-student")) for w in card.working), "they wait for the teachers"


def test_half_a_manifest_is_a_card_that_says_so(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema": 1,')
    card = live.card_of(tmp_path, "broken")
    assert card.state == "broken"
    assert "not JSON" in card.note


# -- the verb -------------------------------------------------------------------------------------------------------------------


def test_the_server_is_bound_to_loopback_and_sends_nothing(tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(
        starter.os, "execve", lambda path, command, environment: told.update(command=command, env=environment)
    )
    monkeypatch.setenv("STREAMLIT_SERVER_ADDRESS", "0.0.0.0")
    hostile = tmp_path / "--server.address=0.0.0.0 $(touch x)"
    hostile.mkdir()
    starter.serve(hostile, 8599)
    assert {"--server.address=127.0.0.1", "--server.port=8599", "--browser.gatherUsageStats=false"} <= set(
        told["command"]
    )
    assert not any("0.0.0.0" in word for word in told["command"])
    assert told["env"][starter.FOLDER] == str(hostile)
    assert not any(name.startswith("STREAMLIT_") for name in told["env"])


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["app", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_streamlit_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(starter, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'mopd-diag\[app\]'"):
        starter.check(tmp_path)


def test_no_page_can_load_a_model():
    """All modules of the app, imported in a fresh process: torch and transformers stay out."""
    names = "state data live parts strip failure figures main views.overview views.failures views.attribution"
    names += " views.caps views.interference views.regression views.cost"
    code = f"import importlib, sys\nfor n in {names.split()!r}: importlib.import_module('app.' + n)\n"
    code += "print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"
