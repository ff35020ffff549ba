"""The same stages with a team of machines for each: every one starts as soon as its last parent has ended."""

from __future__ import annotations

import pandas as pd

from mopd_diag.reporting.paths import family


def as_if_unlimited(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger with `started` as it would be with machines for all: what a stage waits for is only what it is made from.

    Work is what it was. A parent that comes later in a circle counts as none.
    """
    parents = family(ledger)
    seconds = {str(s): float(t) for s, t in zip(ledger["stage"], ledger["seconds"], strict=True)}
    start: dict[str, float] = {}

    def begins(stage: str, below: frozenset[str]) -> float:
        if stage not in start:
            waited = [begins(p, below | {stage}) + seconds[p] for p in parents[stage] if p not in below]
            start[stage] = max(waited, default=0.0)
        return start[stage]

    return ledger.assign(started=[begins(str(s), frozenset()) for s in ledger["stage"]])
