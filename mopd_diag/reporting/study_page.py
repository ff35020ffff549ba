"""A study's page as HTML and as Markdown: `OUT/report.html`, `OUT/report.md`."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from mopd_diag.reporting import charts_cost
from mopd_diag.reporting.html import HALF, PHONE, WIDE, page
from mopd_diag.reporting.look import CSS, LIGHT
from mopd_diag.reporting.markdown import plain
from mopd_diag.reporting.markdown import table as table_lines
from mopd_diag.reporting.study_charts import Row, forest, heat_map
from mopd_diag.reporting.study_view import StudyView, cost_points, study_view
from mopd_diag.reporting.study_words import COUNTED, Document, estimate_of, ranked
from mopd_diag.reporting.svg import Picture, pictures
from mopd_diag.runs.directory import write_text

TABLES = {
    "paths": "The paths", "domains": "Domain by domain", "worst": "Worst domains: regret and forgetting", "costs": "What each path cost",
}  # fmt: skip


def write_study_report(folder: Path, document: Document, out: Path | None = None) -> tuple[Path, Path]:
    """Write the page of a study to `out` (default: `report.html` in its folder) and the Markdown beside it; both paths."""
    target = out if out is not None else folder / "report.html"
    reports = [str(seed["report"]) for seed in document["seeds"]]
    there = [r for r in reports if (folder / r).is_file()]
    links = {r: quote(Path(os.path.relpath(folder / r, target.parent)).as_posix()) for r in there}
    view = study_view(document, links)
    write_text(target, study_html(view))
    write_text(target.with_suffix(".md"), study_markdown(view))
    return target, target.with_suffix(".md")


def study_html(view: StudyView) -> str:
    """The whole page."""
    return page(
        "study.html.j2", styles=["study.css"], view=view, charts=_charts(view), key=lambda label: LIGHT.key(view.cast, label),
    )  # fmt: skip


def study_markdown(view: StudyView) -> str:
    """The same words and tables without the charts."""
    lines = [f"# {plain(view.title)}: study", ""]
    lines += [plain(view.summary), ""] if view.summary else []
    lines += [" · ".join(f"{plain(k)} **{plain(v)}**" for k, v in view.facts), ""]
    for answer in view.answers:
        lines += [f"**{plain(answer.question)}** {plain(' '.join([*answer.sentences, *answer.caveats]))}", ""]
    for name, heading in TABLES.items():
        lines += [f"## {heading}", "", f"{plain(view.tables[name].caption)}.", "", *table_lines(view.tables[name])]
    lines += ["## What was not tested", "", *(f"- {plain(what)}: {plain(said)}" for what, said in view.untested), ""]
    lines += ["## Each seed's own report", ""]
    lines += [f"- [{plain(name)}]({address})" if address else f"- {plain(name)}" for name, address in view.seeds]
    lines += ["", "## How it was measured", "", *(f"- {plain(k)}: {plain(v)}" for k, v in view.method)]
    return "\n".join(lines) + "\n"


def _charts(view: StudyView) -> dict[str, list[Picture]]:
    """Every chart at the widths at which it is shown."""
    document = view.document
    rivals = [row for model, row in ranked(document) if model != "student"]
    rows = [_row(r["recipe"], {"delta": r["reference_minus_this"], **r["reference_against_this"]}) for r in rivals]
    cells = {
        d: [_row(r["recipe"], r["domains"][d]["reference_minus_this"]) for r in rivals] for d in document["domains"]
    }
    made = {
        "forest": pictures(lambda w: forest(rows, document["margin"], CSS, width=w), [PHONE, HALF, WIDE], "forest"),
        "domains": pictures(lambda w: heat_map(cells, CSS, width=w), [PHONE, HALF, WIDE], "domains"),
    }
    for axis in document["pareto"]:
        points, unit = cost_points(document, axis), COUNTED[axis]
        made[axis] = pictures(
            lambda w, points=points, unit=unit: charts_cost.cost_chart(points, view.cast, CSS, unit=unit, width=w),
            [PHONE, HALF],
            axis,
        )
    return made


def _row(name: str, contest: Document) -> Row:
    return name, estimate_of(contest["delta"]), contest["verdict"]
