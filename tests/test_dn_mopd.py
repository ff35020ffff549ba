"""The published paired differences of a real MOPD study, from its records through `compare`; and the gallery made of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from report_pages import Page

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("gallery_dn_mopd", ROOT / "reports" / "dn_mopd.py")
gallery = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = gallery
spec.loader.exec_module(gallery)

from mopd_diag.diagnostics.caps import caps  # noqa: E402
from mopd_diag.diagnostics.regression import compare  # noqa: E402

IDS = [f"{after}-{before}" for before, after, *_ in gallery.PUBLISHED]
LEVELS = {
    "base": 52.187500,
    "s_route": 50.208333,
    "s_mdnorm": 53.958333,
    "t_math": 54.244792,
    "s_singlemath": 53.880208,
}
"""Published means of the two suites (the same table as PUBLISHED)."""


def question_scores(records, suite: str) -> np.ndarray:
    frame = records.frame[records.frame["group"] == suite]
    return frame.groupby("item_id")["score"].mean().to_numpy()


@pytest.fixture(scope="module")
def sets():
    return gallery.load()


def test_the_records_are_nine_models_on_the_same_sixty_questions(sets):
    assert len(sets) == 9
    for s in sets.values():
        assert s.groups == ["aime25", "aime26"]
        assert len(s.frame) == 2 * 30 * 64
        assert set(s.frame["score"]) == {0.0, 1.0}


@pytest.mark.parametrize(("before", "after", "delta", "low", "high"), gallery.PUBLISHED, ids=IDS)
def test_compare_reproduces_the_published_difference_and_interval(sets, before, after, delta, low, high):
    """The difference to its last printed digit. The ends of the interval are quantiles of 10,000 random draws: other draws
    move them by up to 0.15 points (seen over six seeds of the study's own procedure, on a grid of 1/38 of a point)."""
    found = compare(sets[before], sets[after])
    assert 100 * found.overall.before.value == pytest.approx(LEVELS[before], abs=5e-7)
    assert 100 * found.overall.after.value == pytest.approx(LEVELS[after], abs=5e-7)
    assert 100 * found.overall.delta.value == pytest.approx(delta, abs=5e-7)
    assert 100 * found.overall.delta.low == pytest.approx(low, abs=0.16)
    assert 100 * found.overall.delta.high == pytest.approx(high, abs=0.16)
    assert not found.joined.verified
    assert any("identity not verified" in w for w in found.warnings)


@pytest.mark.parametrize(("before", "after", "delta", "low", "high"), gallery.PUBLISHED, ids=IDS)
def test_the_studys_own_draws_give_its_intervals_to_the_last_digit(sets, before, after, delta, low, high):
    """Its procedure: one generator a contrast, questions resampled within suites, percentiles. So the records are right."""
    draws = np.random.default_rng(20260923)
    total = np.zeros(10_000)
    for suite in ("aime25", "aime26"):
        was, now = (question_scores(sets[m], suite) for m in (before, after))
        index = draws.integers(0, 30, size=(10_000, 30))
        total += 100 * (now[index].mean(1) - was[index].mean(1)) / 2
    assert np.percentile(total, [2.5, 97.5]) == pytest.approx([low, high], abs=5e-7)


def test_no_recovery_is_claimed_where_the_teacher_is_not_surely_above_the_base(sets):
    """+2.06 [−0.23, +4.53]: dividing by that would give any recovery one likes."""
    records = gallery.frame_of({m: sets[m] for m in ("base", "t_math", "s_mdnorm")})
    report = caps(records, {"teacher-math": gallery.SUITES.values()}, student="DN-MOPD", replicates=1000)
    assert not report.mean_recovery.defined
    for c in report.caps.values():
        assert "headroom's interval covers 0" in c.cap.recovery.note


def test_the_committed_gallery_holds_the_published_numbers_and_its_source():
    page = Page((ROOT / "reports/gallery/dn_mopd.html").read_text(encoding="utf-8"))
    comment = (ROOT / "reports/gallery/dn_mopd.md").read_text(encoding="utf-8")
    for document in (page.text, comment):
        assert "CC BY 4.0" in document and "2609.35347" in document
        for name in gallery.MODELS.values():
            assert name in document
        for numbers in ("+3.75 [+1.95, +5.60]", "−1.98 [−3.78, −0.18]", "+1.77 [+0.05, +3.65]"):
            assert numbers in document
    assert page.tags.count("script") == 1
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert (ROOT / "reports/gallery/dn_mopd.html").stat().st_size < 400_000
