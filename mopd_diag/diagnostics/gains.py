"""What each teacher gained on its own domains, and how much of that arrived in the student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mopd_diag.diagnostics.accuracy import names, pivot
from mopd_diag.estimators.bootstrap import REPLICATES, Bootstrap
from mopd_diag.estimators.statistics import item_means
from mopd_diag.types import Estimate


@dataclass(frozen=True, slots=True)
class Gain:
    """Means over a teacher's domains, each weighing alike. `own`: teacher − base; `arrived`: student − base. On the same draws."""

    own: Estimate
    arrived: Estimate


def gains(
    records: pd.DataFrame, teachers: Mapping[str, Iterable[str]], *, student: str = "student", base: str = "base",
    seed: int = 0, level: float = 0.95, replicates: int = REPLICATES,
) -> dict[str, Gain]:  # fmt: skip
    """Teacher → its gain and what of it arrived. `teachers`: teacher → its domains.

    A teacher without records on any of its domains, and one in whose domains base or student were not evaluated, has unknown
    gains, with the reason.
    """
    present = set(names(records, "model"))
    found = {}
    for k, (teacher, domains) in enumerate(teachers.items()):
        models = [base, teacher, student]
        parts = []
        for d, domain in enumerate(domains):
            rows = records[(records["domain"] == domain) & records["model"].isin(models)]
            if set(models) <= set(names(rows, "model")):
                known, _, scores = pivot(rows, domain)
                columns = np.column_stack([item_means(scores[known.index(m)]) for m in models])
                parts.append(Bootstrap.of(columns, seed=[seed, k, d], level=level, replicates=replicates))
        if not parts:
            lacking = [m for m in models if m not in present]
            why = f"no records of {lacking[0]}" if lacking else f"{teacher} was not evaluated on its domains"
            found[teacher] = Gain(*(Estimate.undefined(why, unit="difference") for _ in range(2)))
            continue
        joined = Bootstrap.join(parts)
        told = [
            joined.estimate(lambda m, v=v: (m[..., v::3] - m[..., 0::3]).mean(-1), unit="difference") for v in (1, 2)
        ]
        found[teacher] = Gain(*told)
    return found
