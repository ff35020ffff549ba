"""`prompts.jsonl` and `rollouts.jsonl`: the user's own prompts and answers, read line by line and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd_diag.errors import BadInput, nearest

KNOWN = {"id", "prompt", "domain", "answer", "verifier", "response", "model", "score"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line: `response` is None in a prompts file; `score` is NaN-free or None."""

    id: str
    prompt: str
    domain: str = ""
    answer: str | None = None
    verifier: str | None = None
    response: str | None = None
    model: str | None = None
    score: float | None = None


def read_prompts(path: Path, *, responses: bool) -> list[Prompt]:
    """The lines of a prompts file, or of a rollouts file when `responses`.

    Raises BadInput with file and line for broken JSON, a missing or unknown key, a wrong type, or a repeated id.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON may hold U+2028 as it is
    except FileNotFoundError:
        raise BadInput(f"no file {path}: expected JSON lines with id and prompt; check the path") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise BadInput(f"{path} is not a text file of JSON lines ({error})") from None
    tables = ((f"{path}:{n}", _table(line, f"{path}:{n}")) for n, line in enumerate(lines, 1) if line.strip())
    return _checked(tables, f"{path} is empty; expected one JSON object a line with id and prompt", responses)


def check_prompts(tables: Iterable[Mapping[str, Any]], source: str, *, responses: bool) -> list[Prompt]:
    """Prompts (or rollouts, when `responses`) that are in memory already, under the same rules as a file's lines."""
    named = ((f"{source}[{n}]", table) for n, table in enumerate(tables))
    return _checked(named, f"{source} are empty; expected one mapping each with id and prompt", responses)


def _checked(tables: Iterable[tuple[str, Any]], empty: str, responses: bool) -> list[Prompt]:
    prompts, seen = [], set[str]()
    for at, table in tables:
        prompt = _prompt(table, at, responses)
        if prompt.id in seen:
            raise BadInput(f"{at}: id '{prompt.id}' came before; ids must differ")
        seen.add(prompt.id)
        prompts.append(prompt)
    if not prompts:
        raise BadInput(empty)
    return prompts


def _table(line: str, at: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise BadInput(f"{at}: not JSON ({error}); expected one object a line") from None


def _prompt(table: Any, at: str, responses: bool) -> Prompt:
    if not isinstance(table, Mapping):
        raise BadInput(f"{at}: got a {type(table).__name__}, expected an object with id and prompt")
    for key in table:
        if key not in KNOWN:
            raise BadInput(f"{at}: unknown key '{key}'; {nearest(key, KNOWN)}")
    for key in ("id", "prompt", *(("response",) if responses else ())):
        if table.get(key) is None:
            raise BadInput(f"{at}: no '{key}'; every line needs it")
    for key, value in table.items():
        wanted = (int, float) if key == "score" else (str, int) if key == "id" else str
        if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise BadInput(f"{at}: '{key}' is {value!r}, expected {'a number' if key == 'score' else 'text'}")
    if not table["prompt"]:
        raise BadInput(f"{at}: the prompt is empty; a model needs at least one token to go on from")
    return Prompt(**{**table, "id": str(table["id"]), "domain": table.get("domain") or ""})
