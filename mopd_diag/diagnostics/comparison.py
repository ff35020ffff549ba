"""What a comparison of two record sets of the same items holds. Nothing here computes; `regression.compare` does."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from mopd_diag.diagnostics.join import Joined
from mopd_diag.types import Estimate

Change = Literal["better", "worse", "unchanged", "undetermined"]
CHANGES: tuple[Change, ...] = ("better", "worse", "unchanged", "undetermined")
OVERALL = "overall"
FLIP_COLUMNS = [
    "group", "item_id", "before", "after", "change", "prompt", "response_before", "response_after", "failure", "teacher",
    "reason",
]  # fmt: skip
OWN, UNDETERMINED = "own", "undetermined"
"""Failure classes of lost items beside those of `diagnostics.failures`: the student's own shift, and unknown."""


@dataclass(frozen=True, eq=False)
class GroupComparison:
    """One group's paired comparison, or `overall`: the unweighted mean of the groups. Scores are in their own scale.

    `delta` is after − before over the same items (positive: gained). `p_adjusted` is Holm's over the groups and decides
    the verdict, `q_value` Benjamini and Hochberg's. `won` and `lost` count items that crossed `Comparison.threshold`.
    `mde`: the smallest true difference that the verdict finds with 80 % power when it is the only one. `n_samples`: the
    most samples of any item on either side. `pass_at_k`: k -> before, after and their difference, for 0/1 scores with
    several samples. `noise_floor`: the difference that two runs of one checkpoint exceed once in twenty times.
    """

    name: str
    n_items: int
    n_samples: int
    before: Estimate
    after: Estimate
    delta: Estimate
    p_value: float
    test: str
    p_adjusted: float
    q_value: float
    won: int
    lost: int
    mde: float
    margin: float
    verdict: Change
    note: str = ""
    pass_at_k: dict[int, tuple[Estimate, Estimate, Estimate]] = field(default_factory=dict)
    noise_floor: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `before` and `after` as plain numbers, their intervals as `before_estimate`, `after_estimate`."""
        return {
            "before": number(self.before.value),
            "after": number(self.after.value),
            "delta": self.delta.to_dict(),
            "p_value": number(self.p_value),
            "p_adjusted": number(self.p_adjusted),
            "won": self.won,
            "lost": self.lost,
            "verdict": self.verdict,
            "q_value": number(self.q_value),
            "test": self.test,
            "n_items": self.n_items,
            "n_samples": self.n_samples,
            "mde": number(self.mde),
            "margin": self.margin,
            "note": self.note,
            "before_estimate": self.before.to_dict(),
            "after_estimate": self.after.to_dict(),
            "noise_floor": None if self.noise_floor is None else self.noise_floor.to_dict(),
            "pass_at_k": {
                str(k): dict(zip(("before", "after", "delta"), (e.to_dict() for e in each), strict=True))
                for k, each in self.pass_at_k.items()
            },
        }

    def row(self) -> dict[str, Any]:
        """One row of `Comparison.frame`."""
        floor = math.nan if self.noise_floor is None else self.noise_floor.value
        return {
            "group": self.name, "n_items": self.n_items, "n_samples": self.n_samples,
            "before": self.before.value, "after": self.after.value,
            "delta": self.delta.value, "low": self.delta.low, "high": self.delta.high,
            "p_value": self.p_value, "test": self.test, "p_adjusted": self.p_adjusted, "q_value": self.q_value,
            "won": self.won, "lost": self.lost, "mde": self.mde, "noise_floor": floor, "margin": self.margin,
            "verdict": self.verdict, "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two record sets compared on the items they share.

    `flips` lists the items that changed (columns `FLIP_COLUMNS`; `failure`, `teacher`, `reason` of lost items, empty
    where nobody looked). `threshold`: an item is solved above it. `why_note`: what is known of the reasons, or how to
    find out.
    """

    before: str
    after: str
    joined: Joined
    groups: dict[str, GroupComparison]
    overall: GroupComparison
    flips: pd.DataFrame
    level: float = 0.95
    seed: int = 0
    replicates: int = 10_000
    threshold: float = 0.5
    why_note: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def frame(self) -> pd.DataFrame:
        """One row a group, and `overall` last."""
        return pd.DataFrame([g.row() for g in (*self.groups.values(), self.overall)])

    @property
    def lost_items(self) -> pd.DataFrame:
        return self.flips[self.flips["change"] == "lost"].reset_index(drop=True)

    def lost_by_cause(self) -> dict[str, dict[tuple[str, str], int]]:
        """Group -> (failure class, teacher) -> lost items; teacher is "" where none is named. Groups that lost some."""
        lost = self.lost_items
        kinds = lost["failure"].where(lost["failure"] != "", UNDETERMINED)
        table = Counter(zip(lost["group"], kinds, lost["teacher"], strict=True))
        found: dict[str, dict[tuple[str, str], int]] = {}
        for (group, kind, teacher), n in sorted(table.items(), key=lambda entry: (-entry[1], entry[0])):
            found.setdefault(group, {})[kind, teacher] = n
        return found

    def lost_sentences(self) -> list[str]:
        """`14 lost in code: 9 inherited from teacher-style, 3 own, 2 undetermined`, one a group; counts alone where
        nobody looked for the reason."""
        known = bool((self.flips["failure"] != "").any())
        said = []
        for group, causes in self.lost_by_cause().items():
            parts = ", ".join(f"{n} {cause(kind, teacher)}" for (kind, teacher), n in _unknown_last(causes))
            said.append(f"{sum(causes.values())} lost in {group}" + (f": {parts}" if known else ""))
        return said

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the contract of `mopd-diag compare --json` and more; texts of prompts and answers stay out."""
        told = ["group", "item_id", "before", "after", "failure", "teacher", "reason"]
        won = self.flips[self.flips["change"] == "won"]
        return {
            "before": self.before,
            "after": self.after,
            "joined": len(self.joined.items),
            "verified": self.joined.verified,
            "groups": {name: g.to_dict() for name, g in self.groups.items()},
            "overall": self.overall.to_dict(),
            "lost_items": self.lost_items[told].to_dict("records"),
            "won_items": won[told[:4]].to_dict("records"),
            "lost_by_cause": [
                {"group": g, "failure": kind, "teacher": teacher, "items": n}
                for g, causes in self.lost_by_cause().items()
                for (kind, teacher), n in causes.items()
            ],
            "why": {"note": self.why_note, "sentences": self.lost_sentences()},
            "only_before": self.joined.only_before.to_dict("records"),
            "only_after": self.joined.only_after.to_dict("records"),
            "settings": {
                "level": self.level, "seed": self.seed, "replicates": self.replicates, "margin": self.overall.margin,
                "threshold": self.threshold,
            },
            "warnings": list(self.warnings),
        }  # fmt: skip


def cause(kind: str, teacher: str) -> str:
    """The failure class of a lost item in words.

    >>> cause("inherited", "teacher-style"), cause("lost", "teacher-math"), cause("own", "")
    ('inherited from teacher-style', 'that teacher-math solves', 'own')
    """
    if kind in ("inherited", "leaked") and teacher:
        return f"{kind} from {teacher}"
    if kind == "conflict" and teacher:
        return f"conflict with {teacher}"
    return f"that {teacher} solves" if kind == "lost" and teacher else kind


def number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None


def _unknown_last(causes: dict[tuple[str, str], int]) -> list[tuple[tuple[str, str], int]]:
    return sorted(causes.items(), key=lambda entry: (entry[0][0] == UNDETERMINED, -entry[1], entry[0]))
