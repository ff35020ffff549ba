"""Accuracy of every model on every domain, and the one place where record frames become arrays.

Axis letters: M models, I items, S samples.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mopd_diag.errors import BadInput, nearest
from mopd_diag.estimators.bootstrap import REPLICATES, Bootstrap
from mopd_diag.types import Estimate

NEEDED = ("model", "domain", "item_id", "sample", "score")
OVERALL = "overall"
"""Key of the unweighted mean of the domains beside the domains' own names."""


def accuracy(
    records: pd.DataFrame, *, seed: int = 0, level: float = 0.95, replicates: int = REPLICATES
) -> dict[str, dict[str, Estimate]]:
    """Model -> domain -> mean score over items with its interval, and `overall`: the unweighted mean of the domains.

    `records` has the contract's columns, one row a sampled answer. Items are resampled within domains, samples are
    averaged within an item. Models and domains keep the order of the frame. `overall` is undefined, with the reason,
    for a model that lacks a domain. Raises BadInput for missing columns, scores that are not finite numbers, repeated
    samples, or contents that disagree.
    """
    checked(records)
    if records.empty:
        return {}
    low, high = min(0.0, float(records["score"].min())), max(1.0, float(records["score"].max()))
    domains = names(records, "domain")
    items = records.groupby(["model", "domain", "item_id"], sort=False, observed=True)["score"].mean().astype(float)
    found: dict[str, dict[str, Estimate]] = {}
    for model in names(records, "model"):
        table = items.loc[model]
        held = set(table.index.get_level_values("domain"))
        parts = {
            d: Bootstrap.of(
                table.loc[d].to_numpy(), seed=[seed, k], level=level, replicates=replicates, bounds=(low, high)
            )
            for k, d in enumerate(domains)
            if d in held
        }
        found[model] = {d: p.column(0) for d, p in parts.items()} | {OVERALL: _overall(parts, domains)}
    return found


def pivot(records: pd.DataFrame, domain: str) -> tuple[list[str], list[str], npt.NDArray[np.floating[Any]]]:
    """Models, item ids, and M × I × S scores of one domain, all models on the same items.

    S is the largest number of samples; NaN fills up what a model or an item has fewer of. Order as in the frame. Raises
    BadInput for an unknown domain and for models that were not asked the same items, besides what `accuracy` raises.
    """
    part = records[records["domain"] == domain] if "domain" in records.columns else records
    checked(part)
    if part.empty:
        raise BadInput(f"no records on the domain {domain!r}; {nearest(domain, names(records, 'domain'))}")
    model_M, models = pd.factorize(part["model"])
    item_I, items = pd.factorize(part["item_id"])
    asked = np.zeros((len(models), len(items)), dtype=bool)
    asked[model_M, item_I] = True
    if not asked.all():
        least = int(asked.sum(1).argmin())
        first = items[int(asked[least].argmin())]
        raise BadInput(
            f"{domain}: {models[least]} answered {int(asked[least].sum())} of {len(items)} items (not {first!r}); "
            "models are compared on the same items only: evaluate it on all of them"
        )
    answers = part.groupby(["model", "item_id"], sort=False, observed=True)
    place = answers["sample"].rank(method="first").to_numpy(dtype=int) - 1
    scores = np.full((len(models), len(items), place.max() + 1), np.nan)
    scores[model_M, item_I, place] = part["score"].to_numpy(dtype=float)
    return [str(m) for m in models], [str(i) for i in items], scores


def names(records: pd.DataFrame, column: str) -> list[str]:
    """Distinct values of a column in order of appearance."""
    return [str(x) for x in records[column].drop_duplicates()]


def slug(*parts: str) -> str:
    """A stable identifier from names.

    >>> slug("cap", "student", "two turn")
    'cap-student-two-turn'
    """
    return "-".join(re.sub(r"[^a-z0-9._]+", "-", p.lower()).strip("-") for p in parts)


def checked(records: pd.DataFrame) -> None:
    """Raise BadInput unless the columns are there, scores are finite, samples come once, and items have one content."""
    missing = [c for c in NEEDED if c not in records.columns]
    if missing:
        raise BadInput(f"records lack the column {missing[0]!r}; expected {', '.join(NEEDED)}")
    if records.empty:
        return
    score = records["score"]
    if not pd.api.types.is_numeric_dtype(score) or not np.isfinite(score.to_numpy(dtype=float)).all():
        raise BadInput("records hold scores that are not finite numbers; expected one number for each sampled answer")
    twice = records.duplicated(["model", "domain", "item_id", "sample"])
    if twice.any():
        row = records[twice].iloc[0]
        raise BadInput(
            f"{int(twice.sum())} records come twice, first {row['model']}, {row['item_id']!r}, sample {row['sample']}; "
            "expected one row for each sampled answer"
        )
    for column in ("prompt_hash", "target_hash"):
        if column in records.columns:
            contents = records[["domain", "item_id", column]].dropna().drop_duplicates()
            clash = contents[contents.duplicated(["domain", "item_id"])]
            if len(clash):
                first = f"{clash['item_id'].iloc[0]!r} in {clash['domain'].iloc[0]!r}"
                raise BadInput(
                    f"{len(clash)} items were asked with different contents ({column}), first {first}: "
                    "the models did not answer the same questions"
                )


def _overall(parts: dict[str, Bootstrap], domains: list[str]) -> Estimate:
    lacking = [d for d in domains if d not in parts]
    if lacking:
        return Estimate.undefined(f"no records on {', '.join(lacking)}")
    return Bootstrap.join(list(parts.values())).estimate(lambda m: m.mean(-1))
