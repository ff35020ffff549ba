"""The reports of a comparison: complete, honest about what is unknown, valid for their readers, indifferent to hostile text."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt
from report_pages import HOSTILE, Page
from rich.console import Console
from synthetic_comparison import changed_scores, hostile_comparison, records, synthetic_comparison

from mopd_diag.diagnostics.comparison import Comparison
from mopd_diag.diagnostics.gate import Gate, GateResult
from mopd_diag.diagnostics.regression import compare
from mopd_diag.diagnostics.trend import trend
from mopd_diag.reporting import comparison as report
from mopd_diag.reporting.diff import LIMIT, side_by_side
from mopd_diag.reporting.flips import SHOWN

REFUSED = GateResult(HOSTILE, False, HOSTILE)
COMMENT = 65_536
"""Characters that GitHub takes in a comment."""


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return synthetic_comparison()


@pytest.fixture(scope="module")
def page(comparison) -> Page:
    return Page(report.html(comparison))


@pytest.fixture(scope="module")
def hostile() -> Comparison:
    return hostile_comparison()


@pytest.fixture(scope="module")
def hostile_page(hostile) -> str:
    return report.html(hostile, REFUSED)


def on_terminal(show, told) -> str:
    out = io.StringIO()
    show(told, Console(file=out, width=200))
    return out.getvalue()


# -- content ------------------------------------------------------------------------------------------------------------


def test_a_group_that_got_worse_is_named_first_everywhere(comparison, page):
    assert comparison.overall.verdict == "undetermined"
    words = "Worse in code, undetermined overall"
    assert page.headings[1] == words
    assert report.markdown(comparison).startswith(f"**▼ {words}: ")
    assert words in on_terminal(report.show_comparison, comparison)


def test_every_group_is_in_every_document_with_verdict_and_interval(comparison, page):
    terminal = on_terminal(report.show_comparison, comparison)
    for name, g in comparison.groups.items():
        interval = f"{100 * g.delta.value:+.1f} [{100 * g.delta.low:+.1f}, {100 * g.delta.high:+.1f}]"
        interval = interval.replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")
        for document in (page.text, report.markdown(comparison), terminal):
            assert re.search(rf"{name}\W+{g.verdict}\W+{re.escape(interval)}", document), (name, interval)


def test_the_teacher_behind_lost_items_is_named(comparison, page):
    said = comparison.lost_sentences()
    assert said[0] == "40 lost in code: 27 inherited from teacher-style, 13 own"
    for document in (page.text, report.markdown(comparison), on_terminal(report.show_comparison, comparison)):
        assert all(sentence in document for sentence in said)


def test_a_flip_shows_prompt_both_answers_and_what_changed(comparison, page):
    html = report.html(comparison)
    flip = re.search(
        r'<details class="flip" data-change="lost" data-group="code".*?</details>', html, re.DOTALL
    ).group()
    assert "[code] Add 3 and 4." in Page(html).text
    assert "given. The sum is <del>0</del>." in flip
    assert "given. The sum is <ins>13</ins>." in flip
    assert page.tags.count("details") >= 90


def test_verdicts_have_words_and_shapes_beside_colours(comparison):
    html = report.html(comparison)
    titles = re.findall(r"<title>([^<]+)</title>", html)
    assert any(
        re.match(r"code: −19\.0 points \[.*\] · ▼ worse · 60\.0% before, 41\.0% after, 200 items", t) for t in titles
    )
    forest = html[html.index('aria-label="Differences by group"') :]
    assert {"▼ worse", "▲ better", "? undetermined"} <= set(re.findall(r"[▼▲?●] \w+", forest))


def test_scores_without_texts_still_list_their_flips():
    bare = synthetic_comparison(texts=False, why=False, items=30)
    page = Page(report.html(bare))
    assert "code-000" in page.text
    assert "pre" not in page.tags
    assert "could not be verified" in page.text
    assert "Nobody looked" in page.text


def test_a_long_list_is_cut_and_says_so():
    scores = {"code": np.ones(700), "math": np.ones(30)}
    before, after = records("a", scores), records("b", {g: 0 * s for g, s in scores.items()})
    found = compare(before, after, replicates=200)
    page, comment = Page(report.html(found)), report.markdown(found)
    assert "Lost · 730" in page.text
    assert f"{SHOWN} of 730 are shown" in page.text
    groups = [v for t, n, v in page.attributes if n == "data-group"]
    assert len(groups) == SHOWN
    assert groups.count("math") == 30, "a small group is not crowded out"
    assert "730 lost items (50 shown)" in comment
    assert len(comment) < COMMENT


def test_an_unknown_difference_is_said_with_its_reason():
    found = compare(records("a", {"code": [1.0]}), records("b", {"code": [0.0]}), replicates=200)
    assert not found.overall.delta.defined
    for document in (Page(report.html(found)).text, report.markdown(found), report.junit(found)):
        assert "unknown" in document
        assert found.overall.delta.note in document.replace("\\", "")
        assert not re.search(r"\bnan\b", document, re.IGNORECASE)


def test_scores_that_are_no_shares_keep_their_own_scale():
    scores = {"judge": np.arange(40) % 9 + 1.0}
    found = compare(records("a", scores), records("b", {g: s - 0.5 for g, s in scores.items()}), replicates=200)
    text = Page(report.html(found)).text
    assert "−0.500 [" in text
    assert "points" not in text.split("Method")[0]


def test_several_samples_have_pass_at_k(comparison):
    before, after = changed_scores(40)
    half = {g: (s + before[g]) / 2 for g, s in after.items()}
    found = compare(records("a", before, samples=4), records("b", half, samples=4), replicates=200)
    assert "pass@k: at least one of k" in Page(report.html(found)).text
    assert "pass@k: at least" not in Page(report.html(comparison)).text


def test_items_on_one_side_only_are_listed():
    before = records("a", {"code": np.ones(30)})
    found = compare(before, replace(before, name="b", frame=before.frame.iloc[:25]), replicates=200)
    text = Page(report.html(found)).text
    assert "only before (a) · 5" in text
    assert "code / code-029" in text


# -- the diff -----------------------------------------------------------------------------------------------------------


def test_diff_gives_both_texts_back():
    before, after = "The sum\nof 3 & 4 is 12.", "The  sum\nof 3 & 5 is <b>12</b>."
    sides = side_by_side(before, after)
    for shown, source in ((sides.before, before), (sides.after, after)):
        words = "".join(Page(shown).words)
        assert re.sub(r"[\s␣]", "", words) == re.sub(r"\s", "", source)


def test_diff_of_long_texts_shows_where_they_part():
    shared = "word " * 4000
    sides = side_by_side(shared + "left", shared + "right")
    assert "<del>left</del>" in sides.before
    assert "characters alike" in sides.before
    assert len(sides.before) < LIMIT + 500
    assert "more characters" in side_by_side("a" * 9000, "b" * 9000).before


def test_diff_of_unrelated_answers_marks_nothing_and_says_so():
    sides = side_by_side("alpha beta gamma delta", "one two three four")
    assert "<del>" not in sides.before
    assert "too little" in sides.note


# -- gate and JUnit -----------------------------------------------------------------------------------------------------


def test_junit_has_one_case_a_group_and_fails_what_is_worse(comparison):
    root = ElementTree.fromstring(report.junit(comparison))
    suite = root.find("testsuite")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == [*comparison.groups, "all groups"]
    assert [name for name, case in cases.items() if case.find("failure") is not None] == ["code"]
    assert suite.get("tests") == root.get("tests") == "5"
    assert suite.get("failures") == root.get("failures") == "1"
    assert cases["code"].find("failure").get("message").startswith("worse: −19.0 points")
    assert "code-000" in cases["code"].find("failure").text
    for case in cases.values():
        assert case.get("classname") and float(case.get("time")) == 0


@pytest.mark.parametrize(("rule", "passed"), [("no group worse", False), ("overall.delta.low > -0.5", True)])
def test_the_gate_is_in_every_document(comparison, tmp_path, rule, passed):
    gate = Gate.parse(rule).check(comparison.to_dict())
    assert gate.passed is passed
    paths = report.write_comparison(comparison, tmp_path, gate)
    assert (
        set(paths)
        == {p.name for p in tmp_path.iterdir()}
        == {"comparison.html", "comparison.md", "comparison.json", "junit.xml"}
    )
    words = "Gate passed" if passed else "Gate failed"
    assert words in Page(paths["comparison.html"].read_text()).text
    assert words in paths["comparison.md"].read_text().split("| group |")[0], "before the table"
    assert json.loads(paths["comparison.json"].read_text())["gate"] == gate.to_dict()
    case = next(c for c in ElementTree.parse(paths["junit.xml"]).iter("testcase") if c.get("name") == "gate")
    assert (case.find("failure") is None) is passed


# -- hostile text -------------------------------------------------------------------------------------------------------


def test_hostile_text_stays_text_on_the_page(hostile_page):
    page = Page(hostile_page)
    assert page.tags.count("script") == 1
    assert not {"img", "link", "iframe", "form"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "style") or a[1].startswith("on")]
    assert "</script><script>window.hacked" in page.text, "it must be shown, not dropped"
    assert "‹U+001B›[31m" in page.text
    assert page.open == []


def test_no_document_has_hidden_or_reordering_characters(hostile, hostile_page):
    for document in (hostile_page, report.markdown(hostile, REFUSED), report.junit(hostile, REFUSED)):
        odd = {c for c in document if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c != "\n"}
        assert not odd, f"hidden or reordering characters survive: {odd!r}"


def test_hostile_text_breaks_neither_markdown_nor_xml(hostile):
    comment = report.markdown(hostile, REFUSED)
    tokens = MarkdownIt("commonmark").enable("table").parse(comment)
    tags = [
        t.content.strip() for token in tokens for t in (token, *(token.children or [])) if t.type.startswith("html")
    ]
    assert {re.sub(r"<summary>\d+ (lost|won) items?</summary>|<summary>Notes</summary>", "", t) for t in tags} == {
        "<details>", "</details>", "<sub>", "</sub>",
    }  # fmt: skip
    assert not {t.type for token in tokens for t in token.children or []} & {"link_open", "image"}
    assert len(comment) < COMMENT
    assert comment.count("<details>") == comment.count("</details>") > 0
    widths = []
    for line in comment.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line))
        widths.append(bars if line.startswith("|") else 0)
    for row, before in zip(widths[1:], widths, strict=False):
        assert not (row and before) or row == before, "a row has another number of cells than the one above"
    root = ElementTree.fromstring(report.junit(hostile, REFUSED))
    assert len(list(root.iter("testcase"))) == 6


def test_no_escape_sequence_reaches_the_terminal(hostile):
    shown = on_terminal(report.show_comparison, hostile)
    assert "‹U+202E›" in shown
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c != "\n"}


# -- trend --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def falling():
    """Code loses ten items a checkpoint for good; math flickers."""
    made = []
    for k in range(4):
        code, math = np.ones(60), np.zeros(60)
        code[: 10 * k] = 0
        math[:12] = k % 2
        made.append(records(f"step-{k}", {"code": code, "math": math}))
    return trend(made, replicates=200)


def test_a_trend_tells_where_items_were_lost_and_which_flicker(falling, tmp_path):
    paths = report.write_trend(falling, tmp_path)
    page, comment = Page(paths["trend.html"].read_text()), paths["trend.md"].read_text()
    for document in (page.text, comment, on_terminal(report.show_trend, falling)):
        assert "●○○○" in document.replace("| ", "")
        assert "step-1" in document
        assert all(sentence in document.replace("\\", "") for sentence in falling.summary())
    assert "30 items lost for good" in comment
    assert "○●○●" in page.text
    assert json.loads(paths["trend.json"].read_text())["checkpoints"] == [f"step-{k}" for k in range(4)]
    titles = re.findall(r"<title>([^<]+)</title>", paths["trend.html"].read_text())
    assert any(re.match(r"step-3, code: 50\.0% \[.*−50\.0 points since the first · ▼ worse", t) for t in titles)


def test_a_hostile_trend_stays_text():
    sets = [records(HOSTILE + str(k), {HOSTILE: np.arange(20) % 2 * (k % 2)}) for k in range(3)]
    found = trend(sets, replicates=200)
    page = Page(report.trend_html(found))
    assert page.tags.count("script") == 1 and "img" not in page.tags
    for document in ("".join(page.words), report.trend_markdown(found)):
        assert not {c for c in document if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c != "\n"}
