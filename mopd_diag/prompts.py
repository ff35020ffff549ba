"""`prompts.jsonl` and `rollouts.jsonl`: the user's own prompts and answers, read line by line and checked."""

from __future__ import annotations

import json
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
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise BadInput(f"no file {path}: expected JSON lines with id and prompt; check the path") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise BadInput(f"{path} is not a text file of JSON lines ({error})") from None
    prompts, seen = [], set[str]()
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompt = _prompt(line, f"{path}:{number}", responses)
            if prompt.id in seen:
                raise BadInput(f"{path}:{number}: id '{prompt.id}' came before; ids must differ")
            seen.add(prompt.id)
            prompts.append(prompt)
    if not prompts:
        raise BadInput(f"{path} is empty; expected one JSON object a line with id and prompt")
    return prompts


def _prompt(line: str, at: str, responses: bool) -> Prompt:
    try:
        table: Any = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{at}: not JSON ({error}); expected one object a line") from None
    if not isinstance(table, dict):
        raise BadInput(f"{at}: got a {type(table).__name__}, expected an object with id and prompt")
    for key in table:
        if key not in KNOWN:
            raise BadInput(f"{at}: unknown key '{key}'; {nearest(key, KNOWN)}")
    for key in ("id", "prompt", *(("response",) if responses else ())):
        if key not in table:
            raise BadInput(f"{at}: no '{key}'; every line needs it")
    for key, value in table.items():
        wanted = (int, float) if key == "score" else (str, int) if key == "id" else str
        if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise BadInput(f"{at}: '{key}' is {value!r}, expected {'a number' if key == 'score' else 'text'}")
    if not table["prompt"]:
        raise BadInput(f"{at}: the prompt is empty; a model needs at least one token to go on from")
    return Prompt(**{**table, "id": str(table["id"]), "domain": table.get("domain") or ""})
