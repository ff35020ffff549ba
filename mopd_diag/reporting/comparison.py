"""A comparison's reports: `html`, `markdown`, `junit`, `show_comparison`, all of them with `write_comparison`; the same of a trend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mopd_diag.diagnostics.comparison import Comparison
from mopd_diag.reporting import comparison_html, comparison_markdown
from mopd_diag.reporting.comparison_terminal import show_comparison, show_trend
from mopd_diag.reporting.junit import render_junit
from mopd_diag.runs.directory import write_json, write_text

if TYPE_CHECKING:
    from mopd_diag.diagnostics.gate import GateResult
    from mopd_diag.diagnostics.trend import Trend

__all__ = [
    "html", "junit", "markdown", "show_comparison", "show_trend", "trend_html", "trend_markdown", "write_comparison",
    "write_trend",
]  # fmt: skip


def html(comparison: Comparison, gate: GateResult | None = None) -> str:
    """One self-contained page."""
    return comparison_html.render_comparison(comparison, gate)


def markdown(comparison: Comparison, gate: GateResult | None = None) -> str:
    """A pull request comment."""
    return comparison_markdown.render_comparison(comparison, gate)


def junit(comparison: Comparison, gate: GateResult | None = None) -> str:
    """JUnit XML: one test case a group."""
    return render_junit(comparison, gate)


def write_comparison(comparison: Comparison, out: Path, gate: GateResult | None = None) -> dict[str, Path]:
    """Write comparison.html, .md, .json and junit.xml into the directory `out`; returns the paths by those names."""
    document = comparison.to_dict() | ({} if gate is None else {"gate": gate.to_dict()})
    texts = {
        "comparison.html": html(comparison, gate), "comparison.md": markdown(comparison, gate),
        "junit.xml": junit(comparison, gate),
    }  # fmt: skip
    for name, words in texts.items():
        write_text(out / name, words)
    write_json(out / "comparison.json", document)
    return {name: out / name for name in (*texts, "comparison.json")}


def trend_html(trend: Trend) -> str:
    """One self-contained page."""
    return comparison_html.render_trend(trend)


def trend_markdown(trend: Trend) -> str:
    """A pull request comment."""
    return comparison_markdown.render_trend(trend)


def write_trend(trend: Trend, out: Path) -> dict[str, Path]:
    """Write trend.html, .md and .json into the directory `out`; returns the paths by those names."""
    write_text(out / "trend.html", trend_html(trend))
    write_text(out / "trend.md", trend_markdown(trend))
    write_json(out / "trend.json", trend.to_dict())
    return {name: out / name for name in ("trend.html", "trend.md", "trend.json")}
