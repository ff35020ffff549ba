"""Which teacher does an answer come from? Token-level evidence -> classes of tokens, spans and answers, as data frames.

Axis letters: T tokens, N groups, K teachers, M members, A answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mopd_diag.diagnostics.calibration import Calibration, packaged
from mopd_diag.diagnostics.provenance import findings, label_of
from mopd_diag.errors import BadInput
from mopd_diag.estimators.attribution import Pooled, contested, pool, project_out_base, responsibilities, total_logp
from mopd_diag.estimators.evidence import Evidence, Ints
from mopd_diag.estimators.judgement import ABSTAIN, TEACHER, Judgement, Rules, decide, judge
from mopd_diag.estimators.origin import around, origin, take

__all__ = ["Attribution", "attribute", "findings", "label_of"]

ANSWER_COLUMNS = ("item_id", "sample", "domain")


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """The attribution of one model's answers; frames as `docs/attribution.md` lists them.

    `tokens`: the contract's trace, one row a token. `spans`: neighbouring tokens of one class. `answers`: one row an answer,
    with the baselines' picks. `calibration` is `calibrated` or `uncalibrated`. `full_vocabulary` is None when the models share none;
    `evidence` says what the labels rest on, `notes` what was left out or is to be kept in mind.
    """

    subject: str
    teachers: tuple[str, ...]
    tokens: pd.DataFrame
    spans: pd.DataFrame
    answers: pd.DataFrame
    full_vocabulary: bool | None = True
    calibration: str = "uncalibrated"
    evidence: str = "token distributions"
    notes: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> str:
        """`full`, `top-k`, or `none` when the models share no vocabulary."""
        return "none" if self.full_vocabulary is None else "full" if self.full_vocabulary else "top-k"

    def summary(self) -> dict[str, float]:
        """Share of the answers in each class, classes without answers included; empty without answers."""
        counts = self.answers["label"].value_counts(normalize=True)
        labels = [*(label_of(t) for t in self.teachers), "several", "pre-existing", "own", ABSTAIN]
        return {label: float(counts.get(label, 0.0)) for label in labels} if len(self.answers) else {}

    def to_dict(self) -> dict[str, Any]:
        """The document of `mopd-diag attribute --json`; shares are null where the model did not move from its base."""
        spans = {int(a): rows for a, rows in self.spans.groupby("answer", sort=False)}
        return {
            "summary": self.summary(),
            "items": [self._item(row, spans.get(i)) for i, row in enumerate(self.answers.to_dict("records"))],
            "subject": self.subject,
            "vocabulary": self.vocabulary,
            "evidence": self.evidence,
            "calibration": self.calibration,
            "notes": list(self.notes),
        }

    def _item(self, row: dict[str, Any], spans: pd.DataFrame | None) -> dict[str, Any]:
        names = {label_of(t).partition(":")[2]: t for t in self.teachers}
        columns = ["start", "end", "text", "label", "set", "confidence"]
        return {
            "id": str(row["item_id"]),
            "sample": int(row["sample"]),
            "label": row["label"],
            "set": row["set"].split("+") if row["set"] else [],
            "confidence": float(row["confidence"]),
            "reason": row["reason"],
            "shares": {n: _number(row[f"share_{c}"]) for n, c in ({**names, "own": "own"}).items()},
            "baselines": {b: row[f"baseline_{b}"] or None for b in ("routed", "closest", "likelihood")},
            "spans": [] if spans is None else spans[columns].to_dict("records"),
        }


def attribute(
    evidence: Evidence, answers: pd.DataFrame, tokens: pd.DataFrame | tuple[Sequence[int], Sequence[str]], *,
    routed: Mapping[str, str] | None = None, rules: Rules | None = None, calibration: Calibration | None = None,
) -> Attribution:  # fmt: skip
    """Attribute every token, span and answer of `evidence`.

    With decoys among the members, classes and confidences are probabilities learned from casts of known provenance (`calibration`;
    by default the packaged one), and what one answer cannot tell is asked of the other answers of its domain. Without decoys, or
    with top-k evidence, they follow fixed rules and are not calibrated.

    `answers`: one row an answer, in the order of the answer index: item_id, and sample, domain, prompt, response, score where
    known. `tokens`: token_id and token (the text it writes) of each row of the evidence. `routed`: domain -> the teacher, by its
    full member name, to which the domain's prompts were routed. Raises BadInput when these do not fit together.
    """
    rules = rules or Rules()
    answers, frame = _checked(evidence, answers, tokens, routed or {})
    shifts = project_out_base(np.where(evidence.own_T[:, None, None], evidence.gram_TJJ, 0))
    mask = contested(evidence, moved=rules.moved_token)
    pooled = pool(evidence, evidence.answer_T, len(answers), mask=mask, shifts_TRR=shifts)
    judging = _Judging(rules, _calibrated(evidence, calibration), around(pooled, _places(answers)))
    each = np.arange(len(frame))
    by_token = judging(pool(evidence, each, len(frame), shifts_TRR=shifts), evidence.answer_T, rules.moved_token)
    span_T, by_span = each, by_token
    while True:
        joined_T = joined(evidence, span_T, by_span)
        n_spans = int(joined_T.max(initial=-1)) + 1
        stable = n_spans == len(by_span.kind_N)
        answer_N = np.zeros(n_spans, dtype=int)
        answer_N[joined_T] = evidence.answer_T
        spans = pool(evidence, joined_T, n_spans, mask=mask, shifts_TRR=shifts)
        span_T, by_span = joined_T, judging(spans, answer_N, rules.moved)
        if stable:
            break
    by_answer = judging(pooled, np.arange(len(answers)), rules.moved)
    judged = _answers(evidence, answers, pooled, by_answer, routed or {}, judging.told)
    return Attribution(
        evidence.subject, evidence.teachers, _trace(evidence, frame, by_token, judged, mask),
        _spans(evidence, frame, by_span, span_T, answers), judged, evidence.full_vocabulary, judging.told,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Judging:
    """Judges groups of any size: by rules, or, with a calibration, by probabilities given what surrounds each group's answer."""

    rules: Rules
    calibration: Calibration | None
    near_A: Pooled

    @property
    def told(self) -> str:
        return "calibrated" if self.calibration else "uncalibrated"

    def __call__(self, pooled: Pooled, answer_N: Ints, moved: float) -> Judgement:
        judged = judge(pooled, self.rules, moved=moved)
        if self.calibration is None:
            return judged
        found = origin(pooled, take(self.near_A, answer_N), self.calibration.model)
        sure = self.calibration.sure
        return decide(judged, pooled, found, sure=sure["teacher"], sure_own=sure["own"], moved=moved)


