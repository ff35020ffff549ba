"""Record sets with known changes, compared by the real thing; and the same with every text hostile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from report_pages import HOSTILE

from mopd_diag.diagnostics.comparison import Comparison
from mopd_diag.diagnostics.regression import compare
from mopd_diag.records.recordset import COLUMNS, RecordSet

SHIFTS = {"code": -0.2, "math": 0.18, "facts": 0.0, "style": -0.03}
"""Group -> share of items that change, all lost where negative, all won where positive."""


def records(name: str, scores: dict[str, Sequence[float]], *, texts: bool = True, samples: int = 1) -> RecordSet:
    """One set from item scores by group; an answer says its score, so that answers differ where scores do."""
    rows = []
    for group, values in scores.items():
        for i, score in enumerate(values):
            for sample in range(samples):
                right = float(sample < round(score * samples)) if samples > 1 else float(score)
                value = 7 * i if right else 7 * i + 13
                prompt = f"[{group}] Add {3 * i} and {4 * i}." if texts else ""
                answer = f"First, {3 * i} and {4 * i} are\ngiven. The sum is {value}." if texts else ""
                rows.append(
                    (group, f"{group}-{i:03}", sample, right, f"p{group}{i}" if texts else "", "", "", prompt, answer)
                )
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"score": "float64", "sample": "int64"})
    return RecordSet(
        name, f"{name}.jsonl", "jsonl", frame.sort_values(["group", "item_id", "sample"], ignore_index=True)
    )


def changed_scores(items: int = 200) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores before and after by group: 60 % solved before, then SHIFTS, and two items each way as noise."""
    before, after = {}, {}
    for group, shift in SHIFTS.items():
        score = (np.arange(items) % 5 < 3).astype(float)
        moved = score.copy()
        where = np.flatnonzero(score == (shift < 0))[: round(abs(shift) * items)]
        moved[where] = float(shift > 0)
        moved[-2:] = 1 - moved[-2:]
        before[group], after[group] = score, moved
    return before, after


def why_of(comparison: Comparison) -> pd.DataFrame:
    """A reason for each lost item: two in three inherited from teacher-style, the others own or undetermined."""
    lost = comparison.lost_items
    kinds = [
        ("inherited", "teacher-style", "the teacher says the same"),
        ("own", "", ""),
        ("inherited", "teacher-style", ""),
    ]
    told = [kinds[k % 3] for k in range(len(lost))]
    return lost[["group", "item_id"]].assign(
        failure=[k for k, _, _ in told], teacher=[t for _, t, _ in told], reason=[r for _, _, r in told]
    )


def synthetic_comparison(*, items: int = 200, why: bool = True, texts: bool = True, samples: int = 1) -> Comparison:
    """Code is worse, math better, facts unchanged within 10 points, style open."""
    before, after = (
        records(n, s, texts=texts, samples=samples) for n, s in zip(("v1", "v2"), changed_scores(items), strict=True)
    )
    options = {"margin": 0.02, "replicates": 400}
    found = compare(before, after, **options)
    return compare(before, after, why=why_of(found), **options) if why else found


def hostile_comparison() -> Comparison:
    """Every string that a model, a tool or a user could have written is hostile."""
    sets = []
    for side, scores in zip(("before", "after"), changed_scores(30), strict=True):
        made = records(HOSTILE + side, {HOSTILE + g: s for g, s in scores.items()})
        frame = made.frame.assign(
            item_id=HOSTILE + made.frame["item_id"], prompt=HOSTILE + made.frame["prompt"],
            response=HOSTILE + made.frame["response"] + "\u0301\n\x1b[31m" + "ab " * 3000,
        )  # fmt: skip
        sets.append(RecordSet(made.name, HOSTILE, "jsonl", frame, (HOSTILE,)))
    found = compare(*sets, replicates=200)
    why = why_of(found).assign(reason=HOSTILE)
    why["teacher"] = why["teacher"].where(why["teacher"] == "", HOSTILE)
    return compare(*sets, replicates=200, why=why, why_note=HOSTILE)
