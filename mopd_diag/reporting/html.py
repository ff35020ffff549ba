"""The view as one self-contained HTML page.

Charts are static SVG drawn here, not by the reader's browser: the alternative, Vega inlined, is 900 kB of third-party code that
would parse model-written strings on the reader's machine and, without its interpreter, needs `unsafe-eval`. Static pictures print,
need no script, follow the theme through CSS variables, and let the page forbid everything (`default-src 'none'`) but its own
stylesheet and its own forty lines of script, both pinned by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from mopd_diag.reporting import charts, charts_cost, text
from mopd_diag.reporting.charts_geometry import geometry_chart
from mopd_diag.reporting.charts_shares import shares_chart
from mopd_diag.reporting.geometry import shares_of
from mopd_diag.reporting.look import CSS, DARK, LABELS, LIGHT, WORLD, stylesheet_classes, stylesheet_variables
from mopd_diag.reporting.reading import OVERALL, STUDENT
from mopd_diag.reporting.svg import Picture, pictures
from mopd_diag.reporting.view import View
from mopd_diag.types import Finding

TEMPLATES = Path(__file__).parent / "templates"
PHONE, HALF, WIDE = 340, 620, 1180  # widths in pixels at which charts are drawn

CAPTIONS = {
    "provenance": "Shares of the answers, the student's above those of the teacher-free control (↳).",
    "caps": "Diamonds with 95% intervals; everything right of the second line is beyond the best teacher.",
    "geometry": "Above the diagonal conflict, below it synergy, in percent of the gradients' energy; in brackets: no more than chance.",
    "shares": "Share of the prompts (circle), of the tokens (square) and of the gradient's norm (triangle) in the student's first steps.",
    "interference": "Percentage points against the base. Blue: better, orange: worse; in brackets: not surely a change.",
}


def render_html(view: View) -> str:
    """The whole page."""
    return page(
        "report.html.j2", view=view, cast=view.cast, charts=_charts(view), legend=_legend(view), labels=LABELS, captions=CAPTIONS,
        key=lambda label: LIGHT.key(view.cast, label),
    )  # fmt: skip


def page(template: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **context: object) -> str:
    """A self-contained page from a template, under the policy that only its own style and script may act.

    The files `styles` and `scripts` of the templates follow those of every page.
    """
    style = _themes() + "".join((TEMPLATES / name).read_text() for name in ("report.css", *styles))
    script = "".join((TEMPLATES / name).read_text() for name in ("report.js", *scripts))
    policy = f"default-src 'none'; style-src '{_pin(style)}'; script-src '{_pin(script)}'; base-uri 'none'; form-action 'none'"
    return environment().get_template(template).render(
        **context, policy=policy, style=Markup(style), script=Markup(script)
    )  # fmt: skip


def environment() -> jinja2.Environment:
    """Jinja that escapes everything and makes every string visible, whatever a template forgets."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_shown,
    )  # fmt: skip
    env.filters |= {
        "estimate": text.estimate,
        "percent": text.percent,
        "clip": text.clip,
        "fixed": fixed,
        "evidence": evidence_text,
    }
    return env


def _shown(value: object) -> object:
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def fixed(value: float, digits: int) -> str:
    """A plain number for the token tables; a dash where there is none."""
    return "–" if value != value else text.fixed(value, digits)


def evidence_text(finding: Finding) -> Markup:
    """A finding's evidence as indented JSON for a <pre>: escaped, every odd character visible."""
    lines = json.dumps(finding.evidence, indent=2, ensure_ascii=False, default=str).split("\n")
    return Markup("\n").join(escape(text.visible(line)) for line in lines)


def _pin(source: str) -> str:
    """The content-security-policy hash of an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _themes() -> str:
    light, dark = stylesheet_variables(LIGHT), stylesheet_variables(DARK)
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{stylesheet_classes()}\n"
    )


def _legend(view: View) -> list[tuple[str, str, str]]:
    """Colour key, mark and meaning of every label of a token; the world's only where it spoke."""
    cast, spoke = view.cast, any(t.label == WORLD for f in view.failures for t in f.tokens)
    labels = [label for label in LABELS if label != WORLD or spoke]
    return [(LIGHT.key(cast, m), cast.mark(m), LABELS.get(m, m)) for m in (*cast.teachers, *labels)]


def _charts(view: View) -> dict[str, list[Picture]]:
    """Every chart that has data, at the widths at which it is shown."""
    cast, reading = view.cast, view.reading
    made: dict[str, list[Picture]] = {}
    if view.accuracy:
        made["accuracy"] = pictures(
            lambda w: charts.accuracy_chart(view.accuracy, cast, CSS, width=w), [PHONE, HALF, WIDE], "accuracy"
        )
    recoveries = {d: c.recovery for d, c in reading.caps.get(STUDENT, {}).items()}
    if recoveries:
        made["caps"] = pictures(lambda w: charts.recovery_chart(recoveries, CSS, width=w), [PHONE], "caps")
    cells = [(c.row, c.evaluated_on, c.change, c.sure and c.change.defined) for c in reading.cells]
    if cells:
        made["interference"] = pictures(lambda w: charts.transfer_chart(cells, CSS, width=w), [PHONE], "transfer")
    if (compared := view.geometry) is not None and compared.pairs:
        made["geometry"] = pictures(
            lambda w: geometry_chart(compared.pairs, compared.domains, CSS, width=w), [PHONE, HALF], "geometry"
        )
    if weights := shares_of(view.geometry):
        made["shares"] = pictures(lambda w: shares_chart(weights, CSS, width=w), [PHONE], "shares")
    models = [m for m in (STUDENT, *reading.controls[:1]) if m in reading.provenance]
    shares = {m: {d: p.shares for d, p in reading.provenance[m].items() if d != OVERALL and p.shares} for m in models}
    if any(shares.values()):
        made["provenance"] = pictures(
            lambda w: charts.provenance_chart(shares, cast, CSS, width=w), [PHONE], "provenance"
        )
    points = view.cost_points()
    if len(points) > 1:
        made["cost"] = pictures(lambda w: charts_cost.cost_chart(points, cast, CSS, width=w), [PHONE, HALF], "cost")
    if len(view.ledger) and "started" in view.ledger.columns:
        made["timeline"] = pictures(
            lambda w: charts_cost.timeline_chart(view.ledger, view.critical, cast, CSS, width=w),
            [PHONE, HALF, WIDE],
            "timeline",
        )
    if view.curves:
        made["curves"] = pictures(
            lambda w: charts_cost.curves_chart(view.curves, cast, CSS, width=w), [PHONE, HALF, WIDE], "curves"
        )
    return made
