"""The app in a real browser: open, filter, open a failure, follow a link, upload two logs; hostile text does nothing.

Every page that a test opens is held to the same: nothing is asked of another machine, nothing is logged, nothing is thrown.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from app_pages import explain_one, failed_traced, serve_run, write_attribution
from report_pages import hostile_run
from synthetic_comparison import synthetic_comparison
from test_report_browser import browser  # noqa: F401  (a fixture)

from mopd_diag.reporting.comparison import write_comparison
from mopd_diag.runs.directory import RunDirectory

pytest.importorskip("streamlit")
Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe
LOGS = Path(__file__).parent / "fixtures" / "records" / "lm_eval"
PAGES = {
    "overview": {}, "failures": {}, "attribution": {}, "caps": {"domain": "stack", "part": "lost"},
    "interference": {}, "regression": {"before": "friendly:base", "after": "friendly:student"}, "cost": {},
}  # fmt: skip
PROBED = re.compile(r"/[a-z]+/_stcore/(health|host-config)$")
"""Where Streamlit's frontend looks for its server first when a page below the root is opened: 404, then it finds the root."""
SLOW = 30_000  # milliseconds: the machine may be busy


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    """A folder with a friendly run, a hostile one, and a stored comparison."""
    folder = tmp_path_factory.mktemp("served")
    serve_run(folder, "friendly", items=24)
    hostile = hostile_run(folder / "hostile")
    write_attribution(hostile)
    explain_one(hostile)
    write_comparison(synthetic_comparison(), folder / "release")
    return folder


@pytest.fixture(scope="module")
def address(served, tmp_path_factory) -> Iterator[str]:
    """The app as the verb starts it, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = "import sys; from mopd_diag.cli import main; sys.exit(main())"
    log = (tmp_path_factory.mktemp("log") / "server.log").open("w+")
    command = [sys.executable, "-c", start, "app", str(served), "--port", str(port)]
    environment = {**os.environ, "HOME": str(tmp_path_factory.mktemp("home"))}
    with subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
    log.seek(0)
    assert "Traceback" not in log.read()


def _wait_for(url: str, process: subprocess.Popen, log) -> None:
    for _ in range(240):
        try:
            urlopen(url, timeout=5).close()
            return
        except (URLError, OSError):
            assert process.poll() is None, log.seek(0) or log.read()
            time.sleep(0.25)
    raise AssertionError("the app did not start in a minute")


@contextmanager
def opened(browser, address: str, page: str, *, width: int = 1440, scheme: str = "light", **query) -> Iterator:  # noqa: F811
    """A page of the app in a fresh context; afterwards nothing may have left loopback, been logged or thrown."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(SLOW)
    tab = context.new_page()
    asked, trouble = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("websocket", lambda stream: asked.append(stream.url))
    tab.on(
        "console",
        lambda said: trouble.append((said.text, said.location["url"])) if said.type in ("error", "warning") else None,
    )
    tab.on("pageerror", lambda error: trouble.append((str(error), "")))
    tab.on("dialog", lambda dialog: (trouble.append((dialog.message, "dialog")), dialog.dismiss()))
    tab.goto(f"{address}/{page.replace('overview', '')}?{urlencode(query)}")
    settled(tab)
    yield tab
    context.close()
    outside = [u for u in asked if not u.startswith((address, address.replace("http", "ws"), "data:", "blob:"))]
    assert outside == []
    assert [t for t in trouble if not PROBED.search(t[1])] == []


def settled(tab) -> None:
    """Wait until the script has run and what it sent is drawn. A rerun starts a moment after what causes it."""
    tab.wait_for_timeout(250)
    tab.locator("h1, .empty").first.wait_for()
    tab.wait_for_function(
        "document.querySelector('[data-testid=stApp]').getAttribute('data-test-script-state') === 'notRunning'"
        " && !document.querySelector('[data-testid=stSkeleton]') && !document.querySelector('[data-stale=true]')"
    )


