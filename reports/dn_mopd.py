"""Gallery report of a published MOPD study: nine Qwen3.5-4B models on AIME 2025 and 2026, from its per-question records.

    python reports/dn_mopd.py

writes reports/gallery/dn_mopd.html and .md. Records, source and licence: reports/data/dn_mopd/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mopd_diag.diagnostics.accuracy import OVERALL, accuracy
from mopd_diag.diagnostics.caps import CapsReport, caps
from mopd_diag.diagnostics.comparison import Comparison, GroupComparison
from mopd_diag.diagnostics.interference import InterferenceReport, interference
from mopd_diag.diagnostics.regression import compare, verdict_of
from mopd_diag.estimators.significance import holm
from mopd_diag.records.read import read_records
from mopd_diag.records.recordset import RecordSet
from mopd_diag.reporting import text
from mopd_diag.reporting.charts import accuracy_chart, transfer_chart
from mopd_diag.reporting.comparison_charts import forest
from mopd_diag.reporting.comparison_view import ICONS, KEYS, Scale
from mopd_diag.reporting.document import Document, Section, document_html, document_markdown
from mopd_diag.reporting.html import HALF, PHONE, WIDE
from mopd_diag.reporting.look import CSS, LIGHT, Cast
from mopd_diag.reporting.svg import pictures
from mopd_diag.reporting.tables import VERDICTS, Table, accuracy_table
from mopd_diag.runs.directory import write_text

HERE = Path(__file__).parent
DATA = HERE / "data" / "dn_mopd"
SUITES = {"aime25": "AIME 2025", "aime26": "AIME 2026"}
MODELS = {
    "base": "base", "t_math": "teacher-math", "t_code": "teacher-code", "t_ifeval": "teacher-if", "s_mdnorm": "DN-MOPD",
    "s_route": "plain MOPD", "s_singlemath": "math teacher only", "sft_seqkd_s42": "off-policy SFT", "merge_ta1": "merge",
}  # fmt: skip
ROLES = {
    "base": "base",
    "teacher-math": "teacher",
    "teacher-code": "teacher",
    "teacher-if": "teacher",
    "DN-MOPD": "student",
}
PATHS = ("DN-MOPD", "plain MOPD", "math teacher only", "off-policy SFT", "merge")
SCALE = Scale(percent=True)
MARGIN = 0.02

PUBLISHED = (
    ("base", "s_route", -1.979167, -3.776042, -0.182292),
    ("base", "s_mdnorm", 1.770833, 0.052083, 3.645833),
    ("base", "t_math", 2.057292, -0.234375, 4.531250),
    ("base", "s_singlemath", 1.692708, -0.416667, 3.906250),
    ("s_route", "s_mdnorm", 3.750000, 1.953125, 5.598958),
)
"""Before, after, and after − before on the math domain at 4B and the 16,384-token cap, in points with 95 % intervals: the
study's table reproduce/data/paper_tables/q35_story_contrasts.csv (10,000 replicates, questions resampled within suites)."""

CREDIT = (
    "Records: Beyond Teacher Assignment: Domain-Normalized Multi-Teacher On-Policy Distillation (arXiv 2609.35347), "
    "repository LiXin97/DN-MOPD, CC BY 4.0; question ids and outcomes only."
)


def load() -> dict[str, RecordSet]:
    """The nine record sets by file name."""
    return {model: read_records(DATA / model) for model in MODELS}


def frame_of(sets: Mapping[str, RecordSet]) -> pd.DataFrame:
    """All records as one frame in the contract's columns, under the names of this report."""
    parts = [s.frame.assign(model=MODELS[m], domain=s.frame["group"].map(SUITES)) for m, s in sets.items()]
    return pd.concat(parts, ignore_index=True)


def contrasts(sets: Mapping[str, RecordSet], pairs: Mapping[str, tuple[str, str]]) -> dict[str, Comparison]:
    return {name: compare(sets[before], sets[after], margin=MARGIN) for name, (before, after) in pairs.items()}


def judged(compared: Mapping[str, Comparison]) -> dict[str, GroupComparison]:
    """The overall differences under their names, p-values and verdicts corrected (Holm) over this family of contrasts."""
    adjusted = holm([c.overall.p_value for c in compared.values()])
    found = {}
    for (name, c), p in zip(compared.items(), adjusted, strict=True):
        verdict = verdict_of(c.overall.delta, float(p), MARGIN, c.level)
        found[name] = replace(c.overall, p_adjusted=float(p), verdict=verdict)
    return found


def differences_table(found: Mapping[str, GroupComparison], caption: str) -> Table:
    rows = [
        [name, f"{ICONS[g.verdict]} {g.verdict}", SCALE.delta(g.delta, unit=False), text.fixed(g.p_value, 4),
         text.fixed(g.p_adjusted, 4), str(g.lost), str(g.won), SCALE.size(g.mde)]
        for name, g in found.items()
    ]  # fmt: skip
    columns = ["contrast", "verdict", "points", "p", "p (Holm)", "lost", "won", "detectable"]
    return Table(caption, columns, rows, words=frozenset({"verdict"}), keys=[KEYS[g.verdict] for g in found.values()])


