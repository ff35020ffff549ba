"""One failed answer, put together from its trace, its explanation and what every model answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from app.data import ServedFolder
from mopd_diag.diagnostics.explained import SCHEMA, explanation_path
from mopd_diag.errors import RunDirectoryError
from mopd_diag.reporting.evidence import Attempt, Token, attempts, tokens_of, window
from mopd_diag.reporting.look import Cast
from mopd_diag.runs.directory import RunDirectory

SAMPLE = "model = 'student' AND item_id = ? AND sample = ?"


@dataclass(frozen=True)
class Opened:
    """`document` is the kept explanation or None; `tokens` can be a window of a long answer, `n_tokens` counts all of them."""

    row: Mapping[str, Any]
    document: Mapping[str, Any] | None
    tokens: list[Token]
    n_tokens: int
    attempts: list[Attempt]
    answers: pd.DataFrame

    def alternatives(self, position: int) -> Mapping[str, Any]:
        """Member -> its likeliest tokens at a position; empty where none were kept."""
        kept = (self.document or {}).get("everywhere") or {}
        if str(position) in kept:
            return kept[str(position)]
        told = (self.document or {}).get("alternatives")
        return told["members"] if told and told["position"] == position else {}


def explanation(run: RunDirectory, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The kept explanation of this very answer; None when there is none, or it is of an earlier training."""
    path = explanation_path(run, str(row["item_id"]), int(row["sample"]))
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirectoryError(f"{path.name} is not JSON ({error}); delete it and explain that item again") from error
    current = isinstance(found, dict) and found.get("schema") == SCHEMA and found.get("response") == row["response"]
    return {"share_own": None, "everywhere": {}} | found if current else None  # older explanations lack these


def opened(folder: ServedFolder, run: RunDirectory, row: Mapping[str, Any], cast: Cast) -> Opened:
    """Everything about one failed answer (a row of the failures table)."""
    key = [str(row["item_id"]), int(row["sample"])]
    document = explanation(run, row)
    traced = (
        folder.query(run, f"SELECT * FROM traces WHERE {SAMPLE} ORDER BY position", key)
        if run.trace_names()
        else pd.DataFrame()
    )
    if traced.empty and document is not None:
        traced = frame_of(document)
    place = ((document or {}).get("pivot") or {}).get("position")
    pivot = row.get("pivot") if place is None else place
    seen = traced.dropna(axis="columns", how="all")  # members of other models' traces
    tokens = tokens_of(seen, cast, pivot) if len(seen) else []
    answers = folder.query(
        run, "SELECT model, domain, item_id, sample, response, score FROM records WHERE item_id = ? ORDER BY model, sample", key[:1]
    )  # fmt: skip
    return Opened(row, document, window(tokens), len(tokens), attempts(answers, cast), answers)


def frame_of(document: Mapping[str, Any]) -> pd.DataFrame:
    """The tokens of an explanation as rows of a trace."""
    rows = []
    for token in document["tokens"]:
        flat = {k: v for k, v in token.items() if k not in ("logp", "shares")}
        flat |= {f"logp_{m}": _float(v) for m, v in token["logp"].items()}
        flat |= {f"share_{m}": _float(v) for m, v in token["shares"].items()}
        rows.append(flat | {"confidence": _float(token["confidence"])})
    return pd.DataFrame(rows)


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)
