"""A study's result in words: who won, who cannot be told from it, at what cost. Terminal, page and app say these sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mopd_diag.reporting import text
from mopd_diag.reporting.reading import as_estimate
from mopd_diag.types import Estimate

COUNTED = {
    "flops": "FLOPs", "tokens_sampled": "tokens sampled", "tokens_trained": "tokens trained", "rollouts": "rollouts",
    "seconds": "seconds of work", "critical_seconds": "seconds with unlimited teams",
}  # fmt: skip
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """One answer: a figure, what it is, sentences, and what to beware of."""

    question: str
    figure: str
    figure_is: str
    sentences: Sequence[str]
    caveats: Sequence[str] = ()


def said(document: Document) -> list[Said]:
    """The first lines of the page."""
    return [won(document), told_apart(document), cost(document)]


def estimate_of(told: Any) -> Estimate:
    """An estimate of the document; one that is absent is unknown."""
    return as_estimate(told) or Estimate.undefined("not computed")


def mean(numbers: Sequence[float | None]) -> float:
    """Over seeds; NaN when one is unknown."""
    return sum(float("nan") if x is None else x for x in numbers) / len(numbers) if numbers else float("nan")


def ranked(document: Document) -> list[tuple[str, Mapping[str, Any]]]:
    """Models with their rows, the best mean accuracy first."""
    return sorted(document["models"].items(), key=lambda row: -mean(row[1]["accuracy"]))


# -- who won ------------------------------------------------------------------------------------------------------------------


def won(document: Document) -> Said:
    """The path with the highest mean; plainly when the reference lost, and when nobody won."""
    winner, models = document["winner"], document["models"]
    row, recipe = models[winner["model"]], winner["recipe"]
    groups = _groups(document)
    near = groups["level"] + groups["undetermined"]
    figure = text.share(estimate_of(row["accuracy_over_seeds"]))
    if near:
        level, open_ = (text.listed([n for n, _ in groups[g]], none="") for g in ("level", "undetermined"))
        told = [f"{level} {'are' if ' and ' in level else 'is'} level with it"] * bool(level)
        told += [f"{open_} cannot be told from it"] * bool(open_)
        first = f"No path won alone: {recipe} has the highest mean accuracy, {figure}, but {text.listed(told)}."
    else:
        second, lead = sorted([*groups["close"], *groups["behind"]], key=lambda row: row[1].value)[0]
        first = f"{recipe} won, with {figure} mean accuracy: {_by(lead)} ahead of the next, {second}."
    domains = text.plural(len(document["domains"]), "domain")
    shown = "no path alone" if near else recipe
    note = f"highest mean over {domains}: {recipe}, {figure}" if near else f"{figure} mean accuracy over {domains}"
    return Said("Which path won?", shown, note, [first, *_reference(document), _single(document)], _beware(document))


def _reference(document: Document) -> list[str]:
    """How the reference stands, where it did not win."""
    winner, reference = document["winner"], document["study"]["reference"]
    group = next((g for g, rows in _groups(document).items() if reference in dict(rows)), None)
    if group is None:
        return []
    delta, best = dict(_groups(document)[group])[reference], winner["recipe"]
    said_ = {
        "behind": f"{reference}, the reference, lost: it is {_by(delta)} behind {best}.",
        "close": f"{reference}, the reference, lost to {best} by {_by(delta)}, which is within the margin of {_margin(document)}.",
        "level": f"{reference}, the reference, is level with {best}: {points(_turned(delta))}.",
        "undetermined": f"Whether {reference}, the reference, is behind {best} cannot be told: {points(_turned(delta))}.",
    }
    return [said_[group]]


def _single(document: Document) -> str:
    """Single domains on which another path is surely ahead of the best one, the largest leads first."""
    winner = document["winner"]
    found = sorted(winner["beaten_on"], key=lambda b: estimate_of(b["delta"]).value)
    if not found:
        return f"On no single domain is another path surely ahead of {winner['recipe']}."
    by: dict[str, list[str]] = {}
    for b in found:
        by.setdefault(b["domain"], []).append(f"{b['recipe']} by {_by(_turned(estimate_of(b['delta'])))}")
    told = [f"{d} ({paths[0]}{f', and {len(paths) - 1} more' if len(paths) > 1 else ''})" for d, paths in by.items()]
    return f"Other paths are surely ahead of {winner['recipe']} on {text.listed(told)}."


def _beware(document: Document) -> list[str]:
    """What weakens the answer: cost that was not matched, one seed."""
    winner = document["winner"]
    row, seeds = document["models"][winner["model"]], len(document["base"])
    found = []
    if row["matched"] is not True and winner["model"] != "student":
        on = COUNTED[document["study"]["match"]]
        found.append(
            f"{winner['recipe']} was not matched: it cost {text.percent(mean(row['cost_ratio']))} of the reference's {on}."
        )
    if seeds == 1:
        found.append(
            "One training seed: intervals are over items only, and another seed may order the paths otherwise."
        )
    return found


# -- who cannot be told from it -----------------------------------------------------------------------------------------------


def told_apart(document: Document) -> Said:
    """Every other path by what its distance to the best one amounts to."""
    recipe, margin = document["winner"]["recipe"], _margin(document)
    groups = _groups(document)
    sentences = []
    if groups["level"]:
        told = [f"{n} ({points(d)})" for n, d in groups["level"]]
        sentences.append(f"Level with {recipe}, the whole interval within {margin}: {text.listed(told)}.")
    if groups["undetermined"]:
        details = {m["recipe"]: document["winner"]["leads"].get(k) for k, m in document["models"].items()}
        told = [f"{n} ({points(d)}; {_power(details[n])})" for n, d in groups["undetermined"]]
        sentences.append(f"Undetermined, the data do not decide: {text.listed(told)}.")
    if groups["close"]:
        told = [f"{n} by {_by(d)}" for n, d in groups["close"]]
        sentences.append(f"Surely behind {recipe}, yet within {margin}: {text.listed(told)}.")
    if groups["behind"]:
        told = [f"{n} by {_by(d)}" for n, d in groups["behind"]]
        sentences.append(f"Surely behind {recipe}: {text.listed(told)}.")
    near, others = len(groups["level"]) + len(groups["undetermined"]), len(document["models"]) - 1
    asked = f"Which paths cannot be told from {recipe}?"
    return Said(asked, f"{near} of {others}", "other paths are level with it or undetermined", sentences)


def _power(contest: Mapping[str, Any] | None) -> str:
    size = contest["detectable"] if contest else None
    return (
        "no difference could have been found"
        if size is None
        else f"with 80% power {100 * size:.1f} points would have been found"
    )


# -- cost ---------------------------------------------------------------------------------------------------------------------


def cost(document: Document) -> Said:
    """What the best path cost, by the count on which the others were matched, and which paths no other beats for less."""
    s, models, winner = document["study"], document["models"], document["winner"]
    row, on = models[winner["model"]], COUNTED[s["match"]]
    whole = mean(row["cost"])
    path = "whole path" if s["scope"] == "path" else "own stages"
    share = "" if winner["model"] == "student" else f", {text.percent(mean(row['cost_ratio']))} of the reference's"
    sentences = [_matched(document)]
    chains = {m["recipe"]: mean(m["costs"]["critical_seconds"]) for m in models.values()}
    least = min(chains, key=lambda r: chains[r])
    told = list(dict.fromkeys([winner["recipe"], s["reference"], least]))
    sentences.append(
        f"With a team for every stage {text.listed([f'{r} takes {text.duration(chains[r])}' for r in told])}; cold start not counted."
    )
    front = [models[m]["recipe"] for m in document["pareto"]["flops"]]
    sentences.append(f"By the means, no other path gives as much for as few FLOPs as {text.listed(front)}.")
    return Said("At what cost?", text.count(whole), f"{on} of the {path} of {winner['recipe']}{share}", sentences)


def _matched(document: Document) -> str:
    """Who was matched, by the ledger."""
    rows = [m for k, m in document["models"].items() if k != "student"]
    on, within = COUNTED[document["study"]["match"]], text.percent(document["matched_within"])
    groups = {v: [m for m in rows if m["matched"] is v] for v in (True, False, None)}
    told = []
    if groups[True]:
        told.append(
            f"within {within} of the reference's {on} in every seed: {text.listed([m['recipe'] for m in groups[True]])}"
        )
    for verdict, words in ((False, "not matched"), (None, "trained nothing that could be matched")):
        named = [f"{m['recipe']} ({text.percent(mean(m['cost_ratio']))})" for m in groups[verdict]]
        if named:
            told.append(f"{words}: {text.listed(named)}")
    return f"By the ledger, {'; '.join(told)}."


# -- pieces -------------------------------------------------------------------------------------------------------------------


def _groups(document: Document) -> dict[str, list[tuple[str, Estimate]]]:
    """Every other recipe with winner − it, the nearest first: `level`, `undetermined`, `close` (level, and yet surely behind),
    `behind`."""
    models = document["models"]
    found: dict[str, list[tuple[str, Estimate]]] = {g: [] for g in ("level", "undetermined", "close", "behind")}
    for model, contest in document["winner"]["leads"].items():
        delta, p = estimate_of(contest["delta"]), contest["p_adjusted"]
        sure = p is not None and p < 1 - delta.level
        group = {"ahead": "behind", "level": "close" if sure else "level"}.get(contest["verdict"], "undetermined")
        found[group].append((models[model]["recipe"], delta))
    return {g: sorted(rows, key=lambda row: row[1].value) for g, rows in found.items()}


def points(e: Estimate, *, signed: bool = True, unit: bool = True) -> str:
    """A difference in points with one digit, as means over many items are known better than to a point: `+4.6 points [+3.8, +5.5]`."""
    if not e.defined:
        return text.UNKNOWN
    value, low, high = (text.fixed(100 * x, 1, signed=signed) for x in (e.value, e.low, e.high))
    return f"{value}{' points' if unit else ''} [{low}, {high}]"


def _by(e: Estimate) -> str:
    """A lead, which is positive: `4.6 points [3.8, 5.5]`."""
    return points(e, signed=False)


def _turned(e: Estimate) -> Estimate:
    """The same difference the other way round."""
    return Estimate(-e.value, -e.high, -e.low, e.level, e.unit, e.n_items, e.n_clusters, e.method, e.note)


def _margin(document: Document) -> str:
    return f"±{100 * document['margin']:g} points"
