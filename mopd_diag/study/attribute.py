"""`mopd_diag.attribute`: the Python face of `mopd-diag attribute`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mopd_diag.config import Cast, load_cast, parse
from mopd_diag.diagnostics.attribution import Attribution
from mopd_diag.errors import BadInput, nearest
from mopd_diag.prompts import Prompt, check_prompts, read_prompts
from mopd_diag.records.answers import read_rollouts
from mopd_diag.study.answers import Told
from mopd_diag.study.cast import attribute_cast

Lines = str | Path | Sequence[Mapping[str, Any]] | pd.DataFrame
"""A JSON-lines file, mappings, or a data frame with columns of the same names."""

ENGINES = ("torch", "vllm")


def _warn(note: str) -> None:
    warnings.warn(note, stacklevel=5)


def attribute(
    cast: Cast | str | Path | Mapping[str, Any],
    *,
    prompts: Lines | None = None,
    rollouts: Lines | None = None,
    domains: str | Path | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    top_k: int | None = None,
    engine: str = "torch",
    vllm: Mapping[str, Any] | None = None,
    device: str = "auto",
    told: Told = lambda _: None,
    warn: Told = _warn,
) -> Attribution:
    """Which teacher do a student's answers come from?

    Args:
        cast: a cast file, a `Cast`, or the file's tables as a mapping, where a path may stand for a member:
            `{"base": path, "student": path, "teachers": {name: path or {"path": path, "domains": [...]}}, "controls": {...}}`.
        prompts: id, prompt and optionally domain; the student samples the answers.
        rollouts: the same with response: answers that are scored as they are. Exactly one of the two is given. A file may be what TRL,
            verl or NeMo-RL logged (`docs/bridges.md`).
        domains: a file of prompts with domains, for rollouts that name none.
        max_new_tokens, temperature, seed: of the sampled answers; temperature 0 is greedy.
        top_k: reduce every distribution to the student's k likeliest tokens and a tail bucket, as a served teacher would give it.
        engine: "torch" compares whole vocabularies; "vllm" samples and scores in vLLM, one member after the other, for models that
            are too large for that or where there is a GPU: over the `top_k` likeliest tokens (default 20) that all members gave.
        vllm: what `vllm.LLM` is told beside, such as `{"tensor_parallel_size": 2}`.
        device: what torch computes on: "auto" is a GPU where there is one; or "cpu", "cuda", "cuda:1".
        told: hears what is going on. warn: hears what was left out or is to be kept in mind (default: `warnings.warn`).

    Returns data frames of tokens, spans and answers (`docs/attribution.md`); `to_dict()` is the document of `--json`.

    Raises BadInput or CheckpointError with one line when something cannot be used.

    Example:
        found = mopd_diag.attribute("cast.toml", prompts=[{"id": "1", "prompt": "2+2="}])
        found.answers[["item_id", "label", "confidence"]]
    """
    if (prompts is None) == (rollouts is None):
        raise BadInput(
            "give either prompts (the student samples) or rollouts (answers as they are), not both and not neither"
        )
    if domains is not None and rollouts is None:
        raise BadInput("domains are for rollouts; prompts name their own domain")
    if max_new_tokens < 1 or temperature < 0:
        raise BadInput(
            f"got max_new_tokens {max_new_tokens} and temperature {temperature}, expected at least 1 and at least 0"
        )
    if top_k is not None and top_k < 1:
        raise BadInput(f"got top_k {top_k}, expected at least 1, or None for the whole vocabulary")
    if engine not in ENGINES:
        raise BadInput(f"no engine '{engine}'; {nearest(engine, ENGINES)}")
    if vllm and engine != "vllm":
        raise BadInput('options for vLLM were given, but no member is loaded by it; add engine="vllm" (--engine vllm)')
    if device != "auto" and engine == "vllm":
        raise BadInput(f"device {device} is for torch; vLLM chooses its own: leave it out, or set CUDA_VISIBLE_DEVICES")
    members = _cast(cast)
    if rollouts is not None:
        lines = _rollouts(rollouts, domains, warn)
    else:
        lines = [
            replace(p, response=None)
            for p in _lines(prompts if prompts is not None else [], "prompts", responses=False)
        ]
    return attribute_cast(
        members, lines, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, top_k=top_k, engine=engine,
        options=vllm, device=device, told=told, warn=warn,
    )  # fmt: skip


def _cast(cast: Cast | str | Path | Mapping[str, Any]) -> Cast:
    if isinstance(cast, Cast):
        return cast
    if isinstance(cast, str | Path):
        return load_cast(Path(cast))
    member = lambda m: {"path": m} if isinstance(m, str | Path) else m  # noqa: E731
    table = {
        role: member(value) if role in ("base", "student") or not isinstance(value, Mapping)
        else {name: member(each) for name, each in value.items()}
        for role, value in cast.items()
    }  # fmt: skip
    return parse(Cast, table, "cast")


def _rollouts(rollouts: Lines, domains: str | Path | None, warn: Told) -> list[Prompt]:
    if isinstance(rollouts, str | Path):
        return read_rollouts(Path(rollouts), None if domains is None else Path(domains), warn)
    if domains is not None:
        raise BadInput("domains are for a file of rollouts; name the domain in each of the rollouts given")
    return _lines(rollouts, "rollouts", responses=True)


def _lines(lines: Lines, source: str, *, responses: bool) -> list[Prompt]:
    if isinstance(lines, str | Path):
        return read_prompts(Path(lines), responses=responses)
    rows: Any = lines
    if isinstance(lines, pd.DataFrame):
        # A missing cell of a frame is NaN, whatever its column holds.
        rows = [{str(k): None if _missing(v) else v for k, v in row.items()} for row in rows.to_dict("records")]
    return check_prompts(rows, source, responses=responses)


def _missing(cell: Any) -> bool:
    return bool(pd.api.types.is_scalar(cell) and pd.isna(cell))
