"""Comparison and trend as self-contained pages, in the frame and under the policy of the run report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mopd_diag.diagnostics.comparison import OVERALL, Comparison
from mopd_diag.reporting.comparison_charts import MOST_GROUPS, forest_chart, trend_chart
from mopd_diag.reporting.comparison_view import ICONS, KEYS, ComparisonView, view_of
from mopd_diag.reporting.flips import Flips, flips_of
from mopd_diag.reporting.html import HALF, PHONE, WIDE, page
from mopd_diag.reporting.look import CSS
from mopd_diag.reporting.svg import pictures
from mopd_diag.reporting.trend_view import trend_view

if TYPE_CHECKING:
    from mopd_diag.diagnostics.gate import GateResult
    from mopd_diag.diagnostics.trend import Trend


def render_comparison(
    comparison: Comparison, gate: GateResult | None = None, *, view: ComparisonView | None = None, flips: Flips | None = None
) -> str:  # fmt: skip
    """The whole page."""
    forest = pictures(lambda w: forest_chart(comparison, CSS, width=w), [PHONE, HALF, WIDE], "forest")
    return page(
        "comparison.html.j2", styles=["comparison.css"], scripts=["comparison.js"], view=view or view_of(comparison),
        flips=flips or flips_of(comparison), forest=forest, gate=gate, key=lambda name: name, keys=KEYS, icons=ICONS,
        cut=max(0, len(comparison.groups) - MOST_GROUPS + 1),
    )  # fmt: skip


def render_trend(trend: Trend) -> str:
    """The whole page."""
    view = trend_view(trend)
    groups = [OVERALL, *trend.groups] if len(trend.groups) > 1 else list(trend.groups)
    drawn = groups[:MOST_GROUPS]
    charts = pictures(
        lambda w: trend_chart(trend.trajectories, drawn, trend.names, view.scale, CSS, width=w),
        [PHONE, HALF, WIDE],
        "trend",
    )
    return page(
        "trend.html.j2", styles=["comparison.css"], scripts=["comparison.js"], view=view, charts=charts, key=lambda name: name,
        cut=len(groups) - len(drawn),
    )  # fmt: skip