def published_table(sets: Mapping[str, RecordSet]) -> Table:
    rows = []
    for before, after, delta, low, high in PUBLISHED:
        e = compare(sets[before], sets[after]).overall.delta
        said = f"{text.fixed(delta, 2, signed=True)} [{text.fixed(low, 2, signed=True)}, {text.fixed(high, 2, signed=True)}]"
        ours = [text.fixed(100 * x, 2, signed=True) for x in (e.value, e.low, e.high)]
        rows.append([f"{MODELS[after]} − {MODELS[before]}", said, f"{ours[0]} [{ours[1]}, {ours[2]}]"])
    return Table("Mean of the two suites, points", ["contrast", "published", "recomputed here"], rows)


def caps_section(records: pd.DataFrame) -> Section:
    taught = {"teacher-math": tuple(SUITES.values()), "teacher-code": (), "teacher-if": ()}
    reports = {m: caps(records, taught, student=m, margin=MARGIN) for m in PATHS}
    rows = []
    for model, report in reports.items():
        for suite, c in report.caps.items():
            counts = c.to_dict()["partition"]
            rows.append([
                model, suite, VERDICTS[c.cap.verdict], text.ratio(c.cap.recovery), SCALE.delta(c.cap.gap, unit=False), c.teacher,
                *(str(counts[p]) for p in ("both", "lost", "inherited", "surpassing")),
            ])  # fmt: skip
        rows.append([
            model, "both suites", VERDICTS[report.verdict], text.ratio(report.mean_recovery),
            SCALE.delta(report.mean_gap, unit=False), "", "", "", "", "",
        ])  # fmt: skip
    columns = [
        "path", "suite", "verdict", "recovery", "gap to it", "best teacher", "both solve", "lost", "both fail", "only the path",
    ]  # fmt: skip
    table = Table(
        f"Level of each path against the best teacher, equal within ±{SCALE.size(MARGIN)} points", columns, rows,
        words=frozenset({"suite", "verdict", "best teacher"}),
        strong=frozenset(i for i, r in enumerate(rows) if r[1] == "both suites"),
    )  # fmt: skip
    return Section(
        "Caps", "What the teachers allowed: recovery is the share of the way from the base to the best teacher.",
        tables=[table], notes=_headroom_notes(next(iter(reports.values()))),
    )  # fmt: skip


def _headroom_notes(report: CapsReport) -> list[str]:
    notes = []
    for suite, c in report.caps.items():
        room = SCALE.delta(c.cap.headroom)
        said = f"{suite}: {c.teacher} is the best teacher, {room} above the base"
        notes.append(said + ("." if c.cap.recovery.defined else "; recovery divides by that, so it stays unknown."))
    return notes


def interference_section(records: pd.DataFrame) -> Section:
    taught = {"teacher-math": tuple(SUITES.values()), "teacher-code": (), "teacher-if": ()}
    report = interference(records, taught, student="DN-MOPD", paths={m: m for m in PATHS}, margin=MARGIN)
    cells = [
        (model, suite, cell.delta, cell.verdict in ("help", "harm"))
        for model, row in report.matrix.items() if model in taught for suite, cell in row.items()
    ]  # fmt: skip
    rows = [
        [model, suite, SCALE.delta(cell.delta, unit=False), text.fixed(cell.p_adjusted, 3), cell.verdict]
        for model, row in report.matrix.items() for suite, cell in row.items()
    ]  # fmt: skip
    columns = ["model", "evaluated on", "change", "p (Holm)", "verdict"]
    table = Table(
        "Change against the base, points; Holm over the whole table",
        columns,
        rows,
        words=frozenset(columns[1:2] + columns[-1:]),
    )
    charts = pictures(lambda w: transfer_chart(cells, CSS, width=w), [PHONE], "transfer")
    return Section(
        "Interference",
        "What training on math, code or instruction following did to math, and what each path did to it. Numbers in brackets "
        "are not surely a change.",
        charts, "", [table, _measures_table(report)],
    )  # fmt: skip


def _measures_table(report: InterferenceReport) -> Table:
    rows = []
    for kind, measures in (("forgetting", report.forgetting), ("regret", report.regret)):
        rows += [
            [
                m,
                kind,
                SCALE.delta(x.worst, unit=False) if x.worst.defined else f"unknown: {x.worst.note}",
                x.domain,
                x.reference,
                x.verdict,
            ]
            for m, x in measures.items()
        ]
    columns = ["path", "measure", "worst suite", "which", "against", "verdict"]
    caption = "Points lost in the worst suite: forgetting against the base, regret against the best other path; positive is bad"
    return Table(caption, columns, rows, words=frozenset({"measure", "which", "against", "verdict"}))


def passes_table(compared: Mapping[str, Comparison]) -> Table:
    ks = (1, 8, 64)
    first = next(iter(compared.values())).overall.pass_at_k
    rows = [["base", *(cell for k in ks for cell in (SCALE.score(first[k][0].value), ""))]]
    for model, c in compared.items():
        told = [c.overall.pass_at_k[k] for k in ks]
        rows.append(
            [
                model,
                *(
                    cell
                    for _, after, delta in told
                    for cell in (SCALE.score(after.value), SCALE.delta(delta, unit=False))
                ),
            ]
        )
    columns = ["model", *(name for k in ks for name in (f"pass@{k}", f"− base at {k}"))]
    return Table("At least one of k answers right, mean of the suites; differences in points", columns, rows)


