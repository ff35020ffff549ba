"""Which domains pull the same weights apart? Pairs of domains read from `geometry.json`, held against what was measured.

Verdicts of a pair: `conflict`, `synergy` (some modules oppose, or agree, more than random directions of their rank do in 95 % of draws,
and they hold at least 1 % of the pair's gradient energy), `mixed` (both), `none`. It is geometry of gradients at the base, before any
specialist was trained: what training did to accuracies is in the transfer matrix, and stands beside it.

Axis letters: D domains, M modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from mopd_diag.diagnostics.accuracy import slug
from mopd_diag.estimators.draws import Floats
from mopd_diag.estimators.interference import Judged
from mopd_diag.types import Estimate, Finding

PARTS = ("gradients", "task_vectors", "disagreement", "shares")
Matrix = Mapping[str, Mapping[str, Judged]]
"""Specialist → domain → what its training changed there."""
CARRIED = 0.01
"""Share of a pair's energy that modules beyond random directions must hold for a verdict."""
MODULES = 5
"""Modules that a pair names, those that carry most."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two domains. `conflict`, `synergy`: how far cosines lie below and above zero, energy-weighted over modules, in [0, 1].

    `whole`: the cosine over everything. `fighting`, `agreeing`: modules where the cosine is beyond random directions of equal rank,
    strongest first: name → (cosine, the pair's share of energy). `effects`: trained on → other domain's predicted gain from a first
    step, in units of what its own step gives it. `transfer`: trained on → what was measured on the other, by specialist.
    """

    domains: tuple[str, str]
    conflict: Estimate
    synergy: Estimate
    whole: float
    fighting: dict[str, tuple[float, float]]
    agreeing: dict[str, tuple[float, float]]
    effects: dict[str, float]
    transfer: dict[str, dict[str, Judged]]

    @property
    def fighting_share(self) -> float:
        """Share of the pair's energy in modules that oppose beyond random directions."""
        return sum(share for _, share in self.fighting.values())

    @property
    def agreeing_share(self) -> float:
        return sum(share for _, share in self.agreeing.values())

    @property
    def fights(self) -> bool:
        return self.fighting_share >= CARRIED

    @property
    def foreseen(self) -> dict[str, str]:
        """Trained on → `harm` or `help` on the other: harm where modules fight, else the sign of the first-order effect.

        What two domains share is soon learned and adds no more; what they fight over lasts. So a fight outweighs a first step's gain.
        """
        return {d: "harm" if self.fights else sign_of(effect) for d, effect in self.effects.items()}

    @property
    def verdict(self) -> str:
        fights, agrees = self.fights, self.agreeing_share >= CARRIED
        return "mixed" if fights and agrees else "conflict" if fights else "synergy" if agrees else "none"

    def to_dict(self) -> dict[str, Any]:
        return {
            "domains": list(self.domains),
            "verdict": self.verdict,
            "conflict": self.conflict.to_dict(),
            "synergy": self.synergy.to_dict(),
            "fighting_share": self.fighting_share,
            "agreeing_share": self.agreeing_share,
            "whole_cosine": _known(self.whole),
            "fighting": _modules(self.fighting),
            "agreeing": _modules(self.agreeing),
            "first_order": {d: _known(v) for d, v in self.effects.items()},
            "foreseen": self.foreseen,
            "measured": {
                d: {m: {"delta": c.delta.to_dict(), "verdict": c.verdict} for m, c in cells.items()}
                for d, cells in self.transfer.items()
            },
            "why": self.sentence,
        }

    @property
    def sentence(self) -> str:
        """What was found and what was measured, in words."""
        a, b = self.domains
        said = {
            "conflict": f"the gradients of {a} and {b} pull modules apart",
            "synergy": f"the gradients of {a} and {b} pull modules the same way",
            "mixed": f"the gradients of {a} and {b} pull some modules apart and others the same way",
            "none": f"the gradients of {a} and {b} oppose and agree no more than random directions do",
        }[self.verdict]
        carried = [m for m in (self.agreeing if self.verdict == "synergy" else self.fighting)][:3]
        where = f", most of all {', '.join(carried)}" if carried and self.verdict != "none" else ""
        told = [_measured(d, self.domains, cells) for d, cells in self.transfer.items() if cells]
        measured = "; ".join(told) or "no specialist of one was evaluated on the other"
        return f"{said}{where}. Geometry at the base, no accuracy. Measured: {measured}"

    def finding(self) -> Finding:
        a, b = self.domains
        severity = "notice" if self.verdict in ("conflict", "mixed") else "info"
        estimate = self.synergy if self.verdict == "synergy" else self.conflict
        name = slug("geometry", a, b)
        return Finding(
            name,
            "interference",
            f"{a}~{b}",
            self.verdict,
            severity,
            estimate,
            {"measure": "geometry", **self.to_dict()},
        )


