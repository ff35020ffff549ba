"""The arithmetic of pivots, on value curves and distributions whose truth is planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mopd_diag.errors import BadInput
from mopd_diag.estimators.conflict import find_conflict, jensen_shannon
from mopd_diag.estimators.pivot import SMALLEST_FALL, SURE, find_pivot, gain, share

N = 64


def named(values: list[float], n: int = N, answers: int = 100) -> tuple[float, float]:
    """How often a pivot is named on answers with the given values, and how often it is the one of the largest fall."""
    rng = np.random.default_rng(1)
    truth = int(np.argmax(np.array(values) - np.append(values[1:], 0.0)))
    at = [find_pivot(rng.binomial(n, values), [n] * len(values), seed=i).at for i in range(answers)]
    hits = [a == truth for a in at if a is not None]
    return len(hits) / answers, float(np.mean(hits)) if hits else math.nan


def test_a_planted_fall_is_found_where_it_is() -> None:
    found = find_pivot([60, 58, 59, 2, 0, 0], [N] * 6)
    assert found.at == found.likeliest == 2
    assert found.probability_T[2] > 0.99
    assert found.candidates == (2,)
    assert found.fall.value == pytest.approx(57 / N)
    assert found.fall.low < 57 / N < found.fall.high
    assert found.reason == ""


@pytest.mark.parametrize("fall", [0.9, 0.6, 0.4])
def test_a_clear_fall_is_almost_always_named_and_never_wrongly(fall: float) -> None:
    often, right = named([fall] * 6 + [0.0] * 4)
    assert often >= 0.85
    assert right == 1


def test_a_smaller_fall_beside_a_larger_one_does_not_take_its_place() -> None:
    often, right = named([0.9, 0.9, 0.3, 0.3, 0.0])
    assert often > 0.9
    assert right == 1


def test_noise_is_abstained_on() -> None:
    hopeless = find_pivot([1, 0, 1, 0], [N] * 4)
    assert hopeless.at is None
    assert "nothing to fall from" in hopeless.reason
    even = find_pivot([60, 48, 36, 24, 12], [N] * 5)
    assert even.at is None
    assert "compete" in even.reason
    assert len(even.candidates) >= 3
    assert even.probability_T.sum() == pytest.approx(1, abs=0.05)
    assert named([0.5 * (1 - i / 80) for i in range(80)], answers=30)[0] == 0
    assert named([SMALLEST_FALL / 3] * 6)[0] == 0


def test_equal_falls_are_named_as_rarely_as_promised() -> None:
    """Of two equal falls either is the largest; a probability of 0.9 for one of them comes by chance in one case of five."""
    assert named([0.6] * 3 + [0.3] * 3 + [0.0] * 2, answers=200)[0] <= 2 * (1 - SURE) + 0.08


def test_the_last_token_can_be_the_pivot() -> None:
    """The answer failed, so the value behind its last token is 0 without any continuation."""
    found = find_pivot([60, 60, 61], [N] * 3)
    assert found.at == 2
    assert found.fall.n_items == N


def test_same_seed_same_pivot() -> None:
    a, b = (find_pivot([40, 20, 5], [N] * 3, seed=7) for _ in range(2))
    np.testing.assert_array_equal(a.probability_T, b.probability_T)
    assert a.fall == b.fall


@pytest.mark.parametrize(("k", "n"), [([], []), ([1, 2], [3]), ([5], [4]), ([0], [0]), ([-1], [4])])
def test_impossible_counts_are_refused(k: list[int], n: list[int]) -> None:
    with pytest.raises(BadInput):
        find_pivot(k, n)


def test_share_is_jeffreys() -> None:
    e = share(7, 20)
    assert (e.value, e.n_items, e.unit) == (0.35, 20, "share")
    assert (e.low, e.high) == pytest.approx(stats.beta.interval(0.95, 7.5, 13.5))
    assert share(0, 20).low == 0
    assert share(20, 20).high == 1
    assert not share(0, 0).defined
    with pytest.raises(BadInput):
        share(3, 2)


def test_gain_is_after_minus_before() -> None:
    e = gain((2, 64), (60, 64))
    assert e.value == pytest.approx(58 / 64)
    assert 0.7 < e.low < e.value < e.high <= 1
    none = gain((30, 64), (31, 64))
    assert none.low < 0 < none.high
    assert not gain((0, 0), (1, 2)).defined


# -- conflict -------------------------------------------------------------------------------------------------------------


def distribution(**p: float) -> np.ndarray:
    """Over the tokens a, b, c, d; what is left goes to d."""
    row = np.array([p.get(t, 0.0) for t in "abcd"])
    row[3] += 1 - row.sum()
    return row


A, B, C = 0, 1, 2
FIGHT = {
    "student": distribution(a=0.6, b=0.35),
    "base": distribution(a=0.6, b=0.1),
    "r": distribution(a=0.95),
    "k": distribution(a=0.1, b=0.85),
    "m": distribution(a=0.9),
}


def conflict(changed: dict[str, np.ndarray] | None = None, written: int = B):
    p = {**FIGHT, **(changed or {})}
    return find_conflict(p, written, student="student", base="base", routed="r", others=["k", "m"])


def test_a_planted_fight_is_seen() -> None:
    found = conflict()
    assert found is not None
    assert (found.teacher, found.token, found.won) == ("k", B, True)
    assert found.moved == pytest.approx(3.5)
    assert found.divergence > 0.3


def test_a_student_that_goes_with_neither() -> None:
    found = conflict(written=C)
    assert found is not None
    assert (found.teacher, found.token, found.won) == ("k", B, False)
    assert conflict({"student": distribution(a=0.9, b=0.05)}, written=C) is None, (
        "it does not lean to the other teacher"
    )


@pytest.mark.parametrize(
    ("why", "changed"),
    [
        ("the routed teacher wants the token too", {"r": distribution(a=0.4, b=0.6)}),
        ("the base wants it already", {"base": distribution(a=0.2, b=0.7)}),
        ("the student was not moved there", {"student": distribution(a=0.9, b=0.1)}),
        ("the other teacher hardly wants it", {"k": distribution(a=0.8, b=0.2)}),
        ("the teachers are not far apart", {"k": distribution(a=0.65, b=0.3), "r": distribution(a=0.8, b=0.15)}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_fight(why: str, changed: dict[str, np.ndarray]) -> None:
    assert conflict(changed) is None, why


def test_the_routed_teachers_own_token_is_no_fight() -> None:
    assert conflict(written=A) is None


def test_jensen_shannon() -> None:
    p, q = distribution(a=0.3, b=0.2), distribution(b=0.5, c=0.5)
    assert jensen_shannon(p, p) == 0
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, p))
    assert jensen_shannon(distribution(a=1), distribution(b=1)) == pytest.approx(math.log(2))
    m = (p + q) / 2
    assert jensen_shannon(p, q) == pytest.approx(0.5 * stats.entropy(p, m) + 0.5 * stats.entropy(q, m))
