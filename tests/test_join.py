"""The join: by id, verified by content, never by position; what does not fit is refused or listed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mopd_diag.diagnostics.join import join
from mopd_diag.errors import BadInput
from mopd_diag.records.read import from_frame
from mopd_diag.records.recordset import RecordSet


def records(ids: str, scores: list[float], name: str = "set", **columns: object) -> RecordSet:
    return from_frame(pd.DataFrame({"item_id": list(ids), "score": scores, **columns}), name)


def test_items_meet_by_id_whatever_their_order() -> None:
    joined = join(records("abc", [1, 0, 0.5]), records("cab", [0, 1, 1]))
    assert joined.items["item_id"].tolist() == ["a", "b", "c"]
    assert joined.items["before"].tolist() == [1, 0, 0.5] and joined.items["after"].tolist() == [1, 1, 0]
    assert not joined.verified and not joined.items["verified"].any()
    assert any("identity not verified for all items" in w for w in joined.warnings)


def test_samples_stay_beside_their_mean_also_when_their_numbers_differ() -> None:
    before = records("aab", [1, 0, 1], sample=[0, 1, 0], prompt="p", response=["x", "y", "z"])
    after = records("aabb", [0, 0, 1, 0], sample=[0, 1, 0, 1], prompt="p", response=["u", "v", "w", "t"])
    joined = join(before, after)
    assert [s.tolist() for s in joined.items["before_scores"]] == [[1, 0], [1]]
    assert [s.tolist() for s in joined.items["after_scores"]] == [[0, 0], [1, 0]]
    assert joined.items["n_before"].tolist() == [2, 1] and joined.items["before"].tolist() == [0.5, 1]
    assert joined.items["response_before"].tolist() == ["x", "z"] and joined.items["response_after"].tolist() == [
        "u",
        "w",
    ]
    assert any("1 items have different numbers of samples" in w for w in joined.warnings)
    assert all(s.dtype == np.float64 for s in joined.items["before_scores"])


def test_the_same_id_in_two_groups_is_two_items() -> None:
    both = records("aa", [1, 0], domain=["math", "code"])
    assert join(both, both).items["before"].tolist() == [0, 1]  # code, math


def test_what_is_on_one_side_only_is_counted_and_listed() -> None:
    joined = join(records("abc", [1, 1, 1], "A"), records("bcde", [1, 1, 1, 1], "B"))
    assert joined.only_before["item_id"].tolist() == ["a"] and joined.only_after["item_id"].tolist() == ["d", "e"]
    assert "1 items are only in before (A), first 'a' in all; not compared" in joined.warnings
    assert "2 items are only in after (B), first 'd' in all; not compared" in joined.warnings


@pytest.mark.parametrize(
    ("column", "before", "after", "message"),
    [
        ("prompt_hash", "xyz", "xYZ", "prompts differ for 2 of 3 items with the same id, first 'b' in all"),
        ("target_hash", "xyz", "Xyz", "targets differ for 1 of 3 items with the same id, first 'a' in all"),
        ("prompt", "xyz", "xyZ", "prompts differ for 1 of 3 items with the same id, first 'c' in all"),
        ("prompt_hash", "xyz", "yxz", r"prompts differ for 2 of 3 .*\(2 of these prompts stand under another id"),
    ],
)
def test_other_questions_under_the_same_ids_are_refused(column: str, before: str, after: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        join(
            *(from_frame(pd.DataFrame({"item_id": list("abc"), "score": 1, column: list(c)})) for c in (before, after))
        )
    assert "\n" not in str(error.value) and error.value.exit_code == 2


def test_prompts_and_targets_that_both_differ_are_named_together() -> None:
    one, two = (
        records("ab", [1, 1], prompt_hash=list(p), target_hash=list(t)) for p, t in (("xy", "uv"), ("Xy", "uV"))
    )
    with pytest.raises(BadInput, match="prompts and targets differ for 2 of 2 items"):
        join(one, two)


def test_hashes_verify_even_when_the_other_side_has_only_some() -> None:
    joined = join(
        records("abc", [1, 1, 1], prompt_hash=["x", "y", "z"]), records("abc", [1, 1, 1], prompt_hash=["x", "", "z"])
    )
    assert joined.items["verified"].tolist() == [True, False, True] and not joined.verified
    assert any("not verified for 1 of 3 items" in w for w in joined.warnings)


def test_texts_are_compared_where_a_hash_is_missing() -> None:
    joined = join(records("a", [1], prompt="2+3", prompt_hash="x"), records("a", [1], prompt="2+3"))
    assert joined.verified
    with pytest.raises(BadInput, match="prompts differ"):
        join(records("a", [1], prompt="2+3", prompt_hash="x"), records("a", [1], prompt="2+4"))


def test_nothing_in_common_says_what_each_side_has() -> None:
    with pytest.raises(BadInput, match="no item in common: .* starts with id 'a', .* with 'b'"):
        join(records("a", [1]), records("b", [1]))
    with pytest.raises(BadInput, match="no item in common: .* has groups math, .* has code"):
        join(records("a", [1], domain="math"), records("a", [1], domain="code"))


def test_duplicates_are_refused_also_in_a_set_that_was_not_built_here() -> None:
    good = records("ab", [1, 0])
    twice = RecordSet("x", "x.jsonl", "jsonl", pd.concat([good.frame, good.frame]).sort_values("item_id"))
    with pytest.raises(BadInput, match="x.jsonl: item 'a' has sample 0 twice"):
        join(twice, good)


def test_shares_against_percent_are_refused() -> None:
    with pytest.raises(BadInput, match="all: scores reach 1 in .* and 100 in .*: shares against percent"):
        join(records("abc", [1, 0, 0.5]), records("abc", [100, 0, 50]))
    grown = join(records("abc", [1, 0, 0.5]), records("abc", [1.5, 0, 2]))
    assert len(grown.items) == 3 and not any("scale" in w for w in grown.warnings)  # rewards may grow
    tens = join(records("abc", [1, 0, 0.5]), records("abc", [10, 0, 5]))
    assert any("are they on one scale?" in w for w in tens.warnings)


def test_clusters_come_from_either_side_unless_they_disagree() -> None:
    one, none = records("ab", [1, 1], document=["d", "e"]), records("ab", [1, 1])
    assert join(one, none).items["cluster"].tolist() == join(none, one).items["cluster"].tolist() == ["d", "e"]
    joined = join(one, records("ab", [1, 1], document=["d", "f"]))
    assert joined.items["cluster"].tolist() == ["", ""]
    assert any("clusters not used: 1 items have different ones" in w for w in joined.warnings)


def test_a_warning_of_both_sides_is_said_once() -> None:
    uneven = {"sample": [0, 1, 0]}
    joined = join(records("aab", [1, 0, 1], "A", **uneven), records("aab", [0, 0, 1], "B", **uneven))
    assert sum("items have 1 to 2 samples" in w for w in joined.warnings) == 1
