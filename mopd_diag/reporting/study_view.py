"""Everything that the page of a study says, gathered once from `results.json`; HTML and Markdown only set it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mopd_diag.reporting import text
from mopd_diag.reporting.look import Cast
from mopd_diag.reporting.paths import CostPoint
from mopd_diag.reporting.study_words import COUNTED, Document, Said, estimate_of, mean, points, ranked, said
from mopd_diag.reporting.tables import Table

MARKS = {"ahead": "▲ ahead", "behind": "▼ behind", "level": "● level", "undetermined": "? undetermined"}
"""Of reference − rival: the reference is ahead, behind, …"""
MATCHED = {None: "–", True: "yes", False: "no"}
SEED_LINK = tuple[str, str]


@dataclass(frozen=True)
class StudyView:
    """A study as its page shows it. `seeds`: name and relative address of each seed's own report; empty where it is not there."""

    title: str
    summary: str
    facts: list[tuple[str, str]]
    answers: list[Said]
    tables: dict[str, Table]
    untested: list[tuple[str, str]]
    seeds: list[SEED_LINK]
    method: list[tuple[str, str]]
    cast: Cast
    document: Document


def study_view(document: Document, links: Mapping[str, str] | None = None) -> StudyView:
    """From the document of `results.json`. `links`: report as the document names it → its address on the page."""
    s = document["study"]
    roles = {row["recipe"]: "student" if model == "student" else "rival" for model, row in document["models"].items()}
    return StudyView(
        title=str(s["name"]),
        summary=str(s["summary"]),
        facts=_facts(document),
        answers=said(document),
        tables={
            "paths": paths_table(document), "domains": domains_table(document), "worst": worst_table(document),
            "costs": costs_table(document),
        },
        untested=[(u["what"], u["said"]) for u in document["untested"]],
        seeds=[(f"seed {x['seed']}", (links or {}).get(x["report"], "")) for x in document["seeds"]],
        method=_method(document),
        cast=Cast(roles, {}, tuple(document["domains"])),
        document=document,
    )  # fmt: skip


def _rivals(document: Document) -> list[str]:
    return [row["recipe"] for model, row in document["models"].items() if model != "student"]


def _facts(document: Document) -> list[tuple[str, str]]:
    s = document["study"]
    return [
        ("world", f"{document['world']}: {', '.join(document['domains'])}"),
        ("reference", s["reference"]),
        ("rivals", ", ".join(_rivals(document)) or "none"),
        ("seeds", ", ".join(map(str, s["seeds"]))),
        ("budget", s["budget"]),
        ("matched on", f"{COUNTED[s['match']]} of the {'whole path' if s['scope'] == 'path' else 'student’s own stage'}"),
    ]  # fmt: skip


# -- tables -------------------------------------------------------------------------------------------------------------------


def paths_table(document: Document) -> Table:
    """A row a recipe, the best mean first: the terminal's table, with every seed."""
    s, seeds = document["study"], [str(x["seed"]) for x in document["seeds"]]
    rows, keys = [], []
    for model, row in ranked(document):
        reference = model == "student"
        contest = row["reference_against_this"]
        each = [text.percent(a, 1) for a in row["accuracy"]] if len(seeds) > 1 else []
        rows.append([
            row["recipe"], *each, text.share(estimate_of(row["accuracy_over_seeds"])),
            "reference" if reference else points(estimate_of(row["reference_minus_this"]), unit=False),
            "–" if reference else MARKS[contest["verdict"]],
            text.ratio(estimate_of(row["recovery"])) if row["recovery"] else "–",
            text.count(mean(row["cost"])), text.percent(mean(row["cost_ratio"])), "–" if reference else MATCHED[row["matched"]],
        ])  # fmt: skip
        keys.append(row["recipe"])
    columns = [
        "recipe",
        *(f"seed {k}" for k in seeds if len(seeds) > 1),
        "mean accuracy",
        f"{s['reference']} − it",
        "reference is",
    ]
    columns += ["recovery", COUNTED[s["match"]], "against", "matched"]
    within = text.percent(document["matched_within"])
    base = text.percent(mean(document["base"]), 1)
    caption = f"Means over {text.plural(len(document['domains']), 'domain')}; the base has {base}. {s['reference']} − it in points, "
    caption += f"verdicts Holm-adjusted over the rivals. Against: the reference's count is 100%. Matched: within {within} in every seed"
    return Table(caption, columns, rows, frozenset({"reference is", "matched"}), _strong(document), keys=keys)


