"""The pages as a user meets them: what they show, that the URL holds what is looked at, and that hostile text stays text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from app_pages import explain_one, failed_traced, open_page, serve_run, value, words, write_attribution
from report_pages import HOSTILE, Page, hostile_run

from mopd_diag.diagnostics import explained
from mopd_diag.runs.directory import RunDirectory, write_json, write_table
from mopd_diag.study.resolve import find_plan
from mopd_diag.study.run import claim


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    serve_run(folder)
    return folder


@pytest.fixture(scope="module")
def run(root) -> RunDirectory:
    return RunDirectory(root / "quickstart")


@pytest.fixture(scope="module")
def failed(run):
    return explained.failed_answers(run, explained.explanations(run))


def button(app, label):
    return next(b for b in app.button if b.label == label)


# -- overview ----------------------------------------------------------------------------------------------------------------


def test_overview_gives_the_three_answers_with_intervals(root, monkeypatch):
    app = open_page(root, "overview", monkeypatch)
    assert not app.exception
    row = app.dataframe[0].value.iloc[0]
    assert row["state"] == "✓ done"
    for column in ("from their teacher", "headroom recovered", "worst transfer"):
        assert "[" in row[column], column
    page = Page(words(app))
    assert [h for h in page.headings if h.endswith("?")] == [
        "Which teacher does the behaviour come from?", "What did the teachers cap?", "What did the domains do to one another?",
    ]  # fmt: skip
    assert "attribution?run=quickstart" in page.values("a", "href")
    assert value(app, "run") == "quickstart"


def test_an_empty_folder_says_what_to_run(tmp_path, monkeypatch):
    app = open_page(tmp_path, "overview", monkeypatch)
    assert not app.exception
    assert "No run here yet" in words(app)
    assert app.code[0].value.startswith("mopd-diag run quickstart")


@pytest.mark.parametrize("name", ["failures", "attribution"])
def test_a_page_without_a_run_says_what_to_run(tmp_path, monkeypatch, name):
    app = open_page(tmp_path, name, monkeypatch)
    assert not app.exception
    assert "No run here yet" in words(app)


def test_a_run_that_has_only_begun_is_shown_as_such(tmp_path, monkeypatch):
    study = find_plan("quickstart", budget="smoke")
    claim(tmp_path / "begun", study, study.identity())
    app = open_page(tmp_path, "overview", monkeypatch)
    assert not app.exception
    assert app.dataframe[0].value.iloc[0]["state"] == "‖ stopped"
    assert "No diagnosis" in words(app)
    for name in ("failures", "attribution"):
        page = open_page(tmp_path, name, monkeypatch, run="begun")
        assert not page.exception
        assert "yet" in words(page)


@pytest.mark.parametrize("name", ["../outside", "nowhere", "<script>alert(1)</script>"])
@pytest.mark.parametrize("page", ["overview", "failures", "attribution"])
def test_a_link_to_no_run_says_so_and_shows_no_other(root, monkeypatch, name, page):
    app = open_page(root, page, monkeypatch, run=name)
    assert not app.exception
    assert "<script>" not in words(app)
    assert "no run of that name" in words(app)
    assert "Token by token" not in words(app)


# -- failures ------------------------------------------------------------------------------------------------------------------


def test_every_failed_answer_is_listed_once(root, failed, monkeypatch):
    app = open_page(root, "failures", monkeypatch)
    assert not app.exception
    listed = next(d.value for d in app.dataframe if "explained" in d.value.columns)
    assert len(listed) == len(failed)
    assert set(zip(listed["item"], listed["sample"], strict=True)) == set(
        zip(failed["item_id"], failed["sample"], strict=True)
    )


def test_filters_come_from_the_url_and_go_into_it(root, failed, monkeypatch):
    kind = failed["failure"].iloc[0]
    app = open_page(root, "failures", monkeypatch, **{"class": kind})
    listed = next(d.value for d in app.dataframe if "explained" in d.value.columns)
    assert len(listed) == (failed["failure"] == kind).sum()
    domain = failed["domain"].iloc[0]
    app.selectbox(key="domain-box").set_value(domain).run()
    assert value(app, "domain") == domain
    listed = next(d.value for d in app.dataframe if "explained" in d.value.columns)
    assert len(listed) == ((failed["failure"] == kind) & (failed["domain"] == domain)).sum()


def test_next_and_previous_move_along_the_list_by_key(root, failed, monkeypatch):
    app = open_page(root, "failures", monkeypatch)
    assert (button(app, "Next").proto.shortcut.lower(), button(app, "Previous").proto.shortcut.lower()) == ("n", "p")
    assert button(app, "Previous").disabled
    button(app, "Next").click().run()
    assert (value(app, "item"), value(app, "sample")) == (failed.iloc[1]["item_id"], str(failed.iloc[1]["sample"]))
    assert f"{failed.iloc[1]['item_id']}" in Page(words(app)).text
    button(app, "Previous").click().run()
    assert value(app, "item") == failed.iloc[0]["item_id"]


def test_a_deep_link_opens_the_explained_failure_at_its_pivot(root, run, monkeypatch):
    row = failed_traced(run)
    app = open_page(root, "failures", monkeypatch, item=row["item_id"], sample=row["sample"])
    assert not app.exception
    text = Page(words(app)).text
    assert "Token 2:" in text, "the pivot is the token that is open"
    assert "Pivot: token 2" in text
    assert "50% [40, 60]" in text, "the counterfactual with its interval"
    assert "the right one" in text
    assert "<b>likely</b> 70.0%" in text, "the likeliest tokens, as text"
    assert "<b>likely" not in words(app), "escaped"


def test_an_explanation_of_an_earlier_version_is_shown_without_what_it_lacks(tmp_path, monkeypatch):
    run = serve_run(tmp_path)
    document = {k: v for k, v in explain_one(run).items() if k not in ("share_own", "everywhere")}
    write_json(explained.explanation_path(run, document["item_id"], document["sample"]), document)
    app = open_page(tmp_path, "failures", monkeypatch, item=document["item_id"], sample=document["sample"])
    assert "Pivot: token 2" in Page(words(app)).text


def test_another_token_of_the_link_is_opened(root, run, monkeypatch):
    row = failed_traced(run)
    app = open_page(root, "failures", monkeypatch, item=row["item_id"], sample=row["sample"], token=0)
    assert "Token 1:" in Page(words(app)).text


def test_an_answer_that_was_not_explained_names_the_command(root, failed, monkeypatch):
    other = failed.iloc[-1]
    app = open_page(root, "failures", monkeypatch, item=other["item_id"], sample=other["sample"])
    assert not app.exception
    assert any(c.value.startswith("mopd-diag explain quickstart '") for c in app.code)


def test_a_link_to_an_answer_that_did_not_fail_says_so(root, monkeypatch):
    app = open_page(root, "failures", monkeypatch, item="no such item", sample=0)
    assert not app.exception
    assert "is not among these" in words(app)


def test_filters_that_leave_nothing_can_be_cleared(root, failed, monkeypatch):
    absent = next(c for c in ("conflict", "pre-existing", "leaked", "undetermined") if c not in set(failed["failure"]))
    app = open_page(root, "failures", monkeypatch, **{"class": absent})
    assert "No failed answer fits" in words(app)
    button(app, "Clear the filters").click().run()
    assert value(app, "class") is None


def test_answers_stand_side_by_side_with_what_differs(root, failed, monkeypatch):
    row = failed[failed["failure"] == "lost"].iloc[0]
    app = open_page(root, "failures", monkeypatch, item=row["item_id"], sample=row["sample"])
    page = Page(words(app))
    assert {"del", "ins"} & set(page.tags)


# -- attribution --------------------------------------------------------------------------------------------------------------


def test_attribution_shows_baselines_control_and_abstentions(root, monkeypatch):
    app = open_page(root, "attribution", monkeypatch)
    assert not app.exception
    text = Page(words(app)).text
    for said in ("to the domain's own teacher", "never saw a teacher", "were not decided", "too little evidence"):
        assert said in text
    assert value(app, "run") == "quickstart"


def test_a_domain_of_the_url_is_shown(root, monkeypatch):
    first = words(open_page(root, "attribution", monkeypatch, domain="addition"))
    other = words(open_page(root, "attribution", monkeypatch, domain="stack"))
    assert first != other


# -- hostile text ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    run = hostile_run(folder / "run")
    write_attribution(run)
    explain_one(run)
    return folder


@pytest.mark.parametrize("name", ["overview", "failures", "attribution"])
def test_hostile_text_is_text(hostile, monkeypatch, name):
    app = open_page(hostile, name, monkeypatch)
    assert not app.exception
    page = Page(words(app))
    assert not {"script", "img"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert "\u202e" not in words(app)
    assert "\x07" not in words(app)
    told = [str(getattr(m, "value", "")) for m in (*app.markdown, *app.caption, *app.title, *app.subheader)]
    assert not any(HOSTILE[:20] in t for t in told), "Markdown never gets a model's words"
    assert "Something went wrong" not in words(app)


def test_a_page_that_breaks_says_so_without_a_traceback(root, monkeypatch):
    monkeypatch.setattr("app.data.ServedFolder.view", lambda *_: 1 / 0)
    app = open_page(root, "attribution", monkeypatch)
    assert not app.exception
    assert "Something went wrong" in words(app)
    assert "ZeroDivision" not in words(app)


# -- other folders --------------------------------------------------------------------------------------------------------------


def test_every_page_of_an_evaluation_says_what_it_is(tmp_path, monkeypatch):
    run = serve_run(tmp_path, "evaluated")
    for kept in ("traces", "attribution", "explain", "ledger.parquet", "findings.json", "geometry.json"):
        path = run.path / kept
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    manifest = json.loads((run.path / "manifest.json").read_text())
    write_json(run.path / "manifest.json", manifest | {"kind": "evaluation"})
    for name in ("failures", "attribution", "interference", "cost"):
        app = open_page(tmp_path, name, monkeypatch, run="evaluated")
        assert not app.exception
        assert "An evaluation, not a run" in words(app), name
        assert not any("mopd-diag run" in c.value for c in app.code), name
    for name in ("overview", "caps"):
        app = open_page(tmp_path, name, monkeypatch, run="evaluated")
        assert not app.exception
        assert "Something went wrong" not in words(app)
        assert "mopd-diag run" not in words(app)


def test_a_study_without_results_names_the_command(root, tmp_path, monkeypatch):
    serve_run(tmp_path, "paths/seed-0")
    write_json(tmp_path / "paths" / "study.json", {})
    app = open_page(tmp_path, "overview", monkeypatch)
    assert not app.exception
    assert "mopd-diag report paths writes them" in words(app)


def test_calibrated_confidences_stand_beside_what_such_a_confidence_was_worth(tmp_path, monkeypatch):
    run = serve_run(tmp_path)
    frame = pd.read_parquet(run.attribution_path("student"))
    write_table(run.attribution_path("student"), frame.assign(calibration="calibrated"))
    domain = frame["domain"].iloc[0]
    app = open_page(tmp_path, "attribution", monkeypatch, domain=domain)
    assert not app.exception
    text = Page(words(app)).text
    assert "Casts of known provenance, 79,582 items" in text
    undecided = (frame["drawn"] & (frame["domain"] == domain) & (frame["label"] == "abstain")).sum()
    assert f"{undecided} undecided, which state none" in text
