"""Everything a comparison's report says, as words and tables, gathered once; page, Markdown, JUnit and terminal only set it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mopd_diag.diagnostics.comparison import OVERALL, Comparison, GroupComparison, cause
from mopd_diag.reporting import text
from mopd_diag.reporting.tables import Table
from mopd_diag.types import Estimate

ICONS = {"better": "▲", "worse": "▼", "unchanged": "●", "undetermined": "?"}
KEYS = {"better": "gain", "worse": "loss", "unchanged": "base", "undetermined": "abstain"}
MEANINGS = {
    "better": "the difference is above 0 after correction for the number of groups",
    "worse": "the difference is below 0 after correction for the number of groups",
    "unchanged": "the whole interval lies within the margin: practically the same",
    "undetermined": "neither: there are too few items to tell",
}
ONE_SIDED = 50  # ids of items without a partner that the page lists
NAME = 80  # characters of a name in a table
ALL_GROUPS = "all groups"


@dataclass(frozen=True)
class Scale:
    """How scores are written: shares as percentages and points, anything else as it is."""

    percent: bool

    @classmethod
    def of(cls, comparison: Comparison) -> Scale:
        scores = comparison.joined.items[["before", "after"]].to_numpy()
        return cls(bool(((scores >= 0) & (scores <= 1)).all()))

    @property
    def unit(self) -> str:
        return " points" if self.percent else ""

    @property
    def factor(self) -> float:
        return 100.0 if self.percent else 1.0

    def score(self, x: float) -> str:
        return text.percent(x, 1) if self.percent else text.UNKNOWN if math.isnan(x) else text.fixed(x, 3)

    def item(self, x: float) -> str:
        """One item's score, without decimals that say nothing: `100%`, `33.3%`."""
        whole = self.percent and abs(100 * x - round(100 * x)) < 1e-9
        return text.percent(x) if whole else self.score(x)

    def size(self, x: float, *, signed: bool = False) -> str:
        """A difference without its unit: `+2.1`."""
        digits = 1 if self.percent else 3
        return text.UNKNOWN if math.isnan(x) else text.fixed(self.factor * x, digits, signed=signed)

    def delta(self, e: Estimate, *, unit: bool = True) -> str:
        """`−3.2 points [−4.5, −1.9]`."""
        if not e.defined:
            return text.UNKNOWN
        value = self.size(e.value, signed=True) + (self.unit if unit else "")
        if math.isnan(e.low) or math.isnan(e.high):
            return f"{value} (no interval)"
        return f"{value} [{self.size(e.low, signed=True)}, {self.size(e.high, signed=True)}]"

    def estimate(self, e: Estimate) -> str:
        return f"{self.score(e.value)} [{self.score(e.low)}, {self.score(e.high)}]" if e.defined else text.UNKNOWN


@dataclass(frozen=True)
class ComparisonView:
    """A comparison as its reports show it; a part that is empty is left out. `verdict`: worse as soon as one group is."""

    before: str
    after: str
    scale: Scale
    verdict: str
    lead: str
    figure: str
    sentence: str
    counts: str
    facts: list[tuple[str, str]]
    groups: Table
    notes: list[str]
    passes: Table | None
    causes: Table | None
    lost: list[str]
    why_note: str
    one_sided: list[tuple[str, list[str], int]]
    warnings: list[str]
    method: list[tuple[str, str]]

    @property
    def icon(self) -> str:
        return ICONS[self.verdict]

    @property
    def headline(self) -> str:
        """The short verdict line: `Worse in code, undetermined overall: −0.2 points [−2.4, +1.6]`."""
        return f"{self.lead}: {self.figure}"


def whole_number(n: int) -> str:
    """A count to its last digit: `30 000`."""
    return f"{n:,}".replace(",", " ")


def rows_of(comparison: Comparison) -> list[GroupComparison]:
    """The groups, and the mean of them where there are several."""
    groups = list(comparison.groups.values())
    return [*groups, comparison.overall] if len(groups) > 1 else groups or [comparison.overall]


def shown_name(group: GroupComparison, comparison: Comparison) -> str:
    return ALL_GROUPS if group is comparison.overall and group.name == OVERALL else group.name


