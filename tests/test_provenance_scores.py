"""The scores of the provenance bench against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.provenance import cast as c
from bench.provenance.scores import accuracy_at, auroc, calibration_error, estimate, rank_agreement
from mopd_diag.study.resolve import resolve


def test_auroc_is_mann_whitney() -> None:
    rng = np.random.default_rng(0)
    score, positive = np.round(rng.normal(size=200), 1), rng.random(200) < 0.4
    u = stats.mannwhitneyu(score[positive], score[~positive]).statistic
    assert auroc(score, positive, np.ones(200)) == pytest.approx(u / positive.sum() / (~positive).sum())
    weights = rng.integers(0, 4, 200)
    repeated = np.repeat(np.arange(200), weights)
    assert auroc(score, positive, weights.astype(float)) == pytest.approx(
        auroc(score[repeated], positive[repeated], np.ones(len(repeated)))
    )
    assert np.isnan(auroc(score, np.ones(200, dtype=bool), np.ones(200)))


def test_calibration_error_is_the_mean_gap() -> None:
    confidence = np.array([0.95, 0.95, 0.15, 0.15])
    assert calibration_error(confidence, np.array([1.0, 1, 0, 0]), np.ones(4)) == pytest.approx(0.1)
    assert calibration_error(confidence, np.array([1.0, 0, 0, 0]), np.ones(4)) == pytest.approx((0.45 + 0.15) / 2)
    assert calibration_error(np.array([1.0]), np.array([1.0]), np.ones(1)) == 0


def test_accuracy_on_the_most_confident() -> None:
    right = np.array([1.0, 1, 1, 1, 1, 1, 1, 0, 0, 0])
    assert accuracy_at(np.linspace(1, 0, 10), right, np.ones(10), 0.7) == 1
    assert accuracy_at(np.linspace(0, 1, 10), right, np.ones(10), 0.7) == pytest.approx(4 / 7)


def test_ranks_of_a_constant_are_unknown() -> None:
    assert np.isnan(rank_agreement(np.zeros(4), np.arange(4.0)))
    assert rank_agreement(np.array([0, 0, 1.0]), np.array([0, 0, 5.0])) == pytest.approx(1)


def test_intervals_resample_prompts_and_not_their_repetitions() -> None:
    rng = np.random.default_rng(1)
    values = (rng.random(60) < 0.5).astype(float)

    def width(copies: int) -> float:
        cluster = np.tile([f"0:{i}" for i in range(60)], copies)
        tiled = np.tile(values, copies)
        found = estimate(cluster, lambda w: float((w * tiled).sum() / w.sum()))
        assert found.n_clusters == 60 and found.value == pytest.approx(values.mean())
        assert "not trainings" in found.note
        return found.high - found.low

    assert width(1) == pytest.approx(width(10))


def test_the_cast_is_a_plan_that_resolves_and_in_which_truths_are_what_they_say() -> None:
    study = resolve(c.plan(3))
    names = [s.name for s in study.stages]
    assert len(names) == len(set(names))
    assert all(c.SWAP[d] != d for d in c.TAUGHT), "no domain keeps its own teacher"
    single = study.stage("student-single-facts")
    assert set(single.teachers_used) == {"teacher-facts"} and single.domains == c.DOMAINS
    for d in c.TAUGHT:
        without = study.stage(f"student-without-{d}")
        assert c.teacher(d) not in without.teachers_used and d not in without.domains
        taught = {n for n in names if n.startswith("teacher")}
        assert not taught & set(study.ancestry(c.decoy(d))), "decoys never saw a teacher"
