"""The most telling failures, token by token: which answers to show, and who explains each of their tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mopd_diag.reporting import text
from mopd_diag.reporting.look import LABELS, LIGHT, WORLD, Cast
from mopd_diag.reporting.reading import Case

IDENTITY = ["item_id", "sample"]
PREFIXES = ("logp_", "kl_", "share_")
WINDOW = 160  # tokens shown of a long answer


@dataclass(frozen=True)
class Token:
    """One token of an answer. `key` names the colour of its label, `mark` its letters; tables are by member."""

    position: int
    shown: str
    label: str
    key: str
    mark: str
    confidence: float
    logp: dict[str, float]
    kl: dict[str, float]
    share: dict[str, float]
    pivot: bool = False
    named: str = ""

    @property
    def about(self) -> str:
        """Everything about the token in one line, for hovering."""
        sure = "" if math.isnan(self.confidence) else f", confidence {text.percent(self.confidence)}"
        logp = ", ".join(f"{m} {text.fixed(v, 2)}" for m, v in self.logp.items() if v == v)
        named = f" ({self.named.replace('+', ', ')})" if self.named else ""
        return f"{LABELS.get(self.label, self.label)}{named}{sure}" + (f" · log-probability: {logp}" if logp else "")


@dataclass(frozen=True)
class Attempt:
    """How one model did on the failed item: its most common answer, and how many of its samples were right."""

    model: str
    response: str
    right: int
    samples: int


@dataclass(frozen=True)
class Failure:
    """One failed answer of the student with its tokens and with what the other models answered."""

    item_id: str
    sample: int
    domain: str
    prompt: str
    response: str
    label: str
    confidence: float
    routed: str | None
    tokens: list[Token]
    attempts: list[Attempt]
    case: Case | None = None
    n_tokens: int = 0

    @property
    def cut(self) -> str:
        """Which part of a long answer is shown; empty when all of it is."""
        if len(self.tokens) == self.n_tokens:
            return ""
        return f"Tokens {self.tokens[0].position + 1} to {self.tokens[-1].position + 1} of {self.n_tokens} are shown."

    @property
    def story(self) -> str:
        """How the base, the routed teacher and the student do on this item, in one sentence."""
        by_model = {a.model: a for a in self.attempts}
        told = [m for m in (self.routed, "student", "base") if m in by_model]
        rates = [f"{by_model[m].right} of {by_model[m].samples} by {m}" for m in told if m is not None]
        return f"Samples solved: {', '.join(rates)}." if rates else ""


def failures(
    trace: pd.DataFrame,
    records: pd.DataFrame,
    cast: Cast,
    cases: Sequence[Case] = (),
    *,
    model: str = "student",
    limit: int = 6,
) -> list[Failure]:
    """Up to `limit` failures of `model`: those that `cases` name first, then the surest labelled ones of each domain in turn."""
    own = records[records["model"] == model]
    failed = own[own["score"] < 1].set_index(IDENTITY)
    failed = failed[~failed.index.duplicated()]
    answers = _answers(trace)
    known = answers.index.intersection(failed.index)
    named = {(c.item_id, c.sample): c for c in cases}
    ranked = answers.loc[known].assign(domain=failed.loc[known, "domain"])
    shown = [c for c in cases if (c.item_id, c.sample) in known]
    turns = Counter[str]()
    order = {}
    for case in shown:  # one case of each domain before the second of any
        order[case.item_id, case.sample] = turns[case.finding.subject]
        turns[case.finding.subject] += 1
    chosen = sorted(order, key=lambda k: order[k])
    chosen += [k for k in _in_turn(ranked) if k not in order]
    rows = {k: g for k, g in trace.groupby(IDENTITY, sort=False) if k in set(chosen[:limit])}
    found = []
    for key in chosen[:limit]:
        record, answer, case = failed.loc[key], answers.loc[key], named.get(key)
        pivot = case.pivot if case is not None else None
        found.append(Failure(
            str(key[0]), int(key[1]), str(record["domain"]), str(record["prompt"]), str(record["response"]),
            cast.member(str(answer["label"])), float(answer["confidence"]), cast.routed(str(record["domain"])),
            window(tokens_of(rows[key], cast, pivot)), attempts(records[records["item_id"] == key[0]], cast), case, len(rows[key]),
        ))  # fmt: skip
    return found


def _answers(trace: pd.DataFrame) -> pd.DataFrame:
    """Label and confidence of each traced answer: the answer-level columns, or its most confident labelled token."""
    columns = {"label": "answer_label", "confidence": "answer_confidence"}
    if set(columns.values()) <= set(trace.columns):
        found = trace.groupby(IDENTITY, sort=False)[list(columns.values())].first()
        return found.rename(columns={v: k for k, v in columns.items()})
    frame = trace.assign(label=trace.get("label", "abstain"), confidence=trace.get("confidence", math.nan))
    order = frame["confidence"].fillna(-1).sort_values(ascending=False, kind="stable").index
    return frame.loc[order].groupby(IDENTITY, sort=False)[["label", "confidence"]].first()


def _in_turn(ranked: pd.DataFrame) -> list[tuple[str, int]]:
    """Answers by domain in turn, each domain's surest label first, labels that say nothing last."""
    if ranked.empty:
        return []
    says = ~ranked["label"].isin(["abstain", "several", "pre-existing"])
    order = ranked.assign(says=says, confidence=ranked["confidence"].fillna(0))
    order = order.sort_values(["says", "confidence"], ascending=False, kind="stable")
    order["turn"] = order.groupby("domain", sort=False).cumcount()
    return [(str(i), int(s)) for i, s in order.sort_values("turn", kind="stable").index]


