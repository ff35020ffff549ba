"""Geometry of interference in words and tables: pairs of domains, signs of task vectors, who weighs how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from mopd_diag.diagnostics.geometry import GeometryReport, Pair, geometry_report
from mopd_diag.estimators.interference import Effect, Judged
from mopd_diag.reporting import text
from mopd_diag.reporting.reading import Reading, as_estimate
from mopd_diag.reporting.tables import Table
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Estimate

ROWS = 24
"""Pairs in the table, the strongest; the rest is in `geometry.json`."""
SIGNS = {"conflict": "▼ conflict", "synergy": "▲ synergy", "mixed": "◆ mixed", "none": "= none"}


def read_geometry(run: RunDirectory, reading: Reading) -> GeometryReport | None:
    """The comparison of the domains that a run holds, beside the transfer matrix of its findings; None for a run without."""
    if not (run.path / "geometry.json").is_file():
        return None
    matrix: dict[str, dict[str, Judged]] = {}
    taught: dict[str, list[str]] = {}
    for c in reading.cells:
        model = str(c.finding.evidence.get("model") or c.trained_on)
        judged = Judged(c.change, math.nan, math.nan, cast(Effect, c.finding.verdict))
        matrix.setdefault(model, {})[c.evaluated_on] = judged
        taught[model] = c.trained_on.split("+")
    return geometry_report(run.geometry(), matrix, taught)


def geometry_tables(report: GeometryReport | None) -> dict[str, Table]:
    """The tables by name; without rows where a part could not be measured."""
    if report is None:
        return {}
    return {"geometry": pairs_table(report), "shares": shares_table(report), "signs": signs_table(report)}


def pairs_table(report: GeometryReport) -> Table:
    """The pairs that stand out most: conflicts, then synergies, then what random directions would give too."""
    order = ("conflict", "mixed", "synergy", "none")
    told = sorted(report.pairs, key=lambda p: (order.index(p.verdict), -max(p.conflict.value, p.synergy.value)))[:ROWS]
    left = len(report.pairs) - len(told)
    caption = (
        "How far the gradients of two domains oppose and agree at the base, over modules. Beyond chance: share of their energy in modules "
        "that fight more than random directions do. → what training on the first does to the second, ← the reverse, in points"
    )
    caption += f"; {text.plural(left, 'other pair')} not shown" if left else ""
    columns = ["pair", "verdict", "conflict", "synergy", "beyond chance", "cosine of all", "modules that fight"]
    words = frozenset({"verdict", "modules that fight", "foreseen", "measured"})
    finds = [p.finding().id if p.verdict != "none" else "" for p in told]
    return Table(caption, [*columns, "foreseen", "measured"], [_row(p) for p in told], words, finds=finds)


def _row(p: Pair) -> list[str]:
    a, b = p.domains
    fighting = [f"{m} {c:+.2f}".replace("-", "−") for m, (c, _) in list(p.fighting.items())[:3]]
    return [
        f"{a} ~ {b}", SIGNS[p.verdict], text.share(p.conflict), text.share(p.synergy), text.percent(p.fighting_share),
        text.fixed(p.whole, 2) if p.whole == p.whole else text.UNKNOWN, ", ".join(fighting) or "–",
        ", ".join(f"{arrow} {said}" for arrow, said in zip("→←", p.foreseen.values(), strict=True)), _cells(p) or "–",
    ]  # fmt: skip


def _cells(p: Pair) -> str:
    """What was measured each way, by every specialist of one domain that was not trained on the other."""
    ways = [(arrow, c) for arrow, d in zip("→←", p.domains, strict=True) for c in p.transfer.get(d, {}).values()]
    return ", ".join(f"{arrow} {text.points(c.delta, unit=False).split(' ')[0]} {c.verdict}" for arrow, c in ways)


def shares_table(report: GeometryReport) -> Table:
    """Prompts, tokens and gradient of every domain in the student's first steps, and how far the teachers are apart on it."""
    shares = report.document["shares"].get("domains", {})
    apart = report.document["disagreement"].get("domains", {})
    rows = []
    for domain in report.document["domains"]:
        share, found = shares.get(domain, {}), apart.get(domain, {})
        e = as_estimate(found.get("divergence"))
        row = [
            domain,
            *(_percent(share.get(k)) for k in ("prompts", "tokens", "gradient")),
            _cosine(share.get("along")),
        ]
        rows.append([*row, "–" if e is None else _nats(e), _furthest(found.get("by_teacher", {}))])
    told = [r for r in rows if set(r[1:]) != {"–"}]
    columns = ["domain", "prompts", "tokens", "gradient", "with the step", "teachers apart (nats)", "furthest teacher"]
    caption = (
        "Shares of the student's first steps, the cosine of a domain's gradient with the whole step, and how far the teachers' "
        "predictions are apart on the base's answers"
    )
    return Table(caption, columns, told, frozenset({"furthest teacher"}))


