"""Planted harm and help, forgetting by hand, and the geometry of vectors that are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from planted import draw_scores, frame

from mopd_diag.diagnostics.interference import interference
from mopd_diag.errors import BadInput
from mopd_diag.estimators.interference import backward_transfer, changes, forgetting, judge, task_geometry, worst_domain

FAST = {"replicates": 1000}

# -- cells ------------------------------------------------------------------------------------------------------------------


def test_changes_are_paired_differences():
    s = draw_scores({"base": 0.6, "up": 0.8, "down": 0.4, "same": 0.6}, 150, 4, 0)
    cells = changes(s["base"], [s["up"], s["down"], s["base"].copy()], **FAST)
    assert cells[0].delta.value == pytest.approx((s["up"] - s["base"]).mean())
    up, down, same = judge(cells, margin=0.05)
    assert (up.verdict, down.verdict, same.verdict) == ("help", "harm", "none")
    assert up.p_adjusted >= up.p_value and same.p_value == 1 and same.delta.low < 0 < same.delta.high
    with pytest.raises(BadInput, match="150 items"):
        changes(s["base"], [s["up"][:10]])


def test_thin_evidence_is_undetermined_and_unknown_stays_unknown():
    s = draw_scores({"base": 0.6, "up": 0.7}, 10, 1, 0)
    assert [c.verdict for c in judge(changes(s["base"], [s["up"]], **FAST))] == ["undetermined"]
    (alone,) = judge(changes([[1.0]], [[[0.0]]], **FAST))
    assert alone.verdict == "undetermined" and math.isnan(alone.p_adjusted)


def test_a_whole_matrix_without_effects_rarely_shows_one():
    false = 0
    for k in range(100):
        cells = []
        for d in range(2):
            s = draw_scores({m: 0.7 for m in "bcdef"}, 50, 4, [k, d])
            cells += changes(s["b"], [s[m] for m in "cdef"], seed=[k, d], replicates=600)
        false += any(c.verdict in ("harm", "help") for c in judge(cells, margin=0.0))
    assert false / 100 <= 0.09  # nominal 0.05, two standard errors of the simulation


# -- forgetting, backward transfer, regret ----------------------------------------------------------------------------------


def _constant(*levels: float) -> list[np.ndarray]:
    """I × S scores of 100 items that have exactly these means."""
    return [np.repeat((np.arange(100) < round(100 * level)).astype(float)[:, None], 4, axis=1) for level in levels]


def test_forgetting_is_the_best_earlier_stage_minus_the_end():
    e, stage = forgetting(_constant(0.3, 0.9, 0.7, 0.4), **FAST)
    assert e.value == pytest.approx(0.5) and stage == 1 and e.low > 0.3
    risen, _ = forgetting(_constant(0.3, 0.5), **FAST)
    assert risen.value == pytest.approx(-0.2)
    with pytest.raises(BadInput, match="start and an end"):
        forgetting(_constant(0.3))


def test_forgetting_has_no_winners_curse():
    drops = []
    for k in range(60):
        stages = [(np.random.default_rng([k, m]).random((50, 4)) < 0.6).astype(float) for m in range(8)]
        drops.append(forgetting(stages, replicates=50)[0].value)
    assert abs(np.mean(drops)) < 3 * np.std(drops) / math.sqrt(60)


def test_backward_transfer_averages_domains():
    (a, a_end), (b, b_end) = _constant(0.9, 0.4), _constant(0.6, 0.7)
    e = backward_transfer([(a, a_end), (b, b_end)], **FAST)
    assert e.value == pytest.approx((-0.5 + 0.1) / 2) and e.high < 0 and e.unit == "difference"
    assert not backward_transfer([]).defined


def test_worst_domain_by_hand():
    own, low, high = _constant(0.6, 0.5, 0.9)
    e, found = worst_domain([(own, [low, low]), (own, [low, high])], **FAST)
    assert e.value == pytest.approx(0.3) and found.domains == (1, 1) and found.references == (1, 1) and e.n_items == 100
    ahead, _ = worst_domain([(high, [low]), (own, [low])], **FAST)
    assert ahead.value == pytest.approx(-0.1), "negative: ahead of the references even in the worst domain"


@pytest.mark.parametrize("samples", [1, 4])
def test_regret_among_equals_is_not_invented(samples):
    """Eight equal paths on four domains: the naive worst-domain regret is large, the cross-fitted one is centred on 0."""
    naive, fair, covered = [], [], 0
    for k in range(60):
        rng = np.random.default_rng([k, samples])
        domains = [[(rng.random((60, samples)) < 0.6).astype(float) for _ in range(8)] for _ in range(4)]
        naive.append(max(max(x.mean() for x in d[1:]) - d[0].mean() for d in domains))
        e, _ = worst_domain([(d[0], d[1:]) for d in domains], seed=k, replicates=300)
        fair.append(e.value)
        covered += e.low <= 0 <= e.high
    assert np.mean(naive) > 0.05 and abs(np.mean(fair)) < 3 * np.std(fair) / math.sqrt(60) and covered >= 51


# -- task vectors -----------------------------------------------------------------------------------------------------------


def test_task_geometry_of_known_vectors():
    a = np.array([1.0, -2.0, 0.0, 3.0])
    g = task_geometry(np.stack([a, a, -a, [0, 0, 5.0, 0], [1, 2, 7, 3]]))
    assert g.cosine_MM[0, 1] == pytest.approx(1) and g.cosine_MM[0, 2] == pytest.approx(-1) and g.cosine_MM[0, 3] == 0
    assert g.conflict_MM[0, 1] == 0 and g.conflict_MM[0, 2] == 1 and np.isnan(g.conflict_MM[0, 3])
    assert g.conflict_MM[0, 4] == pytest.approx(1 / 3) and g.conflict_energy_MM[0, 4] == pytest.approx(4 / 14)
    unrelated = task_geometry(np.random.default_rng(0).normal(size=(2, 20_000)))
    assert unrelated.conflict_MM[0, 1] == pytest.approx(0.5, abs=0.02)
    trimmed = task_geometry([[1.0, 0.1, -5.0, 0.2, 4.0], [1.0, -0.1, 5.0, -0.2, 4.0]], keep=0.4)
    assert trimmed.conflict_MM[0, 1] == pytest.approx(0.5), "only the two largest moves of each are kept"
    for bad in ([[1.0, 2.0]], [[1.0, np.nan]] * 2):
        with pytest.raises(BadInput):
            task_geometry(bad)


@given(arrays(float, (3, 6), elements=st.integers(-3, 3).map(float)))
def test_task_geometry_is_its_slow_definition(vectors):
    g = task_geometry(vectors)
    for i in range(3):
        for j in range(3):
            both = [(x, y) for x, y in zip(vectors[i], vectors[j], strict=True) if x and y]
            if both:
                assert g.conflict_MM[i, j] == pytest.approx(np.mean([x * y < 0 for x, y in both]))
                energy = sum(abs(x * y) for x, y in both)
                assert g.conflict_energy_MM[i, j] == pytest.approx(
                    sum(abs(x * y) for x, y in both if x * y < 0) / energy
                )
            else:
                assert np.isnan(g.conflict_MM[i, j])


# -- records ----------------------------------------------------------------------------------------------------------------

TEACHERS = {"teacher-math": ["math"], "teacher-code": ["code"]}
TRUTH = {  # training on code harms math, training on math helps logic, sequential RL ends on code and loses math
    "math": {"base": 0.6, "teacher-math": 0.95, "teacher-code": 0.3, "student": 0.93, "rival-sequential-rl": 0.35, "stage-1": 0.95},
    "code": {"base": 0.4, "teacher-math": 0.4, "teacher-code": 0.9, "student": 0.88, "rival-sequential-rl": 0.9, "stage-1": 0.4},
    "logic": {"base": 0.4, "teacher-math": 0.65, "teacher-code": 0.4, "student": 0.6, "rival-sequential-rl": 0.5, "stage-1": 0.6},
}  # fmt: skip


def _records(n=150, samples=4):
    return frame({d: draw_scores(models, n, samples, [5, k]) for k, (d, models) in enumerate(TRUTH.items())})


def test_planted_harm_help_and_forgetting_are_found():
    report = interference(_records(), TEACHERS, **FAST)
    verdicts = {(m, d): c.verdict for m, row in report.matrix.items() for d, c in row.items()}
    assert verdicts["teacher-code", "math"] == "harm" and verdicts["teacher-math", "logic"] == "help"
    assert verdicts["teacher-math", "math"] == "help" and verdicts["teacher-math", "code"] in ("none", "undetermined")
    assert list(report.matrix) == ["teacher-math", "teacher-code", "student", "rival-sequential-rl"]
    sequential, student = report.forgetting["rival-sequential-rl"], report.forgetting["student"]
    assert (sequential.verdict, sequential.domain, sequential.reference) == ("forgets", "math", "base")
    assert sequential.worst.value > 0.15 and student.worst.value < 0.1 and set(student.by_domain) == set(TRUTH)
    regret = report.regret["rival-sequential-rl"]
    assert (regret.verdict, regret.domain, regret.reference) == ("behind", "math", "student")
    assert report.regret["student"].worst.value < 0.1 and not report.backward_transfer.defined


def test_checkpoints_of_the_sequence_are_used_where_they_are_known():
    sequence = [("stage-1", "math"), ("rival-sequential-rl", "code")]
    report = interference(_records(), TEACHERS, sequence=sequence, **FAST)
    assert report.forgetting["rival-sequential-rl"].reference == "checkpoints"
    assert report.forgetting["student"].reference == "base"
    records = _records()
    at = records[records.domain == "math"].groupby("model")["score"].mean()
    assert report.backward_transfer.value == pytest.approx(at["rival-sequential-rl"] - at["stage-1"])
    with pytest.raises(BadInput, match="not one of the paths"):
        interference(records, TEACHERS, sequence=sequence, sequential="rival-x")


def test_findings_and_json():
    report = interference(
        _records(), TEACHERS, paths={"MOPD": "student", "RL in stages": "rival-sequential-rl"}, **FAST
    )
    json.dumps(report.to_dict(), allow_nan=False)
    found = {f.id: f for f in report.findings()}
    assert len(found) == len(report.findings()) == 2 * 3 + 2 + 2
    cell = found["transfer-teacher-code-math"]
    assert (cell.subject, cell.verdict, cell.severity) == ("code->math", "harm", "warning")
    assert cell.evidence["lost_items"] and cell.evidence["lost_items"][0].startswith("math-")
    assert found["forgetting-student"].evidence["path"] == "MOPD"
    for f in found.values():
        json.dumps(f.to_dict(), allow_nan=False)


def test_one_path_has_no_regret_and_missing_models_are_named():
    records = _records(n=12, samples=2)
    alone = interference(records, TEACHERS, paths={"MOPD": "student"}, **FAST).regret["student"]
    assert alone.verdict == "undetermined" and "no other path" in alone.worst.note
    with pytest.raises(BadInput, match="did you mean 'student'"):
        interference(records, TEACHERS, paths={"MOPD": "students"})
