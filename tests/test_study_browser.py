"""The page of a study in a real browser: quiet, fits a phone, follows the theme; everything on it is hostile that can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_pages import HOSTILE
from synthetic_study import write_study
from test_report_browser import browser, opened  # noqa: F401

from mopd_diag.reporting.study_page import write_study_report
from mopd_diag.study.conclude import reported


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    write_study(out, items=20)
    document = json.loads(json.dumps(reported(out)[0]).replace('"stack"', json.dumps(HOSTILE)))
    document["study"]["name"] = document["study"]["summary"] = HOSTILE
    return write_study_report(out, document)[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_opens_quietly_and_fits(browser, page_path, width, scheme):  # noqa: F811
    with opened(browser, page_path, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.hacked") is None
        shown = page.evaluate(
            "[...document.querySelectorAll('figure.chart')].map(f => [...f.querySelectorAll('.fit')].filter(e => e.offsetWidth).length)"
        )
        assert shown == [1] * 5, "one drawing a chart"


def test_the_first_screen_says_who_won_and_seeds_can_be_opened(browser, page_path):  # noqa: F811
    with opened(browser, page_path) as page:
        assert page.locator("#answers h2").first.inner_text() == "Which path won?"
        assert page.locator("#answers .figure").first.bounding_box()["y"] < 900
        page.hover("#paths .tip:visible >> nth=0")
        assert "reference −" in page.locator("#tip").inner_text()
    context = browser.new_context()
    page = context.new_page()
    page.goto(page_path.as_uri())
    page.click("#seeds a >> text=seed 4")
    assert page.url.endswith("seed-4/report.html") and "a report of its own" in page.content()
    context.close()