def _calibrated(evidence: Evidence, calibration: Calibration | None) -> Calibration | None:
    return (calibration or packaged()) if evidence.decoys and evidence.full_vocabulary else None


def _places(answers: pd.DataFrame) -> Ints:
    """The domain of each answer as a number; an answer without one stands by itself."""
    known = answers["domain"] != ""
    names = answers["domain"].where(known, [f"\0{i}" for i in range(len(answers))])
    return names.factorize()[0]


def joined(evidence: Evidence, group_T: Ints, judged: Judgement) -> Ints:
    """Neighbouring groups of one class and set in one answer as one group: new ids (T), in order.

    Token flags spill onto neighbours (the end of an answer after a marker), and tokens too thin to judge lie between: a group that
    was abstained on goes with both neighbours when these are of one class. Tokens that the world wrote stay apart.
    """
    kinds = np.unique(judged.kind_N, return_inverse=True)[1]
    codes = np.unique(np.column_stack([kinds, judged.set_NK]), axis=0, return_inverse=True)[1].reshape(-1)
    code = codes[group_T].astype(float)
    code[(judged.kind_N == ABSTAIN)[group_T]] = np.nan
    code[~evidence.own_T] = -1
    by_answer = pd.Series(code).groupby(evidence.answer_T)
    before, after = by_answer.ffill().to_numpy(), by_answer.bfill().to_numpy()
    filled = np.nan_to_num(np.where(before == after, before, code), nan=-2)
    starts = np.diff(filled, prepend=-9) != 0
    return np.cumsum(starts | (np.diff(evidence.answer_T, prepend=-1) != 0)) - 1


