"""The verdict that the domains with a scratchpad share."""

from __future__ import annotations


def same_answer(separator: str, target: str, response: str) -> float:
    """1.0 when what follows the first `separator` is the target's answer to the letter, else 0.0.

    The scratchpad may say anything, but must say something: an answer without working is another format. Plain string
    comparison, so no response, however hostile, can do more than be wrong.
    """
    working, found, answer = response.partition(separator)
    return float(bool(working) and bool(found) and answer == target.partition(separator)[2])