def view_of(comparison: Comparison) -> ComparisonView:
    """The words and tables of one comparison."""
    whole = comparison.overall
    scale = Scale.of(comparison)
    items, groups = len(comparison.joined.items), len(comparison.groups)
    sentence = (
        f"{scale.score(whole.before.value)} before and {scale.score(whole.after.value)} after, on "
        f"{whole_number(items)} {'item' if items == 1 else 'items'} in {text.plural(groups, 'group')}."
    )
    if not whole.delta.defined and whole.delta.note:
        sentence += f" {_sentence(whole.delta.note)}"
    (verdict, lead), causes = _lead(comparison), _causes_table(comparison)
    return ComparisonView(
        before=text.clip(comparison.before, 200),
        after=text.clip(comparison.after, 200),
        scale=scale,
        verdict=verdict,
        lead=lead,
        figure=scale.delta(whole.delta),
        sentence=sentence,
        counts=_counts(comparison),
        facts=_facts(comparison),
        groups=_groups_table(comparison, scale),
        notes=_notes(comparison),
        passes=_passes_table(comparison, scale),
        causes=causes,
        lost=comparison.lost_sentences() if causes else [],
        why_note=comparison.why_note,
        one_sided=_one_sided(comparison),
        warnings=list(comparison.warnings),
        method=_method(comparison, scale),
    )


def _lead(comparison: Comparison) -> tuple[str, str]:
    """The verdict that matters, and in words: a mean of groups must not hide the one that got worse."""
    overall = comparison.overall.verdict
    worse = [n for n, g in comparison.groups.items() if g.verdict == "worse"]
    if overall == "worse" or not worse:
        return overall, f"{overall.capitalize()} overall"
    where = text.listed(worse) if len(worse) <= 3 else f"{len(worse)} of {len(comparison.groups)} groups"
    return "worse", f"Worse in {where}, {overall} overall"


def _counts(comparison: Comparison) -> str:
    """`Worse: code. Better: math. Unchanged: 6 groups.` Nothing when there is one group."""
    if len(comparison.groups) < 2:
        return ""
    said = []
    for verdict in ("worse", "better", "unchanged", "undetermined"):
        names = [n for n, g in comparison.groups.items() if g.verdict == verdict]
        if names:
            said.append(f"{verdict.capitalize()}: {text.listed(names) if len(names) <= 4 else f'{len(names)} groups'}.")
    return " ".join(said)


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    joined, flips = comparison.joined, comparison.flips["change"]
    apart = len(joined.only_before) + len(joined.only_after)
    return [
        ("items in both", whole_number(len(joined.items))),
        ("on one side only", whole_number(apart)),
        ("lost", whole_number(int((flips == "lost").sum()))),
        ("won", whole_number(int((flips == "won").sum()))),
        ("same questions", _verified(comparison)),
    ]


def _verified(comparison: Comparison) -> str:
    items = comparison.joined.items
    seen = int(items["verified"].sum())
    return (
        "verified"
        if comparison.joined.verified
        else f"verified for {seen} of {len(items)}"
        if seen
        else "not verified, joined on ids alone"
    )


def _groups_table(comparison: Comparison, scale: Scale) -> Table:
    rows, found = [], rows_of(comparison)
    floors = any(g.noise_floor is not None for g in found)
    for g in found:
        floor = g.noise_floor
        rows.append([
            text.clip(shown_name(g, comparison), NAME), f"{ICONS[g.verdict]} {g.verdict}", scale.delta(g.delta, unit=False),
            scale.score(g.before.value), scale.score(g.after.value), _p(g.p_value), _p(g.p_adjusted), _p(g.q_value),
            str(g.lost), str(g.won), whole_number(g.n_items), scale.size(g.mde),
            *(["–" if floor is None else scale.size(floor.value)] if floors else []),
        ])  # fmt: skip
    columns = [
        "group", "verdict", "difference", "before", "after", "p", "p (Holm)", "q (BH)", "lost", "won", "items", "detectable",
        *(["noise floor"] if floors else []),
    ]  # fmt: skip
    strong = frozenset([len(rows) - 1] if len(comparison.groups) > 1 else [])
    unit = f", differences in {'percentage points' if scale.percent else 'the scale of the scores'}"
    return Table(
        f"After against before on the same items{unit}, with {comparison.level:.0%} intervals over items", columns, rows,
        words=frozenset({"verdict"}), strong=strong, keys=[KEYS[g.verdict] for g in found],
    )  # fmt: skip


