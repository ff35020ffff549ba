"""Two tokenisations of one text brought together: spans that begin and end between tokens of every one of them.

Axis letters: T tokens of one tokenisation, B boundaries, S spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

from mopd_diag.estimators.evidence import Floats, Ints


def byte_offsets(text: str) -> Ints:
    """Where each character of `text` begins in its UTF-8 bytes, and where the last one ends: characters + 1 numbers.

    >>> byte_offsets("a☃b").tolist()
    [0, 1, 4, 5]
    """
    return np.concatenate([[0], np.cumsum([len(c.encode("utf-8", "surrogatepass")) for c in text], dtype=int)])


def boundaries(offsets_T2: npt.ArrayLike, length: int) -> tuple[Ints, Ints]:
    """Places of a text between two tokens: (B) offsets from 0 to `length`, and how many tokens lie before each.

    `offsets_T2`: [start, end) of each token, in order. Tokens that share a character (parts of its bytes) have no boundary
    between them. What no token covers (a blank that was normalised away) goes with the token after it.

    >>> [x.tolist() for x in boundaries([(0, 2), (2, 3), (2, 3), (3, 5)], 5)]
    [[0, 2, 3, 5], [0, 1, 3, 4]]
    """
    offsets = np.asarray(offsets_T2, dtype=int).reshape(-1, 2)
    end = np.maximum.accumulate(offsets[:, 1])
    start = np.minimum.accumulate(offsets[::-1, 0])[::-1]
    apart = np.flatnonzero(end[:-1] <= start[1:]) + 1
    at = np.concatenate([[0], end[apart - 1], [length]])
    before = np.concatenate([[0], apart, [len(offsets)]])
    # Tokens without characters (a blank put in front) share their place with a neighbour: one boundary for both.
    last = np.append(np.diff(at) > 0, True)
    return at[last], np.where(at[last] == 0, 0, before[last])


def common(parts: Sequence[Ints]) -> Ints:
    """The boundaries that all tokenisations share: the edges of the smallest spans on which they can be compared."""
    return reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), parts)


def span_sums(values_T: npt.ArrayLike, offsets_T2: npt.ArrayLike, edges: Ints) -> Floats:
    """Σ of a tokenisation's values between consecutive `edges` (S = edges − 1), which must be boundaries of it."""
    at, before = boundaries(offsets_T2, int(edges[-1]))
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values_T, dtype=float))])
    return np.diff(total[before[np.searchsorted(at, edges)]])
