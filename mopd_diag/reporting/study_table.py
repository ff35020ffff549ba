"""A study's results on a terminal: which path won, by how much, at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mopd_diag.reporting import text
from mopd_diag.types import Estimate


def study_table(document: Mapping[str, Any]) -> Group:
    """A row a recipe, the best mean accuracy first."""
    s, n = document["study"], len(document["base"])
    shown = Table(
        "recipe", "accuracy", f"{s['reference']} − it", "recovery", f"{s['match'].replace('_', ' ')}", "against", "matched",
        box=None, pad_edge=False,
    )  # fmt: skip
    rows = sorted(document["models"].values(), key=lambda row: -float(np.mean(row["accuracy"])))
    for row in rows:
        matched = {None: "–", True: "yes", False: "no"}[row["matched"]]
        reference = row["recipe"] == s["reference"]
        shown.add_row(
            Text(row["recipe"], style="bold" if reference else ""),
            text.percent(float(np.mean(row["accuracy"]))),
            "reference" if reference else _estimate(row["reference_minus_this"]),
            _estimate(row["recovery"]),
            text.count(float(np.mean(row["cost"]))),
            text.percent(float(np.mean(row["cost_ratio"]))),
            "–" if reference else matched,
        )
    within = text.percent(document["matched_within"])
    said = (
        f"base {text.percent(float(np.mean(document['base'])))}; means over {len(document['domains'])} domains and {n} "
        f"seed{'s' if n > 1 else ''}, intervals over items{' and seeds' if n > 1 else ''}; matched: within {within} in every seed; "
        "–: trains nothing that could be matched"
    )
    return Group(shown, Text(said, style="dim"), *(Text(f"run: {run}") for run in document["runs"]))


def _estimate(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "–"
    numbers: dict[str, Any] = {k: math.nan if v is None else v for k, v in told.items()}
    return text.estimate(Estimate(**numbers))
