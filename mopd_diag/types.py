"""The frozen nouns of the package. Standard library and numpy only; nothing here computes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["attribution", "failure", "cap", "interference", "regression", "preflight", "pathology"]
Severity = Literal["info", "notice", "warning", "blocking"]


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a domain: `prompt` as the model sees it, `target` as one right answer."""

    item_id: str
    domain: str
    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class Record:
    """One sampled answer to one item by one model; the row of `records/NAME.parquet`."""

    model: str
    domain: str
    item_id: str
    prompt_hash: str
    target_hash: str
    sample: int
    prompt: str
    response: str
    score: float
    n_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """A sampled number with its interval.

    `value`, `low`, `high` are in `unit`; `level` is the interval's nominal coverage; `n_clusters` counts the
    independent units that were resampled (items, never tokens). What cannot be computed is NaN with the reason in `note`.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    unit: str = "share"
    n_items: int = 0
    n_clusters: int = 0
    method: str = ""
    note: str = ""

    @classmethod
    def undefined(cls, note: str, *, unit: str = "share", n_items: int = 0, method: str = "") -> Estimate:
        """An unknown, with the reason why it is unknown."""
        return cls(
            math.nan, math.nan, math.nan, unit=unit, n_items=n_items, n_clusters=n_items, method=method, note=note
        )

    @property
    def defined(self) -> bool:
        return not math.isnan(self.value)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes None because JSON has no NaN."""
        return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Finding:
    """One diagnosis: what was found about `subject`, how sure, and where the evidence can be opened."""

    id: str
    kind: Kind
    subject: str
    verdict: str
    severity: Severity
    estimate: Estimate | None = None
    evidence: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "subject": self.subject,
            "verdict": self.verdict,
            "severity": self.severity,
            "estimate": None if self.estimate is None else self.estimate.to_dict(),
            "evidence": self.evidence,
        }
