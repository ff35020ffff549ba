"""Attribution of models that share no vocabulary: judged spans of the same bytes -> the frames of an `Attribution`.

Axis letters: S aligned spans, N groups of spans, K teachers, M members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mopd_diag.diagnostics.attribution import Attribution, label_of
from mopd_diag.estimators.attribution import responsibilities
from mopd_diag.estimators.judgement import TEACHER
from mopd_diag.estimators.span_likelihood import EVIDENCE, Aligned, SpanJudgement, judge_spans, runs


def attribute_spans(
    aligned: Aligned, answers: pd.DataFrame, pieces: pd.DataFrame, *, routed: Mapping[str, str] | None = None
) -> Attribution:
    """Attribute every aligned span, run of spans and answer by likelihood.

    `answers`: one row an answer (item_id, sample, domain, prompt, response, score). `pieces`: one row a span of `aligned`: token
    (its text), position (in its answer), byte_start, byte_end. The frames are those of `diagnostics.attribution.attribute`, with
    `evidence` beside; token ids are -1 and divergences NaN, because spans have neither. Confidence stays uncalibrated whatever
    decoys there are.
    """
    each = np.arange(len(aligned.answer_S))
    by_span = judge_spans(aligned, each, len(each))
    run_S = runs(by_span, aligned.answer_S)
    by_run = judge_spans(aligned, run_S, int(run_S.max(initial=-1)) + 1)
    judged = _answers(aligned, answers, judge_spans(aligned, aligned.answer_S, len(answers)), routed or {})
    return Attribution(
        aligned.members[0], aligned.teachers, _trace(aligned, pieces, by_span, judged), _runs(aligned, pieces, by_run, run_S, judged),
        judged, None, "uncalibrated", EVIDENCE,
    )  # fmt: skip


def _classes(aligned: Aligned, judged: SpanJudgement) -> pd.DataFrame:
    short = np.array([t.removeprefix("teacher-") for t in aligned.teachers])
    named = np.array([label_of(t) for t in aligned.teachers])
    table: dict[str, Any] = {
        "label": np.where(judged.kind_N == TEACHER, named[judged.best_N], judged.kind_N).astype(object),
        "set": ["+".join(short[s]) if k == "several" else "" for k, s in zip(judged.kind_N, judged.set_NK, strict=True)],
        "confidence": judged.confidence_N,
    }  # fmt: skip
    table |= {f"share_{t}": judged.share_NK[:, k] for k, t in enumerate(aligned.teachers)}
    return pd.DataFrame(table | {"share_own": judged.own_N})


def _answers(aligned: Aligned, answers: pd.DataFrame, judged: SpanJudgement, routed: Mapping[str, str]) -> pd.DataFrame:
    teachers = np.array(aligned.teachers, dtype=object)
    candidates = aligned.members[1 : 2 + len(teachers)]
    logp_NC = judged.total_NM[:, 1 : 2 + len(teachers)]
    posterior_NC, _ = responsibilities(logp_NC)
    nearest = judged.residual_NK.min(1) if len(answers) else np.zeros(0)
    columns: dict[str, Any] = {
        "reason": judged.reason_N.astype(object), "n_tokens": np.bincount(aligned.answer_S, minlength=len(answers)),
        "n_contested": judged.informative_N, "residual": nearest, "divergence_base": judged.divergence_base_N,
    }  # fmt: skip
    columns |= {f"residual_{t}": judged.residual_NK[:, k] for k, t in enumerate(teachers)}
    columns |= {f"logp_{m}": judged.total_NM[:, i] for i, m in enumerate(aligned.members)}
    columns |= {f"likelihood_{m}": posterior_NC[:, c] for c, m in enumerate(candidates)}
    columns |= {
        "baseline_routed": [routed.get(d, "") for d in answers["domain"]],
        "baseline_closest": teachers[np.nan_to_num(judged.residual_NK, nan=np.inf).argmin(1)],
        "baseline_likelihood": teachers[logp_NC[:, 1:].argmax(1)],
    }  # fmt: skip
    told = {"subject": aligned.members[0], "vocabulary": "none", "evidence": EVIDENCE, "calibration": "uncalibrated"}
    frame = pd.DataFrame(columns).assign(**told)
    return pd.concat([answers.reset_index(drop=True), _classes(aligned, judged), frame], axis=1)


def _trace(aligned: Aligned, pieces: pd.DataFrame, judged: SpanJudgement, answers: pd.DataFrame) -> pd.DataFrame:
    of = answers.take(aligned.answer_S).reset_index(drop=True)
    columns: dict[str, Any] = {"item_id": of["item_id"], "sample": of["sample"], "position": pieces["position"]}
    columns |= {"token_id": -1, "token": pieces["token"]}
    columns |= {f"logp_{m}": aligned.logp_SM[:, i] for i, m in enumerate(aligned.members)}
    columns |= {f"kl_{m}": np.nan for m in aligned.members[1 : 2 + len(aligned.teachers)]}
    classes = _classes(aligned, judged)
    columns |= {c: classes[c] for c in classes.columns}
    columns |= {"domain": of["domain"], "answer_label": of["label"], "answer_confidence": of["confidence"]}
    columns |= {c: pieces[c] for c in ("byte_start", "byte_end")}
    return pd.DataFrame(columns).assign(sampled=True, evidence=EVIDENCE)


def _runs(
    aligned: Aligned, pieces: pd.DataFrame, judged: SpanJudgement, run_S: np.ndarray, answers: pd.DataFrame
) -> pd.DataFrame:
    """One row a run: positions [start, end) of its spans in the answer, its bytes, text, class."""
    grouped = pieces.assign(answer=aligned.answer_S).groupby(run_S, sort=True)
    spans = pd.DataFrame({
        "answer": grouped["answer"].first(), "start": grouped["position"].min(), "end": grouped["position"].max() + 1,
        "text": grouped["token"].agg("".join), "byte_start": grouped["byte_start"].min(), "byte_end": grouped["byte_end"].max(),
    }).reset_index(drop=True)  # fmt: skip
    keys = answers.take(spans["answer"].to_numpy(int))[["item_id", "sample", "domain"]].reset_index(drop=True)
    return pd.concat([keys, spans, _classes(aligned, judged)], axis=1).assign(evidence=EVIDENCE)
