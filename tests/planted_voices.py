"""A small cast whose answers and labels follow rules: what the tests of consistency plant their faults in."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable

import pandas as pd

from mopd_diag.diagnostics.consistency import Material
from mopd_diag.types import Finding, Item
from mopd_diag.worlds.micro import DOMAINS

MATH, STYLE = "teacher-math", "teacher-style"
TEACHERS = (MATH, STYLE)
ROUTE = {"addition": MATH, "reversed": STYLE}
NULL = "rival-mixed-rl"
Says = Callable[[Item, int], str]


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def items_of(domain: str, n: int) -> list[Item]:
    return DOMAINS[domain].distinct("eval", n, random.Random(domain))


def records(items: list[Item], samples: int = 2, **says: Says) -> pd.DataFrame:
    """What each model (`_` for `-`) says to each item, by a rule."""
    rows = []
    for model, rule in says.items():
        for item in items:
            for sample in range(samples):
                response = rule(item, sample)
                rows.append({
                    "model": model.replace("_", "-"), "domain": item.domain, "item_id": item.item_id, "sample": sample,
                    "prompt": item.prompt, "target_hash": digest(item.target), "response": response,
                    "score": DOMAINS[item.domain].score(item.prompt, item.target, response),
                })  # fmt: skip
    return pd.DataFrame(rows)


def right(item: Item, sample: int) -> str:
    return item.target


def flipped(item: Item, sample: int) -> str:
    """The answer of the other order: what `reversed` wants of a sum, and the other way round."""
    head, _, tail = item.target.partition("=")
    return f"{head}={tail[::-1]}"


def attributed(table: pd.DataFrame, model: str, label: Callable[[pd.Series], str]) -> pd.DataFrame:
    own = table[(table["model"] == model) & (table["sample"] == 0)].reset_index(drop=True)
    return own.assign(label=[label(r) for _, r in own.iterrows()], set="", confidence=0.9, share_own=0.1, drawn=True)


def tokens(answers: pd.DataFrame, label: Callable[[pd.Series, int], str]) -> pd.DataFrame:
    rows = []
    for _, a in answers.iterrows():
        for position, token in enumerate([*a["response"], "<eos>"]):
            rows.append({
                **{k: a[k] for k in ("domain", "item_id", "sample")}, "position": position, "token": token, "label": label(a, position),
                "kl_base": 0.2, "confidence": 0.8, "sampled": True,
            })  # fmt: skip
    return pd.DataFrame(rows)


def routed(row: pd.Series) -> str:
    return f"teacher:{ROUTE[row['domain']].removeprefix('teacher-')}"


def material(
    table: pd.DataFrame, student: pd.DataFrame, control: pd.DataFrame | None = None, *,
    spoken: Callable[[pd.Series, int], str] | None = None, route: dict[str, str] | None = None,
) -> Material:  # fmt: skip
    plain = spoken or (lambda row, position: row["label"])
    answers = {"student": student} | ({} if control is None else {NULL: control})
    traces = {n: tokens(a, plain if n == "student" else lambda row, position: row["label"]) for n, a in answers.items()}
    models = set(table["model"])
    compared = tuple(m for m in ("base", NULL) if m in models)
    controls = () if control is None else (NULL,)
    return Material(table, ROUTE if route is None else route, TEACHERS, answers, traces, controls, compared, student)


def by_id(found: list[Finding]) -> dict[str, Finding]:
    assert all(f.kind == "attribution" and f.id.startswith("consistency-") for f in found)
    json.dumps([f.to_dict() for f in found], allow_nan=False)
    return {f.id.removeprefix("consistency-"): f for f in found}
