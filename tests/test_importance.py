"""Importance-weight statistics: closed forms, what they are of an exact sampler and of a wrong one, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd_diag.errors import BadInput
from mopd_diag.estimators.importance import importance_weights


def test_closed_form() -> None:
    w = np.array([[0.25, 1.0], [4.0, 1.5]])
    found = importance_weights(np.log(w) - 3.0, np.full((2, 2), -3.0))
    assert found.tokens == 4
    assert (found.mean, found.largest, found.outside) == pytest.approx((1.6875, 4.0, 0.5))
    assert found.effective == pytest.approx(6.75**2 / (4 * (0.0625 + 1 + 16 + 2.25)))
    assert found.gap_largest == pytest.approx(math.log(4))
    assert found.gap_mean == pytest.approx((2 * math.log(4) + math.log(1.5)) / 4)


def test_the_same_model_has_weights_of_one() -> None:
    found = importance_weights([-1.0, -2.0], [-1.0, -2.0])
    assert (found.mean, found.largest, found.outside, found.effective, found.gap_mean) == (1, 1, 0, 1, 0)


def test_the_mean_weight_of_what_was_sampled_is_one_and_the_effective_share_is_the_divergence() -> None:
    """Under μ: E w = 1, and the effective share tends to 1 / E w² = 1 / (1 + χ²(π‖μ))."""
    mu, pi = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    drawn = np.random.default_rng(0).choice(3, 200_000, p=mu)
    found = importance_weights(np.log(pi)[drawn], np.log(mu)[drawn])
    assert found.mean == pytest.approx(1, abs=2e-3)
    assert found.effective == pytest.approx(1 / (pi**2 / mu).sum(), rel=2e-3)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(-600, 600))
def test_the_effective_share_is_a_share_and_blind_to_a_common_factor(gaps: list[float], shift: float) -> None:
    plain = importance_weights(gaps, np.zeros(len(gaps)))
    moved = importance_weights(np.array(gaps) + shift, np.zeros(len(gaps)))
    assert 1 / len(gaps) - 1e-9 <= plain.effective <= 1 + 1e-9
    assert moved.effective == pytest.approx(plain.effective, rel=1e-6)


def test_tokens_that_were_not_drawn_do_not_count() -> None:
    trainer, sampler = [-1.0, math.nan, -1.5], [-1.2, math.inf, -1.5]
    own = [True, False, True]
    assert importance_weights(trainer, sampler, own) == importance_weights([-1.0, -1.5], [-1.2, -1.5])
    none = importance_weights(trainer, sampler, [False] * 3)
    assert none.tokens == 0 and math.isnan(none.mean) and math.isnan(none.effective)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BadInput, match="one log-probability of each token"):
        importance_weights([-1.0], [-1.0, -2.0])
    with pytest.raises(BadInput, match="1 of 2 tokens have no finite log-probability"):
        importance_weights([-1.0, -2.0], [-1.0, math.nan])
