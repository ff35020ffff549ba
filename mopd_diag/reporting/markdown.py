"""The view as Markdown: the same words and tables without the charts, short enough for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mopd_diag.reporting import text
from mopd_diag.reporting.evidence import Failure
from mopd_diag.reporting.look import LABELS
from mopd_diag.reporting.tables import Table
from mopd_diag.reporting.view import View

SPECIAL = re.compile(r"([\\`*_<>#|~$@]|!(?=\[)|\](?=[(\[])|^\[)")


def render_markdown(view: View) -> str:
    """The whole document."""
    return "\n".join(_lines(view)).rstrip() + "\n"


def plain(words: str) -> str:
    """Text that Markdown must not interpret: specials escaped, control and bidirectional characters visible."""
    return SPECIAL.sub(r"\\\1", text.visible(words))


def code(words: str, limit: int = 160) -> str:
    """Model output as a code span: fenced longer than any run of backticks in it, safe in a table cell."""
    shown = text.visible(text.clip(words, limit), spaces=True).replace("|", "\\|")
    if not shown:
        return "*(empty)*"
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"


def table(t: Table) -> list[str]:
    """A table in GitHub's form, numbers flush right, the names of strong rows in bold."""
    rule = [":--", *(":--" if c in t.words else "--:" for c in t.columns[1:])]
    lines = [_row([plain(c) for c in t.columns]), _row(rule)]
    for i, row in enumerate(t.rows):
        first, *rest = [plain(c) for c in row]
        lines.append(_row([f"**{first}**" if i in t.strong else first, *rest]))
    return [*lines, ""]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(view: View) -> Iterator[str]:
    yield f"# {plain(view.title)}: report"
    yield ""
    if view.summary:
        yield from (plain(view.summary), "")
    yield from (" · ".join(f"{plain(k)} **{plain(v)}**" for k, v in view.facts), "")
    for answer in view.answers:
        yield from (f"**{answer.question}** {plain(answer.sentence)}", "")
    for name, heading in (
        ("accuracy", "Accuracy"), ("rivals", "The student and its rivals"),
        ("teachers", "What one more teacher costs and brings"), ("provenance", "Which teacher"),
        ("consistency", "One voice"), ("caps", "Caps"), ("probe", "Is the cap binding?"),
        ("transfer", "Transfer"), ("geometry", "Do their gradients fight?"), ("shares", "Who weighs how much"),
        ("signs", "Signs of task vectors"), ("measures", "Forgetting and regret"), ("failures", "Failures by class"), ("checks", "Checks"),
        ("unknown", "What could not be told"),
    ):  # fmt: skip
        if name in view.tables:
            yield from (f"## {heading}", "", f"{plain(view.tables[name].caption)}.", "", *table(view.tables[name]))
        if name == "probe" and view.probe_sentence:
            yield from (plain(view.probe_sentence), "")
        if name == "geometry":
            yield from (plain(view.geometry_sentence), "")
    if view.missing:
        yield from ("## Not in this run", "", *(f"- {plain(m)}" for m in view.missing), "")
    if view.failures:
        yield from ("## Telling failures", "", *(line for f in view.failures for line in _failure(f)), "")
    if "ledger" in view.tables:
        yield from ("## Ledger", "", plain(view.cost_sentence), "", *table(view.tables["ledger"]))
    yield from ("## How it was measured", "", *(f"- {plain(k)}: {plain(v)}" for k, v in view.method), "")
    yield from (
        f"{len(view.reading.findings)} findings are in `findings.json`; `report.html` shows each with its evidence.",
        "",
    )


def _failure(f: Failure) -> list[str]:
    """One failure on three lines: the answer, the marks under its tokens, what the routed teacher does."""
    lines = [
        f"- {plain(f.domain)} {code(f.prompt)} → {code(f.response)}, {f'{plain(f.case.words)}, ' if f.case else ''}"
        f"{'not attributed' if f.label == 'abstain' else f'attributed to **{plain(LABELS.get(f.label, f.label))}**'}"
    ]
    marks = " ".join(f"{code(t.shown, 20)} {plain(t.mark)}{' ←pivot' if t.pivot else ''}" for t in f.tokens[:24])
    return [*lines, f"  - by token: {marks}{' …' if len(f.tokens) > 24 else ''}", f"  - {plain(f.story)}"]
