"""Paired comparisons: what is compared, verdicts that follow, and fast statistics against their slow definitions."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bench.compare
import bench.regression_coverage
import mopd_diag
from mopd_diag.diagnostics.comparison import cause
from mopd_diag.diagnostics.pairs import Pairs, measure
from mopd_diag.diagnostics.regression import compare, judge
from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.draws import distinct_rows
from mopd_diag.estimators.significance import permutation_test
from mopd_diag.records.read import from_frame
from mopd_diag.records.recordset import RecordSet


def records(scores_IS, name: str = "set", *, group="all", clusters=None, start: int = 0) -> RecordSet:
    return from_frame(table(scores_IS, group=group, clusters=clusters, start=start), name)


def table(scores_IS, *, group="all", clusters=None, start: int = 0) -> pd.DataFrame:
    scores = np.atleast_2d(np.asarray(scores_IS, dtype=float))
    n, s = scores.shape
    frame = pd.DataFrame({
        "item_id": np.repeat([f"q{i + start:05}" for i in range(n)], s), "sample": np.tile(np.arange(s), n), "score": scores.ravel(),
        "domain": np.repeat(np.broadcast_to(group, n), s), "prompt": "?", "response": [f"answer {x:g}" for x in scores.ravel()],
    })  # fmt: skip
    return frame if clusters is None else frame.assign(document=np.repeat(clusters, s))


def flips(won: int, lost: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([0.0, 1.0, 1.0, 0.0], [won, lost, both, neither])[:, None]
    after = np.repeat([1.0, 0.0, 1.0, 0.0], [won, lost, both, neither])[:, None]
    return before, after


def draw(rng, n: int, s: int, drop: float = 0.0, level: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    chance = rng.beta(4 * level, 4 * (1 - level), n)[:, None]
    return (rng.random((n, s)) < chance) * 1.0, (rng.random((n, s)) < chance - drop) * 1.0


# -- what is measured -----------------------------------------------------------------------------------------------------


def test_one_binary_sample_is_mcnemar_and_counts_flips() -> None:
    before, after = flips(won=5, lost=20, both=60, neither=15)
    found = compare(records(before, "a"), records(after, "b"))
    g = found.groups["all"]
    assert (g.won, g.lost, g.test) == (5, 20, "exact McNemar")
    assert g.p_value == pytest.approx(stats.binomtest(5, 25).pvalue)
    assert (g.before.value, g.after.value, g.delta.value) == pytest.approx((0.8, 0.65, -0.15))
    assert g.delta.low <= -0.15 <= g.delta.high < 0
    assert g.verdict == found.overall.verdict == "worse"
    assert len(found.flips) == 25 and list(found.flips["change"].unique()) == ["lost", "won"]
    assert len(found.lost_items) == 20


def test_several_samples_are_a_permutation_test_with_pass_at_k() -> None:
    before, after = draw(np.random.default_rng(0), 300, 4, 0.1)
    g = compare(records(before), records(after)).overall
    assert g.test == "paired permutation" and g.verdict == "worse" and g.n_samples == 4
    assert g.p_value == pytest.approx(stats.ttest_rel(after.mean(1), before.mean(1)).pvalue, abs=2e-3)
    assert sorted(g.pass_at_k) == [1, 2, 4]
    one, two, four = (g.pass_at_k[k] for k in (1, 2, 4))
    assert one[0].value == pytest.approx(before.mean()) and four[1].value == pytest.approx(after.any(1).mean())
    assert two[2].value == pytest.approx(two[1].value - two[0].value)
    assert one[2].value == pytest.approx(g.delta.value)


def test_overall_is_the_unweighted_mean_of_groups_resampled_within_them() -> None:
    rng = np.random.default_rng(1)
    small, large = draw(rng, 60, 2, 0.2), draw(rng, 600, 2, 0.0, 0.5)
    sides = [
        from_frame(pd.concat([table(small[k], group="small"), table(large[k], group="large", start=100)]), "ab"[k])
        for k in (0, 1)
    ]
    found = compare(*sides)
    groups = found.groups
    assert found.overall.delta.value == pytest.approx((groups["small"].delta.value + groups["large"].delta.value) / 2)
    slow = []
    for _ in range(4000):
        means = [(a - b).mean(1)[rng.integers(0, len(a), len(a))].mean() for b, a in (small, large)]
        slow.append(np.mean(means))
    np.testing.assert_allclose(
        [found.overall.delta.low, found.overall.delta.high], np.quantile(slow, [0.025, 0.975]), atol=0.006
    )
    assert found.overall.lost == groups["small"].lost + groups["large"].lost
    assert 1 in found.overall.pass_at_k and "2 strata" in found.overall.delta.method


def test_holm_decides_and_benjamini_hochberg_stands_beside_it() -> None:
    before, after = flips(won=2, lost=11, both=60, neither=27)  # p = 0.022, alone significant
    frames = [[], []]
    for k in range(8):
        values = (before, after) if k == 0 else (before, before)
        for side in (0, 1):
            frames[side].append(table(values[side], group=f"g{k}", start=1000 * k))
    sides = [from_frame(pd.concat(f), n) for f, n in zip(frames, "ab", strict=True)]
    g = compare(*sides).groups["g0"]
    assert g.p_value == pytest.approx(0.0225, abs=1e-3)
    assert g.p_adjusted == pytest.approx(8 * g.p_value) and g.q_value <= g.p_adjusted
    assert g.verdict == "undetermined" and "Holm" in g.note and g.delta.high < 0
    alone = compare(records(before), records(after)).overall
    assert alone.verdict == "worse" and alone.mde < g.mde  # eight groups need a larger difference


@pytest.mark.parametrize(
    ("flipped", "n", "margin", "verdict"),
    [
        ((40, 10), 400, 0.02, "better"),
        ((10, 40), 400, 0.02, "worse"),
        ((3, 3), 2000, 0.02, "unchanged"),
        ((3, 3), 40, 0.02, "undetermined"),
        ((4, 16), 4000, 0.02, "unchanged"),  # surely worse, and surely by less than the margin
        ((4, 16), 4000, 0.0, "worse"),
    ],
)
def test_verdicts(flipped, n, margin, verdict) -> None:
    before, after = flips(*flipped, both=n // 2, neither=n - n // 2 - sum(flipped))
    g = compare(records(before), records(after), margin=margin).overall
    assert g.verdict == verdict
    if verdict == "unchanged" and flipped[0] != flipped[1]:
        assert "within the margin" in g.note
    if verdict == "undetermined":
        assert "would be found" in g.note and g.mde > margin


def test_nothing_changed_is_no_certainty() -> None:
    same = records(np.ones((30, 1)))
    g = compare(same, same).overall
    assert g.p_value == 1 and g.verdict == "undetermined" and g.delta.low < 0 < g.delta.high and g.mde > 0


def test_few_items_without_a_flip_are_not_called_unchanged() -> None:
    """A checkpoint that loses 3 % of all items shows no loss among 60 in one of six draws."""
    for n, expected in ((60, "undetermined"), (1000, "unchanged")):
        before, after = flips(won=0, lost=0, both=n // 2, neither=n // 2)
        g = compare(records(before), records(after)).overall
        jeffreys = stats.beta.ppf(0.975, 0.5, n + 0.5)
        assert g.verdict == expected and 0.5 * jeffreys < g.delta.high < 2 * jeffreys and "unseen" in g.note
    before, after = flips(won=0, lost=1, both=150, neither=0)  # the percentile interval alone would end at the margin
    assert compare(records(before), records(after)).overall.verdict == "undetermined"


def test_a_group_of_one_item_is_undefined_with_the_reason_and_json_has_no_nan() -> None:
    found = compare(records([[1.0]]), records([[0.0]]))
    assert math.isnan(found.overall.delta.value) and "at least 2" in found.overall.note
    assert found.overall.verdict == "undetermined"
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["overall"]["delta"]["value"] is None and document["overall"]["p_value"] is None


def test_graded_scores_have_no_pass_at_k_and_their_own_scale_is_said() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(20, 80, (200, 2))
    found = compare(records(before), records(before - 5 + rng.normal(0, 3, before.shape)), margin=1)
    assert found.overall.verdict == "worse" and not found.overall.pass_at_k
    assert found.threshold > 30 and any("that scale" in w for w in found.warnings)


def test_settings_out_of_range_are_refused() -> None:
    same = records(np.ones((5, 1)))
    for settings, words in (({"margin": -1}, "margin"), ({"level": 95}, "level"), ({"replicates": 5}, "replicates")):
        with pytest.raises(BadInput, match=words):
            compare(same, same, **settings)
    with pytest.raises(BadInput, match="rename it"):
        compare(records(np.ones((5, 1)), group="overall"), records(np.ones((5, 1)), group="overall"))


# -- clusters and noise ---------------------------------------------------------------------------------------------------


def test_clusters_widen_the_interval_and_the_test() -> None:
    rng = np.random.default_rng(3)
    of = np.arange(600) % 30
    shift = rng.normal(0, 0.25, 30)[of][:, None]
    chance = rng.uniform(0.3, 0.7, (600, 1))
    before, after = (rng.random((600, 1)) < chance) * 1.0, (rng.random((600, 1)) < chance + shift) * 1.0
    flat = compare(records(before), records(after)).overall
    found = compare(records(before, clusters=of), records(after, clusters=of)).overall
    assert found.delta.n_clusters == 30 and "cluster" in found.delta.method and "cluster" in found.test
    assert found.delta.value == pytest.approx(flat.delta.value)
    assert found.delta.high - found.delta.low > 1.3 * (flat.delta.high - flat.delta.low)
    assert found.mde > 1.3 * flat.mde
    d = np.bincount(of, weights=(after - before)[:, 0]) / 20
    slow = [d[rng.integers(0, 30, 30)].mean() for _ in range(10_000)]  # clusters of equal size
    np.testing.assert_allclose([found.delta.low, found.delta.high], np.quantile(slow, [0.025, 0.975]), atol=0.01)


def test_clusters_in_several_groups_are_resampled_as_one() -> None:
    rng = np.random.default_rng(4)
    shift = rng.normal(0, 0.4, 40)
    sides = [[], []]
    for k, group in enumerate(("a", "b")):
        before = rng.uniform(0.3, 0.7, (40, 1))
        for side, values in enumerate((before, (before + shift[:, None]).clip(0, 1))):
            sides[side].append(table(values, group=group, clusters=np.arange(40), start=100 * k))
    both = compare(*(from_frame(pd.concat(s), n) for s, n in zip(sides, "ab", strict=True)))
    apart = compare(*(from_frame(pd.concat(s).drop(columns="document"), n) for s, n in zip(sides, "ab", strict=True)))
    assert both.overall.delta.value == pytest.approx(apart.overall.delta.value)
    width = [c.overall.delta.high - c.overall.delta.low for c in (both, apart)]
    assert 1.2 < width[0] / width[1] < 1.7  # about √2: two groups tell no more than one


def test_the_noise_floor_is_what_two_runs_of_one_checkpoint_differ_by() -> None:
    rng = np.random.default_rng(5)
    chance = rng.beta(2, 1, 400)[:, None]
    runs = [(rng.random((400, 2)) < chance) * 1.0 for _ in range(300)]
    apart = np.abs([runs[i].mean() - runs[i + 1].mean() for i in range(0, 300, 2)])
    found = compare(
        records(runs[0], "a"), records(runs[1], "b"), reruns=[records(runs[2], "r1"), records(runs[3], "r2")]
    )
    floor = found.overall.noise_floor
    assert floor is not None and floor.low < floor.value < floor.high
    assert floor.value == pytest.approx(np.quantile(apart, 0.95), rel=0.2)
    assert "noise floor" in found.groups["all"].note
    other = compare(records(runs[0], "a"), records(runs[1], "b"), reruns=[records(np.zeros((400, 2)), "zero")])
    assert any("same checkpoint?" in w for w in other.warnings)
    same = compare(records(runs[0], "a"), records(runs[1], "b"), reruns=[records(runs[0], "again")]).overall.noise_floor
    assert same is not None and same.value == 0 < same.high


# -- fast against slow ----------------------------------------------------------------------------------------------------


def test_the_bootstrap_has_the_distribution_of_all_resamples() -> None:
    difference = np.array([-1.0, -1.0, 0.0, 0.0, 1.0, 0.5])
    every = np.array([difference[list(i)].mean() for i in itertools.product(range(6), repeat=6)])  # all 46,656
    drawn = Bootstrap.of(difference, bounds=(-1, 1), method="percentile", seed=2, replicates=40_000).means_RV[:, 0]
    values, counts = np.unique(every.round(9), return_counts=True)
    seen = np.array([(np.abs(drawn - v) < 1e-8).sum() for v in values])
    assert seen.sum() == len(drawn)
    assert (
        stats.chisquare(
            seen[counts > 500], counts[counts > 500] * seen[counts > 500].sum() / counts[counts > 500].sum()
        ).pvalue
        > 0.001
    )


def test_many_distinct_rows_are_drawn_like_few(monkeypatch) -> None:
    scores = np.random.default_rng(0).random(2500)
    scores[:700] = 0
    fast = Bootstrap.of(scores, method="percentile", replicates=2000).means_RV[:, 0]
    monkeypatch.setattr("mopd_diag.estimators.draws.FEW_ROWS", 10**9)
    slow = Bootstrap.of(scores, method="percentile", replicates=2000).means_RV[:, 0]
    assert stats.ks_2samp(fast, slow).pvalue > 0.001


def test_distinct_rows_are_those_of_numpy() -> None:
    rows = np.random.default_rng(0).integers(0, 4, (500, 3)) / 3
    for found, expected in zip(distinct_rows(rows), np.unique(rows, axis=0, return_counts=True), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_permutation_test_is_flipping_every_sign() -> None:
    rng = np.random.default_rng(0)
    for difference in (rng.normal(0.3, 1, 12), np.array([0.5, 0.5, 0.5, -0.25, -1, 1, 1, 1, 0.125, 0.3, 0, 0])):
        signs = np.array(list(itertools.product([-1, 1], repeat=len(difference))))
        exact = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).mean()
        assert permutation_test(difference, permutations=40_000) == pytest.approx(exact, abs=0.01)


def test_the_same_seed_repeats_and_the_order_of_rows_does_not_matter() -> None:
    before, after = draw(np.random.default_rng(0), 80, 3)
    one = compare(records(before, "a"), records(after, "b"), seed=3).to_dict()
    shuffled = table(after).sample(frac=1, random_state=1)
    assert compare(records(before, "a"), from_frame(shuffled, "b"), seed=3).to_dict() == one
    assert compare(records(before, "a"), records(after, "b"), seed=4).to_dict() != one


# -- simulations, small ---------------------------------------------------------------------------------------------------


def test_intervals_cover_and_eight_quiet_groups_raise_few_alarms() -> None:
    """Small; `python -m bench.regression_coverage` is the long one."""
    rng, ones, none = np.random.default_rng(11), np.ones(100, int), np.empty(0)
    held = alarms = 0
    for k in range(120):
        pairs = []
        for j in range(8):
            before, after = draw(rng, 100, 1)
            pairs.append(Pairs(f"g{j}", before[:, 0], after[:, 0], ones, ones, none, True, 0.5))
        measured = {
            p.name: measure(p, seed=(k, j), level=0.95, replicates=400, bounds=(0, 1)) for j, p in enumerate(pairs)
        }
        groups = judge(pairs, measured, margin=0.02, level=0.95)
        held += sum(g.delta.low <= 0 <= g.delta.high for g in groups.values())
        alarms += any(g.verdict in ("better", "worse") for g in groups.values())
    assert 0.93 <= held / 960 <= 0.97
    assert alarms / 120 <= 0.08  # 5 % and its simulation error


# -- the public names -----------------------------------------------------------------------------------------------------


def test_the_python_api_takes_frames_and_keeps_the_contract() -> None:
    before, after = flips(won=5, lost=20, both=60, neither=15)
    found = mopd_diag.compare(table(before), table(after).drop(columns=["prompt", "response"]), seed=1)
    assert isinstance(found, mopd_diag.Comparison)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["joined"] == 100 and {"groups", "overall", "lost_items"} <= document.keys()
    for row in (document["groups"]["all"], document["overall"]):
        assert {"before", "after", "delta", "p_value", "p_adjusted", "won", "lost", "verdict"} <= row.keys()
        assert isinstance(row["before"], float) and row["delta"]["value"] == pytest.approx(-0.15)
    assert len(document["lost_items"]) == 20 and document["lost_items"][0]["item_id"] == "q00005"
    assert list(found.frame["group"]) == ["all", "overall"]
    assert found.frame.set_index("group").loc["overall", "delta"] == pytest.approx(-0.15)
    assert found.html().lower().startswith("<!doctype html>") and "worse" in found.markdown().lower()
    with pytest.raises(BadInput, match="data frame"):
        mopd_diag.compare(table(before), 3)  # type: ignore[arg-type]


def test_the_answers_that_are_shown_are_the_ones_that_differ() -> None:
    before, after = [[0, 1, 1]] * 3, [[1, 0, 0]] * 3
    shown = compare(records(before), records(after)).flips.iloc[0]
    assert (shown["change"], shown["response_before"], shown["response_after"]) == ("lost", "answer 1", "answer 0")


def test_lost_items_are_told_by_cause() -> None:
    before, after = flips(won=0, lost=5, both=5, neither=0)
    why = pd.DataFrame({
        "group": "all", "item_id": [f"q{i:05}" for i in range(4)], "failure": ["inherited", "inherited", "own", "undetermined"],
        "teacher": ["teacher-style", "teacher-style", "", ""], "reason": "",
    })  # fmt: skip
    found = compare(records(before), records(after), why=why)
    assert found.lost_sentences() == ["5 lost in all: 2 inherited from teacher-style, 1 own, 2 undetermined"]
    assert compare(records(before), records(after)).lost_sentences() == ["5 lost in all"]
    assert cause("leaked", "teacher-a") == "leaked from teacher-a" and cause("pre-existing", "") == "pre-existing"


# -- the measurements -----------------------------------------------------------------------------------------------------


def test_the_bench_and_the_simulations_run_small() -> None:
    measured = bench.compare.run(items=400, replicates=400, rounds=2)
    assert set(measured["seconds"]) == {"100", "200", "400"} and measured["ours_over_loop"]["median"] > 1
    np.testing.assert_allclose(measured["interval"]["ours"], measured["interval"]["loop"], atol=0.02)
    simulated = bench.regression_coverage.run(simulations=2, replicates=200)
    assert all(0 <= row["share"] <= 1 for part in bench.regression_coverage.PARTS for row in simulated[part])
