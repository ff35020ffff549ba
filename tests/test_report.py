"""The report on a synthetic run: complete, self-contained, honest about unknowns, and indifferent to hostile text."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import unicodedata

import pandas as pd
import pytest
from report_pages import Page, hostile_run, outside_code
from synthetic_findings import ACCURACY
from synthetic_run import write_synthetic_run

from mopd_diag.reporting import text
from mopd_diag.reporting.report import write_report
from mopd_diag.runs.directory import RunDirectory, write_json, write_table


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return write_synthetic_run(tmp_path_factory.mktemp("run"), items=24)


@pytest.fixture(scope="module")
def written(run) -> tuple[str, str]:
    html, markdown = write_report(run)
    assert (html, markdown) == (run.path / "report.html", run.path / "report.md")
    return html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")


# -- completeness -------------------------------------------------------------------------------------------------------


def test_page_answers_the_three_questions_before_anything_else(written):
    headings = Page(written[0]).headings
    order = [
        "Which teacher does the behaviour come from?", "What did the teachers cap?", "What did the domains do to one another?",
        "How well every model does, domain by domain", "What it cost, and what came of it", "Telling failures, token by token",
        "What could not be told", "How it was measured", "Every finding", "Words",
    ]  # fmt: skip
    places = [headings.index(heading) for heading in order]
    assert places == sorted(places)


def test_headings_form_an_outline(written):
    levels = [int(t[1]) for t in Page(written[0]).tags if re.fullmatch(r"h[1-6]", t)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_finding_is_on_the_page_with_its_evidence(run, written):
    page = Page(written[0])
    ids = {v.removeprefix("finding-") for v in page.values("tr", "id")}
    assert ids == {f.id for f in run.findings()}
    assert '"prompt_share": 0.25' in page.text


def test_links_within_the_page_lead_somewhere(written):
    page = Page(written[0])
    targets = {v for _, name, v in page.attributes if name == "id"}
    links = page.values("a", "href")
    assert len(links) > 20
    assert {link.removeprefix("#") for link in links} <= targets
    assert len([v for _, name, v in page.attributes if name == "id"]) == len(targets), "an id is used twice"


def test_accuracy_of_every_model_on_every_domain_is_in_both_documents(run, written):
    records = run.records()
    for document in (Page(written[0]).text, written[1]):
        for model in ACCURACY:
            mean = records[(records["model"] == model) & (records["domain"] == "stack")]["score"].mean()
            assert re.search(rf"{model}\**[\s|].*?{round(100 * mean)}% \[", document), (model, mean)


def test_unknown_is_printed_with_its_reason_and_never_as_a_number(written):
    for document in (Page(written[0]).text, written[1]):
        assert "the headroom's interval covers 0" in document
        assert "cannot be placed on lookup" in document
        assert re.search(r"lookup\W+unknown\W+undetermined", document)
        assert not re.search(r"\bnan\b", document, re.IGNORECASE)


def test_failures_show_each_token_with_letters_beside_the_colour(written):
    html = written[0]
    tokens = re.findall(
        r'<span class="token k-([\w-]+)[^"]*" title="([^"]+)"><b>([^<]*(?:&lt;eos&gt;)?)</b><i>([^<]+)</i></span>', html
    )
    assert len(tokens) > 20
    assert {mark for *_, mark in tokens} >= {"ma", "pre", "?"}
    assert len({(key, mark) for key, _, _, mark in tokens}) == len({key for key, *_ in tokens}), "one colour, one mark"
    assert all("log-probability: base" in title for _, title, *_ in tokens)


def test_marks_of_charts_carry_a_sentence(written):
    titles = re.findall(r"<title>([^<]+)</title>", written[0])
    assert any(t.startswith("student, addition: 9") for t in titles)
    assert any(t.startswith("trained on reversed, evaluated on addition: −38 points [−43, −33]") for t in titles)
    assert any(t.startswith("recovery on stack: 0.84 [0.75, 0.93]") for t in titles)
    assert any("(Pareto front)" in t for t in titles)
    assert any("on the critical path" in t for t in titles)


def test_the_same_run_gives_the_same_bytes(run, written, tmp_path):
    html, markdown = write_report(run, tmp_path / "again.html")
    assert html.read_text(encoding="utf-8") == written[0]
    assert markdown.name == "again.md"
    assert markdown.read_text(encoding="utf-8") == written[1]


# -- self-contained and safe --------------------------------------------------------------------------------------------


def test_page_loads_nothing(written):
    page = Page(written[0])
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "style", "xlink:href") or a[1].startswith("on")]
    assert "url(" not in page.scripts["style"]
    assert not re.search(r"\b(fetch|XMLHttpRequest|innerHTML|eval|import)\b", page.scripts["script"])


def test_policy_allows_only_the_pinned_style_and_script(written):
    page = Page(written[0])
    policy = next(v for v in page.values("meta", "content") if v.startswith("default-src"))
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(page.scripts[tag].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
        assert page.tags.count(tag) == 1


def test_hostile_text_stays_text(tmp_path):
    html, markdown = (p.read_text(encoding="utf-8") for p in write_report(hostile_run(tmp_path)))
    page = Page(html)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert "hacked" not in page.scripts["script"]
    assert "</script><script>window.hacked" in page.text, "it must be shown, not dropped"
    assert "‹U+202E›" in page.text
    assert page.open == []
    assert "<script" not in outside_code(markdown).replace("\\<script", "")
    for document in (html, markdown):
        odd = {c for c in document if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c != "\n"}
        assert not odd, f"hidden or reordering characters survive: {odd!r}"


def test_hostile_text_does_not_break_the_tables_of_the_markdown(tmp_path):
    lines = write_report(hostile_run(tmp_path))[1].read_text(encoding="utf-8").splitlines()
    widths = []
    for line in lines:
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        elif widths:
            assert len(set(widths)) == 1, widths
            widths = []
    assert not re.search(r"(?<!\\)\]\(", outside_code("\n".join(lines))), "a link that a model wrote"


def test_reporting_never_imports_a_model():
    code = "import mopd_diag.reporting.report, sys; print([m for m in ('torch', 'transformers', 'streamlit') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reads_what_the_diagnostics_write(run, tmp_path):
    """Findings as `caps` and `interference` make them, not as this file's author imagines them."""
    from mopd_diag.diagnostics import failures
    from mopd_diag.diagnostics.caps import caps
    from mopd_diag.diagnostics.interference import interference

    shutil.copytree(run.path, tmp_path / "run")
    copy = RunDirectory(tmp_path / "run")
    records = copy.records()
    teachers = {m: t["domains"] for m, t in copy.manifest()["models"].items() if t["role"] == "teacher"}
    cap, transfer = caps(records, teachers), interference(records, teachers)
    attributed = (
        copy.trace("student")
        .groupby(["domain", "item_id", "sample"], as_index=False)[["answer_label", "share_own"]]
        .first()
    )
    attributed = attributed.rename(columns={"answer_label": "label"})
    failed = failures.failures(records, copy.manifest()["route"], attributed=attributed)
    copy.write_findings([*cap.findings(), *transfer.findings(), *failures.findings(failed)])
    html, markdown = (p.read_text(encoding="utf-8") for p in write_report(copy))
    for document in (Page(html).text, markdown):
        assert text.ratio(cap.mean_recovery) in document
        assert all(text.ratio(c.cap.recovery) in document for c in cap.caps.values())
        assert all(text.points(c.cap.gap, unit=False) in document for c in cap.caps.values())
        cells = [c for m in teachers for c in transfer.matrix[m].values()]
        assert len(cells) == 16
        assert all(text.points(c.delta, unit=False) in document for c in cells)
        assert text.points(transfer.forgetting["rival-sequential-rl"].worst, unit=False) in document
        assert "both solve" in document
        assert re.search(rf"all domains\W+{len(failed)}\W+\d+% \[", document)
    assert re.search(r"(lost: teacher-\w+ solves it|inherited from teacher-\w+) ·", Page(html).text)
    assert "nan" not in Page(html).text.lower().split()