def _p(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.0001" if p < 1e-4 else text.fixed(p, 4 if p < 0.01 else 3)


def _notes(comparison: Comparison) -> list[str]:
    """What the numbers of a row need to be understood: why one is unknown, or a verdict open."""
    said = {}
    for g in rows_of(comparison):
        reasons = dict.fromkeys(n for n in (g.note, *(e.note for e in (g.delta,) if not e.defined)) if n)
        if reasons:
            said[shown_name(g, comparison)] = "; ".join(reasons)
    return [f"{name}: {_sentence(note)}" for name, note in said.items()]


def _sentence(note: str) -> str:
    return note if note.endswith((".", "!", "?")) else f"{note}."


def _passes_table(comparison: Comparison, scale: Scale) -> Table | None:
    found = rows_of(comparison)
    rows, names = [], []
    for g in found:
        for k, (before, after, delta) in g.pass_at_k.items():
            name = shown_name(g, comparison)
            rows.append([name, str(k), scale.estimate(before), scale.estimate(after), scale.delta(delta, unit=False)])
            names.append(KEYS[g.verdict])
    if not rows:
        return None
    caption = "pass@k: at least one of k sampled answers is right (unbiased estimator)"
    return Table(caption, ["group", "k", "before", "after", "difference"], rows, keys=names)


def _causes_table(comparison: Comparison) -> Table | None:
    """Lost items by reason, one row a group and one column a cause; none where nobody looked."""
    causes: Mapping[str, Mapping[tuple[str, str], int]] = comparison.lost_by_cause()
    if not len(comparison.flips) or not (comparison.flips["failure"] != "").any():
        return None
    columns = list(dict.fromkeys(pair for table in causes.values() for pair in table))
    rows = [
        [group, str(sum(table.values())), *(str(table.get(pair, "–")) for pair in columns)]
        for group, table in causes.items()
    ]
    return Table("Lost items by the reason found", ["group", "lost", *(cause(*pair) for pair in columns)], rows)


def _one_sided(comparison: Comparison) -> list[tuple[str, list[str], int]]:
    """For each side that has items without a partner: which, the first ids, and how many there are."""
    joined = comparison.joined
    sides = {
        f"only before ({comparison.before})": joined.only_before,
        f"only after ({comparison.after})": joined.only_after,
    }
    return [(side, _ids(frame), len(frame)) for side, frame in sides.items() if len(frame)]


def _ids(frame: pd.DataFrame) -> list[str]:
    first = frame.head(ONE_SIDED)
    return [f"{g} / {i}" for g, i in zip(first["group"], first["item_id"], strict=True)]


def _method(comparison: Comparison, scale: Scale) -> list[tuple[str, str]]:
    groups, whole = list(comparison.groups.values()), comparison.overall
    samples = sorted({g.n_samples for g in groups})
    most = "–".join(str(n) for n in dict.fromkeys([samples[0], samples[-1]]))
    answers = "that of its answer" if most == "1" else f"the mean of its {most} sampled answers"
    methods = list(dict.fromkeys(g.delta.method for g in groups if g.delta.method))
    tests = text.listed(list(dict.fromkeys(g.test for g in groups)))
    told = {
        "Join": "By id, and the prompts or targets of all pairs were seen to be equal." if comparison.joined.verified
        else "By id. That both sides answered the same questions could not be verified for all items.",
        "Difference": f"After minus before; an item's score is {answers}, a group's the mean of its items.",
"Intervals": f"{text.listed(methods)}; seed {comparison.seed}; level {comparison.level:.0%}.",
        "All groups": "The unweighted mean of the groups; items are resampled within groups.",
        "Test": f"{tests}. Holm's p over the groups decides the verdict, Benjamini and Hochberg's q stands beside it.",
        "Detectable": "The smallest true difference that is found with 80% power, at this number of items and after Holm.",
        "Lost, won": f"Items whose score fell to {scale.score(comparison.threshold)} or below, or rose above it.",
    } | {f"{ICONS[v]} {v}": f"{meaning}." for v, meaning in MEANINGS.items()}  # fmt: skip
    told[f"{ICONS['unchanged']} unchanged"] += f" The margin is ±{scale.size(whole.margin)}{scale.unit}."
    if any(g.noise_floor is not None for g in groups):
        told["Noise floor"] = "The difference that two runs of one checkpoint exceed once in twenty times."
    return list(told.items())
