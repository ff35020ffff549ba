"""Intervals that cover, verdicts that follow from them, and fast code against its slow definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from planted import draw_scores, frame
from scipy import stats

from mopd_diag.diagnostics.accuracy import OVERALL, accuracy, pivot
from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.significance import benjamini_hochberg, holm, mcnemar_exact, permutation_test
from mopd_diag.estimators.statistics import (
    detectable_from_interval,
    equivalence_verdict,
    item_means,
    mean,
    paired_difference,
    pass_at_k,
    smallest_detectable_effect,
)
from mopd_diag.types import Estimate

SCORES = arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))


# -- means of items -----------------------------------------------------------------------------------------------------


@given(SCORES, st.data())
def test_a_masked_sample_is_a_sliced_sample(scores, data):
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=scores.shape[1], max_size=scores.shape[1])))
    if keep.any():
        np.testing.assert_allclose(item_means(scores, where=keep), item_means(scores[:, keep]))
        np.testing.assert_allclose(item_means(np.where(keep, scores, np.nan)), item_means(scores[:, keep]))
    else:
        assert np.isnan(item_means(scores, where=keep)).all()


@given(arrays(float, (2, 3, 4), elements=st.floats(0, 1)), st.integers(0, 2))
def test_reducing_an_axis_is_reducing_it_moved_last(scores, axis):
    np.testing.assert_allclose(item_means(scores, axis=axis), item_means(np.moveaxis(scores, axis, -1)))


# -- one mean -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(15, 30), (28, 30), (30, 30), (0, 30), (95, 100), (480, 500)])
def test_for_binary_items_the_interval_is_jeffreys(right, n):
    e = mean(np.repeat([1.0, 0.0], [right, n - right]), seed=1)
    low, high = stats.beta.ppf([0.025, 0.975], right + 0.5, n - right + 0.5)
    assert e.value == pytest.approx(right / n)
    assert e.low == pytest.approx(0 if right == 0 else low, abs=0.1 / math.sqrt(n))
    assert e.high == pytest.approx(1 if right == n else high, abs=0.1 / math.sqrt(n))
    assert (e.n_items, e.n_clusters, e.unit) == (n, n, "share")


def test_all_right_is_not_certainty_and_the_fallback_says_so():
    sure = mean(np.ones(40))
    assert sure.value == sure.high == 1 and 0.9 < sure.low < 0.97 and "unseen item" in sure.method
    textbook = mean(np.ones(40), method="percentile")
    assert textbook.low < 0.97 and "no spread" in textbook.note and "unseen item" in textbook.method
    same = paired_difference(np.ones(40), np.ones(40))
    assert same.low < 0 == same.value < same.high and "no spread" in same.note


def test_too_few_items_are_unknown_with_the_reason():
    for e in (mean([0.5]), mean(np.empty(0)), mean(np.ones(4), clusters=["a"] * 4), paired_difference([1.0], [0.0])):
        assert not e.defined and math.isnan(e.low) and "at least 2" in e.note


def test_scores_without_bounds_have_no_unseen_item_and_no_invented_certainty():
    e = mean(np.random.default_rng(0).normal(7, 2, 200), bounds=None)
    assert e.low < 7.3 and e.high > 6.7 and "unseen" not in e.method
    assert not mean(np.full(20, 7.0), bounds=None).defined


def test_bad_scores_are_refused():
    for scores, words in (([0.5, 1.5], "outside"), ([0.5, np.nan], "no score"), (np.full((2, 2), np.nan), "no score")):
        with pytest.raises(BadInput, match=words):
            mean(scores)
    with pytest.raises(BadInput, match="same items"):
        paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(BadInput, match="cluster id"):
        mean(np.ones(3), clusters=[1, 2])


@given(arrays(float, st.integers(2, 30), elements=st.sampled_from([0.0, 0.5, 1.0])), st.randoms())
@settings(max_examples=25)
def test_the_order_of_items_does_not_matter_and_the_value_is_inside(scores, rng):
    shuffled = list(scores)
    rng.shuffle(shuffled)
    e = mean(scores, replicates=200)
    shuffle = mean(shuffled, replicates=200)
    assert (e.low, e.high) == (shuffle.low, shuffle.high)
    assert 0 <= e.low <= e.value <= e.high <= 1
    assert e.value == pytest.approx(scores.mean())


def test_seeds_repeat_and_differ():
    scores = np.random.default_rng(0).random(50)
    assert mean(scores, seed=3) == mean(scores, seed=3) != mean(scores, seed=4)


# -- fast against slow ------------------------------------------------------------------------------------------------------


def test_the_percentile_bootstrap_is_resampling_items_in_a_loop():
    scores = draw_scores({"a": 0.6, "b": 0.8}, 60, 4, 0)
    before, after = (item_means(scores[m]) for m in "ab")
    rng = np.random.default_rng(5)
    slow = [(after[i] - before[i]).mean() for i in (rng.integers(0, 60, 60) for _ in range(10_000))]
    e = paired_difference(scores["a"], scores["b"], seed=1)
    np.testing.assert_allclose([e.low, e.high], np.quantile(slow, [0.025, 0.975]), atol=0.006)


@pytest.mark.parametrize("method", ["bayesian", "percentile"])
def test_drawing_equal_rows_as_one_changes_no_distribution(method):
    rows = np.random.default_rng(0).integers(0, 3, (80, 2)) / 2
    unequal = rows + np.random.default_rng(1).random(rows.shape) * 1e-9
    fast, slow = (Bootstrap.of(r, seed=2, method=method, bounds=(0, 1.1)) for r in (rows, unequal))
    for q in (0.025, 0.5, 0.975):
        # bootstrap means of these rows lie on a grid of 1/160
        np.testing.assert_allclose(*(np.quantile(b.means_RV, q, axis=0) for b in (fast, slow)), atol=0.0065)


def test_chunks_do_not_change_the_draws(monkeypatch):
    rows = np.random.default_rng(0).random((40, 2))
    whole = Bootstrap.of(rows, replicates=300).means_RV
    monkeypatch.setattr("mopd_diag.estimators.draws.CHUNK", 777)
    np.testing.assert_allclose(Bootstrap.of(rows, replicates=300).means_RV, whole)


def test_statistics_of_one_bootstrap_are_paired():
    rows = np.random.default_rng(0).random((40, 2))
    boot = Bootstrap.of(rows, seed=1)
    difference = boot.draws(lambda m: m[..., 1]) - boot.draws(lambda m: m[..., 0])
    np.testing.assert_array_equal(difference, boot.draws(lambda m: m[..., 1] - m[..., 0]))
    assert not boot.estimate(lambda m: m[..., 0] / (m[..., 1] * 0)).defined


# -- clusters, seeds, strata ------------------------------------------------------------------------------------------------


def test_a_cluster_of_equal_items_counts_once():
    values = np.random.default_rng(0).random(20)
    single = mean(values, seed=1)
    repeated = mean(np.repeat(values, 5), clusters=np.repeat(np.arange(20), 5), seed=1)
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high))
    assert (repeated.n_items, repeated.n_clusters) == (100, 20)
    naive = mean(np.repeat(values, 5), seed=1)
    assert (repeated.high - repeated.low) > 1.8 * (naive.high - naive.low)


def test_clusters_of_one_item_are_items():
    values = np.random.default_rng(0).random(30)
    by_cluster, by_item = mean(values, clusters=list(range(30))), mean(values)
    assert (by_cluster.low, by_cluster.high) == (by_item.low, by_item.high)


def test_training_seeds_widen_the_interval_and_are_said():
    rng = np.random.default_rng(0)
    items = rng.random(100) * 0.4
    same, apart = [items + 0.3] * 3, [items + d for d in (0.1, 0.3, 0.5)]
    one, alike, spread = mean(items + 0.3), mean(same), mean(apart)
    assert (alike.low, alike.high) == pytest.approx((one.low, one.high), abs=1e-3)
    assert "3 training seeds" in alike.method
    half_t = stats.t.ppf(0.975, 2) * 0.2 / math.sqrt(3)
    assert spread.value == pytest.approx(one.value) and spread.low < max(one.value - 0.9 * half_t, 0.02)
    shift = paired_difference(apart, [a + 0.05 for a in apart])
    assert shift.value == pytest.approx(0.05) and shift.high - shift.low < 0.06, (
        "seeds are paired: their spread cancels"
    )
    with pytest.raises(BadInput, match="equal numbers"):
        paired_difference(apart, apart[:2])


def test_joined_strata_give_the_unweighted_mean():
    a, b = np.repeat([0.0, 1.0], [10, 30]), np.repeat([0.0, 1.0], [100, 100])
    joined = Bootstrap.join([Bootstrap.of(x, seed=[0, k]) for k, x in enumerate((a, b))])
    e = joined.estimate(lambda m: m.mean(-1))
    assert e.value == pytest.approx((0.75 + 0.5) / 2) and e.n_items == 240 and "2 strata" in e.method
    sd = math.sqrt(0.75 * 0.25 / 40 + 0.25 / 200) / 2
    assert (e.high - e.low) == pytest.approx(2 * 1.96 * sd, rel=0.08)
    with pytest.raises(BadInput, match="nothing to join"):
        Bootstrap.join([])
    alone = Bootstrap.join([Bootstrap.of(a), Bootstrap.of([1.0])]).column(0)
    assert not alone.defined and "at least 2" in alone.note


def test_many_strata_are_not_pulled_to_the_middle_together():
    """With an unseen item in each of twelve strata, the draws would centre on 0.9426 instead of 0.9496."""
    strata = [Bootstrap.of(np.repeat([1.0, 0.0], [57, 3]), seed=[0, d]) for d in range(12)]
    draws = Bootstrap.join(strata).draws(lambda m: m.mean(-1))
    assert draws.mean() == pytest.approx(0.95, abs=0.002)


# -- coverage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "low", "high"), [(30, 0.93, 0.98), (50, 0.93, 0.97), (100, 0.93, 0.97), (500, 0.93, 0.97)]
)
def test_binary_coverage_near_95_percent_accuracy(n, low, high):
    """Exact over the binomial, averaged over accuracies from 0.93 to 0.97 because every binomial interval oscillates."""
    e = [mean(np.repeat([1.0, 0.0], [k, n - k]), replicates=2000) for k in range(int(0.7 * n), n + 1)]
    accuracies = np.linspace(0.93, 0.97, 41)
    chance = stats.binom.pmf(np.arange(int(0.7 * n), n + 1)[:, None], n, accuracies)
    inside = np.array([[x.low <= p <= x.high for p in accuracies] for x in e])
    assert low <= (chance * inside).sum(0).mean() <= high


@pytest.mark.parametrize("n", [30, 100, 300])
def test_coverage_with_several_samples_an_item(n):
    hit, total = {"mean": 0, "difference": 0, "overall": 0}, 0
    for k, (a, b) in itertools.product(range(100), [(0.95, 0.9), (0.7, 0.8)]):
        s = draw_scores({"a": a, "b": b}, n, 4, [n, k, int(100 * a)])
        other = draw_scores({"b": b}, n, 4, [n, k, int(100 * a), 1])["b"]
        strata = [Bootstrap.of(item_means(x), seed=[k, j], replicates=800) for j, x in enumerate((s["a"], other))]
        e = mean(s["a"], seed=k, replicates=800)
        d = paired_difference(s["a"], s["b"], seed=k, replicates=800)
        o = Bootstrap.join(strata).estimate(lambda m: m.mean(-1))
        hit["mean"] += e.low <= a <= e.high
        hit["difference"] += d.low <= b - a <= d.high
        hit["overall"] += o.low <= (a + b) / 2 <= o.high
        total += 1
    # 200 data sets: ± 3 points of simulation error around 93–97 %
    assert 0.91 <= hit["mean"] / total <= 0.985
    assert 0.9 <= hit["difference"] / total <= 0.985
    assert 0.91 <= hit["overall"] / total <= 0.985


@pytest.mark.parametrize("between", [0.0, 0.03])
def test_coverage_over_three_training_seeds(between):
    hit = 0
    for k in range(400):
        rng = np.random.default_rng([7, k])
        items = rng.beta(3, 2, 80)
        runs = [np.clip(items + rng.normal(0, between) + rng.normal(0, 0.05, 80), 0, 1) for _ in range(3)]
        e = mean(runs, seed=k, replicates=800)
        hit += e.low <= 0.6 <= e.high
    assert 0.92 <= hit / 400 <= 0.98


# -- verdicts and power -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.02, 0.03, "at"), (-0.04, -0.01, "at"), (-0.09, -0.01, "below"), (-0.2, -0.1, "below"), (0.01, 0.08, "above"),
     (-0.02, 0.06, "undetermined"), (-0.2, 0.2, "undetermined"), (math.nan, math.nan, "undetermined")],
)  # fmt: skip
def test_equivalence_verdicts(low, high, verdict):
    assert equivalence_verdict(Estimate((low + high) / 2, low, high), 0.05) == verdict


def test_a_negative_margin_is_refused():
    with pytest.raises(BadInput, match="margin"):
        equivalence_verdict(Estimate(0, -1, 1), -0.1)


def test_smallest_detectable_effect():
    assert smallest_detectable_effect(0.5, 100) == pytest.approx((1.959964 + 0.841621) * 0.05, abs=1e-6)
    assert math.isnan(smallest_detectable_effect(0.5, 1)) and math.isnan(smallest_detectable_effect(math.nan, 10))
    interval = Estimate(0, -1.959964 * 0.05, 1.959964 * 0.05)
    assert detectable_from_interval(interval) == pytest.approx(smallest_detectable_effect(0.5, 100), rel=1e-6)
    found = 0
    for k in range(200):
        x = np.random.default_rng(k).normal(smallest_detectable_effect(0.5, 100), 0.5, 100)
        found += mean(x, bounds=None, seed=k, replicates=400).low > 0
    assert 0.73 <= found / 200 <= 0.9


# -- pass@k -----------------------------------------------------------------------------------------------------------------


def test_pass_at_k_counts_subsets():
    for n, k in [(1, 1), (4, 2), (6, 3), (6, 6)]:
        for c in range(n + 1):
            subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(np.mean([max(s) for s in subsets]))


@given(st.integers(1, 200), st.data())
def test_pass_at_k_grows_with_k_and_starts_at_the_mean(n, data):
    c = data.draw(st.integers(0, n))
    values = pass_at_k(n, c, np.arange(1, n + 1))
    assert values[0] == pytest.approx(c / n) and values[-1] == pytest.approx(float(c > 0))
    assert (np.diff(values) >= -1e-9).all()
    assert np.isnan(pass_at_k(n, c, n + 1))


def test_pass_at_k_broadcasts_and_refuses():
    assert pass_at_k(8, np.array([[0], [8]]), [1, 4, 9]).shape == (2, 3)
    with pytest.raises(BadInput):
        pass_at_k(4, 5, 1)


# -- significance -----------------------------------------------------------------------------------------------------------


def test_the_permutation_test_is_the_enumeration_of_signs():
    d = np.array([0.5, 0.25, 0.25, -0.25, 0.75, 0.0, 0.5, -0.5])
    sums = [abs(np.dot(signs, d)) for signs in itertools.product([-1, 1], repeat=len(d))]
    exact = np.mean(np.array(sums) >= abs(d.sum()) - 1e-12)
    assert permutation_test(d, permutations=40_000) == pytest.approx(exact, abs=0.01)
    assert permutation_test(np.zeros(5)) == 1 and math.isnan(permutation_test([0.5]))
    pairs = permutation_test(np.repeat(d, 3), clusters=np.repeat(np.arange(8), 3), permutations=40_000)
    assert pairs == pytest.approx(exact, abs=0.01)


def test_for_binary_items_the_permutation_test_is_mcnemar():
    d = np.repeat([1.0, -1.0, 0.0], [18, 6, 50])
    assert mcnemar_exact(18, 6) == pytest.approx(2 * stats.binom.cdf(6, 24, 0.5))
    assert permutation_test(d, permutations=40_000) == pytest.approx(mcnemar_exact(18, 6), abs=0.005)
    assert mcnemar_exact(0, 0) == 1


def test_holm_by_hand_and_benjamini_hochberg_by_scipy():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    p = np.random.default_rng(0).random(20) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_stricter_than_benjamini_hochberg(p):
    assert (holm(p) >= benjamini_hochberg(p) - 1e-12).all() and (benjamini_hochberg(p) >= np.array(p) - 1e-12).all()


# -- frames -----------------------------------------------------------------------------------------------------------------


def _records():
    return frame({d: draw_scores({"base": 0.4, "student": 0.8}, 30, 3, [1, k]) for k, d in enumerate(("math", "code"))})


def test_accuracy_of_models_and_domains():
    records = _records()
    found = accuracy(records)
    assert list(found) == ["base", "student"] and list(found["base"]) == ["math", "code", OVERALL]
    by_hand = records.groupby(["model", "domain"])["score"].mean()
    assert found["student"]["code"].value == pytest.approx(by_hand["student", "code"])
    assert found["base"][OVERALL].value == pytest.approx(by_hand["base"].mean())
    assert found["base"][OVERALL].n_items == 60
    lacking = accuracy(records[(records.model == "base") | (records.domain == "math")])
    assert not lacking["student"][OVERALL].defined and "code" in lacking["student"][OVERALL].note
    assert accuracy(records.iloc[:0]) == {}


def test_pivot_shapes_orders_and_pads():
    records = _records()
    models, items, scores = pivot(records, "math")
    assert models == ["base", "student"] and items[0] == "math-0" and scores.shape == (2, 30, 3)
    shuffled = pivot(records.sample(frac=1, random_state=0), "math")
    np.testing.assert_array_equal(shuffled[2][shuffled[0].index("base"), shuffled[1].index("math-7")], scores[0, 7])
    short = records[~((records.model == "base") & (records["sample"] == 2))]
    assert np.isnan(pivot(short, "math")[2][0, :, 2]).all()


def test_frames_that_cannot_be_compared_are_refused():
    records = _records()
    cases = {
        "the column 'score'": records.drop(columns="score"),
        "come twice": pd.concat([records, records.iloc[:1]]),
        "not finite": records.assign(score=np.nan),
        "different contents": records.assign(
            prompt_hash=[f"{m}{i}" for m, i in zip(records.model, records.item_id, strict=True)]
        ),
    }
    for words, broken in cases.items():
        with pytest.raises(BadInput, match=words):
            accuracy(broken)
    with pytest.raises(BadInput, match="29 of 30 items"):
        pivot(records[~((records.model == "base") & (records.item_id == "math-3"))], "math")
    with pytest.raises(BadInput, match="did you mean 'math'"):
        pivot(records, "maths")
