"""Two record sets on the same items: joined by id, verified by content, never by the position of a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mopd_diag.errors import BadInput
from mopd_diag.records.recordset import RecordSet, aligned, disagreement

ITEM = ["group", "item_id"]


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Items with answers on both sides.

    `items` has one row an item: group, item_id, cluster, before and after (mean scores), n_before and n_after (samples),
    before_scores and after_scores (float64 [samples] each), prompt, response_before and response_after (of the first
    sample), verified. `only_before` and `only_after` list group and item_id of what has no partner. `verified` holds when
    prompts or targets of all pairs were seen to be equal.
    """

    items: pd.DataFrame
    only_before: pd.DataFrame
    only_after: pd.DataFrame
    verified: bool
    warnings: tuple[str, ...] = ()


def join(before: RecordSet, after: RecordSet) -> Joined:
    """Pair the items of two sets on (group, item_id).

    Raises BadInput for prompts or targets that differ, for duplicates, for samples of one item that disagree about their
    question, for scores on different scales, and when no item is in both.
    """
    (before, after), assumed = aligned(before, after)
    left, right = _items(before), _items(after)
    both = left.merge(right, on=ITEM, how="inner", suffixes=("_before", "_after"), validate="one_to_one")
    if both.empty:
        raise BadInput(_nothing_in_common(before, after))
    verified = _verify(both, before, after)
    scales = _scales(both, before, after)
    shared = pd.MultiIndex.from_frame(both[ITEM])
    only = [t.loc[~pd.MultiIndex.from_frame(t[ITEM]).isin(shared), ITEM].reset_index(drop=True) for t in (left, right)]
    cluster, unclear = _clusters(both)
    items = pd.DataFrame({
        "group": both["group"], "item_id": both["item_id"], "cluster": cluster,
        "before": both["mean_before"], "after": both["mean_after"],
        "n_before": both["n_before"], "n_after": both["n_after"],
        "before_scores": both["scores_before"], "after_scores": both["scores_after"],
        "prompt": both["prompt_before"].where(both["prompt_before"] != "", both["prompt_after"]),
        "response_before": both["response_before"], "response_after": both["response_after"], "verified": verified,
    })  # fmt: skip
    warnings = [
        *_told(before, after),
        *assumed,
        *scales,
        *unclear,
        *_notes(items, only[0], only[1], before.name, after.name),
    ]
    return Joined(items, only[0], only[1], bool(verified.all()), tuple(warnings))


def _told(before: RecordSet, after: RecordSet) -> list[str]:
    """The readers' warnings; what holds for both sides is said once."""
    both = [w for w in before.warnings if w in after.warnings]
    sides = (("before", before), ("after", after))
    return both + [f"{side} ({s.name}): {w}" for side, s in sides for w in s.warnings if w not in both]


def _items(records: RecordSet) -> pd.DataFrame:
    """One row an item; the frame is sorted, so an item's samples stand together."""
    frame = records.frame
    same = np.zeros(len(frame), bool)
    for name in ("group", "item_id", "sample"):
        equal = frame[name].eq(frame[name].shift()).to_numpy(bool)
        same = equal if name == "group" else same & equal
    if same.any():
        row = frame.iloc[int(same.argmax())]
        raise BadInput(
            f"{records.source}: item '{row['item_id']}' has sample {row['sample']} twice; keep one record of each"
        )
    clash = disagreement(frame)
    if clash:
        raise BadInput(
            f"{records.source}: item '{frame['item_id'].iloc[clash[0]]}' has samples with different {clash[1].replace('_hash', '')}s"
        )
    opens = frame["item_id"].ne(frame["item_id"].shift()) | frame["group"].ne(frame["group"].shift())
    starts = np.flatnonzero(opens.to_numpy(bool))
    score = frame["score"].to_numpy()
    n = np.diff(np.append(starts, len(score)))
    items = frame.iloc[starts][[*ITEM, "prompt_hash", "target_hash", "cluster", "prompt", "response"]].reset_index(
        drop=True
    )
    items["n"] = n
    items["mean"] = np.add.reduceat(score, starts) / n
    scores = np.empty(len(n), dtype=object)
    scores[:] = list(score.reshape(len(n), -1)) if (n == n[0]).all() else np.split(score, starts[1:])
    items["scores"] = scores
    mixed = frame["cluster"].ne(frame["cluster"].shift()) & ~opens
    if mixed.any():  # clusters of samples, such as their seeds, are no clusters of items
        items["cluster"] = ""
    return items