def _checked(
    evidence: Evidence, answers: pd.DataFrame, tokens: pd.DataFrame | tuple[Sequence[int], Sequence[str]], routed: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    frame = (
        pd.DataFrame({"token_id": list(tokens[0]), "token": list(tokens[1])}) if isinstance(tokens, tuple) else tokens
    )
    missing = {"token_id", "token"} - set(frame.columns)
    if missing or len(frame) != len(evidence.answer_T):
        raise BadInput(
            f"expected token_id and token for each of {len(evidence.answer_T)} tokens, got {len(frame)} rows of {list(frame.columns)}"
        )
    if evidence.n_answers > len(answers) or "item_id" not in answers.columns:
        raise BadInput(
            f"expected one row with item_id for each of {evidence.n_answers} answers, got {len(answers)} of {list(answers.columns)}"
        )
    unknown = sorted(set(routed.values()) - set(evidence.teachers))
    if unknown:
        raise BadInput(f"routed teachers {unknown} are not among the candidates {list(evidence.teachers)}")
    known = answers.reset_index(drop=True)
    known = known.assign(**{c: default for c, default in (("sample", 0), ("domain", "")) if c not in known.columns})
    known["domain"] = known["domain"].fillna("").astype(str)
    extra = [c for c in ("prompt", "response", "score") if c in known.columns]
    return known[[*ANSWER_COLUMNS, *extra]], frame[["token_id", "token"]].reset_index(drop=True)


def _classes(evidence: Evidence, judged: Judgement) -> pd.DataFrame:
    """Label, set, confidence and shares of the groups."""
    teachers = np.array([t.removeprefix("teacher-") for t in evidence.teachers])
    named = np.array([label_of(t) for t in evidence.teachers])
    table: dict[str, Any] = {
        "label": np.where(judged.kind_N == TEACHER, named[judged.best_N], judged.kind_N).astype(object),
        "set": [
            "+".join(teachers[s]) if k == "several" else "" for k, s in zip(judged.kind_N, judged.set_NK, strict=True)
        ],
        "confidence": judged.confidence_N,
    }
    table |= {f"share_{t}": judged.share_NK[:, k] for k, t in enumerate(evidence.teachers)}
    return pd.DataFrame(table | {"share_own": judged.own_N})


def _answers(
    evidence: Evidence,
    answers: pd.DataFrame,
    pooled: Pooled,
    judged: Judgement,
    routed: Mapping[str, str],
    calibration: str,
) -> pd.DataFrame:
    """The answers with their classes, what these rest on, and what the baselines would have said."""
    teachers = np.array(evidence.teachers)
    columns: dict[str, Any] = {
        "reason": judged.reason_N.astype(object), "n_tokens": pooled.own_N, "n_contested": pooled.used_N, "residual": judged.joint_N,
        "unexplained_nats": pooled.unexplained_N, "decoy_margin": judged.margin_N, "kl_base": pooled.kl_base_N, "lift": pooled.lift_N,
        "inherited": judged.inherited_N,
    }  # fmt: skip
    columns |= {f"kl_{t}": pooled.kl_NK[:, k] for k, t in enumerate(teachers)}
    columns |= {f"cosine_{t}": judged.cosine_NK[:, k] for k, t in enumerate(teachers)}
    candidates = [evidence.base, *teachers]
    logp = total_logp(evidence, evidence.answer_T, len(answers))[:, evidence.columns(candidates)]
    posterior, _ = responsibilities(logp)
    columns |= {f"likelihood_{m}": posterior[:, c] for c, m in enumerate(candidates)}
    columns |= {
        "baseline_routed": [routed.get(d, "") for d in answers["domain"]],
        "baseline_closest": teachers[pooled.kl_NK.argmin(1)].astype(object),
        "baseline_likelihood": teachers[logp[:, 1:].argmax(1)].astype(object),
    }  # fmt: skip
    told = {
        "subject": evidence.subject,
        "vocabulary": "full" if evidence.full_vocabulary else "top-k",
        "calibration": calibration,
    }
    return pd.concat([answers, _classes(evidence, judged), pd.DataFrame(columns).assign(**told)], axis=1)


def _trace(
    evidence: Evidence, frame: pd.DataFrame, judged: Judgement, answers: pd.DataFrame, mask: npt.NDArray[np.bool_]
) -> pd.DataFrame:
    """The contract's trace columns, then ours."""
    of = answers.take(evidence.answer_T).reset_index(drop=True)
    columns: dict[str, Any] = {"item_id": of["item_id"], "sample": of["sample"], "position": evidence.position_T}
    columns |= {"token_id": frame["token_id"], "token": frame["token"]}
    columns |= {f"logp_{m}": evidence.logp_TM[:, i] for i, m in enumerate(evidence.members)}
    told = [evidence.base, *evidence.teachers]
    columns |= {f"kl_{m}": evidence.kl_TM[:, i] for m, i in zip(told, evidence.columns(told), strict=True)}
    classes = _classes(evidence, judged)
    columns |= {
        c: classes[c] for c in (*(f"share_{t}" for t in evidence.teachers), "share_own", "label", "confidence", "set")
    }
    columns |= {"domain": of["domain"], "answer_label": of["label"], "answer_confidence": of["confidence"]}
    return pd.DataFrame(columns | {"contested": mask, "sampled": evidence.own_T})


def _spans(
    evidence: Evidence, frame: pd.DataFrame, judged: Judgement, span_T: Ints, answers: pd.DataFrame
) -> pd.DataFrame:
    """One row a span that the model wrote: token positions [start, end) in its answer, text, class."""
    rows = pd.DataFrame(
        {
            "span": span_T,
            "answer": evidence.answer_T,
            "position": evidence.position_T,
            "token": frame["token"].astype(str),
        }
    )
    grouped = rows.assign(own=evidence.own_T).groupby("span", sort=True)
    spans = pd.DataFrame({
        "answer": grouped["answer"].first(), "start": grouped["position"].min(), "end": grouped["position"].max() + 1,
        "text": grouped["token"].agg("".join), "own": grouped["own"].first(),
    }).reset_index(drop=True)  # fmt: skip
    spans = pd.concat([spans, _classes(evidence, judged)], axis=1)
    spans = spans[spans["own"].astype(bool)].drop(columns="own").reset_index(drop=True)
    keys = answers.take(spans["answer"].to_numpy(int))[list(ANSWER_COLUMNS)].reset_index(drop=True)
    return pd.concat([keys, spans], axis=1)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
