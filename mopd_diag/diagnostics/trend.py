"""Many checkpoints of one training: how each group goes, at which checkpoint items were lost for good, which flicker.

Axis letters: I items, N checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mopd_diag.diagnostics.comparison import OVERALL, GroupComparison, number
from mopd_diag.diagnostics.join import join
from mopd_diag.diagnostics.pairs import bounds_of, measure, pairs_of
from mopd_diag.diagnostics.regression import MARGIN, check_settings, overall, verdict_of
from mopd_diag.diagnostics.regression import judge as judge_groups
from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import REPLICATES
from mopd_diag.estimators.significance import holm
from mopd_diag.records.recordset import RecordSet, aligned

FLICKERS = 2
"""Changes between solved and not solved from which on an item flickers."""
ITEM = ["group", "item_id"]


@dataclass(frozen=True, slots=True, eq=False)
class Trend:
    """Checkpoints in order, on the items that all of them answered.

    `trajectories`: one row a checkpoint and group, `overall` included: checkpoint (0, 1, …), name, group, n_items, value,
    low, high, and against the first checkpoint delta, delta_low, delta_high, p_value, p_adjusted (Holm over all groups and
    checkpoints; `overall` over its checkpoints), verdict. `items`: one row an item: group, item_id, pattern (a 1 for
    each checkpoint that solves it, else 0), changes, flickers, lost_at and lost_name (first checkpoint of the unsolved
    end of an item that was solved before; −1 and "" for others), state: kept, gained, lost, flickers or never. `dropped`
    counts items that some checkpoint did not answer.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    trajectories: pd.DataFrame
    items: pd.DataFrame
    dropped: int
    margin: float
    level: float
    warnings: tuple[str, ...] = ()

    @property
    def lost(self) -> pd.DataFrame:
        """Items lost for good, the earliest loss first."""
        return self.items[self.items["lost_at"] >= 0].sort_values(["lost_at", *ITEM], kind="stable", ignore_index=True)

    @property
    def flickering(self) -> pd.DataFrame:
        """Items that changed at least twice, the most unsteady first."""
        found = self.items[self.items["flickers"]]
        return found.sort_values(["changes", *ITEM], ascending=[False, True, True], kind="stable", ignore_index=True)

    def summary(self) -> list[str]:
        """A sentence a group: from where to where, how many items were lost for good and where most, how many flicker."""
        return [self._sentence(group) for group in self.groups]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = self.trajectories.to_dict("records")
        columns = [*ITEM, "pattern", "changes"]
        return {
            "checkpoints": list(self.names),
            "groups": list(self.groups),
            "trajectories": [{k: number(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
            "lost": self.lost[[*columns, "lost_at", "lost_name"]].to_dict("records"),
            "flickering": self.flickering[columns].to_dict("records"),
            "items": len(self.items),
            "dropped": self.dropped,
            "summary": self.summary(),
            "margin": self.margin,
            "level": self.level,
            "warnings": list(self.warnings),
        }

    def _sentence(self, group: str) -> str:
        path = self.trajectories[self.trajectories["group"] == group]
        items = self.items[self.items["group"] == group]
        lost = items[items["lost_at"] >= 0]
        said = f"{group}: {path['value'].iloc[0]:.3f} to {path['value'].iloc[-1]:.3f} ({path['verdict'].iloc[-1]}), "
        said += f"{len(lost)} of {len(items)} items lost for good"
        if len(lost):
            at = int(lost["lost_at"].mode().iloc[0])
            said += f", most at {self.names[at]} ({int((lost['lost_at'] == at).sum())})"
        return said + f", {int(items['flickers'].sum())} flicker"


def trend(
    sets: Sequence[RecordSet], *, margin: float = MARGIN, level: float = 0.95, replicates: int = REPLICATES, seed: int = 0
) -> Trend:  # fmt: skip
    """Trajectories and item histories over checkpoints in the given order, all on the items that every one answered.

    Raises BadInput for fewer than 2 checkpoints, for none in common, and for what `join` refuses.
    """
    check_settings(margin, level, replicates)
    if len(sets) < 2:
        raise BadInput(f"a trend needs at least 2 checkpoints, got {len(sets)}")
    sets, assumed = aligned(*sets)
    names = tuple(s.name if len({t.name for t in sets}) == len(sets) else s.source for s in sets)
    tables, shared, warnings, dropped = _common(sets)
    bounds = _bounds(tables)
    levels = list[dict[str, GroupComparison]]()
    for k, items in enumerate(tables):
        pairs = pairs_of(items)
        draw = {"level": level, "replicates": replicates, "bounds": bounds}
        measured = {p.name: measure(p, seed=(seed, k, j), **draw) for j, p in enumerate(pairs)}
        groups = judge_groups(pairs, measured, margin=margin, level=level)
        whole = overall(pairs, measured, groups, margin=margin, level=level, seed=seed)
        levels.append({**groups, OVERALL: whole})
    threshold = (bounds[0] + bounds[1]) / 2
    scores_IN = np.column_stack([tables[0]["before"], *(t["after"] for t in tables)])
    histories = _histories(shared, scores_IN > threshold, names)
    return Trend(
        names, tuple(g for g in levels[0] if g != OVERALL), _trajectories(levels, names, level), histories,
        dropped, margin, level, tuple(dict.fromkeys([*assumed, *warnings])),
    )  # fmt: skip


def _common(sets: Sequence[RecordSet]) -> tuple[list[pd.DataFrame], pd.DataFrame, list[str], int]:
    """The first checkpoint joined with each later one, on the items that all have."""
    joins = [join(sets[0], s) for s in sets[1:]]
    shared = joins[0].items[ITEM]
    for each in joins[1:]:
        shared = shared.merge(each.items[ITEM], on=ITEM)
    if shared.empty:
        raise BadInput(f"no item was answered by all {len(sets)} checkpoints; compare the same items")
    shared = shared.sort_values(ITEM, ignore_index=True)
    tables = [shared.merge(j.items, on=ITEM, validate="one_to_one") for j in joins]
    known = [set(map(tuple, s.frame[ITEM].drop_duplicates().to_numpy())) for s in sets]
    dropped = len(set().union(*known)) - len(shared)
    warnings = [w for j in joins for w in j.warnings]
    return tables, shared, warnings, dropped


def _bounds(tables: Sequence[pd.DataFrame]) -> tuple[float, float]:
    each = [bounds_of(t) for t in tables]
    return min(low for low, _ in each), max(high for _, high in each)


def _trajectories(
    levels: list[dict[str, GroupComparison]], names: tuple[str, ...], level: float
) -> pd.DataFrame:  # fmt: skip
    rows = []
    for group, first in levels[0].items():
        unknown = {c: np.nan for c in ("delta", "delta_low", "delta_high", "p_value")}
        rows.append(_row(0, names, group, first.n_items, first.before) | unknown)
        for k, each in enumerate(levels, 1):
            found = each[group]
            against = {"delta": found.delta.value, "delta_low": found.delta.low, "delta_high": found.delta.high}
            rows.append(_row(k, names, group, found.n_items, found.after) | against | {"p_value": found.p_value})
    frame = pd.DataFrame(rows)
    is_overall = frame["group"] == OVERALL
    frame["p_adjusted"] = np.where(
        is_overall, holm(frame["p_value"].where(is_overall)), holm(frame["p_value"].where(~is_overall))
    )
    found = [levels[k - 1][g] if k else None for g, k in zip(frame["group"], frame["checkpoint"], strict=True)]
    frame["verdict"] = [
        "" if f is None else verdict_of(f.delta, p, level, equal=f.verdict == "unchanged")
        for f, p in zip(found, frame["p_adjusted"], strict=True)
    ]
    return frame


def _row(k: int, names: tuple[str, ...], group: str, n_items: int, at: Any) -> dict[str, Any]:
    return {
        "checkpoint": k, "name": names[k], "group": group, "n_items": n_items,
        "value": at.value, "low": at.low, "high": at.high,
    }  # fmt: skip


def _histories(items: pd.DataFrame, solved_IN: npt.NDArray[np.bool_], names: tuple[str, ...]) -> pd.DataFrame:
    """Each item's pattern, its changes, and where it was lost for good."""
    n = solved_IN.shape[1]
    changes = (solved_IN[:, 1:] != solved_IN[:, :-1]).sum(1)
    last_solved = n - 1 - np.argmax(solved_IN[:, ::-1], axis=1)
    ever, at_end = solved_IN.any(1), solved_IN[:, -1]
    lost_at = np.where(ever & ~at_end, last_solved + 1, -1)
    flickers = changes >= FLICKERS
    state = np.select([~ever, lost_at >= 0, flickers, solved_IN[:, 0]], ["never", "lost", "flickers", "kept"], "gained")
    patterns = solved_IN.astype(np.uint8) + ord("0")
    return items[ITEM].assign(
        pattern=[row.tobytes().decode() for row in patterns], changes=changes, flickers=flickers, lost_at=lost_at,
        lost_name=[names[k] if k >= 0 else "" for k in lost_at], state=state,
    )  # fmt: skip
