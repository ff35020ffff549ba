"""The page of a study: what it says of planted rivals, that terminal and page read one document, that it holds what it needs."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from app_pages import open_page
from report_pages import HOSTILE, Page, outside_code
from rich.console import Console
from synthetic_study import TRUTH, write_study
from typer.testing import CliRunner

from mopd_diag.cli import app
from mopd_diag.errors import RunDirectoryError
from mopd_diag.reporting.study_page import study_html, study_markdown, write_study_report
from mopd_diag.reporting.study_table import study_table
from mopd_diag.reporting.study_view import study_view
from mopd_diag.reporting.study_words import estimate_of, said
from mopd_diag.study.conclude import reported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "planted"
    write_study(out)
    reported(out)
    return out


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def sentences(document: dict[str, Any]) -> list[str]:
    return [" ".join([*answer.sentences, *answer.caveats]) for answer in said(document)]


# -- the document -------------------------------------------------------------------------------------------------------------


def test_the_planted_winner_is_found_and_the_reference_lost(document: dict[str, Any]) -> None:
    winner = document["winner"]
    assert winner["model"] == "rival-mixed-rl"
    lead = estimate_of(winner["leads"]["student"]["delta"])
    assert lead.low <= 0.15 <= lead.high and winner["leads"]["student"]["verdict"] == "ahead"
    minus = estimate_of(document["models"]["rival-mixed-rl"]["reference_minus_this"])
    assert minus.value == pytest.approx(-lead.value)
    won, _, _ = sentences(document)
    assert won.startswith("mixed-rl won, with") and "mopd, the reference, lost: it is" in won


def test_equal_rivals_are_level_and_a_lead_on_one_domain_is_named(document: dict[str, Any]) -> None:
    assert document["models"]["rival-seqkd"]["reference_against_this"]["verdict"] == "level"
    beaten = document["winner"]["beaten_on"]
    assert [(b["recipe"], b["domain"]) for b in beaten] == [("average", "lookup")]
    assert "Other paths are surely ahead of mixed-rl on lookup (average by 1" in sentences(document)[0]
    cells = {m: row["domains"] for m, row in document["models"].items()}
    assert cells["rival-average"]["stack"]["reference_minus_this"]["verdict"] == "ahead"
    assert cells["rival-average"]["lookup"]["reference_minus_this"]["verdict"] == "behind"
    assert cells["student"]["lookup"]["reference_minus_this"] is None


def test_costs_come_from_the_ledger(document: dict[str, Any]) -> None:
    rows = document["models"]
    assert rows["student"]["costs"]["flops"] == [10e12, 10e12]  # the cold start counts for nobody
    assert rows["student"]["costs"]["critical_seconds"] == [80.0, 80.0]  # the slower teacher, then the student
    assert rows["rival-average"]["costs"]["critical_seconds"] == [31.0, 31.0]
    told = {m: (row["matched"], round(row["cost_ratio"][0], 2)) for m, row in rows.items()}
    assert told == {
        "student": (None, 1.0), "rival-mixed-rl": (True, 1.02), "rival-seqkd": (False, 0.8), "rival-average": (None, 0.5),
    }  # fmt: skip
    assert document["pareto"]["flops"][-1] == "rival-mixed-rl"
    cost = sentences(document)[2]
    assert "within 5% of the reference's FLOPs in every seed: mixed-rl; not matched: seqkd (80%)" in cost
    assert "average takes 31 s" in cost


def test_worst_domains_are_told_over_seeds_and_in_each(document: dict[str, Any]) -> None:
    regret = document["models"]["rival-average"]["regret"]
    assert (regret["domain"], regret["verdict"], regret["reference"]) == ("stack", "behind", "rival-mixed-rl")
    assert regret["worst"]["value"] == pytest.approx(0.7, abs=0.05)
    assert regret["by_seed"] == pytest.approx([0.7, 0.7], abs=0.06)
    assert document["models"]["rival-average"]["forgetting"]["verdict"] == "forgets"


def test_what_was_not_tested_follows_from_the_plan(document: dict[str, Any], tmp_path: Path) -> None:
    told = {u["what"]: u["said"] for u in document["untested"]}
    assert "2 training seeds" in told["other seeds"] and "micro, with 2 domains" in told["other worlds"]
    assert "seqkd 80%" in told["these rivals at equal cost"] and "average 50%" in told["merges at equal cost"]
    assert "grpo 0.0003" in told["other learning rates"] and "recovery without headroom" not in told
    assert "nemotron-3-ultra" in told["other recipes"] and "mixed-rl" not in told["other recipes"]
    truth = TRUTH | {"teacher-agent": (0.4, 0.4), "student": (0.7, 0.4)}
    write_study(tmp_path, truth, items=30, seeds=[0], recipes=["mixed-rl"])
    other = {u["what"]: u["said"] for u in reported(tmp_path)[0]["untested"]}
    assert other["recovery without headroom"].startswith("lookup has no headroom")
    assert "One training seed" in other["other seeds"] and "merges at equal cost" not in other


def test_a_rival_that_the_data_cannot_place_is_undetermined_with_what_could_have_been_found(tmp_path: Path) -> None:
    write_study(tmp_path, TRUTH | {"rival-mixed-rl": (0.72, 0.72)}, items=12, seeds=[0], recipes=["mixed-rl"])
    document = reported(tmp_path)[0]
    _, apart, _ = sentences(document)
    assert "Undetermined, the data do not decide:" in apart and "with 80% power" in apart
    assert any("One training seed" in c for c in said(document)[0].caveats)


# -- the page -----------------------------------------------------------------------------------------------------------------


def test_page_markdown_and_terminal_say_the_same(folder: Path, document: dict[str, Any]) -> None:
    html, markdown = (folder / f"report.{kind}" for kind in ("html", "md"))
    page, console = Page(html.read_text()), Console(width=240, record=True, file=io.StringIO())
    console.print(study_table(document))
    terminal = " ".join(console.export_text().split())
    lines = " ".join(markdown.read_text().split()).replace("\\", "")
    for answer in said(document):
        for sentence in answer.sentences:
            assert sentence in page.text and sentence in terminal and sentence in lines, sentence
    for heading in ("The paths", "Domain by domain", "Worst domains: regret and forgetting", "What was not tested"):
        assert heading in page.headings and f"## {heading}" in markdown.read_text()
    assert page.open == []
    assert not [v for t, n, v in page.attributes if n in ("src", "href") and "//" in v]
    assert page.tags.count("svg") == 12 and page.headings.count("What was not tested") == 1


def test_seeds_are_linked_from_wherever_the_page_lies(folder: Path, document: dict[str, Any], tmp_path: Path) -> None:
    links = [v for v in Page((folder / "report.html").read_text()).values("a", "href") if not v.startswith("#")]
    assert links == ["seed-0/report.html", "seed-4/report.html"]
    elsewhere = write_study_report(folder, document, tmp_path / "page of mine.html")[0]
    links = [v for v in Page(elsewhere.read_text()).values("a", "href") if not v.startswith("#")]
    assert all((elsewhere.parent / link).resolve().is_file() for link in links) and len(links) == 2
    view = study_view(document)
    assert "its report is not there" in study_html(view) and "- seed 0" in study_markdown(view)


def test_hostile_names_are_only_text(document: dict[str, Any]) -> None:
    told = json.loads(json.dumps(document))
    told["study"]["summary"] = told["study"]["name"] = HOSTILE
    told["domains"] = [HOSTILE, "lookup"]
    for row in told["models"].values():
        row["domains"][HOSTILE] = row["domains"].pop("stack")
        row["regret"]["domain"] = HOSTILE
    told["winner"]["beaten_on"][0]["domain"] = HOSTILE
    view = study_view(told)
    source, markdown = study_html(view), study_markdown(view)
    page = Page(source)
    assert page.open == [] and page.tags.count("script") == 1 and "img" not in page.tags
    assert "alert(1)" not in page.scripts["script"]
    assert not any(c in source + markdown for c in ("\u202e", "\x07", "\u2028"))
    assert not re.search(r"(?<!\\)<", outside_code(markdown)) and not re.search(r"(?<!\\)\]\((?!seed-)", markdown)


def test_report_takes_a_study(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "x.html"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"html": str(tmp_path / "x.html"), "markdown": str(tmp_path / "x.md")}
    assert "Which path won?" in (tmp_path / "x.html").read_text()


def test_an_unfinished_study_is_one_line(tmp_path: Path) -> None:
    write_study(tmp_path, items=12, seeds=[0, 1], recipes=["mixed-rl"])
    (tmp_path / "seed-1" / "findings.json").unlink()
    with pytest.raises(RunDirectoryError, match="is not finished: seed 1 has no findings; repeat"):
        reported(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="is not JSON"):
        reported(tmp_path)


# -- the app ------------------------------------------------------------------------------------------------------------------


def test_the_app_lists_the_study_with_its_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = open_page(folder.parent, "overview", monkeypatch)
    assert not shown.exception
    (study,) = [e for e in shown.expander if e.label.startswith("Study planted: mixed-rl won, with")]
    frame = study.dataframe[0].value
    assert frame["recipe"].iloc[0] == "mixed-rl" and len(frame) == 4
    assert {"seed 0", "seed 4", "matched"} <= set(frame.columns)
