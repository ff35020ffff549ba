"""What questions about a student's consistency read, and the rule that turns a share and its controls into a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mopd_diag.diagnostics.provenance import label_of
from mopd_diag.errors import BadInput
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Estimate

CONFLICT, CONSISTENT, INCONSISTENT, UNDETERMINED = "conflict", "consistent", "inconsistent", "undetermined"
TOLERANCE = 0.05
"""A share whose interval's low end is not above this is too rare to be called a conflict."""
LITTLE = 0.10
"""A share whose interval's high end is below this is called consistent."""
FEWEST = 8
"""Items (or groups of them) below which there is no verdict."""
EXAMPLES = 3
ITEM = ["domain", "item_id"]
KEY = [*ITEM, "sample"]


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a run knows of its student: answers of the whole cast, and attributions of the student and of teacher-free controls.

    `records`: the contract's columns, one row a sampled answer of any model. `route`: domain -> teacher. `answers` and `tokens`:
    model -> attributed answers and trace (the student first, then the `controls` that were traced). `compared`: models whose
    records stand beside the student's, base first. `attributed`: all attributed answers of the student, failures included.
    """

    records: pd.DataFrame
    route: Mapping[str, str]
    teachers: tuple[str, ...]
    answers: Mapping[str, pd.DataFrame]
    tokens: Mapping[str, pd.DataFrame]
    controls: tuple[str, ...] = ()
    compared: tuple[str, ...] = ("base",)
    attributed: pd.DataFrame | None = None
    student: str = "student"
    base: str = "base"

    def __post_init__(self) -> None:
        wanted = {"model", *KEY, "prompt", "target_hash", "response", "score"}
        for name, frame, columns in (
            ("records", self.records, wanted), *(("answers", a, {*KEY, "label", "set", "confidence"}) for a in self.answers.values()),
            *(("tokens", t, {*KEY, "position", "token", "label", "kl_base"}) for t in self.tokens.values()),
        ):  # fmt: skip
            if columns - set(frame.columns):
                raise BadInput(
                    f"consistency needs {name} with {sorted(columns)}, got no {sorted(columns - set(frame.columns))}"
                )

    @classmethod
    def of(cls, run: RunDirectory) -> Material:
        """From a finished run whose student was traced."""
        manifest = run.manifest()
        roles = {m: t["role"] for m, t in manifest["models"].items()}
        traced = [n for n in ("student", *manifest.get("controls", ())) if n in run.trace_names()]
        answers = {n: run.attribution(n) for n in traced}
        drawn = {n: a[a["drawn"]] if "drawn" in a.columns else a for n, a in answers.items()}
        tokens = {n: run.trace(n).merge(a[KEY], on=KEY) for n, a in drawn.items()}
        beside = [m for role in ("base", "rival", "control") for m, r in roles.items() if r == role]
        return cls(
            run.records(*(m for m, r in roles.items() if r != "checkpoint")), manifest.get("route") or {},
            tuple(m for m, r in roles.items() if r == "teacher"), drawn, tokens, tuple(traced[1:]), tuple(beside), answers.get("student"),
        )  # fmt: skip

    def items(self) -> pd.DataFrame:
        """The student's items, one row each, in the order of its records: domain, item_id, prompt, target_hash, perhaps group."""
        own = self.records[self.records["model"] == self.student]
        columns = [*ITEM, "prompt", "target_hash", *(["group"] if "group" in own.columns else [])]
        return own[columns].drop_duplicates(ITEM).reset_index(drop=True)


def settle(share: Estimate, excess: Mapping[str, Estimate]) -> tuple[str, str]:
    """A verdict on how often something happens, and why; `excess`: model without teachers -> how much oftener than in that model."""
    if not share.defined:
        return UNDETERMINED, share.note
    if share.n_clusters < FEWEST:
        return UNDETERMINED, f"only {share.n_clusters} to go by, {FEWEST} are asked for"
    if share.high < LITTLE:
        return CONSISTENT, f"surely less than {LITTLE:.0%}"
    if share.low <= TOLERANCE:
        return UNDETERMINED, "the interval allows hardly any and many"
    if not excess:
        return UNDETERMINED, "no model without teachers was looked at beside it"
    alike = [n for n, e in excess.items() if not e.defined or e.low <= 0]
    if alike:
        return UNDETERMINED, f"not surely oftener than in {' and '.join(alike)}, without teachers"
    return CONFLICT, f"oftener than in {' and '.join(excess)}, without teachers"


def told(share: Estimate) -> str:
    """`12% [8, 17]`, or why it is unknown."""
    if not share.defined:
        return f"an unknown share ({share.note})"
    return f"{share.value:.0%} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def per_item(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Mean of each column over the answers to one item, indexed by domain and item."""
    return frame.groupby(ITEM, sort=False)[list(columns)].mean().astype(float)


def commonest(records: pd.DataFrame) -> pd.Series:
    """The commonest answer of one model to each item, the first in the alphabet among equally common ones."""
    counts = (
        records.assign(answer=records["response"].astype(str).str.strip()).groupby([*ITEM, "answer"]).size().rename("n")
    )
    ranked = counts.reset_index().sort_values(["n", "answer"], ascending=[False, True], kind="stable")
    return ranked.groupby(ITEM)["answer"].first()


def short(teacher: str) -> str:
    """`teacher-math` -> `math`, as labels and sets write it."""
    return label_of(teacher).partition(":")[2]


def plain(table: Mapping[str, Estimate]) -> dict[str, Any]:
    """Estimates for evidence, short: what they rest on is the finding's own estimate's."""
    kept = ("value", "low", "high", "unit", "n_items", "n_clusters", "note")
    return {name: {k: v for k, v in e.to_dict().items() if k in kept and v != ""} for name, e in table.items()}
