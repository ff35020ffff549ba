"""The comparison's page in a real browser: opens from disk, filters, opens a flip, fits a phone, and hostile text does nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_comparison import hostile_comparison, records, synthetic_comparison
from test_report_browser import browser, opened  # noqa: F401  (a fixture)

from mopd_diag.diagnostics.gate import Gate
from mopd_diag.diagnostics.trend import trend
from mopd_diag.reporting.comparison import trend_html, write_comparison


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("comparison")
    friendly, hostile = synthetic_comparison(), hostile_comparison()
    gate = Gate.parse("no group worse").check(friendly.to_dict())
    made = {"friendly": write_comparison(friendly, folder / "a", gate)["comparison.html"]}
    made["hostile"] = write_comparison(hostile, folder / "b")["comparison.html"]
    made["trend"] = folder / "trend.html"
    sets = [records(f"step-{k}", {g: np.arange(30) % 3 != k % 2 for g in ("code", "math")}) for k in range(4)]
    made["trend"].write_text(trend_html(trend(sets, replicates=200)), encoding="utf-8")
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", ["friendly", "hostile", "trend"])
def test_opens_quietly_and_fits(browser, pages, name, width, scheme):  # noqa: F811
    with opened(browser, pages[name], width, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.hacked") is None
        drawn = page.evaluate("[...document.querySelectorAll('.fit')].filter(e => e.offsetWidth).length")
        assert drawn == 1


def test_filters_by_group_change_teacher_and_text(browser, pages):  # noqa: F811
    with opened(browser, pages["friendly"]) as page:
        rows, said = page.locator(".flip:visible"), page.locator("#filtered")
        assert rows.count() == 46 + 44
        page.select_option("select[name=group]", "code")
        page.select_option("select[name=change]", "lost")
        assert rows.count() == 40
        page.select_option("select[name=teacher]", "teacher-style")
        assert rows.count() == 27
        assert said.inner_text() == "27 of 90 listed items fit"
        page.select_option("select[name=teacher]", "")
        page.select_option("select[name=failure]", "own")
        assert rows.count() == 13
        page.fill("#filters input", "Add 18 and 24")
        assert rows.count() == 1
        page.fill("#filters input", "no such words")
        assert rows.count() == 0
        assert page.locator(".flips.none").count() == 2


def test_text_filter_finds_answers_across_marks(browser, pages):  # noqa: F811
    """`The sum is 13.` is cut by <ins> on the page."""
    with opened(browser, pages["friendly"]) as page:
        page.fill("#filters input", "the SUM is 13.")
        assert page.locator(".flip:visible").count() >= 1


def test_a_flip_opens_by_keyboard_to_prompt_answers_and_difference(browser, pages):  # noqa: F811
    with opened(browser, pages["friendly"]) as page:
        flip = page.locator(".flip").first
        assert not flip.locator(".asked").is_visible()
        flip.locator("summary").focus()
        page.keyboard.press("Enter")
        flip.locator(".asked").wait_for(state="visible")
        assert "[code] Add 0 and 0." in flip.inner_text()
        assert flip.locator(".pane del").inner_text() == "0"
        assert flip.locator(".pane ins").inner_text() == "13"
        line = flip.locator(".pane ins").evaluate("e => getComputedStyle(e).textDecorationLine")
        assert line == "underline", "not told by colour alone"


def test_tooltip_of_the_forest_says_the_verdict(browser, pages):  # noqa: F811
    with opened(browser, pages["friendly"]) as page:
        page.locator("#groups .fit-last .tip").first.hover()
        assert "▼ worse" in page.locator("#tip").inner_text()


def test_readable_without_script(browser, pages):  # noqa: F811
    with opened(browser, pages["friendly"], java_script_enabled=False) as page:
        assert page.locator("#groups svg").last.is_visible()
        assert page.locator(".flip").count() == 90
        assert page.locator("#filters").is_hidden(), "a filter that cannot work is not offered"
        page.locator(".flip summary").first.click()
        assert page.locator(".flip .pane").first.is_visible()