def test_checkpoints_on_the_way_are_no_members_of_the_cast(run, written):
    assert "rival-sequential-rl.1-addition" in run.records()["model"].unique()
    assert "rival-sequential-rl.1-addition" not in "".join(written)


def test_evaluations_share_a_row_of_the_ledger(written):
    assert re.search(r"evaluation\W+–\W+10 models", written[1])
    assert "evaluate:" not in re.sub(r"<title>[^<]*</title>", "", written[0])


# -- incomplete runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("records", "No accuracies and no failures"), ("findings.json", "No diagnosis"), ("ledger.parquet", "No ledger and no costs"),
        ("traces", "No token-level evidence"),
    ],
)  # fmt: skip
def test_a_missing_part_is_said_and_the_rest_shown(tmp_path, lost, said):
    run = write_synthetic_run(tmp_path, items=8)
    (run.path / lost).rename(tmp_path / "elsewhere")
    html, markdown = write_report(run)
    assert said in Page(html.read_text(encoding="utf-8")).text
    assert said in markdown.read_text(encoding="utf-8")


def test_a_run_with_nothing_but_a_manifest_has_a_page(tmp_path):
    write_json(tmp_path / "manifest.json", {"schema": 1})
    html, _ = write_report(RunDirectory.open(tmp_path))
    text = Page(html.read_text(encoding="utf-8")).text
    assert "This run is not complete." in text
    assert "The student's answers were not attributed in this run." in text
    assert "Nothing was diagnosed in this run." in text


def test_a_student_without_failures_and_curves_without_numbers(tmp_path):
    run = write_synthetic_run(tmp_path, items=8)
    frame = run.records("student")
    frame["score"] = 1.0
    write_table(run.record_path("student"), frame)
    for stage, values in (("student", [float("nan")] * 3), ("teacher-math", [0.5, 0.5, float("inf")])):
        write_table(run.path / "metrics" / f"{stage}.parquet", pd.DataFrame({"step": [1, 2, 3], "reward": values}))
    html = write_report(run)[0].read_text(encoding="utf-8")
    assert "No failed answer of the student has a trace." in Page(html).text


def test_findings_with_bare_evidence_still_make_a_page(tmp_path):
    run = write_synthetic_run(tmp_path, items=8)
    document = json.loads((run.path / "findings.json").read_text())
    for finding in document["findings"]:
        finding["evidence"] = {}
        finding["estimate"] = None
    (run.path / "findings.json").write_text(json.dumps(document))
    html, _ = write_report(run)
    page = Page(html.read_text(encoding="utf-8"))
    assert {v.removeprefix("finding-") for v in page.values("tr", "id")} == {f.id for f in run.findings()}
    assert "The mean recovery is unknown: no reason was recorded." in page.text
