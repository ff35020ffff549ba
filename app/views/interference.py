"""Interference: what training on one domain did to the others, what whole paths forgot, and how the weight was shared out."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import parts, state
from app.data import ServedFolder
from app.evaluations import is_evaluation, lacking
from app.figures import HALF, answers, facts, figure, legend, number, percent, points, table
from mopd_diag.diagnostics.geometry import Pair
from mopd_diag.errors import RunDirectoryError
from mopd_diag.reporting import text
from mopd_diag.reporting.charts import transfer_chart
from mopd_diag.reporting.charts_geometry import geometry_chart
from mopd_diag.reporting.charts_shares import KINDS, shares_chart
from mopd_diag.reporting.diff import shown, side_by_side
from mopd_diag.reporting.geometry import SIGNS as FIGHTS
from mopd_diag.reporting.geometry import shares_of as geometry_shares
from mopd_diag.reporting.html import CAPTIONS
from mopd_diag.reporting.reading import STUDENT, Cell, Measure, words_of
from mopd_diag.reporting.view import View
from mopd_diag.reporting.words import interference_answer
from mopd_diag.runs.directory import RunDirectory

ICONS = {"harm": "▼ harm", "help": "▲ help", "none": "= none", "undetermined": "? undetermined"}
SIGNS = {"prompts": "○", "tokens": "■", "gradient": "▲"}


def page(folder: ServedFolder) -> None:
    """The page."""
    run = parts.chosen_run(folder)
    view = folder.view(run)
    parts.heading("Interference", parts.escaped(interference_answer(view.reading).sentence))
    if not view.reading.cells and is_evaluation(run):
        lacking(run, "What the domains did to one another needs the specialists and gradients of a training run.")
        return
    if view.reading.cells:
        _transfer(folder, run, view)
    else:
        why = "No specialist was evaluated on another's domain in this run."
        parts.empty("No transfer matrix", why, f"mopd-diag interference {run.path.name}")
    _measures(view)
    _shares(folder, run, view)
    _geometry(view)


# -- transfer -----------------------------------------------------------------------------------------------------------------


def _transfer(folder: ServedFolder, run: RunDirectory, view: View) -> None:
    cells = view.reading.cells
    lead = "Percentage points against the base. Blue: better, orange: worse; in brackets: not surely a change."
    parts.section("Transfer", lead)
    drawn = [(c.row, c.evaluated_on, c.change, c.sure and c.change.defined) for c in cells]
    chart, words = st.columns([3, 2], gap="large")
    with chart:
        figure(
            lambda look, width: transfer_chart(drawn, look, width=width),
            "transfer",
            "What training on each domain did to each other one; the table below has the numbers.",
            width=HALF + 100,
        )
    with words:
        for verdict, title in (("help", "Synergy"), ("harm", "Harm")):
            pairs = [c for c in cells if not c.own and c.finding.verdict == verdict]
            said = [f"{c.row} → {c.evaluated_on} {text.points(c.change)}" for c in pairs]
            facts([(title, "; ".join(said) or "none between different domains")])
    frame = pd.DataFrame([_row(c) for c in cells])
    columns = {
        "trained_on": "trained on", "evaluated_on": "evaluated on", "verdict": "verdict", "change": points("change, points"),
        "low": points("from"), "high": points("to"), "p": number("p (Holm)", "g"), "lost": "items lost",
    }  # fmt: skip
    table(frame, "transfer", {k: v for k, v in columns.items() if not frame[k].isna().all()}, rows=16)
    _lost(folder, run, cells)


def _row(cell: Cell) -> dict[str, object]:
    evidence = cell.finding.evidence
    return {
        "trained_on": cell.row, "evaluated_on": cell.evaluated_on, "own_domain": cell.own,
        "verdict": ICONS.get(cell.finding.verdict, cell.finding.verdict),
        "change": cell.change.value, "low": cell.change.low, "high": cell.change.high,
        "p": evidence.get("p_adjusted"), "lost": evidence.get("n_lost_items"), "note": cell.change.note,
    }  # fmt: skip


def _lost(folder: ServedFolder, run: RunDirectory, cells: list[Cell]) -> None:
    """The items that a specialist lost, each with the base's and the specialist's answer."""
    told = {f"{c.row} → {c.evaluated_on}": c for c in cells if c.finding.evidence.get("lost_items")}
    if not told:
        return
    left, right = st.columns(2)
    with left:
        pair = state.select("Items lost by", "pair", list(told), all_="choose a pair to open its items")
    if not pair:
        return
    cell = told[pair]
    ids = [str(i) for i in cell.finding.evidence["lost_items"]]
    with right:
        item = state.select(
            "Item", "item", ids, all_=f"{len(ids)} of {cell.finding.evidence.get('n_lost_items', len(ids))}"
        )
    if not item:
        return
    model = str(cell.finding.evidence.get("model", ""))
    sql = (
        "SELECT model, prompt, avg(score) AS score, arg_min(response, score) AS worst, arg_max(response, score) AS best "
        "FROM records WHERE domain = ? AND item_id = ? AND model IN ('base', ?) GROUP BY model, prompt"
    )
    found = folder.query(run, sql, [cell.evaluated_on, item, model]).drop_duplicates("model").set_index("model")
    if not {"base", model} <= set(found.index):
        parts.note("The answers to this item are not in the records.")
        return
    sides = side_by_side(str(found.loc["base", "best"]), str(found.loc[model, "worst"]))
    answers([("asked", shown(str(found["prompt"].iloc[0])))])
    answers([
        (f"base: {found.loc['base', 'score']:.0%} of samples right", sides.before),
        (f"{model}: {found.loc[model, 'score']:.0%} of samples right", sides.after),
    ])  # fmt: skip


# -- whole paths ----------------------------------------------------------------------------------------------------------------


def _measures(view: View) -> None:
    lead = "In each path's worst domain, chosen on one half of the samples and measured on the other; positive is bad."
    parts.section("Forgetting and regret", lead)
    found = [m for m in view.reading.measures if m.model in view.cast.roles]
    if not found:
        parts.empty(
            "Not measured", "Forgetting and regret take records of the whole paths; this run's findings hold none."
        )
        return
    frame = pd.DataFrame([_measure(m) for m in found])
    columns = {
        "path": "path", "measure": "measure", "domain": "worst domain", "value": points("points"), "low": points("from"),
        "high": points("to"), "verdict": "verdict", "reference": "against", "note": "note",
    }  # fmt: skip
    table(frame, "measures", columns, rows=16)


def _measure(m: Measure) -> dict[str, object]:
    return {
        "path": m.model, "measure": m.name.replace("_", " "), "domain": m.domain, "value": m.value.value,
        "low": m.value.low, "high": m.value.high, "verdict": m.finding.verdict,
        "reference": str(m.finding.evidence.get("reference") or "–"), "note": words_of(m.finding),
    }  # fmt: skip


# -- gradients ------------------------------------------------------------------------------------------------------------------


def _geometry(view: View) -> None:
    parts.section("Do their gradients fight?")
    found = view.geometry
    if found is None or not found.pairs:
        parts.empty("Not compared", view.geometry_sentence)
        return
    parts.note(view.geometry_sentence)
    chart, words = st.columns([3, 2], gap="large")
    with chart:
        figure(
            lambda look, width: geometry_chart(found.pairs, found.domains, look, width=width),
            "geometry",
            "Conflict of two domains' gradients above the diagonal, synergy below it; the table below has the numbers.",
            width=HALF + 100,
        )
    with words:
        for verdict, title in (("conflict", "Conflict"), ("mixed", "Both"), ("synergy", "Synergy")):
            said = [_modules(p) for p in found.pairs if p.verdict == verdict]
            facts([(title, "; ".join(said) or "none beyond random directions")])
        parts.note(CAPTIONS["geometry"])
    columns = {
        "pair": "pair", "verdict": "verdict", "conflict": percent("conflict"), "synergy": percent("synergy"),
        "chance": percent("beyond chance"),
        "cosine": number("cosine of all"), "fighting": "modules that fight", "foreseen": "foreseen", "why": "in words",
    }  # fmt: skip
    table(pd.DataFrame([_pair(p) for p in found.pairs]), "geometry", columns, rows=16)
    if (signs := view.tables.get("signs")) is not None:
        parts.note(f"{signs.caption}.")
        rows = [dict(zip(signs.columns, row, strict=True)) for row in signs.rows]
        table(pd.DataFrame(rows), "signs", {c: c for c in signs.columns}, rows=16)


def _modules(p: Pair) -> str:
    """A pair with the modules that carry what it is flagged for."""
    carried = list(p.agreeing if p.verdict == "synergy" else p.fighting)[:2]
    return " ~ ".join(p.domains) + (f" ({', '.join(carried)})" if carried else "")


def _pair(p: Pair) -> dict[str, object]:
    a, b = p.domains
    foreseen = [f"{d} → {b if d == a else a}: {said}" for d, said in p.foreseen.items()]
    return {
        "pair": f"{a} ~ {b}", "verdict": FIGHTS[p.verdict], "conflict": p.conflict.value, "synergy": p.synergy.value,
        "chance": p.fighting_share,
        "cosine": p.whole, "fighting": ", ".join(list(p.fighting)[:3]), "foreseen": "; ".join(foreseen), "why": p.sentence,
    }  # fmt: skip


# -- weight ---------------------------------------------------------------------------------------------------------------------


def _shares(folder: ServedFolder, run: RunDirectory, view: View) -> None:
    parts.section(
        "Weight of each domain",
        "A domain whose tokens lie far left of its prompts weighs less in training than planned.",
    )
    shares = shares_of(folder, run, view)
    if not shares:
        parts.empty(
            "Not measured",
            "The run holds neither pre-flight shares nor answers of the student.",
            "mopd-diag check CAST --prompts FILE.jsonl",
        )
        return
    chart, words = st.columns([3, 2], gap="large")
    with chart:
        figure(
            lambda look, width: shares_chart(shares, look, width=width),
            "shares",
            "; ".join(f"{d}: " + ", ".join(f"{v:.0%} of the {k}" for k, v in row.items()) for d, row in shares.items()),
            width=HALF + 100,
        )
    kinds = [k for k in KINDS if any(k in row for row in shares.values())]
    with words:
        legend([(SIGNS[k], f"share of the {k}") for k in kinds])
        if "gradient" not in kinds:
            parts.note(
                "Counted on the student's answers to the held-out items. `mopd-diag check` on a cast also measures gradients."
            )


def shares_of(folder: ServedFolder, run: RunDirectory, view: View) -> dict[str, dict[str, float]]:
    """Domain -> prompts, tokens, gradient: as the pre-flight or the run measured them, else counted on the student's held-out answers."""
    measured = {}
    for finding in view.reading.findings:
        told = {
            k: finding.evidence.get(f"{name}_share")
            for k, name in (("prompts", "prompt"), ("tokens", "token"), ("gradient", "gradient"))
        }
        known = {k: float(v) for k, v in told.items() if isinstance(v, int | float)}
        if finding.kind == "preflight" and {"prompts", "tokens"} <= known.keys():
            measured[finding.subject.rpartition("/")[2]] = known
    if measured or (measured := geometry_shares(view.geometry)):
        return measured
    sql = "SELECT domain, count(*) AS prompts, sum(n_tokens) AS tokens FROM records WHERE model = ? GROUP BY domain"
    try:
        counted = folder.query(run, sql, [STUDENT]).set_index("domain")
    except RunDirectoryError:
        return {}
    if counted.empty or not float(counted["tokens"].sum()):
        return {}
    order = [d for d in view.cast.domains if d in counted.index]
    return {d: {k: float(counted.loc[d, k] / counted[k].sum()) for k in ("prompts", "tokens")} for d in order}
