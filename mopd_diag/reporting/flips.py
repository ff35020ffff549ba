"""The items that changed sides, as a page or a table shows them: who lost what, why, and both answers with their difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from mopd_diag.diagnostics.comparison import Comparison, cause
from mopd_diag.reporting.comparison_view import Scale, whole_number
from mopd_diag.reporting.diff import shown, side_by_side

SHOWN = 200
"""Lost items, and won items, that a page holds; all of them are in comparison.json."""
CHANGES = {"lost": "▼", "won": "▲"}


@dataclass(frozen=True)
class Flip:
    """One item that changed. `scores` reads `100.0% → 0.0%`; `failure` and `teacher` are empty where nobody looked."""

    group: str
    item_id: str
    change: str
    scores: str
    failure: str
    teacher: str
    cause: str
    reason: str
    prompt: Markup
    before: Markup
    after: Markup
    note: str

    @property
    def icon(self) -> str:
        return CHANGES[self.change]

    @property
    def opens(self) -> bool:
        """Whether there is more than the summary."""
        return bool(self.prompt or self.before or self.after or self.reason)


@dataclass(frozen=True)
class Flips:
    """The flips that are shown, `total[change]` of all there are, and the values that each filter offers with counts."""

    shown: list[Flip]
    total: dict[str, int]
    choices: dict[str, dict[str, int]]

    @property
    def texts(self) -> bool:
        """Whether any prompt or answer is known."""
        return any(f.prompt or f.before or f.after for f in self.shown)

    def of(self, change: str) -> list[Flip]:
        return [f for f in self.shown if f.change == change]

    def cut(self, change: str) -> str:
        """`the first 200 of 1 234 are shown`, or nothing."""
        n = len(self.of(change))
        return f"{n} of {whole_number(self.total[change])} are shown" if n < self.total[change] else ""


def flips_of(comparison: Comparison, most: int = SHOWN) -> Flips:
    """The first `most` lost and won items with prompts, answers and differences."""
    scale = Scale.of(comparison)
    told = [_flip(row, scale) for change in CHANGES for row in _rows(first_of(comparison.flips, change, most))]
    total = {change: int((comparison.flips["change"] == change).sum()) for change in CHANGES}
    choices: dict[str, dict[str, int]] = {}
    for name in ("group", "failure", "teacher"):
        values = [v for v in (getattr(f, name) for f in told) if v]
        counted = {v: values.count(v) for v in sorted(set(values))}
        if len(counted) > (name == "group"):  # a single group is no choice
            choices[name] = counted
    return Flips(told, total, choices)


def first_of(flips: pd.DataFrame, change: str, most: int) -> pd.DataFrame:
    """At most `most` items of one kind: the largest changes first within a group, every group in turn."""
    found = flips[flips["change"] == change]
    if len(found) <= most:
        return found
    size = (found["after"] - found["before"]).abs()
    ranked = found.assign(size=size).sort_values(["group", "size"], ascending=[True, False], kind="stable")
    turn = ranked.groupby("group", sort=False).cumcount().sort_values(kind="stable")
    return found.loc[found.index.isin(turn.index[:most])]


def _rows(frame: pd.DataFrame) -> Iterator[dict[str, str | float]]:
    return iter(frame.to_dict("records"))


def _flip(row: dict, scale: Scale) -> Flip:
    sides = side_by_side(row["response_before"], row["response_after"])
    known = f"{row['failure']}"
    return Flip(
        row["group"], row["item_id"], row["change"], f"{scale.item(row['before'])} → {scale.item(row['after'])}",
        known, row["teacher"], cause(known, row["teacher"]) if known else "", row["reason"],
        shown(row["prompt"]), sides.before, sides.after, sides.note,
    )  # fmt: skip