@dataclass(frozen=True, eq=False)
class GeometryReport:
    """`document`: what the run holds. `reasons`: part → why it could not be measured. `pairs`: every two domains."""

    document: Mapping[str, Any]
    domains: list[str]
    pairs: list[Pair]
    reasons: dict[str, str]
    cells: list[tuple[str, Judged]] = field(default_factory=list)
    """(`harm`, `help` or `unknown` as foreseen, what was measured) of every specialist on every domain that it was not trained on."""

    def agreement(self) -> dict[str, int]:
        """How many sure changes of the transfer matrix have the sign that was foreseen, and how many the commoner sign has."""
        sure = [(s, c.verdict) for s, c in self.cells if c.verdict in ("harm", "help") and s != "unknown"]
        helped = sum(verdict == "help" for _, verdict in sure)
        right = sum(said == verdict for said, verdict in sure)
        return {"cells": len(sure), "right": right, "commoner_sign": max(helped, len(sure) - helped)}

    def findings(self) -> list[Finding]:
        """One finding a pair that does more than chance."""
        return [p.finding() for p in self.pairs if p.verdict != "none"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the pairs, and the other parts as the run holds them."""
        rest = {k: self.document[k] for k in PARTS[1:] if k not in self.reasons}
        return {
            "at": self.document["at"],
            "pairs": [p.to_dict() for p in self.pairs],
            "prediction": self.agreement(),
            **{k: rest.get(k) for k in PARTS[1:]},
            "reasons": self.reasons,
        }


def geometry_report(document: Mapping[str, Any], matrix: Matrix, taught: Mapping[str, Sequence[str]]) -> GeometryReport:
    """`document`: a run's `geometry.json`. `matrix` and `taught`: the transfer matrix to hold it against, and the domains that each
    specialist was trained on; both empty where nothing was measured."""
    reasons = {k: str(document[k]["reason"]) for k in PARTS if "reason" in document[k]}
    if "gradients" in reasons:
        return GeometryReport(document, list(document["domains"]), [], reasons)
    table = _Table(document["gradients"])
    pairs = [
        _pair(table, i, j, matrix, taught) for i in range(len(table.domains)) for j in range(i + 1, len(table.domains))
    ]
    fights = {p.domains for p in pairs if p.fights}
    cells = [
        (_foreseen(table, trained, domain, fights), cell)
        for model, trained in taught.items()
        if set(trained) <= set(table.domains)
        for domain, cell in matrix.get(model, {}).items()
        if domain in table.domains and domain not in trained
    ]
    return GeometryReport(document, table.domains, pairs, reasons, cells)


class _Table:
    """The gradients' matrices as arrays."""

    def __init__(self, part: Mapping[str, Any]) -> None:
        array: Any = lambda key: np.array(part[key], dtype=float)  # noqa: E731  # null becomes NaN
        self.domains: list[str] = list(part["domains"])
        self.modules: list[str] = list(part["modules"])
        self.batches, self.items = int(part["batches"]), int(part["items"])
        self.cosine, self.energy, self.control = array("cosine"), array("energy"), array("control")
        self.whole, self.effect = array("whole"), array("effect")
        self.values: dict[str, tuple[Floats, Floats]] = {
            k: (array(k), array(f"{k}_error")) for k in ("conflict", "synergy")
        }

    def at(self, domain: str) -> int:
        return self.domains.index(domain)

    def estimate(self, key: str, i: int, j: int) -> Estimate:
        value, error = (float(x[i, j]) for x in self.values[key])
        reach = special.stdtrit(self.batches - 1, 0.975) * error if self.batches > 1 else np.nan
        method = f"jackknife over {self.batches} batches of {self.items} items a domain"
        low, high = float(np.maximum(0.0, value - reach)), float(np.minimum(1.0, value + reach))
        return Estimate(value, low, high, n_items=self.batches * self.items, n_clusters=self.batches, method=method)


def _pair(table: _Table, i: int, j: int, matrix: Matrix, taught: Mapping[str, Sequence[str]]) -> Pair:
    a, b = table.domains[i], table.domains[j]
    cosine_M = table.cosine[:, i, j]
    share_M = np.sqrt(table.energy[:, i] * table.energy[:, j])
    order = np.argsort(-np.abs(np.nan_to_num(cosine_M)) * share_M)
    carried = {
        sign: {
            table.modules[m]: (float(cosine_M[m]), float(share_M[m]))
            for m in order
            if sign * cosine_M[m] > table.control[m]
        }
        for sign in (-1, 1)
    }
    transfer = {
        one: {
            m: matrix[m][other] for m, d in taught.items() if one in d and other not in d and other in matrix.get(m, {})
        }
        for one, other in ((a, b), (b, a))
    }
    return Pair(
        (a, b), table.estimate("conflict", i, j), table.estimate("synergy", i, j), float(table.whole[i, j]),
        carried[-1], carried[1], {a: float(table.effect[i, j]), b: float(table.effect[j, i])}, transfer,
    )  # fmt: skip


def _foreseen(table: _Table, trained: Sequence[str], domain: str, fights: set[tuple[str, str]]) -> str:
    """As `Pair.foreseen`; of a specialist of several domains, harm where one of them fights, else the sign of their mean effect."""
    if any((t, domain) in fights or (domain, t) in fights for t in trained):
        return "harm"
    return sign_of(float(np.mean([table.effect[table.at(t), table.at(domain)] for t in trained])))


def sign_of(effect: float) -> str:
    """`help` above zero, `harm` below, `unknown` for NaN."""
    return "unknown" if np.isnan(effect) else "help" if effect > 0 else "harm"


def _measured(trained: str, domains: tuple[str, str], cells: Mapping[str, Judged]) -> str:
    other = domains[1] if trained == domains[0] else domains[0]
    said = [
        f"{100 * c.delta.value:+.0f} points ({c.verdict}, {model})".replace("-", "−", 1)
        if c.delta.defined
        else f"unknown ({model})"
        for model, c in cells.items()
    ]
    return f"{other} after training on {trained} {', '.join(said)}"


def _modules(table: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    strongest = list(table.items())[:MODULES]
    return {name: {"cosine": cosine, "energy": share} for name, (cosine, share) in strongest}


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
