"""Recoveries that were printed, caps that were planted, and luck that must not make a verdict."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import draw_scores, frame

from bench.caps_coverage import Cast
from mopd_diag.diagnostics.caps import caps, recoveries
from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.caps import (
    BEST,
    PARTS,
    WHOLE,
    cap,
    cap_over_seeds,
    joint_gap,
    one_sided_gap,
    partition,
    pass_at_ks,
    recovered,
)
from mopd_diag.estimators.selection import best_of, contenders, halves
from mopd_diag.estimators.statistics import equivalence_verdict, item_means, pass_at_k

FAST = {"replicates": 500}

# -- printed numbers --------------------------------------------------------------------------------------------------------

NEMOTRON = {  # Nemotron 3 Ultra table 5 (2606.15007): RLVR, MOPD round 2, teacher, and the recovery in percent that they imply
    "TerminalBench": (44.5, 54.0, 50.0, 173), "MultiChallenge": (60.3, 63.8, 63.3, 117), "τ-Telecom": (82.7, 92.9, 94.0, 90),
    "SWE-V": (65.8, 71.7, 72.5, 88), "GDPVal": (28.9, 46.7, 49.5, 86), "OmniScience": (46.3, 78.7, 87.0, 80),
    "IFBench": (78.4, 81.7, 83.0, 72), "BrowseComp": (31.0, 44.4, 51.0, 67), "IMOAnswer": (84.5, 88.6, 92.5, 51),
    "LCB": (87.4, 89.0, 92.4, 32), "HLE": (25.6, 26.7, 32.1, 17),
}  # fmt: skip


@pytest.mark.parametrize(("before", "student", "teacher", "percent"), NEMOTRON.values(), ids=NEMOTRON)
def test_nemotrons_table_implies_its_recoveries(before, student, teacher, percent):
    assert round(100 * float(recovered(student, before, teacher))) == percent


def test_mimos_table_implies_its_recoveries():
    before, teacher = np.array([89.3, 76.9, 67.8, 42.5]), np.array([93.9, 82.6, 74.2, 51.7])  # 2601.02780 table 7
    after = np.array([94.1, 84.4, 73.4, 45.4])  # AIME25, HMMT, SWE-V, BrowseComp
    np.testing.assert_allclose(recovered(after, before, teacher), [1.043, 1.316, 0.875, 0.315], atol=5e-4)


def test_no_headroom_is_unknown_and_never_zero():
    assert np.isnan(recovered([0.5, 0.5], [0.4, 0.4], [0.4, 0.3])).all()


# -- one domain -------------------------------------------------------------------------------------------------------------


def test_recovery_is_the_ratio_of_means():
    s = draw_scores({"base": 0.4, "student": 0.7, "good": 0.9, "other": 0.3}, 200, 4, 0)
    found = cap(s["student"], s["base"], [s["other"], s["good"]], **FAST)
    means = {m: x.mean() for m, x in s.items()}
    assert found.teacher == 1 and found.chosen == ((1, 1),)
    assert found.recovery.value == pytest.approx(float(recovered(means["student"], means["base"], means["good"])))
    assert found.gap.value == pytest.approx(means["student"] - means["good"])
    assert found.recovery.low < found.recovery.value < found.recovery.high and found.verdict == "below"
    assert "smallest detectable" in found.recovery.note and found.recovery.unit == "ratio"


def test_headroom_that_covers_zero_leaves_recovery_undefined():
    s = draw_scores({"base": 0.6, "student": 0.6, "teacher": 0.6}, 50, 4, 1)
    found = cap(s["student"], s["base"], [s["teacher"]], **FAST)
    assert not found.recovery.defined and "covers 0" in found.recovery.note and found.gap.defined
    worse = cap(s["student"], np.ones((50, 4)), [s["teacher"]], **FAST)
    assert not worse.recovery.defined and "below 0" in worse.recovery.note


def test_one_item_and_unequal_items():
    alone = cap([[1.0]], [[0.0]], [[[1.0]]], **FAST)
    assert alone.verdict == "undetermined" and "at least 2" in alone.recovery.note
    for student, teachers in ((np.ones((3, 2)), [np.ones((4, 2))]), (np.ones((4, 2)), [])):
        with pytest.raises(BadInput):
            cap(student, np.zeros((4, 2)), teachers, **FAST)
    two, one = ((np.ones((4, 2)), np.zeros((4, 2)), [np.ones((4, 2))] * m) for m in (2, 1))
    with pytest.raises(BadInput, match="the same teachers in every training"):
        cap_over_seeds([two, one], **FAST)


def test_training_seeds_widen_the_interval():
    runs = []
    for k, student in enumerate((0.65, 0.75, 0.85)):
        s = draw_scores({"base": 0.4, "student": student, "teacher": 0.9}, 150, 4, [2, k])
        runs.append((s["student"], s["base"], [s["teacher"]]))
    one, three = cap(*runs[1], **FAST), cap_over_seeds(runs, **FAST)
    assert three.recovery.high - three.recovery.low > 2 * (one.recovery.high - one.recovery.low)
    assert "3 training seeds" in three.recovery.method and len(three.chosen) == 3
    own_items = cap_over_seeds(runs, same_items=False, **FAST)
    assert own_items.recovery.n_clusters == 3 and "own items" in own_items.recovery.method


def test_noise_that_items_hold_already_is_not_counted_twice():
    """Twenty times three trainings alike but for their samples; then three that are 20 points apart."""
    rng = np.random.default_rng(0)
    alike = [[rng.binomial(4, 0.7, 200) / 4 for _ in range(3)] for _ in range(20)]
    apart = [a * scale for a, scale in zip(alike[0], (0.6, 0.8, 1.0), strict=True)]

    def width(trainings, crossed):
        e = Bootstrap.over_seeds(trainings, crossed=crossed, replicates=2000).column(0)
        return e.high - e.low

    residual_TI = np.stack(alike[0]) - np.mean(alike[0], 0) - np.mean(alike[0], 1, keepdims=True) + np.mean(alike[0])
    noise = Bootstrap.over_seeds(alike[0], crossed=True).noise_RV
    expected = np.sqrt((residual_TI**2).sum() / (2 * 199 * 3 * 200))
    assert noise is not None and noise.std() == pytest.approx(expected, rel=0.03)
    assert np.mean([width(a, True) for a in alike]) < 0.9 * np.mean([width(a, False) for a in alike])
    assert width(apart, True) == pytest.approx(width(apart, False), rel=0.03)


# -- the best teacher -------------------------------------------------------------------------------------------------------


def test_the_best_is_chosen_on_one_half_and_scored_on_the_other():
    scores = list(draw_scores({str(m): 0.7 for m in range(5)}, 40, 6, 3).values())
    found = best_of(scores)
    even, odd = ([x[:, half::2].mean(1) for x in scores] for half in (0, 1))
    by_even, by_odd = (int(np.argmax([x.mean() for x in h])) for h in (even, odd))
    assert found.chosen == (by_even, by_odd)
    np.testing.assert_allclose(found.column_I, (odd[by_even] + even[by_odd]) / 2)
    assert found.index == int(np.argmax([x.mean() for x in scores]))


def test_single_samples_are_halved_by_item():
    scores = [np.random.default_rng(k).integers(0, 2, (31, 1)).astype(float) for k in range(3)]
    sums, counts = halves(scores)
    np.testing.assert_array_equal(counts.sum(0), np.ones((3, 31)))
    np.testing.assert_array_equal(sums.sum(0), np.stack(scores)[:, :, 0])
    assert 12 <= counts[0, 0].sum() <= 19
    found = best_of(scores)
    of_first = [(x[:, 0] * counts[0, 0]).sum() for x in scores]
    assert found.chosen[0] == int(np.argmax(of_first))


def test_missing_samples_are_left_out_and_ties_go_to_the_earlier():
    full, short = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]), np.array([[1.0, 1.0, np.nan, np.nan]] * 2)
    sums, counts = halves([full, short])
    np.testing.assert_array_equal(counts[:, 1], np.ones((2, 2)))
    np.testing.assert_array_equal(sums[0, 0], [2, 1])
    assert best_of([full, full.copy()]).index == 0


def test_the_winners_curse_is_gone_where_halves_are_independent():
    """Twelve equal teachers of accuracy 0.7: the best of them on all samples looks better, the cross-fitted one does not."""
    lucky, fair = [], []
    for k in range(60):
        scores = [np.random.default_rng([k, m]).integers(0, 10, (60, 4)) < 7 for m in range(12)]
        found = best_of([s.astype(float) for s in scores])
        lucky.append(found.whole_I.mean() - 0.7)
        fair.append(found.column_I.mean() - 0.7)
    assert np.mean(lucky) > 0.03
    assert abs(np.mean(fair)) < 3 * np.std(fair) / np.sqrt(60) < 0.015


def test_contenders_are_those_who_may_be_the_best():
    s = draw_scores({"far": 0.3, "best": 0.8, "near": 0.79, "weak": 0.6}, 256, 4, 0)
    means = np.stack([item_means(x) for x in s.values()])
    leader = int(means.mean(1).argmax())
    assert contenders([means])[0] == leader and set(contenders([means])) == {1, 2}
    assert contenders([means[:1]]) == [0] and contenders([means[[1, 1]]]) == [0, 1]
    better_elsewhere = [means, means[[0, 1, 3, 2]] * 0.9]
    assert contenders(better_elsewhere)[0] == 1 and {2, 3} <= set(contenders(better_elsewhere))


def test_replicates_of_contenders_are_the_slow_definition():
    """Every contender set level with the leader, and of each replicate the lowest; a rival far behind changes nothing."""
    equal = draw_scores({"base": 0.4, "student": 0.7} | {f"t{m}": 0.8 for m in range(3)}, 100, 4, 1)
    found = cap(equal["student"], equal["base"], [equal[f"t{m}"] for m in range(3)], **FAST)
    boot, leader = found.bootstrap, item_means(equal[f"t{found.teacher}"]).mean()
    assert boot.means_RV.shape == (500, 4) and boot.point_V[WHOLE] == pytest.approx(leader)
    assert (boot.means_RV[:, BEST] <= boot.means_RV[:, WHOLE] + 1e-12).all()
    assert boot.means_RV[:, BEST].mean() < boot.means_RV[:, WHOLE].mean() - 0.005
    for redrawn in (boot.redraw(0.5), boot.redraw(1.0).redraw(0.5)):
        assert redrawn.means_RV.shape == (500, 4)
    far = draw_scores({"base": 0.4, "student": 0.7, "teacher": 0.8, "far": 0.3}, 100, 4, 1)
    alone = cap(far["student"], far["base"], [far["teacher"]], **FAST)
    beside = cap(far["student"], far["base"], [far["far"], far["teacher"]], **FAST)
    np.testing.assert_array_equal(alone.bootstrap.means_RV, beside.bootstrap.means_RV)
    np.testing.assert_allclose(alone.bootstrap.means_RV[:, BEST], alone.bootstrap.means_RV[:, WHOLE])
    assert (alone.gap.low, alone.gap.high) == (beside.gap.low, beside.gap.high)


def test_a_verdict_is_two_one_sided_tests():
    one = draw_scores({"base": 0.4, "student": 0.8, "teacher": 0.85}, 150, 4, 3)
    many = draw_scores({"base": 0.4, "student": 0.8} | {f"t{m}": 0.8 for m in range(6)}, 150, 4, 4)
    for s in (one, many):
        found = cap(s["student"], s["base"], [x for m, x in s.items() if m not in ("student", "base")], **FAST)
        assert found.tested.level == 0.9 and found.gap.level == 0.95 and found.tested.value == found.gap.value
        assert found.gap.low <= found.tested.low < found.tested.high <= found.gap.high
        assert found.verdict == equivalence_verdict(found.tested, 0.05) and "each side tested at 5%" in found.gap.note
    twice = one_sided_gap([found.bootstrap] * 2)
    assert twice.value == pytest.approx(found.gap.value) and joint_gap([found.bootstrap] * 2).level == 0.95


# -- partition and pass@k ---------------------------------------------------------------------------------------------------


def test_partition_by_hand():
    student, best, other = (
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.5],
        [1.0, 0.0, 0.0, 1.0, 0.0, 0.6],
        [0.0, 0.0, 0.9, 0.0, 1.0, 0.0],
    )
    parts = partition(student, [other, best], best=1)
    assert parts.tolist() == ["both", "surpassing", "both", "lost", "inherited", "lost"]


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 0.75, 1.0])] * 3), min_size=1, max_size=30))
def test_every_item_has_exactly_one_part(rows):
    student, one, two = (list(c) for c in zip(*rows, strict=True))
    counts = Counter(partition(student, [one, two], best=0).tolist())
    assert set(counts) <= set(PARTS) and sum(counts.values()) == len(rows)


def test_pass_at_ks_averages_items_and_says_what_it_cannot_tell():
    s = draw_scores({"a": 0.3, "b": 0.6}, 40, 8, 5)
    (a1, a8, a9), (b1, b8, _) = pass_at_ks([s["a"], s["b"]], [1, 8, 9], **FAST)
    assert a1.value == pytest.approx(s["a"].mean()) and b8.value == pytest.approx((s["b"].max(1)).mean())
    assert a8.value == pytest.approx(pass_at_k(8, s["a"].sum(1), 8).mean()) and a8.low > a1.value < b1.value
    assert not a9.defined and "fewer than 9" in a9.note


# -- simulated truth --------------------------------------------------------------------------------------------------------


def _verdicts(accuracies: dict[str, float], n: int, samples: int, runs: int) -> tuple[Counter[str], float]:
    """Verdicts, and the share of runs whose interval holds the true recovery."""
    teachers = [m for m in accuracies if m.startswith("teacher")]
    best = max(accuracies[t] for t in teachers)
    truth = float(recovered(accuracies["student"], accuracies["base"], best))
    seen, hit = Counter[str](), 0
    for k in range(runs):
        s = draw_scores(accuracies, n, samples, [n, samples, k])
        found = cap(s["student"], s["base"], [s[t] for t in teachers], seed=k, **FAST)
        seen[found.verdict] += 1
        hit += found.recovery.low <= truth <= found.recovery.high
    return seen, hit / runs


def test_recovery_covers_the_truth():
    hits = [
        _verdicts({"base": 0.4, "student": 0.85, "teacher": 0.9, "teacher-off": 0.45}, 60, 4, 80)[1],
        _verdicts({"base": 0.5, "student": 0.6, "teacher": 0.75, "teacher-off": 0.45}, 150, 4, 80)[1],
        _verdicts({"base": 0.6, "student": 0.95, "teacher": 0.95, "teacher-off": 0.5}, 150, 4, 80)[1],
    ]
    assert 0.93 <= np.mean(hits) <= 0.975  # 240 data sets


def test_a_planted_five_point_cap_is_found():
    seen, _ = _verdicts({"base": 0.5, "student": 0.9, "teacher": 0.95, "teacher-off": 0.45}, 200, 4, 60)
    assert seen["below"] >= 0.8 * 60 and not seen["above"]


def test_a_five_point_cap_is_found_at_the_harnesss_own_size():
    """256 items × 4 samples, four teachers of which one knows the domain."""
    teachers = {"teacher": 0.8} | {f"teacher-off-{m}": 0.45 for m in range(3)}
    seen, _ = _verdicts({"base": 0.4, "student": 0.75} | teachers, 256, 4, 60)
    assert seen["below"] >= 0.8 * 60 and not seen["above"]


def test_the_bench_draws_what_it_says():
    cast = Cast(0.8, 0.9, 0.5, teachers=3, rivals="near", trainings=3, items=4000, spread="hard")
    scores_TMIS = next(cast.draw(np.random.default_rng(0), 1))
    assert scores_TMIS.shape == (3, 5, 4000, 4) and cast.recovery == pytest.approx(0.75)
    np.testing.assert_allclose(scores_TMIS.mean((0, 2, 3)), [0.8, 0.5, 0.9, 0.87, 0.87], atol=0.03)
    student, _, teacher = scores_TMIS[:, :3].mean((0, 3))
    assert np.corrcoef(student, teacher)[0, 1] > 0.5, "models agree on which items are hard"


def test_twelve_teachers_make_no_student_look_better_than_its_cap():
    equal = {f"teacher-{m}": 0.8 for m in range(12)}
    one = {f"teacher-{m}": 0.8 if m == 5 else 0.77 for m in range(12)}
    for teachers in (equal, one):
        seen, _ = _verdicts({"base": 0.5, "student": 0.8} | teachers, 150, 4, 40)
        assert seen["above"] <= 2 and seen["below"] <= 4


# -- records ----------------------------------------------------------------------------------------------------------------

TEACHERS = {"teacher-math": ["math"], "teacher-code": ["code"]}
TRUTH = {
    "math": {"base": 0.5, "student": 0.94, "teacher-math": 0.94, "teacher-code": 0.4, "rival-mix": 0.7},
    "code": {"base": 0.4, "student": 0.6, "teacher-math": 0.3, "teacher-code": 0.9, "rival-mix": 0.75},
    "flat": {"base": 0.6, "student": 0.6, "teacher-math": 0.6, "teacher-code": 0.6, "rival-mix": 0.6},
}


def _records(n=200, samples=4, seed=0):
    return frame({d: draw_scores(models, n, samples, [seed, k]) for k, (d, models) in enumerate(TRUTH.items())})


def test_the_report_keeps_the_contract():
    report = caps(_records(), TEACHERS, **FAST)
    table = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert list(table["domains"]) == ["math", "code", "flat"]
    math, code, flat = table["domains"].values()
    for domain in table["domains"].values():
        assert {"recovery", "student", "base", "best_teacher", "teacher", "verdict", "partition"} <= domain.keys()
        assert sum(domain["partition"].values()) == 200 and sum(domain["partition_shares"].values()) == pytest.approx(1)
    assert (math["teacher"], code["teacher"]) == ("teacher-math", "teacher-code")
    assert (math["verdict"], code["verdict"]) == ("at", "below") and flat["recovery"]["value"] is None
    assert code["pass_at_k"]["student"].keys() == {"1", "2", "4"}
    assert len(code["items"]["lost"]) == min(20, code["partition"]["lost"])
    defined = [d["recovery"]["value"] for d in (math, code)]
    assert report.mean_recovery.value == pytest.approx(np.mean(defined)) and "2 of 3" in report.mean_recovery.note


def test_findings_say_where_to_look():
    found = {f.id: f for f in caps(_records(), TEACHERS, **FAST).findings()}
    assert list(found) == ["cap-student-math", "cap-student-code", "cap-student-flat", "cap-student-overall"]
    code = found["cap-student-code"]
    assert (code.subject, code.verdict, code.severity, code.kind) == ("student/code", "below", "warning", "cap")
    assert code.evidence["items"]["lost"] and "teacher-code" in code.evidence["why"]
    assert "covers 0" in found["cap-student-flat"].evidence["why"]
    for f in found.values():
        json.dumps(f.to_dict(), allow_nan=False)


def test_thin_evidence_is_undetermined():
    report = caps(_records(n=12, samples=1), TEACHERS, **FAST)
    assert report.caps["math"].cap.verdict == "undetermined"
    assert report.caps["math"].cap.smallest_detectable_effect > 0.1


def test_rivals_are_measured_against_the_same_teachers():
    table = recoveries(_records(), ["student", "rival-mix"], TEACHERS, **FAST)
    assert table["rival-mix"]["code"].value > table["student"]["code"].value
    assert table["rival-mix"]["overall"].defined and not table["student"]["flat"].defined


@settings(max_examples=3)
@given(st.randoms())
def test_the_order_of_records_does_not_matter(rng):
    records = _records(n=30)
    records = records[records.domain == "math"]
    order = list(range(len(records)))
    rng.shuffle(order)
    one, two = (caps(r, TEACHERS, **FAST).domains["math"] for r in (records, records.iloc[order]))
    assert one["recovery"] == pytest.approx(two["recovery"]) and one["gap"] == two["gap"]


def test_several_runs_are_training_seeds():
    runs = [_records(seed=0), _records(seed=1).sample(frac=1, random_state=0)]
    report = caps(runs, TEACHERS, **FAST)
    code = report.domains["code"]
    assert "2 training seeds" in code["recovery"]["method"] and sum(code["partition"].values()) == 400


def test_missing_models_are_named():
    records = _records(n=10)
    with pytest.raises(BadInput, match="did you mean 'student'"):
        caps(records, TEACHERS, student="studnt")
    with pytest.raises(BadInput, match="teacher-agent"):
        caps(records, TEACHERS | {"teacher-agent": ["agent"]})
    with pytest.raises(BadInput, match="no records of base on the domain 'code'"):
        caps(records[(records.model != "base") | (records.domain != "code")], TEACHERS, **FAST)
