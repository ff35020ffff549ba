"""Many checkpoints: trajectories on common items, items lost for good, items that flicker."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from mopd_diag.diagnostics.comparison import OVERALL
from mopd_diag.diagnostics.regression import compare
from mopd_diag.diagnostics.trend import trend
from mopd_diag.errors import BadInput
from mopd_diag.records.read import from_frame
from mopd_diag.records.recordset import RecordSet

PATTERNS = ["1111", "0000", "1100", "1000", "0100", "1010", "1110", "0011", "1011", "0101"]
LOST_AT = {"1100": 2, "1000": 1, "0100": 2, "1010": 3, "1110": 3}


def checkpoint(k: int, patterns: list[str], name: str = "", domain: str = "code") -> RecordSet:
    frame = pd.DataFrame({
        "item_id": [f"q{i}" for i in range(len(patterns))], "domain": domain, "score": [float(p[k]) for p in patterns],
    })  # fmt: skip
    return from_frame(frame, name or f"step {k}")


def test_histories_say_where_items_were_lost_for_good_and_which_flicker() -> None:
    found = trend([checkpoint(k, PATTERNS) for k in range(4)])
    items = found.items.set_index("pattern")
    assert {p: int(items.loc[p, "lost_at"]) for p in LOST_AT} == LOST_AT
    assert (items.drop(index=list(LOST_AT))["lost_at"] == -1).all()
    assert items.loc["1010", "lost_name"] == "step 3"
    assert set(found.flickering["pattern"]) == {"0100", "1010", "1011", "0101"}
    assert found.flickering["changes"].iloc[0] == 3
    assert items["state"].to_dict() == {
        "1111": "kept", "0000": "never", "1100": "lost", "1000": "lost", "0100": "lost", "1010": "lost", "1110": "lost",
        "0011": "gained", "1011": "flickers", "0101": "flickers",
    }  # fmt: skip
    assert list(found.lost["lost_at"]) == [1, 2, 2, 3, 3]
    assert found.summary() == [
        "code: 0.600 to 0.400 (undetermined), 5 of 10 items lost for good, most at step 2 (2), 4 flicker"
    ]


def test_trajectories_are_those_of_pairwise_comparisons() -> None:
    rng = np.random.default_rng(0)
    sets = []
    for k, level in enumerate((0.8, 0.75, 0.4)):
        frames = [
            pd.DataFrame({
                "item_id": [f"{d}{i}" for i in range(150)], "domain": d,
                "score": (rng.random(150) < (level if d == "code" else 0.6)) * 1.0,
            })
            for d in ("code", "math")
        ]  # fmt: skip
        sets.append(from_frame(pd.concat(frames), f"step {k}"))
    found = trend(sets)
    table = found.trajectories.set_index(["group", "checkpoint"])
    pair = compare(sets[0], sets[2])
    for group, each in {**pair.groups, OVERALL: pair.overall}.items():
        row = table.loc[(group, 2)]
        assert row["value"] == pytest.approx(each.after.value) and row["delta"] == pytest.approx(each.delta.value)
        assert row["low"] <= row["value"] <= row["high"] and row["delta_low"] <= row["delta"] <= row["delta_high"]
        assert row["p_value"] == pytest.approx(each.p_value, abs=2e-3)
    assert table.loc[("code", 2), "verdict"] == table.loc[(OVERALL, 2), "verdict"] == "worse"
    assert table.loc[("math", 2), "verdict"] == "undetermined" and table.loc[("code", 0), "verdict"] == ""
    assert table.loc[("code", 1), "p_adjusted"] >= table.loc[("code", 1), "p_value"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_only_items_that_every_checkpoint_answered_count() -> None:
    patterns = ["11", "10", "01", "00"]
    short = checkpoint(1, patterns[:3])
    found = trend([checkpoint(0, patterns), short, checkpoint(0, patterns)])
    assert len(found.items) == 3 and found.dropped == 1
    assert (found.trajectories["n_items"] == 3).all()


def test_single_files_without_domains_are_one_group() -> None:
    sets = []
    for k in range(3):
        frame = pd.DataFrame({"item_id": ["a", "b"], "score": [1.0, float(k == 0)]})
        sets.append(from_frame(frame, f"step-{k}"))
    assert trend(sets).groups == ("all",)


def test_bad_trends_are_refused() -> None:
    one = checkpoint(0, PATTERNS)
    with pytest.raises(BadInput, match="at least 2 checkpoints, got 1"):
        trend([one])
    with pytest.raises(BadInput, match="in common"):
        trend([one, checkpoint(0, PATTERNS, domain="math")])
