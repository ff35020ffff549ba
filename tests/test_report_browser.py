"""The report in a real browser: it opens from disk, asks for nothing, fits a phone, and hostile text does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from report_pages import hostile_run

from mopd_diag.reporting.report import write_report

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser(chromium: Path):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(chromium), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """The hostile run on purpose: whatever holds here holds for a friendly one."""
    return write_report(hostile_run(tmp_path_factory.mktemp("hostile")))[0]


@contextmanager
def opened(browser, path: Path, width: int = 1440, scheme: str = "light", **options) -> Iterator:
    """The page in a fresh context; afterwards nothing may have been requested, logged or thrown."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    page = context.new_page()
    requests, trouble = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert requests == [path.as_uri()]
    assert trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 900, 390])
def test_opens_quietly_and_fits(browser, hostile, width, scheme):
    with opened(browser, hostile, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.hacked") is None
        shown = page.evaluate(
            "[...document.querySelectorAll('figure.chart')].map(f => [...f.querySelectorAll('.fit')].filter(e => e.offsetWidth)"
            ".map(e => e.querySelector('svg').getBoundingClientRect().width / f.getBoundingClientRect().width))"
        )
        assert len(shown) >= 6
        assert all(len(each) == 1 and 0 < each[0] <= 1.001 for each in shown), (
            "one drawing a chart, inside its container"
        )


def test_theme_changes_paper_and_pictures(browser, hostile):
    looks = {}
    for scheme in ("light", "dark"):
        with opened(browser, hostile, scheme=scheme) as page:
            looks[scheme] = page.evaluate(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
                " getComputedStyle(document.querySelector('.answer .tip')).fill]"
            )
    assert all(a != b for a, b in zip(*looks.values(), strict=True))


def test_tooltips_show_text_for_marks_and_tokens(browser, hostile):
    with opened(browser, hostile) as page:
        tip = page.locator("#tip")
        assert tip.is_hidden()
        page.locator("#accuracy .fit-last .tip").first.hover()
        assert "items" in tip.inner_text()
        page.locator(".token").first.hover()
        assert "log-probability" in tip.inner_text()
        page.keyboard.press("Escape")
        assert tip.is_hidden()


def test_a_link_to_a_finding_opens_its_list(browser, hostile):
    with opened(browser, hostile) as page:
        row = page.locator("[id='finding-cap-addition']")
        assert not row.is_visible()
        page.locator("#caps a").first.click()
        row.wait_for(state="visible")


def test_readable_without_script(browser, hostile):
    with opened(browser, hostile, java_script_enabled=False) as page:
        assert page.locator("#accuracy svg").last.is_visible()
        assert page.locator("#caps table").is_visible()
        assert page.locator(".token").first.get_attribute("title")


def test_prints_on_white_paper(browser, hostile, tmp_path):
    with opened(browser, hostile, 1000, "dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(26, 29, 33)"
        assert page.locator(".bar").is_hidden()
