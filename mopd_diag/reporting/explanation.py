"""Failures by teacher, and one failure token by token, on a terminal.

Colour is never alone: every token has the letters of its label below it, in a row of their own, and a legend says what they mean.
Tokens, prompts and answers are text, never markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from mopd_diag.reporting import text
from mopd_diag.reporting.look import LABELS, LIGHT, WORLD, Cast
from mopd_diag.reporting.reading import OVERALL, as_estimate

BARS = "▁▂▃▄▅▆▇█"
CELL = 7
SLIP, BELIEF = 0.1, 0.5
"""Below, a token is a slip of the sampler; above, what the student would mostly write."""
LISTED = 30
CLASSES = {
    "inherited": "the routed teacher gives the same wrong answer",
    "leaked": "another teacher gives the same wrong answer, and attribution names it",
    "pre-existing": "it is the base's most common answer, never unlearned",
    "conflict": "another teacher pulls against the routed one at the pivot, and the student was moved there",
    "lost": "the routed teacher solves the item, the student does not",
    "undetermined": "none of these",
}
HOW = {
    "pivot": "at the pivot",
    "candidate": "at the most probable place of the fall, which is not sure",
    "suspect": "at the token the routed teacher was least likely to write (a suspect: no fall was found or none was measured)",
}
ARMS = {
    "own": "its own token {own_token}",
    "teacher": "{routed}'s {teacher_token}",
    "redraw": "another draw of the student",
    "random": "a random one of its next likeliest",
}


# -- all failures ---------------------------------------------------------------------------------------------------------


def failure_tables(document: Mapping[str, Any]) -> Group:
    """Classes by domain and by teacher, pivots where they were looked for, and what the findings say."""
    if not document["failed"]:
        return Group(Text(f"None of {document['answered']} answers of the student failed."))
    parts: list[RenderableType] = [
        _shares(
            "Failed answers by domain and class, 95% intervals over items", "domain", document["domains"], document
        ),
        Text(""),
        _shares("All failed answers by teacher and class", "teacher", document["teachers"], document),
    ]
    if document["pivots"]:
        parts += [Text(""), _pivots(document["pivots"])]
    parts += [Text(""), *(Text(s) for s in said_of_all(document)), Text("")]
    parts += [Text(f"{c}: {CLASSES[c]}", style="dim") for c in document["classes"]]
    return Group(*parts)


def _shares(title: str, first: str, rows: Mapping[str, Any], document: Mapping[str, Any]) -> Table:
    by_domain = first == "domain"
    extra = ["failed of answered"] * by_domain
    table = Table(first, *extra, *document["classes"], title=title, title_justify="left", box=None, pad_edge=False)
    for name, row in rows.items():
        cells = row["classes"] if by_domain else row
        failed = sum(c["count"] for c in cells.values())
        strong = "bold" if name == OVERALL else None
        shown = [_cell(cells[c]) for c in document["classes"]]
        lead = [_rate(failed, row["answered"])] if by_domain else []
        table.add_row(Text("all domains" if name == OVERALL else name), *lead, *shown, style=strong)
    return table


def _rate(failed: int, answered: int) -> str:
    return f"{failed} of {answered} ({text.percent(failed / answered)})"


def _cell(cell: Mapping[str, Any]) -> str:
    return f"{cell['count']}: {text.estimate(as_estimate(cell['share']))}" if cell["count"] else "–"


def _pivots(rows: Mapping[str, Any]) -> Table:
    table = Table(
        "domain", "pivot found", "student's p of its token", "own token", "routed teacher's", "another draw", "random", "teacher − own",
        "teacher − random", "conflicts (control too)", title="At the pivot: share of continuations that succeed after …",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for name, r in rows.items():
        numbers = ("p_own", "own", "teacher", "redraw", "random", "gain_over_own", "gain_over_random")
        shown = [text.estimate(as_estimate(r[k])) for k in numbers]
        fights = f"{r['conflicts']} ({r['conflicts_control']})"
        found = f"{r['located']} of {r['looked']}"
        strong = "bold" if name == OVERALL else None
        table.add_row(Text("all domains" if name == OVERALL else name), found, *shown, fights, style=strong)
    return table


def said_of_all(document: Mapping[str, Any]) -> list[str]:
    """One sentence a finding, and one on the teachers that fight."""
    said = []
    for f in document["findings"]:
        domain = f["subject"].partition("/")[2]
        place = "All domains" if domain == OVERALL else domain
        share = text.estimate(as_estimate(f["estimate"]))
        classes = document["domains"][domain]["classes"]
        if f["verdict"] in classes and classes[f["verdict"]]["count"]:
            said.append(
                f"{place}: most often {f['verdict']} ({share}): {CLASSES[f['verdict']]}. {_capital(f['evidence']['note'])}."
            )
        else:
            said.append(f"{place}: {f['verdict']}. {_capital(f['evidence']['note'])}.")
    overall = (document["pivots"] or {}).get(OVERALL)
    p_own = as_estimate(overall["p_own"]) if overall else None
    if overall and p_own is not None and p_own.defined:
        e = {k: text.estimate(as_estimate(overall[k])) for k in ("p_own", "redraw", "teacher", "own")}
        said.append(
            f"At the {overall['located']} pivots found, the student writes its token with probability {e['p_own']} on average. With the "
            f"routed teacher's token put in {e['teacher']} of the continuations succeed, with its own {e['own']}, and with another draw "
            f"of its own {e['redraw']}: what another draw repairs was a slip of the sampler."
        )
    if overall and overall["pairs"]:
        pairs = [f"{pair} ({n})" for pair, n in overall["pairs"].items()]
        said.append(
            f"Teachers that fight at a pivot: {text.listed(pairs)}. In {overall['conflicts_control']} of {overall['conflicts']} "
            "a teacher-free control was moved the same way: there it is likeness, not a fight."
        )
    return said


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def failure_list(document: Mapping[str, Any]) -> Group:
    """The listed failures, one line each."""
    table = Table("item", "sample", "class", "teacher", "attributed to", "answer", box=None, pad_edge=False)
    for row in document["failures"][:LISTED]:
        cells = [text.visible(str(row["item_id"])), str(row["sample"]), row["failure"], row["teacher"] or "–"]
        answer = text.clip(text.visible(str(row["response"])), 60)
        table.add_row(*(Text(c) for c in (*cells, row["attributed"] or "not traced", answer)))
    left = len(document["failures"]) - LISTED
    more = [Text(f"… and {left} more with --json")] if left > 0 else []
    count = text.plural(len(document["failures"]), "failed answer")
    return Group(Text(f"{count} of {document['failed']}", style="bold"), table, *more)


# -- one failure ----------------------------------------------------------------------------------------------------------


def explanation(document: Mapping[str, Any], cast: Cast, width: int) -> Group:
    """One failed answer: its tokens with who explains them and the value after each, then what each model would have said."""
    parts: list[RenderableType] = []
    for block in token_blocks(document, cast, width):
        parts += [block, Text("")]
    parts += [_legend(document, cast), Text(""), *(Text(s) for s in sentences(document)), Text("")]
    if document["alternatives"]:
        parts.append(_alternatives(document["alternatives"]))
    if document["counterfactual"]:
        parts += [Text(""), _counterfactual(document)]
    if document["rollouts"]:
        c = document["cost"]
        parts += [
            Text(""),
            Text(
                f"cost: {c['continuations']:,} continuations, {c['tokens']:,} tokens, {c['seconds']:.1f} s", style="dim"
            ),
        ]
    return Group(*parts)


def token_blocks(document: Mapping[str, Any], cast: Cast, width: int) -> list[Table]:
    """The answer in lines of columns, one a token, as many to a line as fit; below each token its mark and the value after it."""
    tokens, after = document["tokens"], _after(document)
    pivot = document["pivot"] or {}
    names = {m: f"V {m}" for m in after}
    lead = max([len(n) for n in names.values()] + [5]) + 1
    fit = max(1, (width - lead) // CELL)
    columns: list[dict[str, Any] | None] = [*([None] if after else []), *tokens]
    blocks = []
    for start in range(0, len(columns), fit):
        some = columns[start : start + fit]
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True, min_width=lead - 1)
        for _ in some:
            table.add_column(no_wrap=True, min_width=CELL - 1)
        table.add_row("token", *(_chip(t, cast) for t in some))
        table.add_row("from", *("" if t is None else cast.mark(_label(t)) for t in some))
        for member, curve in after.items():
            cells = [curve.get(-1 if t is None else t["position"]) for t in some]
            table.add_row(names[member], *("" if c is None else f"{_bar(c[0])} {text.percent(c[0])}" for c in cells))
            table.add_row(
                Text("  95%", style="dim"),
                *(Text("" if c is None else f"{100 * c[1]:.0f}–{100 * c[2]:.0f}", style="dim") for c in cells),
            )
        if pivot:
            table.add_row("pivot", *("" if t is None else _pin(t["position"], pivot) for t in some))
        blocks.append(table)
    return blocks


def _after(document: Mapping[str, Any]) -> dict[str, dict[int, tuple[float, float, float]]]:
    """Member -> position -> (value, low, high) after that token; −1 is before the first. The whole answer failed: 0."""
    found = {}
    for member, curve in (document["values"] or {}).items():
        numbers = [(c["value"], c["low"], c["high"]) for c in curve] + [(0.0, 0.0, 0.0)]
        places = [-1, *(c["position"] for c in curve)]
        found[member] = dict(zip(places, numbers, strict=True))
    return found


def _label(token: Mapping[str, Any]) -> str:
    return str(token["label"]) if token["sampled"] else WORLD


def _chip(token: Mapping[str, Any] | None, cast: Cast) -> Text:
    if token is None:
        return Text("start", style="dim")
    colour = LIGHT.colour(cast, _label(token))
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
    shown = text.clip(text.visible(token["token"], spaces=True) or "∅", 30)
    return Text(f" {shown} ", style=Style(color=ink, bgcolor=colour, bold=True))


def _bar(value: float) -> str:
    return BARS[min(len(BARS) - 1, int(value * len(BARS)))]


def _pin(position: int, pivot: Mapping[str, Any]) -> str:
    if position == pivot["position"]:
        return "▲"
    return "?" if pivot["position"] is None and position in pivot["candidates"] else ""


def _legend(document: Mapping[str, Any], cast: Cast) -> Text:
    labels = dict.fromkeys(cast.member(_label(t)) for t in document["tokens"])
    return Text("; ".join(f"{cast.mark(m)} = {LABELS.get(m, m)}" for m in labels), style="dim")


def _alternatives(table: Mapping[str, Any]) -> Table:
    own = text.visible(table["token"], spaces=True)
    title = f"What each would have said {HOW[table['how']]}, token {table['position'] + 1}"
    shown = Table("model", f"wrote “{own}”", "likeliest", title=title, title_justify="left", box=None, pad_edge=False)
    for member, row in table["members"].items():
        best = "   ".join(f"{text.visible(t['token'], spaces=True)} {text.percent(t['p'], 1)}" for t in row["top"])
        shown.add_row(Text(member), text.percent(row["p_own"], 1), Text(best))
    return shown


def _counterfactual(document: Mapping[str, Any]) -> Table:
    c = document["counterfactual"]
    title = f"Put in as token {c['position'] + 1}, the student going on"
    shown = Table("token", "continuations that succeed", title=title, title_justify="left", box=None, pad_edge=False)
    words = {k: f"“{text.visible(c[k], spaces=True)}”" for k in ("own_token", "teacher_token")}
    for arm, phrase in ARMS.items():
        said = phrase.format(routed=document["routed"], **words)
        if arm == "random":
            said += f": {', '.join(text.visible(t, spaces=True) for t in c['random_tokens'])}"
        shown.add_row(Text(said), text.estimate(as_estimate(c["arms"][arm])))
    return shown


def sentences(document: Mapping[str, Any]) -> list[str]:
    """What the explanation says in words."""
    quote = lambda x: f"“{text.clip(text.visible(str(x)), 80)}”"  # noqa: E731
    d = document
    whose = f" ({d['teacher']})" if d["teacher"] else ""
    said = [
        f"{text.visible(str(d['item_id']))} #{d['sample']}: to {quote(d['prompt'])} the student wrote {quote(d['response'])}, "
        f"right is {quote(d['target'])}{', cut by the token limit' if d['truncated'] else ''}.",
        f"Class: {d['failure']}{whose}: {d['reason'] or CLASSES[d['failure']]}.",
    ]
    if d["pivot"]:
        said.append(_pivot_said(d))
    if d["failure"] == "lost" and d.get("share_own") is not None:  # documents of earlier versions lack it
        said.append(
            f"Of its shift from the base on this answer, {text.percent(d['share_own'])} is its own: no teacher explains it."
        )
    if d["alternatives"]:
        said.append(_own_said(d["alternatives"]))
    if d["conflict"]:
        c = d["conflict"]
        how = "the student wrote it" if c["won"] else "the student leans to it too, and wrote neither's"
        alike = (
            f" A model that no teacher taught ({text.listed(c['controls'])}) was moved the same way."
            if c["controls"]
            else ""
        )
        said.append(
            f"Conflict: {c['teacher']} wants {quote(c['token'])} against {c['routed']}, {how}; "
            f"it is {c['moved']:.1f} times as probable as under the base.{alike}"
        )
    if d["counterfactual"]:
        said.append(_rescue_said(d))
    return said


def _pivot_said(d: Mapping[str, Any]) -> str:
    p = d["pivot"]
    if p["position"] is None:
        places = text.listed([str(c + 1) for c in p["candidates"]], none="no token")
        return f"No pivot is named: {p['reason']}. Possible: {places}."
    token = text.visible(d["tokens"][p["position"]]["token"], spaces=True)
    judge = (
        ""
        if p["by"] == "student"
        else f", when {p['by']} goes on from there (the student's own value shows no sure fall)"
    )
    fall = text.points(as_estimate(p["fall"])).replace("+", "")  # type: ignore[arg-type]
    return f"Pivot: token {p['position'] + 1} “{token}”. The chance of success falls by {fall} there{judge}."


def _own_said(table: Mapping[str, Any]) -> str:
    p = table["members"]["student"]["p_own"]
    token = text.visible(table["token"], spaces=True)
    kind = (
        "a slip of the sampler"
        if p < SLIP
        else "what it mostly writes"
        if p >= BELIEF
        else "one of several things it writes"
    )
    place = table["position"] + 1
    return f"At token {place} the student writes “{token}” with probability {text.percent(p, 1)}: {kind}."


def _rescue_said(d: Mapping[str, Any]) -> str:
    c = d["counterfactual"]
    token = text.visible(c["teacher_token"], spaces=True)
    arms = {a: text.estimate(as_estimate(e)) for a, e in c["arms"].items()}
    own, random = as_estimate(c["gain_over_own"]), as_estimate(c["gain_over_random"])
    better = own is not None and own.low > 0
    particular = random is not None and random.low > 0
    lead = (
        f"{d['routed']} would have written the same; with its next choice"
        if c["teacher_agrees"]
        else f"With {d['routed']}'s token"
    )
    verdict = (
        "that token repairs the answer, a random one does not do as well" if better and particular
        else "but a random token may do as well" if better
        else "that does not surely repair it"
    )  # fmt: skip
    return f"{lead} “{token}” put in, {arms['teacher']} of the continuations succeed, against {arms['own']} with its own: {verdict}."
