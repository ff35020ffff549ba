"""JSON lines: the reading that every line-based format shares, and the plain format for everybody else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mopd_diag.errors import BadInput, nearest
from mopd_diag.records.build import Rows
from mopd_diag.records.recordset import text_of

FORMAT = "jsonl"
CHUNK = 1 << 22  # bytes of lines parsed by one call: keys are shared within it, and no more than that is held as dicts
CLUSTERS = ("cluster", "document", "seed")
WANTED = "expected `id` and one of `score`, `scores`, `correct`"


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. Raises BadInput with file and line."""
    number = 0
    with path.open("rb") as file:
        while lines := file.readlines(CHUNK):
            kept = [(number + i, line) for i, line in enumerate(lines, 1) if line.strip()]
            number += len(lines)
            yield from zip((n for n, _ in kept), _parsed(path, kept), strict=True)


def _parsed(path: Path, lines: list[tuple[int, bytes]]) -> list[dict[str, Any]]:
    """One parse for all the lines; line by line only to find the broken one."""
    try:
        tables = json.loads(
            (b"[" + b",".join(line for _, line in lines) + b"]").removeprefix(b"[\xef\xbb\xbf").decode()
        )
        if len(tables) == len(lines) and all(type(t) is dict for t in tables):
            return tables
    except (ValueError, RecursionError):
        pass  # the loop below says which line it is
    return [_object(path, number, line) for number, line in lines]


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        table = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}:{number}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        cut = (
            ""
            if line.endswith(b"\n")
            else "; the file ends in this line: was the run cut off? remove it to use the rest"
        )
        raise BadInput(f"{path}:{number}: not JSON ({error}), expected one object a line{cut}") from None
    if not isinstance(table, dict):
        raise BadInput(f"{path}:{number}: got a {type(table).__name__}, expected one JSON object a line")
    return table


def read_plain(path: Path, group: str, metric: str | None = None) -> Rows:
    """A plain file: `id` plus `score`, `scores` or `correct`, one item a line; `metric` names another score field.

    `correct` is a string of 0 and 1, one character a sample, or one truth value. A line may also have `domain`, `sample`,
    `prompt`, `response`, `prompt_hash`, `target_hash`, and `cluster`, `document` or `seed` as a second level of clustering.
    """
    columns: dict[str, list[Any]] = {
        k: [] for k in ("item_id", "score", "sample", "prompt_hash", "target_hash", "cluster", "prompt", "response")
    }
    domains, lines = [], []
    scores_of: Callable[[dict[str, Any], str], list[Any]] = (
        _scores if metric is None else lambda t, at: _metric(t, metric, at)
    )
    for number, table in objects(path):
        at = f"{path}:{number}"
        values = scores_of(table, at)
        n = len(values)
        sample = table.get("sample")
        if sample is not None and n > 1:
            raise BadInput(f"{at}: `sample` numbers one answer, but the line has {n} scores; leave one of them out")
        columns["item_id"] += [_id(table, at)] * n
        columns["score"] += values
        columns["sample"] += range(n) if sample is None else [sample]
        for name in ("prompt_hash", "target_hash", "prompt"):
            columns[name] += [text_of(table.get(name))] * n
        columns["cluster"] += [_cluster(table)] * n
        columns["response"] += _responses(table, n)
        domains += [text_of(table.get("domain"))] * n
        lines += [number] * n
    if not lines:
        raise BadInput(f"{path} is empty; {WANTED} on every line")
    if any(domains):
        columns["group"] = [d or group for d in domains]
    kept = {k: v for k, v in columns.items() if any(v) or k in ("item_id", "score")}
    return Rows(str(path), FORMAT, kept, lines, group, named=any(domains))


def _id(table: dict[str, Any], at: str) -> str:
    value = table.get("id", table.get("item_id"))
    if isinstance(value, str) or type(value) is int:
        return str(value)
    if value is None:
        raise BadInput(f"{at}: no `id`; {WANTED}, never the row's position")
    raise BadInput(f"{at}: `id` is {value!r}, expected text or a whole number")


def _scores(table: dict[str, Any], at: str) -> list[Any]:
    score, several, correct = table.get("score"), table.get("scores"), table.get("correct")
    if several is not None:
        if not isinstance(several, list) or not several:
            raise BadInput(f"{at}: `scores` is {several!r:.60}, expected a list with at least one number")
        return several
    if isinstance(correct, str) and (score is None or len(correct) > 1):
        if not correct or correct.strip("01"):
            raise BadInput(f"{at}: `correct` is {correct!r:.60}, expected one 0 or 1 a sample")
        values = [float(c) for c in correct]
        if isinstance(score, int | float) and abs(score - sum(values) / len(values)) > 1e-6:
            raise BadInput(
                f"{at}: `score` is {score}, but `correct` has mean {sum(values) / len(values):.6g}; keep one"
            )
        return values
    if "score" in table:
        return [score]
    if isinstance(correct, bool | int | float):
        return [correct]
    close = nearest("score", table) if table else ""
    raise BadInput(f"{at}: no score; {WANTED}" + (f" ({close})" if close.startswith("did") else ""))


def _metric(table: dict[str, Any], metric: str, at: str) -> list[Any]:
    if metric not in table:
        raise BadInput(f"{at}: no `{metric}`; {nearest(metric, table)}")
    value = table[metric]
    return value if isinstance(value, list) and value else [value]


def _cluster(table: dict[str, Any]) -> str:
    return next((text_of(table[k]) for k in CLUSTERS if table.get(k) is not None), "")


def _responses(table: dict[str, Any], n: int) -> list[str]:
    """One answer a sample from `responses`, or `response` as a list; a single text belongs to the first sample."""
    value = table.get("responses", table.get("response"))
    if isinstance(value, list) and len(value) == n:
        return [text_of(v) for v in value]
    return [text_of(value)] + [""] * (n - 1)
