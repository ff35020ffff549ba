"""Two answers side by side with what changed marked, worked out when the page is made: the reader's browser gets <del> and <ins>.

Words are compared, and letters inside a pair of words that are much alike. Model-written text goes through `text.visible` and
is escaped, so that a mark, a line end or a hidden character is seen and nothing runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from markupsafe import Markup, escape

from mopd_diag.reporting import text

LIMIT = 3000  # characters of one text on the page
CONTEXT = 400  # characters kept of a long beginning that both answers share
MOST = 1500  # words compared; the time grows with their square
ALIKE = 0.25  # answers that share less are not marked: everything would be
WORD = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


@dataclass(frozen=True)
class SideBySide:
    """`before` with its deletions, `after` with its insertions, ready for a page; `note` says what is not as usual."""

    before: Markup
    after: Markup
    note: str = ""


def side_by_side(before: str, after: str) -> SideBySide:
    """Both answers with their differences marked.

    >>> side_by_side("x = 12 apples", "x = 17 apples").after
    Markup('x = 1<ins>7</ins> apples')
    """
    if before == after:
        return SideBySide(shown(before), shown(after), "The two answers shown are the same." if before else "")
    skipped = _shared_start(before, after)
    lead = Markup("<i>… {} characters alike …</i> ").format(skipped) if skipped else Markup()
    left, right = before[skipped:], after[skipped:]
    tail = [_rest(len(side)) for side in (left, right)]
    left, right = left[:LIMIT], right[:LIMIT]
    pieces = list(_pieces(left, right))
    if sum(len(old) for same, old, _ in pieces if same) < ALIKE * max(len(left), len(right)) and not skipped:
        note = "The two answers share too little to mark single words." if left and right else ""
        return SideBySide(_plain(left) + tail[0], _plain(right) + tail[1], note)
    old = Markup().join(_plain(a) if same else _marked("del", a) for same, a, _ in pieces)
    new = Markup().join(_plain(b) if same else _marked("ins", b) for same, _, b in pieces)
    return SideBySide(lead + old + tail[0], lead + new + tail[1])


def shown(words: str) -> Markup:
    """A text for a pane: line ends kept, everything odd visible, cut at LIMIT with the number left out."""
    return _plain(words[:LIMIT]) + _rest(len(words))


def _shared_start(before: str, after: str) -> int:
    """Characters at the start, the same in both, that are left out so that the difference is in what is shown."""
    if max(len(before), len(after)) <= LIMIT:
        return 0
    same = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    return max(0, same - CONTEXT)


def _rest(length: int) -> Markup:
    return Markup("<i>… ({} more characters)</i>").format(length - LIMIT) if length > LIMIT else Markup()


def _pieces(left: str, right: str) -> Iterator[tuple[bool, str, str]]:
    """Runs that are the same in both, and runs that are not, in order."""
    a, b = WORD.findall(left), WORD.findall(right)
    over = "".join(a[MOST:]), "".join(b[MOST:])
    a, b = a[:MOST], b[:MOST]
    for kind, i, j, k, m in SequenceMatcher(None, a, b).get_opcodes():
        old, new = "".join(a[i:j]), "".join(b[k:m])
        if kind == "replace" and max(j - i, m - k) == 1:
            yield from _letters(old, new)
        elif kind == "equal":
            yield True, old, new
        else:
            yield from _words(old, new)
    if over != ("", ""):
        yield over[0] == over[1], *over


def _words(old: str, new: str) -> Iterator[tuple[bool, str, str]]:
    """A replaced run, without the blanks at its start that both sides have."""
    blank = len(new) - len(new.lstrip())
    shared = old and new[:blank] == old[: len(old) - len(old.lstrip())]
    if blank and shared:
        yield True, new[:blank], new[:blank]
        old, new = old[blank:], new[blank:]
    yield False, old, new


def _letters(old: str, new: str) -> Iterator[tuple[bool, str, str]]:
    """A pair of words by letters where at least half of them agree."""
    match = SequenceMatcher(None, old, new, autojunk=False) if max(len(old), len(new)) <= 60 else None
    if match is None or match.ratio() < 0.5:
        yield from _words(old, new)
        return
    for kind, i, j, k, m in match.get_opcodes():
        yield kind == "equal", old[i:j], new[k:m]


def _marked(tag: str, words: str) -> Markup:
    """A change; line ends and lone blanks in it get a sign, because they would not be seen."""
    if not words:
        return Markup()
    lines = [escape(text.visible(line, spaces=not words.strip())) for line in words.split("\n")]
    return Markup(f"<{tag}>") + Markup("↵\n").join(lines) + Markup(f"</{tag}>")


def _plain(words: str) -> Markup:
    return Markup("\n").join(escape(text.visible(line)) for line in words.split("\n"))