def domains_table(document: Document) -> Table:
    """Reference − rival on every single domain."""
    s = document["study"]
    rivals = [row for model, row in ranked(document) if model != "student"]
    own = document["models"]["student"]["domains"]
    rows = []
    for domain in document["domains"]:
        cells = [row["domains"][domain]["reference_minus_this"] for row in rivals]
        told = [
            f"{text.points(estimate_of(c['delta']), unit=False)} {MARKS[c['verdict']].split(' ')[0]}" for c in cells
        ]
        rows.append([domain, text.share(estimate_of(own[domain]["accuracy"])), *told])
    caption = f"{s['reference']}'s accuracy, then {s['reference']} − each rival in points: ▲ the reference is ahead, ▼ behind "
    caption += (
        f"(Holm-adjusted over the whole table), ● level within ±{100 * document['margin']:g} points, ? undetermined"
    )
    return Table(caption, ["domain", s["reference"], *(r["recipe"] for r in rivals)], rows)


def worst_table(document: Document) -> Table:
    """Regret and forgetting of each path in its worst domain, over the pooled seeds and in each seed."""
    n = len(document["seeds"])
    rows, keys = [], []
    for _, row in ranked(document):
        told = [row["recipe"]]
        for name in ("regret", "forgetting"):
            measure = row[name]
            told += [
                measure["domain"] or "–",
                text.points(estimate_of(measure["worst"]), unit=False),
                measure["verdict"],
            ]
            told += [_each(measure["by_seed"])] * (n > 1)
        rows.append(told)
        keys.append(row["recipe"])
    columns = ["path"]
    for name in ("regret", "forgetting"):
        columns += [f"{name}: worst domain", name, f"{name} verdict", *([f"{name} in each seed"] * (n > 1))]
    caption = "In points, positive is bad. Regret: behind the best other path. Forgetting: lost since the base, or since an earlier "
    caption += (
        "checkpoint of the same path where those were evaluated. Intervals over items"
        + ", the seeds' answers pooled" * (n > 1)
    )
    words = frozenset(c for c in columns if "domain" in c or "verdict" in c)
    return Table(caption, columns, rows, words, _strong(document), keys=keys)


def _each(values: list[float | None]) -> str:
    return ", ".join("–" if v is None else text.fixed(100 * v, 0, signed=True) for v in values)


def costs_table(document: Document) -> Table:
    """Every count of the whole path, means over seeds, cold starts left out."""
    counts = ("rollouts", "tokens_sampled", "tokens_trained", "tokens_scored", "flops")
    rows, keys = [], []
    for model, row in ranked(document):
        costs = row["costs"]
        fronts = [COUNTED[axis].partition(" with")[0] for axis, front in document["pareto"].items() if model in front]
        rows.append([
            row["recipe"], *(text.count(mean(costs[c])) for c in counts), text.duration(mean(costs["seconds"])),
            text.duration(mean(costs["critical_seconds"])), ", ".join(fronts) or "–",
        ])  # fmt: skip
        keys.append(row["recipe"])
    columns = [
        "path",
        "rollouts",
        "tokens sampled",
        "trained",
        "scored",
        "FLOPs",
        "work",
        "with unlimited teams",
        "not beaten in",
    ]
    caption = "The whole path with its teachers, cold starts left out. Work adds up the stages' seconds, measured while others ran beside; "
    caption += "with unlimited teams: the longest chain of stages. Not beaten in: no other path is as good for less"
    return Table(caption, columns, rows, frozenset({"not beaten in"}), _strong(document), keys=keys)


def _strong(document: Document) -> frozenset[int]:
    return frozenset(i for i, (model, _) in enumerate(ranked(document)) if model == "student")


# -- charts' material ---------------------------------------------------------------------------------------------------------


def cost_points(document: Document, axis: str) -> list[CostPoint]:
    """Result against one cost, a point a recipe; means over seeds."""
    rows = document["models"].values()
    return [CostPoint(r["recipe"], mean(r["costs"][axis]), estimate_of(r["accuracy_over_seeds"])) for r in rows]


def _method(document: Document) -> list[tuple[str, str]]:
    n, s = len(document["seeds"]), document["study"]
    rivals = len(_rivals(document))
    row: dict[str, Any] = document["models"]["student"]["accuracy_over_seeds"]
    over = "items and training seeds" if n > 1 else "items; one seed"
    family = len(document["domains"]) * rivals
    return [
        ("intervals", f"{text.percent(row['level'])}, over {over}: {row['method']}."),
        ("tests", f"Holm's correction over {text.plural(rivals, 'rival')}, and over the {family} cells of the domains' table."),
        ("winner", "The path with the highest mean; its leads are corrected for the number of other paths."),
        (
            "matching",
            f"A rival's own stages train until the ledger counts as much for its path as for {s['reference']}'s."
            if s["recipes"]
            else f"The rivals are {s['reference']}'s own, trained as it has them; nothing was matched by counting.",
        ),
    ]  # fmt: skip
