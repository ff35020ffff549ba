"""Calibrated origin: the arithmetic of the two models, the classes they lead to, and the file they come from."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import numpy as np
import pandas as pd
import pytest

from mopd_diag.diagnostics import calibration
from mopd_diag.diagnostics.attribution import attribute
from mopd_diag.errors import BadInput
from mopd_diag.estimators.attribution import contested, pool
from mopd_diag.estimators.divergences import evidence_from_logp, log_softmax
from mopd_diag.estimators.evidence import Evidence
from mopd_diag.estimators.judgement import decide, existing, judge
from mopd_diag.estimators.origin import (
    CHOICE,
    INHERITED,
    Model,
    Origin,
    around,
    choice_features,
    inherited_features,
    origin,
    take,
)

LENGTH, ANSWERS, VOCABULARY = 5, 24, 12
TEACHERS = ("teacher-a", "teacher-b", "teacher-c")
DECOYS = ("control-x", "control-y")


def evidence(amount: float = 1.0, seed: int = 0, taught_by: str = "teacher-a", noise: float = 0.1) -> Evidence:
    """A student that went `amount` of the way to one member, among teachers and decoys that went elsewhere."""
    rng = np.random.default_rng(seed)
    shape = (ANSWERS * LENGTH, VOCABULARY)
    base = 2 * rng.normal(size=shape)
    shifts = {m: 1.2 * rng.normal(size=shape) for m in (*TEACHERS, *DECOYS)}
    student = base + amount * shifts[taught_by] + noise * rng.normal(size=shape)
    logits = {"student": student, "base": base} | {m: base + s for m, s in shifts.items()}
    logp = {m: log_softmax(x) for m, x in logits.items()}
    token = (logp["student"] + rng.gumbel(size=shape)).argmax(1)
    return evidence_from_logp(logp, token, TEACHERS, np.arange(len(token)) // LENGTH)


def pooled(e: Evidence):
    return pool(e, e.answer_T, ANSWERS, mask=contested(e))


ONE_PLACE = np.zeros(ANSWERS, dtype=int)


def test_around_adds_up_and_hands_back() -> None:
    p = pooled(evidence())
    near = around(p, np.arange(ANSWERS) % 2)
    even = np.arange(ANSWERS) % 2 == 0
    np.testing.assert_allclose(near.kl_NK[even], np.broadcast_to(p.kl_NK[even].sum(0), (even.sum(), 3)))
    np.testing.assert_allclose(near.gram_NRR[1], p.gram_NRR[~even].sum(0))
    assert near.unexplained_N[0] == p.unexplained_N[even].max()
    assert (near.used_N[even] == p.used_N[even].sum()).all()


def test_the_features_are_as_many_as_their_names() -> None:
    p = pooled(evidence())
    features = choice_features(p, around(p, ONE_PLACE))
    assert features.shape == (ANSWERS, len(TEACHERS), len(CHOICE))
    assert inherited_features(p, p, np.zeros(ANSWERS, dtype=int)).shape == (ANSWERS, len(INHERITED))


def test_probabilities_name_the_teacher_and_acquit_when_a_decoy_explains() -> None:
    model = calibration.packaged().model
    p = pooled(evidence())
    found = origin(p, around(p, ONE_PLACE), model)
    np.testing.assert_allclose(found.choice_NK.sum(1), 1)
    assert (found.choice_NK.argmax(1) == 0).all()
    assert np.median(found.inherited_N) > 0.9
    p = pooled(evidence(taught_by="control-x"))
    assert np.median(origin(p, around(p, ONE_PLACE), model).inherited_N) < 0.05


def test_the_order_of_teachers_and_decoys_does_not_matter() -> None:
    e, model = evidence(), calibration.packaged().model
    turned = e.select(TEACHERS[::-1], DECOYS[::-1])
    (p, q), one = (pooled(e), pooled(turned)), ONE_PLACE
    a, b = origin(p, around(p, one), model), origin(q, around(q, one), model)
    np.testing.assert_allclose(a.inherited_N, b.inherited_N, rtol=1e-6)
    np.testing.assert_allclose(a.choice_NK, b.choice_NK[:, ::-1], rtol=1e-6)


def test_selecting_makes_decoys_of_teachers() -> None:
    e = evidence()
    fewer = e.select(["teacher-a"], ["teacher-b", "control-y"])
    assert (fewer.teachers, fewer.decoys) == (("teacher-a",), ("teacher-b", "control-y"))
    np.testing.assert_array_equal(fewer.gram_TJJ[:, 2, 2], e.gram_TJJ[:, 2, 2])
    np.testing.assert_array_equal(fewer.kl_TM[:, 4], e.kl_TM[:, e.members.index("control-y")])
    with pytest.raises(BadInput, match="'teacher-z' is not among teachers and decoys"):
        e.select(["teacher-z"])


def decided(teacher_NK: list[list[float]], *, kl: float = 1.0):
    """`decide` on given probabilities; the evidence is that of real answers."""
    n = len(teacher_NK)
    p = take(pooled(evidence()), np.arange(n))
    p = replace(p, kl_base_N=np.full(n, kl), lift_N=np.ones(n))
    table = np.array(teacher_NK)
    inherited = table.sum(1)
    found = Origin(inherited, table / np.maximum(inherited, 1e-12)[:, None])
    return decide(judge(p), p, found, sure=0.9, sure_own=0.9, moved=0.1)


def test_classes_follow_the_probabilities() -> None:
    found = decided([[0.95, 0.02, 0.01], [0.5, 0.45, 0.0], [0.01, 0.02, 0.01], [0.4, 0.2, 0.1]])
    assert found.kind_N.tolist() == ["teacher", "several", "own", "abstain"]
    assert found.set_NK.tolist() == [[True, False, False], [True, True, False], [False] * 3, [False] * 3]
    np.testing.assert_allclose(found.confidence_N, [0.95, 0.95, 0.96, 0])
    assert found.reason_N[3] and not found.reason_N[:3].any()


def test_what_hardly_moved_is_the_bases_whatever_the_probabilities() -> None:
    found = decided([[0.99, 0.0, 0.0]], kl=0.05)
    assert found.kind_N[0] == "pre-existing"
    assert found.confidence_N[0] == pytest.approx(np.exp(-0.05))


def test_a_token_that_base_writes_and_no_teacher_would_is_pre_existing() -> None:
    p = take(pooled(evidence()), np.arange(3))
    p = replace(
        p,
        kl_base_N=np.ones(3),
        lift_N=np.array([-0.2, -0.2, 0.3]),
        lift_NK=np.array([[-5.0] * 3, [-0.3, -5, -5], [-5.0] * 3]),
    )
    assert existing(p, 0.1).tolist() == [True, False, False]


def test_answers_of_one_domain_help_each_other_and_those_without_stand_alone() -> None:
    e = evidence(amount=0.25, noise=0.6)
    tokens = (np.zeros(len(e.answer_T), int), ["x"] * len(e.answer_T))
    answers = pd.DataFrame({"item_id": range(ANSWERS)})
    together = attribute(e, answers.assign(domain="math"), tokens).answers["inherited"]
    alone = attribute(e, answers, tokens).answers["inherited"]
    assert together.std() < alone.std()
    assert together.median() > alone.median()


def test_the_packaged_file_says_where_it_comes_from_and_what_it_reached() -> None:
    document = json.loads(resources.files("mopd_diag.diagnostics").joinpath(calibration.FILE).read_text())
    found = calibration.Calibration.of(document)
    assert all(0.5 < s < 1 for s in found.sure.values())
    assert set(document["choice"]) == set(CHOICE) and set(document["inherited"]) == set(INHERITED)
    assert len(found.made["seeds"]) >= 5 and "bench.provenance.learn" in found.made["command"]
    held = found.held_out
    assert held["top1"] > 0.9 and held["auroc_own"] > 0.95 and held["ece"] < 0.05 and held["false_accusation"] < 0.05
    with pytest.raises(BadInput, match="schema 0, this version reads 1"):
        calibration.Calibration.of({**document, "schema": 0})


def test_a_missing_weight_is_not_taken_for_zero() -> None:
    document = json.loads(resources.files("mopd_diag.diagnostics").joinpath(calibration.FILE).read_text())
    del document["inherited"]["rivalry"]
    with pytest.raises(KeyError):
        Model.of(document)
