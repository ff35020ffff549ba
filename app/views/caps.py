"""Caps: what the student recovered of its teachers' headroom, and the items it lost, inherited or won."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import parts, state
from app.data import Files, ServedFolder
from app.evaluations import is_evaluation
from app.figures import HALF, answers, figure, legend, number, percent, points, table
from mopd_diag.estimators.caps import partition
from mopd_diag.reporting.charts import recovery_chart
from mopd_diag.reporting.charts_caps import PARTS, partition_chart, passes_chart
from mopd_diag.reporting.diff import shown, side_by_side
from mopd_diag.reporting.look import ROLE_SHAPES
from mopd_diag.reporting.reading import OVERALL, STUDENT, Cap, as_estimate, words_of
from mopd_diag.reporting.tables import VERDICTS
from mopd_diag.reporting.view import View
from mopd_diag.reporting.words import caps_answer
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Estimate, Finding

SIGNS = {"diamond": "◆", "triangle-down": "▼", "square": "■", "circle": "●", "triangle-up": "▲"}


def page(folder: ServedFolder) -> None:
    """The page."""
    run = parts.chosen_run(folder)
    view = folder.view(run)
    answer = caps_answer(view.reading)
    parts.heading("Caps", parts.escaped(answer.sentence))
    table_ = view.reading.caps.get(STUDENT, {})
    domains = {d: c for d, c in table_.items() if d != OVERALL}
    if not domains:
        parts.empty(
            "No caps yet",
            "The student was not compared with its teachers in this run.",
            f"mopd-diag caps {run.path.name}",
        )
        return
    _recovery(table_)
    _partition(folder, run, view, domains)
    _passes(view, domains, folder.files(run))
    if not is_evaluation(run):
        _probe(run, view)


def _probe(run: RunDirectory, view: View) -> None:
    parts.section(
        "Is the cap binding?", "Does a short RL run from the student get past the teachers where the student stopped?"
    )
    if "probe" not in view.tables:
        parts.empty(
            "Not probed",
            "Recovery at the cap says that the student stopped where its teachers are, not that it could not go on.",
            f"mopd-diag caps {run.path.name} --probe",
        )
        return
    found = view.tables["probe"]
    parts.note(view.probe_sentence)
    parts.plain_table(found.columns, found.rows, words=["domain", *found.words], strong="all domains")
    with st.expander("The numbers"):
        rows = [probe_row(f) for f in view.reading.probe.values()]
        shown = {"domain": "domain", "verdict": "cap", "student": percent("student"), "best_teacher": percent("best teacher"),
                 "probe": percent("probe")}  # fmt: skip
        for key, words in (("gap", "probe − teacher, points"), ("gain", "probe − student, points")):
            shown |= {key: points(words), f"{key}_low": points("from"), f"{key}_high": points("to")}
        table(pd.DataFrame(rows), "probe", shown | {"p_adjusted": "p, corrected", "steps": "steps"})


def probe_row(f: Finding) -> dict[str, object]:
    """A finding about the probe as plain numbers; what it lacks is NaN."""
    domain, nan = f.subject.partition("/")[2], float("nan")
    row: dict[str, object] = {"domain": "all domains" if domain == OVERALL else domain, "verdict": f.verdict}
    for name in ("student", "best_teacher", "probe"):
        level = as_estimate(f.evidence.get(name))
        row[name] = nan if level is None else level.value
    for name, e in (("gap", f.estimate), ("gain", as_estimate(f.evidence.get("gain")))):
        low, value, high = (nan, nan, nan) if e is None else (e.low, e.value, e.high)
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return row | {"p_adjusted": f.evidence.get("p_adjusted", nan), "steps": f.evidence.get("steps", nan)}


def _recovery(caps: dict[str, Cap]) -> None:
    parts.section("Recovery", "0 is the base, 1 the best teacher; lines are intervals over items.")
    recoveries = {d: c.recovery for d, c in caps.items()}
    chart, words = st.columns([1, 1], gap="large")
    with chart:
        figure(
            lambda look, width: recovery_chart(recoveries, look, width=width),
            "recovery",
            "Recovered share of the headroom, by domain; the table below has the numbers.",
            width=HALF,
        )
    with words:
        rows = [(d, c.finding.verdict, words_of(c.finding)) for d, c in caps.items() if words_of(c.finding)]
        for domain, verdict, why in rows:
            parts.html(
                parts.Markup("<p class='muted'><b>{}</b> {} {}</p>").format(
                    parts.escaped("all domains" if domain == OVERALL else domain),
                    parts.badge(verdict),
                    parts.escaped(why),
                )
            )
    frame = pd.DataFrame([_row(d, c) for d, c in caps.items()])
    shown = {
        "domain": "domain", "verdict": "verdict", "recovery": number("recovery"), "recovery_low": number("from"),
        "recovery_high": number("to"), "base": percent("base"), "student": percent("student"), "best": percent("best teacher"),
        "teacher": "which", "gap": points("gap, points"), "gap_low": points("from"), "gap_high": points("to"),
    }  # fmt: skip
    table(frame, "caps", {k: v for k, v in shown.items() if not frame[k].isna().all()})


def _row(domain: str, cap: Cap) -> dict[str, object]:
    def of(e: Estimate | None, part: str) -> float:
        return float("nan") if e is None else getattr(e, part)

    return {
        "domain": "all domains" if domain == OVERALL else domain,
        "verdict": VERDICTS.get(cap.finding.verdict, cap.finding.verdict),
        "recovery": cap.recovery.value, "recovery_low": cap.recovery.low, "recovery_high": cap.recovery.high,
        "base": of(cap.base, "value"), "student": of(cap.student, "value"), "best": of(cap.best, "value"), "teacher": cap.teacher,
        "gap": of(cap.gap, "value"), "gap_low": of(cap.gap, "low"), "gap_high": of(cap.gap, "high"),
        "note": cap.recovery.note,
    }  # fmt: skip


# -- items ----------------------------------------------------------------------------------------------------------------


def _partition(folder: ServedFolder, run: RunDirectory, view: View, domains: dict[str, Cap]) -> None:
    parts.section("Who solves which items", "Solved: right in more than half of the samples.")
    counts = {d: c.partition for d, c in domains.items() if c.partition}
    if not counts:
        parts.empty("No items counted", "The findings of this run do not say which items were lost or inherited.")
        return
    figure(
        lambda look, width: partition_chart(counts, look, width=width),
        "partition",
        "Items of each domain by who solves them: " + "; ".join(f"{d}: {c}" for d, c in counts.items()),
    )
    legend(list(PARTS.values()))
    left, middle, right = st.columns(3)
    with left:
        domain = state.select("Domain", "domain", list(counts), all_="choose a domain to open its items")
    if not domain:
        return
    with middle:
        part = state.select(
            "Items", "part", list(PARTS), words={p: f"{mark} {words}" for p, (mark, words) in PARTS.items()}
        )
    teacher = domains[domain].teacher or ""
    items = items_of(folder, run, domain, teacher, view.cast.teachers)
    items = items[items["part"] == part] if part else items
    if items.empty:
        parts.note("No item of this kind.")
        return
    ids = items["item_id"].tolist()
    with right:
        item = state.select("Item", "item", ids, all_=f"{len(ids)} items")
    if item:
        _item(folder, run, domain, item, teacher)
    else:
        told = {"student": percent("student"), "teacher": percent(teacher), "base": percent("base")}
        told = {"item_id": "item", "what": "who solves it", **told}
        table(items, f"items-{domain}", told)


def items_of(folder: ServedFolder, run: RunDirectory, domain: str, teacher: str, teachers: list[str]) -> pd.DataFrame:
    """Every item of a domain with its part, and the share of samples that student, best teacher and base get right."""
    models = [STUDENT, "base", *teachers]
    marks = ", ".join("?" * len(models))
    sql = (
        f"SELECT model, item_id, avg(score) AS score FROM records WHERE domain = ? AND model IN ({marks}) GROUP BY ALL"
    )
    scores = folder.query(run, sql, [domain, *models]).pivot(index="item_id", columns="model", values="score")
    present = [t for t in teachers if t in scores.columns]
    if STUDENT not in scores.columns or teacher not in present:
        return pd.DataFrame({"item_id": [], "part": []})
    found = partition(scores[STUDENT], [scores[t] for t in present], present.index(teacher))
    frame = pd.DataFrame({
        "item_id": scores.index, "part": found, "what": [" ".join(PARTS[p]) for p in found],
        "student": scores[STUDENT].to_numpy(), "teacher": scores[teacher].to_numpy(),
        "base": scores["base"].to_numpy() if "base" in scores.columns else float("nan"),
    })  # fmt: skip
    order = {p: k for k, p in enumerate(("lost", "inherited", "surpassing", "both"))}
    return frame.sort_values(
        ["part", "item_id"], key=lambda c: c.map(order) if c.name == "part" else c, ignore_index=True
    )


def _item(folder: ServedFolder, run: RunDirectory, domain: str, item: str, teacher: str) -> None:
    """One item: what was asked, and what student, best teacher and base said, the least and the most right sample."""
    sql = (
        "SELECT model, prompt, count(*) AS n, avg(score) AS score, arg_min(response, score) AS worst, arg_max(response, score) AS best "
        "FROM records WHERE domain = ? AND item_id = ? AND model IN ('student', 'base', ?) GROUP BY model, prompt"
    )
    found = folder.query(run, sql, [domain, item, teacher]).drop_duplicates("model").set_index("model")
    if found.empty:
        parts.note("No record of this item.")
        return
    answers([("asked", shown(str(found["prompt"].iloc[0])))])
    said = {m: found.loc[m] for m in (STUDENT, teacher, "base") if m in found.index}
    solved = {m: f"{m}: {row['score']:.0%} of {row['n']} samples right" for m, row in said.items()}
    student = str(said[STUDENT]["worst" if said[STUDENT]["score"] <= 0.5 else "best"]) if STUDENT in said else ""
    told = []
    for model, row in said.items():
        if model != STUDENT:
            sides = side_by_side(str(row["best"]), student)
            told += [(solved[STUDENT], sides.after)] * (not told) + [(solved[model], sides.before)]
    answers(told)
    parts.note("Marked: what the best of the other answers has and the student's does not.")


# -- pass@k -----------------------------------------------------------------------------------------------------------------


def _passes(view: View, domains: dict[str, Cap], stamp: Files) -> None:
    parts.section(
        "pass@k", "At least one of k samples is right. Lines that meet say that more tries reach what one does not."
    )
    passes = {d: passes_of(c) for d, c in domains.items()}
    passes = {d: table_ for d, table_ in passes.items() if table_}
    if not passes:
        parts.empty("No pass@k", "It takes several samples an item; this run's findings hold none.")
        return
    figure(
        lambda look, width: passes_chart(passes, view.cast, look, width=width),
        "passes",
        "pass@k by domain for student, base and best teacher; the table below has the numbers.",
        stamp=stamp,
    )
    legend(
        [
            (SIGNS[ROLE_SHAPES[r]], words)
            for r, words in (("student", "student"), ("base", "base"), ("teacher", "best teacher"))
        ]
    )
    rows = [
        {"domain": d, "model": m, "k": k, "pass@k": e.value, "low": e.low, "high": e.high}
        for d, table_ in passes.items() for m, row in table_.items() for k, e in row.items()
    ]  # fmt: skip
    with st.expander("The numbers"):
        columns = {"pass@k": percent("pass@k"), "low": percent("from"), "high": percent("to")}
        table(pd.DataFrame(rows), "passes", {"domain": "domain", "model": "model", "k": "k", **columns})


def passes_of(cap: Cap) -> dict[str, dict[int, Estimate]]:
    """Model -> k -> pass@k, as far as the finding has it."""
    told = cap.finding.evidence.get("pass_at_k")
    found: dict[str, dict[int, Estimate]] = {}
    for model, row in (told if isinstance(told, dict) else {}).items():
        known = {int(k): as_estimate(e) for k, e in row.items() if str(k).isdecimal()}
        found[str(model)] = {k: e for k, e in sorted(known.items()) if e is not None}
    return {m: row for m, row in found.items() if len(row) > 1}