def window(tokens: list[Token], size: int = WINDOW) -> list[Token]:
    """The part of a long answer around its pivot, or else around its surest token."""
    if len(tokens) <= size:
        return tokens
    centre = max(
        range(len(tokens)),
        key=lambda i: (tokens[i].pivot, -1.0 if math.isnan(tokens[i].confidence) else tokens[i].confidence),
    )
    start = min(max(0, centre - size // 2), len(tokens) - size)
    return tokens[start : start + size]


def tokens_of(rows: pd.DataFrame, cast: Cast, pivot: object = None) -> list[Token]:
    """The tokens of one answer with the winning member of each."""
    tokens = []
    for row in rows.sort_values("position").to_dict("records"):
        tables = [_table(row, prefix, cast) for prefix in PREFIXES]
        label = row.get("label") or max(tables[2], key=lambda m: tables[2][m], default="abstain")
        member = cast.member(str(label)) if row.get("sampled", True) else WORLD
        tokens.append(Token(
            int(row["position"]), text.visible(str(row.get("token", "")), spaces=True) or "∅", member, LIGHT.key(cast, member),
            cast.mark(member), float(row.get("confidence", math.nan)), *tables, pivot=row["position"] == pivot,
            named=str(row.get("set") or ""),
        ))  # fmt: skip
    return tokens


def _table(row: dict[str, object], prefix: str, cast: Cast) -> dict[str, float]:
    """The columns of one prefix by member, in the order of the cast."""
    found = {
        cast.column(str(c)[len(prefix) :]): float(v)
        for c, v in row.items()
        if str(c).startswith(prefix) and isinstance(v, float)
    }
    order = [*cast.roles, *LABELS]
    return dict(sorted(found.items(), key=lambda kv: order.index(kv[0]) if kv[0] in order else len(order)))


def attempts(rows: pd.DataFrame, cast: Cast) -> list[Attempt]:
    """Every model's answers to one item, in the order of the cast."""
    found = []
    for model in cast.roles:
        own = rows[rows["model"] == model]
        if len(own):
            common = str(own["response"].value_counts(sort=True).index[0])
            found.append(Attempt(model, common, int((own["score"] >= 1).sum()), len(own)))
    return found
