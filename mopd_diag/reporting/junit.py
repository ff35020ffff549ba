"""A comparison as JUnit XML, the form in which every CI shows results: one test case a group, and one for the gate.

A group that is worse is a failure; `undetermined` is no failure, because it says nothing. The case `gate` fails when the rule does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from mopd_diag.diagnostics.comparison import Comparison, GroupComparison
from mopd_diag.reporting import text
from mopd_diag.reporting.comparison_view import Scale, rows_of, shown_name

if TYPE_CHECKING:
    from mopd_diag.diagnostics.gate import GateResult

LISTED = 20  # lost items named in a failure


def render_junit(comparison: Comparison, gate: GateResult | None = None) -> str:
    """The document. Time is 0: nothing was run here."""
    scale = Scale.of(comparison)
    cases = [_case(g, comparison, scale) for g in rows_of(comparison)]
    if gate is not None:
        cases.append(_named("gate", "mopd-diag.compare"))
        if not gate.passed:
            _failure(cases[-1], "gate", gate.reason, f"rule: {gate.rule}\n{gate.reason}")
    failed = sum(case.find("failure") is not None for case in cases)
    counts = {"tests": str(len(cases)), "failures": str(failed), "errors": "0", "skipped": "0", "time": "0"}
    root = ElementTree.Element("testsuites", {"name": "mopd-diag compare", **_without(counts, "skipped")})
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": _plain(f"{comparison.before} → {comparison.after}"), **counts}
    )
    properties = ElementTree.SubElement(suite, "properties")
    told = {
        "before": comparison.before, "after": comparison.after, "joined": str(len(comparison.joined.items)),
        "verified": str(comparison.joined.verified).lower(), "seed": str(comparison.seed),
        "replicates": str(comparison.replicates), "margin": f"{comparison.overall.margin:g}",
    }  # fmt: skip
    for name, value in told.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _plain(value)})
    suite.extend(cases)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _without(counts: dict[str, str], name: str) -> dict[str, str]:
    return {k: v for k, v in counts.items() if k != name}


def _named(name: str, suite: str) -> ElementTree.Element:
    return ElementTree.Element("testcase", {"classname": suite, "name": _plain(name), "time": "0"})


def _case(g: GroupComparison, comparison: Comparison, scale: Scale) -> ElementTree.Element:
    case = _named(shown_name(g, comparison), "mopd-diag.compare")
    said = (
        f"{g.verdict}: {scale.delta(g.delta)}, {scale.score(g.before.value)} → {scale.score(g.after.value)}, "
        f"{text.plural(g.n_items, 'item')}, {g.lost} lost, {g.won} won"
    )
    if g.note:
        said += f"\n{g.note}"
    if g.verdict == "worse":
        lost = comparison.lost_items
        ids = [i for i, group in zip(lost["item_id"], lost["group"], strict=True) if group == g.name]
        more = f" … and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
        _failure(
            case, "worse", said.partition("\n")[0], said + (f"\nlost: {', '.join(ids[:LISTED])}{more}" if ids else "")
        )
    else:
        ElementTree.SubElement(case, "system-out").text = _plain(said)
    return case


def _failure(case: ElementTree.Element, kind: str, message: str, body: str) -> None:
    ElementTree.SubElement(case, "failure", {"type": kind, "message": _plain(message)}).text = _plain(body)


def _plain(words: str) -> str:
    """Only characters that XML 1.0 allows."""
    return "\n".join(text.visible(text.clip(line, 2000)) for line in words.split("\n"))
