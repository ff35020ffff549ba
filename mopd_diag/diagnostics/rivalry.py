"""Which path won, by how much, and which others cannot be told from it: all paths of a study on the same items and seeds.

Verdicts of a difference a − b: `ahead`, `behind` (Holm-adjusted over its family), `level` (the whole interval within the
margin), `undetermined`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mopd_diag.diagnostics.accuracy import OVERALL, names, pivot
from mopd_diag.errors import BadInput, nearest
from mopd_diag.estimators.bootstrap import REPLICATES, Bootstrap
from mopd_diag.estimators.draws import Floats
from mopd_diag.estimators.interference import Change, judge
from mopd_diag.estimators.statistics import detectable_from_interval, item_means
from mopd_diag.estimators.trainings import p_over_trainings
from mopd_diag.types import Estimate

VERDICTS = {"help": "ahead", "harm": "behind", "none": "level", "undetermined": "undetermined"}
"""Of a − b, in the words of paths; the keys are those of a change."""


@dataclass(frozen=True, slots=True)
class Contest:
    """One path minus another. `detectable`: the difference that would have been found with 80 % power, unadjusted."""

    delta: Estimate
    p_value: float
    p_adjusted: float
    verdict: str

    @property
    def detectable(self) -> float:
        return detectable_from_interval(self.delta)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        numbers = {"p_value": self.p_value, "p_adjusted": self.p_adjusted, "detectable": self.detectable}
        told = {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()}
        return {"delta": self.delta.to_dict(), **told, "verdict": self.verdict}


@dataclass(frozen=True, eq=False)
class Rivalry:
    """`accuracy[model][domain]`, `overall` included. `overall[model]`: reference − it. `by_domain[model][domain]`: the same on one
    domain, one family over the whole table. `leads[model]`: winner − it; `single[model][domain]`: the same on one domain.

    The winner is the path with the highest mean, whether or not it can be told from the others.
    """

    reference: str
    winner: str
    accuracy: dict[str, dict[str, Estimate]]
    overall: dict[str, Contest]
    by_domain: dict[str, dict[str, Contest]]
    leads: dict[str, Contest]
    single: dict[str, dict[str, Contest]]


def rivalry(
    runs: Sequence[pd.DataFrame], models: Sequence[str], reference: str, *, margin: float = 0.05, seed: int = 0,
    level: float = 0.95, replicates: int = REPLICATES,
) -> Rivalry:  # fmt: skip
    """Compare the ends of several paths. `runs`: the records of each training seed.

    Intervals are over items and, with several runs, over training seeds. Raises BadInput for a model without records and what
    `pivot` refuses.
    """
    if not runs:
        raise BadInput("no records: expected one frame for each training seed")
    for run in runs:
        known = names(run, "model")
        if missing := [m for m in (*models, reference) if m not in known]:
            raise BadInput(f"no records of the model {missing[0]!r}; {nearest(missing[0], known)}")
    kept = [r[r["model"].isin(models)] for r in runs]
    domains = names(kept[0], "domain")
    tables = {d: _means(kept, models, d) for d in domains}
    draw = {"level": level, "replicates": replicates}
    boots = {
        d: Bootstrap.over_seeds(list(tables[d].swapaxes(1, 2)), seed=[seed, k], shift_seed=seed, **draw)
        for k, d in enumerate(domains)
    }
    joined, n = Bootstrap.join(list(boots.values())), len(models)
    mean = lambda m, v: m.reshape(*m.shape[:-1], len(domains), n)[..., v].mean(-1)  # noqa: E731
    at = {m: v for v, m in enumerate(models)}
    accuracy = {
        m: {d: b.column(v) for d, b in boots.items()} | {OVERALL: joined.estimate(lambda x, v=v: mean(x, v))}
        for m, v in at.items()
    }

    def change(a: int, b: int, where: Sequence[str]) -> Change:
        if len(where) > 1:
            delta = joined.estimate(lambda x: mean(x, a) - mean(x, b), unit="difference")
        else:
            delta = boots[where[0]].estimate(lambda x: x[..., a] - x[..., b], unit="difference")
        parts = [tables[d][:, a] - tables[d][:, b] for d in where]
        return Change(delta, p_over_trainings(parts, seed=seed, permutations=replicates))

    def against(model: str) -> tuple[dict[str, Contest], dict[str, dict[str, Contest]]]:
        others = [m for m in models if m != model]
        whole = _judged([change(at[model], at[m], domains) for m in others], margin)
        cells = _judged([change(at[model], at[m], [d]) for m in others for d in domains], margin)
        n_domains = len(domains)
        rows = [cells[k : k + n_domains] for k in range(0, len(cells), n_domains)]
        single = {m: dict(zip(domains, row, strict=True)) for m, row in zip(others, rows, strict=True)}
        return dict(zip(others, whole, strict=True)), single

    told = {m: e[OVERALL].value for m, e in accuracy.items()}
    winner = max(told, key=lambda m: (told[m], m == reference))
    overall, by_domain = against(reference)
    leads, single = (overall, by_domain) if winner == reference else against(winner)
    return Rivalry(reference, winner, accuracy, overall, by_domain, leads, single)


def pooled(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The records of several training seeds as if they were more samples of the same models: means over seeds, intervals over items.

    Samples of seed t keep their order within t, so that halves of the samples hold every seed alike.
    """
    each = 1 + max(int(r["sample"].max()) for r in runs)
    return pd.concat([r.assign(sample=r["sample"] + t * each) for t, r in enumerate(runs)], ignore_index=True)


def _means(runs: Sequence[pd.DataFrame], models: Sequence[str], domain: str) -> Floats:
    """T × M × I item means, items in one order. Raises BadInput when trainings were asked different items."""
    found, asked = list[Floats](), list[str]()
    for run in runs:
        present, items, scores = pivot(run, domain)
        if missing := [m for m in models if m not in present]:
            raise BadInput(f"no records of {missing[0]} on the domain {domain!r}; evaluate it there or leave it out")
        if asked and sorted(items) != asked:
            raise BadInput(f"{domain}: the seeds answered different items; paths are compared on the same items only")
        asked = sorted(items)
        found.append(item_means(scores)[[present.index(m) for m in models]][:, np.argsort(items)])
    return np.stack(found)


def _judged(cells: Sequence[Change], margin: float) -> list[Contest]:
    return [Contest(j.delta, j.p_value, j.p_adjusted, VERDICTS[j.verdict]) for j in judge(cells, margin=margin)]
