"""What a model that is not loaded here says of written tokens: their log-probabilities, and those of its likeliest tokens.

Axis letters: T answer tokens, K = k + 1 columns, V vocabulary, C tokens known to all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

UNUSED = -1


@dataclass(frozen=True, slots=True, eq=False)
class TopTokens:
    """Ids [T, K] and natural log-probabilities [T, K] of the written token (first column) and the k likeliest tokens.

    No token stands in a row twice: where the written token is among the k likeliest, or the model gave fewer, the last columns
    hold `UNUSED` and −inf.
    """

    ids_TK: np.ndarray
    logp_TK: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_TK)

    @classmethod
    def of(cls, tokens: Sequence[int], rows: Sequence[Mapping[int, float]], k: int) -> TopTokens:
        """From one mapping of id to log-probability for each written token. Raises KeyError when one lacks its token."""
        ids = np.full((len(tokens), k + 1), UNUSED, dtype=np.int32)
        logp = np.full((len(tokens), k + 1), -np.inf, dtype=np.float32)
        for t, (token, row) in enumerate(zip(tokens, rows, strict=True)):
            others = sorted((i for i in row if i != token), key=lambda i: -row[i])
            found = [token, *others[:k]]
            ids[t, : len(found)] = found
            logp[t, : len(found)] = [row[i] for i in found]
        return cls(ids, logp)

    @classmethod
    def join(cls, parts: Sequence[TopTokens], k: int) -> TopTokens:
        """Rows one below the other."""
        empty = cls.of([], [], k)
        return cls(*(np.concatenate([getattr(p, n) for p in (empty, *parts)]) for n in ("ids_TK", "logp_TK")))

    def take(self, rows: np.ndarray) -> TopTokens:
        return TopTokens(self.ids_TK[rows], self.logp_TK[rows])

    def finite(self, rows_T: np.ndarray) -> bool:
        """Whether all numbers of the chosen rows can be used: no NaN, no +inf, and the written token has one."""
        logp_TK = self.logp_TK[rows_T]
        return bool((np.isfinite(logp_TK) | (self.ids_TK[rows_T] == UNUSED)).all())

    def at(self, ids_TC: np.ndarray) -> np.ndarray:
        """Log-probabilities of the given tokens, [T, C]; NaN where this model did not give one."""
        stride = 1 + max(int(self.ids_TK.max(initial=0)), int(ids_TC.max(initial=0)))
        # Unused columns are given the stride itself, which no asked token has.
        row_T = np.arange(len(self), dtype=np.int64)[:, None] * (stride + 1)
        keys = (row_T + np.where(self.ids_TK == UNUSED, stride, self.ids_TK)).ravel()
        asked = row_T + np.where(ids_TC == UNUSED, stride, ids_TC)
        order = np.argsort(keys, kind="stable")
        place = np.searchsorted(keys[order], asked).clip(max=max(len(keys) - 1, 0))
        if not len(keys):
            return np.full(ids_TC.shape, np.nan)
        found = (keys[order][place] == asked) & (ids_TC != UNUSED)
        return np.where(found, self.logp_TK.ravel()[order][place].astype(float), np.nan)


def shared(given: Sequence[TopTokens]) -> np.ndarray:
    """The tokens that every one of the models gave, ids [T, C] with `UNUSED` where fewer; the written one comes first.

    Their own outcome for each of these and one for all the rest is a partition that every model can be reduced to.
    """
    ids_TC = given[0].ids_TK.astype(np.int64)
    for other in given[1:]:
        ids_TC = np.where(np.isnan(other.at(ids_TC)), UNUSED, ids_TC)
    front = np.argsort(ids_TC == UNUSED, axis=1, kind="stable")
    ids_TC = np.take_along_axis(ids_TC, front, 1)
    return ids_TC[:, : max(1, int((ids_TC != UNUSED).sum(1).max(initial=1)))]
