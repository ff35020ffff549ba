"""Record sets whose truth is known: logistic items with planted accuracies. Shared by the tests of accuracy, caps, interference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.optimize import brentq

_ABILITY = np.random.default_rng(99).normal(size=50_000)


def offset(accuracy: float, sd: float = 1.6) -> float:
    """The logit shift at which logistic-normal items of spread `sd` are solved with probability `accuracy` on average."""
    return brentq(lambda o: (1 / (1 + np.exp(-(sd * _ABILITY + o)))).mean() - accuracy, -15, 15)


def draw_scores(
    accuracies: Mapping[str, float], n_items: int, n_samples: int, seed: object, own: float = 0.7
) -> dict[str, np.ndarray]:
    """Model -> I × S zeros and ones: items share a difficulty, and each model has its own taste for items (spread `own`)."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=n_items) * np.sqrt(1.6**2 - own**2)
    chances = {
        m: 1 / (1 + np.exp(-(shared + own * rng.normal(size=n_items) + offset(a)))) for m, a in accuracies.items()
    }
    return {m: (rng.random((n_items, n_samples)) < p[:, None]).astype(float) for m, p in chances.items()}


def frame(scores: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Records in the contract's columns from domain -> model -> I × S scores."""
    rows = [
        (model, domain, f"{domain}-{i}", f"p{domain}{i}", f"t{domain}{i}", s, f"prompt {i}", "answer", score, 5, False)
        for domain, models in scores.items()
        for model, table in models.items()
        for i, row in enumerate(table)
        for s, score in enumerate(row)
    ]
    columns = "model domain item_id prompt_hash target_hash sample prompt response score n_tokens truncated"
    return pd.DataFrame(rows, columns=columns.split())
