"""Which prompts look alike: across domains behind their own marks, and within a domain as wordings of one question.

Prompts are compared by form alone; no model reads them. Axis letters: L, R prompts of two domains, F features.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from statistics import median

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

Floats = npt.NDArray[np.floating]

NEAR = 0.6
"""Similarity from which on two prompts look alike."""
FEWEST = 8
"""Prompts of a domain below which a common beginning may be chance, and is left on."""
SHORT = 24
"""Median length up to which prompts are compared by pairs of characters; longer ones by runs of five, because any two long texts
share most of their pairs."""
RARE = 0.1
"""A right answer that more of a domain's items share (yes, no) does not tell which question it belongs to."""

WORD = re.compile(r"[^\W_]+")
OPERATOR = re.compile(r"[+*/%^<>=−-]")
NUMBER = re.compile(r"\d+")


def cores(prompts: Sequence[str]) -> list[str]:
    """Prompts of one domain without what they all begin and end with: its letter, its instruction, its closing mark.

    >>> cores(["M37+58:", "M12+90:", "M45+11:", "M77+10:", "M80+13:", "M61+23:", "M59+32:", "M26+94:"])[0]
    '37+58'
    """
    known = sorted(set(prompts))
    if len(known) < FEWEST:
        return list(prompts)
    start = _common(known)
    rest = [p[start:] for p in known]
    end = _common([p[::-1] for p in rest])
    return [p[start : len(p) - end] for p in prompts]


def words_of(prompt: str) -> tuple[str, ...]:
    """The words and numbers of a prompt, sorted: two wordings that only rearrange or punctuate have the same. Beside digits,
    signs of arithmetic are words too.

    >>> words_of("h.ber:") == words_of("?ber/h"), words_of("3+4") == words_of("3*4")
    (True, False)
    """
    return tuple(sorted([*_words(prompt), *_signs(prompt)]))


def similarity(left: Sequence[str], right: Sequence[str]) -> Floats:
    """Dice coefficient (L × R) of the sets of words or of the sets of character n-grams, whichever is larger; in [0, 1]."""
    lengths = [len(p) for p in (*left, *right)]
    n = 2 if not lengths or median(lengths) <= SHORT else 5
    return np.maximum(_dice(left, right, _words), _dice(left, right, lambda p: _grams(p, n)))


def rephrasings(items: pd.DataFrame) -> npt.NDArray[np.intp]:
    """A group number for each row of `items` (one domain: item_id, prompt, target_hash, perhaps group): wordings of one question.

    Rows of one `group` belong together where that column says something. Of the others, those with the same right answer whose
    prompts hold the same words, or, when that answer is rare in the domain (`RARE`), the same numbers and nearly the same words.
    """
    prompts = cores([str(p) for p in items["prompt"]])
    named = items["group"].fillna("").astype(str).tolist() if "group" in items.columns else [""] * len(items)
    targets = items["target_hash"].astype(str).tolist()
    held, bags = Counter(targets), [words_of(p) for p in prompts]
    numbers = [sorted([*NUMBER.findall(p), *_signs(p)]) for p in prompts]
    parent = np.arange(len(items))
    by_target: dict[str, list[int]] = {}
    for row, target in enumerate(targets):
        if not named[row]:
            by_target.setdefault(target, []).append(row)
    first: dict[object, int] = {}
    for row, name in enumerate(named):
        key = ("group", name) if name else (targets[row], bags[row]) if bags[row] else row
        parent[row] = first.setdefault(key, row)
    for target, rows in by_target.items():
        if len(rows) > 1 and held[target] <= max(2, RARE * len(items)):
            alike = _dice([prompts[r] for r in rows], [prompts[r] for r in rows], _words) >= NEAR
            for i, j in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
                if numbers[rows[i]] == numbers[rows[j]]:
                    parent[parent == parent[rows[j]]] = parent[rows[i]]
    return np.unique(parent, return_inverse=True)[1]


def _common(prompts: Sequence[str]) -> int:
    """Length of what all begin with: what the first and the last in the alphabet begin with."""
    pairs = zip(min(prompts), max(prompts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _words(prompt: str) -> list[str]:
    return WORD.findall(prompt.casefold())


def _signs(prompt: str) -> list[str]:
    """Signs of arithmetic, of a prompt with digits."""
    return OPERATOR.findall(prompt) if NUMBER.search(prompt) else []


def _grams(prompt: str, n: int) -> tuple[str, ...]:
    padded = f" {prompt} "
    return tuple(padded[i : i + n] for i in range(max(1, len(padded) - n + 1)))


def _dice(left: Sequence[str], right: Sequence[str], features: Callable[[str], Iterable[str]]) -> Floats:
    sets = [set(features(p)) for p in (*left, *right)]
    known = {f: i for i, f in enumerate(sorted(set().union(*sets)))} if sets else {}
    rows = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    columns = [known[f] for s in sets for f in sorted(s)]
    table = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(sets), max(1, len(known))))
    sizes = np.array([len(s) for s in sets], dtype=float)
    shared = np.asarray((table[: len(left)] @ table[len(left) :].T).todense())
    total = sizes[: len(left), None] + sizes[None, len(left) :]
    return 2 * shared / np.maximum(total, 1)
