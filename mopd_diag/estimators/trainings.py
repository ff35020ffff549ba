"""Is a paired difference over items and training seeds anything but 0?

Axis letters: T training seeds, D domains, I items of a domain. Differences are of item means, in accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import REPLICATES
from mopd_diag.estimators.draws import Floats, Seed
from mopd_diag.estimators.significance import permutation_test


def p_over_trainings(differences_DTI: Sequence[Floats], *, seed: Seed = 0, permutations: int = REPLICATES) -> float:
    """Two-sided p-value that the mean over domains, each weighing alike, is 0. `differences_DTI`: T × I_D of each domain.

    One training: signs of items are flipped, and nothing is known of other trainings. Several: Student's t of the mean over the
    variances of items and of trainings together, with Satterthwaite's degrees of freedom, as in `Bootstrap.over_seeds`; the
    larger of this and the p-value of the flips, which also holds where nothing varies. NaN for fewer than 2 items. Raises
    BadInput for domains with different numbers of trainings.
    """
    tables = [np.asarray(d, dtype=float) for d in differences_DTI]
    if not tables or any(t.ndim != 2 for t in tables) or len({len(t) for t in tables}) != 1:
        raise BadInput(f"expected T × I differences of each domain, got the shapes {[t.shape for t in tables]}")
    mean_T, n = np.mean([t.mean(1) for t in tables], axis=0), len(tables[0])
    items = [t.mean(0) for t in tables]
    whole = sum(len(i) for i in items)
    weighed_I = np.concatenate([i * whole / (len(tables) * len(i)) for i in items])
    flips = permutation_test(weighed_I, seed=seed, permutations=permutations)
    if n == 1 or np.isnan(flips):
        return flips
    of_trainings = float(mean_T.var(ddof=1)) / n
    of_items = sum(float(i.var(ddof=1)) / len(i) for i in items if len(i) > 1) / len(tables) ** 2
    variance = of_trainings + of_items
    if not variance:
        return flips
    freedom = variance**2 / (of_trainings**2 / (n - 1) + of_items**2 / max(1, whole - len(tables)))
    return max(flips, float(2 * stats.t.sf(abs(mean_T.mean()) / np.sqrt(variance), freedom)))