def choose(tab, label: str, words: str) -> None:
    """Pick the value of a select box that has these words, with the keyboard."""
    box = tab.get_by_role("combobox", name=label, exact=True)
    box.click()
    box.fill(words)
    tab.get_by_role("option", name=words).first.wait_for()
    box.press("Enter")
    settled(tab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_a_desk_and_a_phone_and_is_accessible(browser, address, page, scheme):  # noqa: F811
    with opened(browser, address, page, scheme=scheme, run="friendly", **PAGES[page]) as tab:
        assert tab.locator(".empty .what", has_text="went wrong").count() == 0
        found = Axe().run(tab).response["violations"]
        serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
        assert serious == []
        for width in (1440, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            main = "document.querySelector('[data-testid=stMain]')"
            tab.wait_for_function(f"Math.max({main}.scrollWidth, document.documentElement.scrollWidth) <= {width}")


@pytest.mark.parametrize("page", PAGES)
def test_hostile_texts_do_nothing(browser, address, page):  # noqa: F811
    query = {"before": "hostile:base", "after": "hostile:student"} if page == "regression" else PAGES[page]
    with opened(browser, address, page, run="hostile", **query) as tab:
        assert tab.evaluate("window.hacked") is None
        assert tab.locator("[data-testid=stMain] img[src=x]").count() == 0
        assert tab.locator(".empty .what", has_text="went wrong").count() == 0


def test_hostile_answers_are_shown_as_they_are(browser, address):  # noqa: F811
    with opened(browser, address, "regression", before="hostile:base", after="hostile:student") as tab:
        tab.get_by_role("button", name="Next").click()
        tab.locator(".pane pre").first.wait_for()
        assert "<script>window.hacked=1</script>" in tab.locator(".pane pre").first.inner_text()
        assert "‹U+202E›" in tab.locator(".pane pre").first.inner_text()
        assert tab.evaluate("window.hacked") is None


def test_filter_open_and_walk_through_changed_items(browser, address):  # noqa: F811
    with opened(browser, address, "regression", before="friendly:base", after="friendly:student") as tab:
        assert "Better" in tab.locator(".verdict").inner_text()
        choose(tab, "Change", "won")
        tab.wait_for_url("**change=won**")
        settled(tab)
        tab.get_by_role("button", name="Next").click()
        tab.wait_for_url("**flip=**")
        tab.locator(".pane").first.wait_for()
        settled(tab)
        first = tab.url
        tab.keyboard.press("n")
        tab.wait_for_function("before => location.href !== before", arg=first)
        settled(tab)
        second, asked = tab.url, tab.locator(".pane pre").first.inner_text()
    assert second != first
    with opened(browser, address, "regression", **_query(second)) as tab:
        assert tab.locator(".pane pre").first.inner_text() == asked, "a link shows what its sender saw"


def _query(url: str) -> dict[str, Any]:
    from urllib.parse import parse_qsl, urlsplit

    return dict(parse_qsl(urlsplit(url).query))


def test_two_uploaded_lm_eval_logs_are_compared(browser, address):  # noqa: F811
    with opened(browser, address, "regression") as tab:
        tab.get_by_text("Upload records").click()
        for k, side in enumerate(("before", "after")):
            files = sorted(str(p) for p in (LOGS / side).glob("samples_*.jsonl"))
            tab.locator("[data-testid=stFileUploader] input[type=file]").nth(k).set_input_files(files)
            settled(tab)
        tab.locator(".verdict").wait_for()
        assert "? Undetermined overall: −5.4 points" in tab.locator(".verdict").inner_text()
        assert "on 55 items in 2 groups" in tab.locator(".lead", has_text="before and").inner_text()
        with tab.expect_download() as download:
            tab.get_by_role("button", name="HTML").click()
        page = Path(download.value.path()).read_text(encoding="utf-8")
        assert download.value.suggested_filename == "comparison.html"
        assert "Undetermined overall" in page


def test_an_upload_of_another_kind_is_refused_in_a_sentence(browser, address, tmp_path):  # noqa: F811
    (tmp_path / "answers.parquet").write_text("<script>window.hacked=1</script>")
    with opened(browser, address, "regression") as tab:
        tab.get_by_text("Upload records").click()
        tab.locator("[data-testid=stFileUploader] input[type=file]").first.set_input_files(tmp_path / "answers.parquet")
        tab.get_by_text("answers.parquet is no Parquet file").wait_for()


def test_a_gate_is_judged_as_it_is_written(browser, address):  # noqa: F811
    with opened(browser, address, "regression", before="friendly:student", after="friendly:base") as tab:
        assert "✗ Gate failed" in tab.locator(".gate[role=status]").inner_text()
        for rule, said in (("overall.lost < 1000", "✓ Gate passed"), ("no grup worse", "✗ The rule cannot be read")):
            tab.get_by_label("Rule").fill(rule)
            tab.get_by_label("Rule").press("Control+Enter")
            tab.locator(".gate[role=status]", has_text=said).wait_for()
        settled(tab)
        assert "rule=no+grup+worse" in tab.url


def test_a_stored_comparison_opens_with_its_verdict(browser, address):  # noqa: F811
    with opened(browser, address, "regression", stored="release") as tab:
        assert "Worse in code" in tab.locator(".verdict").inner_text()
        assert "code is worse" in tab.locator(".gate[role=status]").inner_text()


@pytest.mark.parametrize("query", [{"run": "../.."}, {"run": "/etc"}, {"run": "friendly/../../x"}])
def test_a_path_out_of_the_folder_is_refused(browser, address, query):  # noqa: F811
    with opened(browser, address, "cost", **query) as tab:
        assert tab.locator("dl.facts").count() == 0
        assert "root:" not in tab.locator("[data-testid=stMain]").inner_text()


def test_caps_open_to_the_items_behind_a_bar(browser, address):  # noqa: F811
    with opened(browser, address, "caps", run="friendly") as tab:
        choose(tab, "Domain", "stack")
        choose(tab, "Items", "both fail")
        choose(tab, "Item", "stack:")
        tab.locator(".pane").first.wait_for()
        assert "of 4 samples right" in tab.locator(".pane h3", has_text="student").inner_text()


def test_a_failure_opens_from_a_link_and_the_next_by_key(browser, address, served):  # noqa: F811
    row = failed_traced(RunDirectory(served / "friendly"))
    with opened(browser, address, "failures", run="friendly", item=row["item_id"], sample=row["sample"]) as tab:
        assert row["response"] in tab.locator(".pane pre").all_inner_texts()
        before = tab.url
        tab.locator("h1").click()
        tab.keyboard.press("n")
        tab.wait_for_function("before => location.href !== before", arg=before)
        settled(tab)
        link, shown = tab.url, tab.locator(".pane pre").all_inner_texts()
    with opened(browser, address, "failures", **_query(link)) as tab:
        assert tab.locator(".pane pre").all_inner_texts() == shown


def test_failures_are_filtered_and_the_filter_is_in_the_link(browser, address):  # noqa: F811
    with opened(browser, address, "failures", run="friendly") as tab:
        choose(tab, "Domain", "stack")
        tab.wait_for_url("**domain=stack**")
        settled(tab)
        assert tab.locator(".pane").count() > 0
