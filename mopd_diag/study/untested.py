"""What a study did not test, from the facts of its plan and of what came of it: no sentence stands that a fact does not ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mopd_diag.config import Counted
from mopd_diag.recipes import RECIPES
from mopd_diag.reporting import text
from mopd_diag.study.resolve import Study
from mopd_diag.study_plan import StudyPlan

WORDS: dict[Counted, str] = {
    "flops": "FLOPs", "tokens_sampled": "tokens sampled", "tokens_trained": "tokens trained", "rollouts": "rollouts",
    "seconds": "seconds of work",
}  # fmt: skip
APART = 1.25
"""A count in which a matched path differs by more than this factor is worth a sentence."""


def untested(plan: StudyPlan, study: Study, document: Mapping[str, Any]) -> list[dict[str, str]]:
    """Pairs of `what` and `said`. `study` is one seed's; `document` the results so far."""
    told = [*_scope(plan, study), *_settings(plan, study), *_unfair(plan, document), *_domains(document)]
    return [{"what": what, "said": said} for what, said in told]


def _scope(plan: StudyPlan, study: Study) -> Iterator[tuple[str, str]]:
    """World, size, seeds, budget, recipes: where the result may not hold."""
    s, c, domains = plan.study, plan.model, len(study.world.domains)
    yield "other worlds", f"One world, {study.world.name}, with {text.plural(domains, 'domain')}; {_families(study)}."
    size = f"{c.layers} layers of width {c.hidden} ({c.architecture})" if c.path is None else Path(c.path).name
    yield "other models", f"One model to begin with: {size}. Nothing here says what a larger one would do."
    n = len(s.seeds)
    yield (
        ("other seeds", "One training seed: intervals are over items only, and another training may order the paths otherwise.")
        if n == 1
        else ("other seeds", f"{n} training seeds: how much trainings differ is known from {n} numbers a path.")
    )  # fmt: skip
    yield "other budgets", f"One budget, {s.budget}: paths that learn at different speeds may change places at another."
    left = [name for name in RECIPES if name not in (s.reference, *s.recipes)]
    if left:
        yield "other recipes", f"Not among the paths: {text.listed(left)}."


def _families(study: Study) -> str:
    families = {str(f): names for f, names in study.world.families().items()}
    if len(families) == 1:
        return "all of one family"
    return f"families: {', '.join(f'{f} ({len(names)})' for f, names in families.items())}"


def _settings(plan: StudyPlan, study: Study) -> Iterator[tuple[str, str]]:
    """One value of everything that a careful user would tune for each recipe."""
    rates: dict[str, set[float]] = {}
    for stage in study.stages:
        if (rate := getattr(stage, "learning_rate", None)) is not None:
            rates.setdefault(stage.algorithm, set()).add(rate)
    said = ", ".join(f"{a} {' and '.join(f'{r:g}' for r in sorted(rs))}" for a, rs in rates.items())
    yield "other learning rates", f"One learning rate a stage, tuned for no recipe: {said}."
    groups = sorted({g for s in study.stages if (g := getattr(s, "group", 0)) > 1})
    if groups:
        given = " and ".join(map(str, groups))
        yield "other settings", f"Group sizes ({given}), batches, clips and penalties stand as the recipes have them."
    e = plan.evaluation
    sampled = f"{e.samples} to each of at most {e.items} items a domain"
    yield "other sampling", f"Answers were sampled at temperature {e.temperature:g}, {sampled}."


def _unfair(plan: StudyPlan, document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Paths that cost something else than the reference, and the counts on which nobody was matched."""
    s, models = plan.study, document["models"]
    on = WORDS[s.match]
    for what, kind in (("merges at equal cost", None), ("these rivals at equal cost", False)):
        rows = [r for m, r in models.items() if m != "student" and r["matched"] is kind]
        if rows:
            why = "trained nothing that could be matched" if kind is None else "ended off the mark"
            yield what, f"On {on} of the reference, {text.listed([_ratio(r) for r in rows])}: {why}."
    if s.scope == "student":
        yield (
            "equal cost of whole paths",
            "Rivals were given what the student's own stage cost, not what its teachers cost besides.",
        )
    own = models["student"]["costs"]
    matched = [m["costs"] for k, m in models.items() if m["matched"] and k != "student"]
    apart = []
    for count, words in WORDS.items():
        ratios = [r for costs in matched if (r := _over(costs[count], own[count])) is not None]
        if count != s.match and ratios and max(max(ratios), 1 / min(ratios)) > APART:
            apart.append(f"{min(ratios):.2g} to {max(ratios):.2g} times the reference's {words}")
    if apart:
        yield "matching on another count", f"Matched on {on}, the matched rivals took {text.listed(apart)}."


def _ratio(row: Mapping[str, Any]) -> str:
    told = [r for r in row["cost_ratio"] if r is not None]
    return f"{row['recipe']} {text.percent(sum(told) / len(told)) if told else text.UNKNOWN}"


def _over(cost: list[float], reference: list[float]) -> float | None:
    return sum(cost) / sum(reference) if sum(cost) and sum(reference) else None


def _domains(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Domains on which nothing could be recovered: there the paths are not told apart by what teachers had to give."""
    found = {d: row["recovery"] for d, row in document["models"]["student"]["domains"].items()}
    empty = [d for d, e in found.items() if e is not None and e["value"] is None]
    if empty:
        one = len(empty) == 1
        yield (
            "recovery without headroom",
            f"{text.listed(empty)} {'has' if one else 'have'} no headroom that is surely above 0: no teacher was surely better than the "
            f"base there, and {'it counts' if one else 'they count'} in no recovery.",
        )