def signs_table(report: GeometryReport) -> Table:
    """Sign conflicts of the specialists' task vectors, by energy, after TIES' trimming."""
    part = report.document["task_vectors"]
    if "reason" in part:
        return Table("", [], [])
    models, keep = part["models"], part["keep"]
    matrix = part["trimmed"]["conflict_energy"]
    rows = [[m, *("–" if i == j else _percent(matrix[i][j]) for j in range(len(models)))] for i, m in enumerate(models)]
    caption = (
        f"Sign conflicts of task vectors: share of the products of moves whose signs differ, of the {text.percent(keep)} largest moves of "
        "each; 50% is what unrelated vectors have"
    )
    return Table(caption, ["specialist", *models], rows, keys=list(models))


def geometry_sentence(report: GeometryReport | None) -> str:
    """What the gradients said and whether the transfer matrix agrees."""
    if report is None:
        return "Gradients of the domains were not compared module by module in this run; repeat `mopd-diag run` on it."
    if not report.pairs:
        return f"Gradients of the domains could not be compared: {report.reasons['gradients']}."
    fights = [p for p in report.pairs if p.verdict in ("conflict", "mixed")]
    named = text.listed(
        [f"{p.domains[0]} with {p.domains[1]}" for p in sorted(fights, key=lambda p: -p.conflict.value)[:3]]
    )
    agrees = sum(p.verdict == "synergy" for p in report.pairs)
    said = f"Of {text.plural(len(report.pairs), 'pair')} of domains, the gradients at the base fight beyond chance in {len(fights)}"
    said += f" ({named}{', …' if len(fights) > 3 else ''})" if fights else ""
    said += f" and agree in {agrees}. This is geometry before any specialist was trained, not accuracy."
    found = report.agreement()
    if found["cells"]:
        said += (
            f" Of {text.plural(found['cells'], 'sure change')} between different domains in the transfer matrix, {found['right']} have the "
            f"sign that the gradients foretell; always saying the commoner sign is right for {found['commoner_sign']}."
        )
    return said


def shares_of(report: GeometryReport | None) -> dict[str, dict[str, float]]:
    """Domain → prompts, tokens, gradient, as the shares chart takes them; empty when they were not measured."""
    table: Mapping[str, Mapping[str, Any]] = {} if report is None else report.document["shares"].get("domains", {})
    return {
        d: {k: float(row[k]) for k in ("prompts", "tokens", "gradient") if row.get(k) is not None}
        for d, row in table.items()
    }


def _percent(value: Any) -> str:
    return "–" if value is None else text.percent(float(value))


def _cosine(value: Any) -> str:
    return "–" if value is None else text.fixed(float(value), 2)


def _nats(e: Estimate) -> str:
    return text.UNKNOWN if not e.defined else f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def _furthest(by_teacher: Mapping[str, float]) -> str:
    told = {t: v for t, v in by_teacher.items() if v is not None}
    return max(told, key=lambda t: told[t]) if told else "–"