def variety(compared: Mapping[str, Comparison], k: int = 8) -> str:
    """Which models gained on one answer and have an interval below 0 for several."""
    found = []
    for model, c in compared.items():
        one, several = c.overall.delta, c.overall.pass_at_k[k][2]
        if one.value > 0 and several.high < 0:
            found.append(
                f"{model} ({SCALE.size(one.value, signed=True)} at 1, {SCALE.delta(several, unit=False)} at {k})"
            )
    return f"Above the base on one answer and below it on {k}, by single intervals without correction: {text.listed(found)}."


def build() -> tuple[Document, dict[str, str]]:
    """The whole report, and the colours of its tables."""
    sets = load()
    records = frame_of(sets)
    cast = Cast(
        {m: ROLES.get(m, "rival") for m in MODELS.values()}, {m: () for m in MODELS.values()}, tuple(SUITES.values()),
        {s: "teacher-math" for s in SUITES.values()},
    )  # fmt: skip
    levels = accuracy(records)
    against_base = contrasts(sets, {name: ("base", m) for m, name in MODELS.items() if m != "base"})
    head_to_head = contrasts(
        sets,
        {
            f"DN-MOPD − {MODELS[m]}": (m, "s_mdnorm")
            for m in ("s_route", "s_singlemath", "t_math", "sft_seqkd_s42", "merge_ta1")
        },
    )
    from_base, to_rivals = judged(against_base), judged(head_to_head)
    best = max(levels, key=lambda m: levels[m][OVERALL].value)
    gain = to_rivals["DN-MOPD − plain MOPD"]
    sections = [
        Section(
            "Levels", "Mean share of 64 sampled answers that are right, 30 questions a suite. The dashed line is the base.",
            pictures(lambda w: accuracy_chart(levels, cast, CSS, width=w), [PHONE, HALF, WIDE], "levels"),
            tables=[accuracy_table(levels, cast)],
        ),
        Section(
            "Against the base", "Paired differences on the same questions, mean of the two suites. The grey band is ±2 points.",
            pictures(lambda w: forest(from_base, SCALE, CSS, width=w), [PHONE, HALF, WIDE], "base"),
            tables=[differences_table(from_base, "Model − base; Holm over these eight contrasts decides the verdict")],
            notes=["With 60 questions only large differences are sure: see the column of detectable ones."],
        ),
        Section(
            "DN-MOPD against the rest", "The same for the domain-normalised student against teacher, other students and merge.",
            pictures(lambda w: forest(to_rivals, SCALE, CSS, width=w), [PHONE, HALF, WIDE], "rivals"),
            tables=[differences_table(to_rivals, "DN-MOPD − other; Holm over these five contrasts")],
        ),
        Section(
            "Published beside recomputed",
            "The study's own paired differences, and what compare gives with its own draws. Differences are the same to every "
            "printed digit; ends of intervals move by a few hundredths with the draws.",
            tables=[published_table(sets)],
        ),
        caps_section(records),
        interference_section(records),
        Section(
            "Several answers", "Does a path gain on one answer and lose variety? Unbiased pass@k from the 64 answers.",
            tables=[passes_table(against_base)], notes=[variety(against_base)],
        ),
        Section(
            "What could not be told", "Accuracy records alone leave three things open.",
            notes=[
                "Which teacher a lost question comes from: that takes the models, or their log-probabilities on the answers.",
                "Code and instruction following: the records kept here are the math suites only, so the transfer matrix has only "
                "math columns.",
                "The spread between trainings: one training run a path, so intervals cover questions and answers, not seeds.",
            ],
        ),
    ]  # fmt: skip
    summary = (
        f"On two math suites plain multi-teacher distillation ends at {SCALE.score(levels['plain MOPD'][OVERALL].value)}, "
        f"from {SCALE.score(levels['base'][OVERALL].value)} for its base; domain normalisation brings it to "
        f"{SCALE.score(levels['DN-MOPD'][OVERALL].value)}, {SCALE.delta(gain.delta)} over plain MOPD. "
        f"The highest level is that of {best}, {SCALE.score(levels[best][OVERALL].value)}."
    )
    facts = [
        ("models", str(len(MODELS))),
        ("questions", "60"),
        ("answers a question", "64"),
        ("joined", "by id: the records carry no hashes"),
    ]
    colours = {key: key for key in KEYS.values()} | {m: LIGHT.key(cast, m) for m in MODELS.values()}
    return Document("DN-MOPD, Qwen3.5-4B on AIME", summary, facts, sections, CREDIT), colours


def main(out: Path = HERE / "gallery") -> None:
    document, colours = build()
    write_text(out / "dn_mopd.html", document_html(document, colours))
    write_text(out / "dn_mopd.md", document_markdown(document))


if __name__ == "__main__":
    main()