def _nothing_in_common(before: RecordSet, after: RecordSet) -> str:
    groups = [", ".join(s.groups[:5]) + (", ..." if len(s.groups) > 5 else "") for s in (before, after)]
    ids = [str(s.frame["item_id"].iloc[0]) for s in (before, after)]
    if set(before.groups).isdisjoint(after.groups):
        return f"no item in common: {before.source} has groups {groups[0]}, {after.source} has {groups[1]}; compare the same suites"
    return f"no item in common: {before.source} starts with id '{ids[0]}', {after.source} with '{ids[1]}'; compare the same items"


def _verify(both: pd.DataFrame, before: RecordSet, after: RecordSet) -> np.ndarray:
    """Which pairs were seen to be the same question [N]. Raises BadInput when some are not.

    Hashes are compared where both sides have one, prompts as texts where one lacks it.
    """
    seen = np.zeros(len(both), bool)
    wrong: dict[str, np.ndarray] = {}
    hashed = _both_have(both, "prompt_hash")
    for what, column, compared in (
        ("prompts", "prompt_hash", hashed),
        ("prompts", "prompt", _both_have(both, "prompt") & ~hashed),
        ("targets", "target_hash", _both_have(both, "target_hash")),
    ):
        differ = compared & (both[f"{column}_before"] != both[f"{column}_after"]).to_numpy(bool)
        wrong[what] = wrong.get(what, np.zeros(len(both), bool)) | differ
        seen |= compared
    anywhere = wrong["prompts"] | wrong["targets"]
    if anywhere.any():
        what = " and ".join(name for name, rows in wrong.items() if rows.any())
        first = both.iloc[int(anywhere.argmax())]
        raise BadInput(
            f"{what} differ for {int(anywhere.sum())} of {len(both)} items with the same id, first '{first['item_id']}' in "
            f"{first['group']}{_moved(both, anywhere)}; compare {before.source} with records of the same questions "
            f"(got {after.source})"
        )
    return seen


def _both_have(both: pd.DataFrame, column: str) -> np.ndarray:
    return ((both[f"{column}_before"] != "") & (both[f"{column}_after"] != "")).to_numpy(bool)


def _moved(both: pd.DataFrame, wrong: np.ndarray) -> str:
    """A hint when the same questions are there under other ids, as after a shuffle."""
    hashes = [set(both.loc[wrong, f"prompt_hash_{side}"]) - {""} for side in ("before", "after")]
    moved = len(hashes[0] & hashes[1])
    return f" ({moved} of these prompts stand under another id: were the items reordered?)" if moved else ""


def _scales(both: pd.DataFrame, before: RecordSet, after: RecordSet) -> list[str]:
    """Refuse shares on one side and percent on the other: they cannot be subtracted. Warn of what looks alike."""
    grouped = both.groupby("group")[["mean_before", "mean_after"]]
    warnings = []
    for (group, lows), highs in zip(grouped.min().iterrows(), grouped.max().to_numpy(), strict=True):
        if min(lows) < 0 or not 0 < min(highs) <= 1 or max(highs) <= 4:
            continue
        reach = f"{group}: scores reach {highs[0]:g} in {before.source} and {highs[1]:g} in {after.source}"
        if 20 < max(highs) <= 100:
            raise BadInput(f"{reach}: shares against percent; bring both to one scale")
        warnings.append(f"{reach}: are they on one scale?")
    return warnings


def _clusters(both: pd.DataFrame) -> tuple[pd.Series, list[str]]:
    """The cluster of each item, from whichever side has it."""
    left, right = both["cluster_before"], both["cluster_after"]
    differ = ((left != "") & (right != "") & (left != right)).to_numpy(bool)
    if differ.any():
        first = both.iloc[int(differ.argmax())]
        told = f"{int(differ.sum())} items have different ones before and after, first '{first['item_id']}'"
        return left.mask(left != "", ""), [f"clusters not used: {told}"]
    return left.where(left != "", right), []


def _notes(
    items: pd.DataFrame, only_before: pd.DataFrame, only_after: pd.DataFrame, left: str, right: str
) -> list[str]:
    notes = []
    unverified = int((~items["verified"]).sum())
    if unverified:
        which = "all" if unverified == len(items) else f"{unverified} of {len(items)}"
        notes.append(
            f"identity not verified for {which} items: joined on ids alone, there is no prompt or target to compare"
        )
    for only, name in ((only_before, f"before ({left})"), (only_after, f"after ({right})")):
        if len(only):
            first = only.iloc[0]
            notes.append(
                f"{len(only)} items are only in {name}, first '{first['item_id']}' in {first['group']}; not compared"
            )
    unequal = int((items["n_before"] != items["n_after"]).sum())
    if unequal:
        notes.append(f"{unequal} items have different numbers of samples before and after; their means are compared")
    return notes
