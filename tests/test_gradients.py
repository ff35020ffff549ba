"""Gradient conflict module by module: conflict that cancels in the whole is seen, chance is not taken for it."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import TOKENIZER, decoder

from mopd_diag.errors import BadInput
from mopd_diag.estimators.gradients import auroc, gradient_geometry
from mopd_diag.study.gradients import module_gradients
from mopd_diag.worlds import load_world
from mopd_diag.worlds.micro.planted import planted_relations


def noisy(rng: np.random.Generator, *means: np.ndarray, batches: int = 4, noise: float = 0.05) -> np.ndarray:
    return np.stack([m + noise * rng.standard_normal((batches, len(m))) for m in means])


def test_conflict_in_one_module_that_cancels_in_the_whole_is_seen() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 400))
    found = gradient_geometry({"agree": noisy(rng, x, x), "fight": noisy(rng, y, -y), "idle": np.zeros((2, 4, 3))})
    assert abs(found.whole_DD[0, 1]) < 0.1
    assert found.cosine_MDD[0, 0, 1] > 0.95 and found.cosine_MDD[1, 0, 1] < -0.95
    assert found.conflict_DD[0, 1] == pytest.approx(0.5, abs=0.06)
    assert found.synergy_DD[0, 1] == pytest.approx(0.5, abs=0.06)
    assert np.isnan(found.cosine_MDD[2, 0, 1]) and np.isnan(
        found.control_M[2]
    )  # nothing moves there: unknown, not zero
    np.testing.assert_allclose(found.energy_MD.sum(0), 1)


def test_domains_in_different_modules_neither_fight_nor_help() -> None:
    rng = np.random.default_rng(1)
    x, nothing = rng.standard_normal(50), np.zeros(50)
    found = gradient_geometry({"a": noisy(rng, x, nothing, noise=1e-6), "b": noisy(rng, nothing, -x, noise=1e-6)})
    assert found.conflict_DD[0, 1] < 1e-3 and found.synergy_DD[0, 1] < 1e-3


def test_unrelated_gradients_exceed_the_control_as_often_as_it_says() -> None:
    """Forty domains whose gradients are random directions in ten dimensions of a thousand: 5 % of the pairs exceed it."""
    rng = np.random.default_rng(2)
    span = np.linalg.qr(rng.standard_normal((1000, 10)))[0].T
    gradients = (rng.standard_normal((60, 1, 10)) @ span)[:, :1]
    found = gradient_geometry({"m": gradients})
    assert found.rank_M[0] == pytest.approx(1 / (1 / 10 + 1 / 60), rel=0.1)  # what 60 draws show of ten dimensions
    pairs = np.triu_indices(60, 1)
    assert found.beyond_chance_MDD[0][pairs].mean() == pytest.approx(0.05, abs=0.02)
    assert found.control_M[0] > 5 / np.sqrt(1000)  # directions of the full space would have hidden that they are few


def test_a_ranking_of_pairs() -> None:
    assert auroc([3, 2, 1, 0], [True, True, False, False]) == 1
    assert auroc([1, 1, 1], [True, False, False]) == 0.5
    assert np.isnan(auroc([1.0], [True]))


@pytest.mark.parametrize(
    ("gradients", "said"),
    [
        ({"a": np.zeros((1, 2, 3))}, "2 or more domains"),
        ({"a": np.zeros((2, 2, 3)), "b": np.zeros((3, 2, 3))}, "2 or more domains"),
        ({"a": np.zeros((2, 3))}, "D × B × P"),
        ({"a": np.full((2, 2, 3), np.nan)}, "'a' are not finite"),
        ({}, "2 or more domains"),
    ],
)
def test_what_cannot_be_compared_is_refused(gradients: dict, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        gradient_geometry(gradients)


def test_opposite_answers_to_the_same_prompts_ask_opposite_things_of_the_head_and_equal_ones_the_same() -> None:
    """On a random model, before any training: prompts of a helping pair are one distribution, so their gradients agree."""
    world = load_world("planted", ["rising", "falling", "sum", "ones"])
    gradients = module_gradients(decoder(), TOKENIZER, world, batches=2, items=24)
    names = list(world.domains)
    assert all(g.shape[:2] == (4, 2) for g in gradients.values())
    found = gradient_geometry(gradients)
    at = names.index
    help_, conflict = found.synergy_DD[at("sum"), at("ones")], found.synergy_DD[at("rising"), at("falling")]
    assert help_ > 0.7 and help_ > conflict
    assert planted_relations()[frozenset(("sum", "ones"))] == "help"
