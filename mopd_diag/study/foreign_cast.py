"""Casts whose members have different tokenizers: each reads the same text in its own tokens, and likelihoods of the same bytes meet.

Axis letters: A answers, S aligned spans, M members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from mopd_diag.diagnostics.aligned import attribute_spans
from mopd_diag.diagnostics.attribution import Attribution
from mopd_diag.engines.likelihood import answer_logp
from mopd_diag.engines.rollouts import pack
from mopd_diag.errors import BadInput
from mopd_diag.estimators.alignment import boundaries, byte_offsets, common, span_sums
from mopd_diag.estimators.span_likelihood import Aligned
from mopd_diag.models.loading import Loaded
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.prompts import Prompt
from mopd_diag.study.answers import Told, context_of, frame_of, leave_out


@dataclass(frozen=True, slots=True)
class Read:
    """One prompt and its answer in one member's tokens; `offsets` are characters [start, end) of the answer."""

    prompt_ids: list[int]
    answer_ids: list[int]
    offsets: list[tuple[int, int]]


def attribute_aligned(
    loaded: Mapping[str, Loaded], teachers: Sequence[str], prompts: Sequence[Prompt], routed: Mapping[str, str], told: Told, say: Told
) -> Attribution:  # fmt: skip
    """Attribute the student's answers by the likelihood of the same bytes under members with any tokenizers.

    `loaded`: student, base, teachers, controls. The end-of-sequence is not compared: it is another token for each. Answers that a member
    cannot read whole are left out, and teachers with NaN or infinite log-probabilities too; `say` hears both. Raises BadInput when a
    prompt cannot be encoded by a member, when student or base are broken, or when nothing is left.
    """
    read = {name: [read_text(each.tokenizer, name, p) for p in prompts] for name, each in loaded.items()}
    for name, each in loaded.items():
        context = context_of(each.model)
        whole = [r is not None for r in read[name]]
        leave_out(prompts, whole, f"not to be written in {name}'s tokens", say)
        short = [
            r is None or context is None or len(r.prompt_ids) + len(r.answer_ids) - 1 <= context for r in read[name]
        ]
        leave_out(prompts, short, f"longer than {name}'s context of {context} tokens", say)
        keep = [w and s for w, s in zip(whole, short, strict=True)]
        prompts = [p for p, k in zip(prompts, keep, strict=True) if k]
        read = {n: [r for r, k in zip(rows, keep, strict=True) if k] for n, rows in read.items()}
    rows = {name: [r for r in each if r is not None] for name, each in read.items()}
    texts = [p.response or "" for p in prompts]
    edges = [common([boundaries(rows[name][a].offsets, len(text))[0] for name in rows]) for a, text in enumerate(texts)]
    logp: dict[str, np.ndarray] = {}
    for name, each in loaded.items():
        told(f"scoring {len(prompts)} answers under {name}")
        packed = pack(
            [r.prompt_ids for r in rows[name]], [r.answer_ids for r in rows[name]], each.tokenizer.pad_id
        )  # fmt: skip
        sums = [
            span_sums(values.numpy(), r.offsets, e)
            for values, r, e in zip(answer_logp(packed, each.model), rows[name], edges, strict=True)
        ]
        logp[name] = np.concatenate(sums)
    finite = _finite(logp, loaded, teachers, say)
    left = tuple(t for t in teachers if t in finite)
    members = ("student", "base", *left, *(m for m in finite if m not in ("student", "base", *left)))
    answer_S = np.repeat(np.arange(len(edges)), [len(e) - 1 for e in edges])
    aligned = Aligned(members, left, np.stack([logp[m] for m in members], 1), answer_S)
    route = {d: t for d, t in routed.items() if t in left}
    return attribute_spans(aligned, frame_of(prompts), _pieces(texts, edges), routed=route)


def read_text(tokenizer: Tokenizer, name: str, prompt: Prompt) -> Read | None:
    """A prompt and its answer in a tokenizer's tokens; None when it has none for some of the answer.

    Prompt and answer are read as one text, and apart where a token would reach over from one into the other. Raises BadInput
    when the prompt cannot be encoded.
    """
    text = prompt.response or ""
    start = len(prompt.prompt)
    ids, offsets = tokenizer.encode_where(prompt.prompt + text)
    at, before = boundaries(offsets, start + len(text))
    if start in at and text:
        cut = int(before[np.searchsorted(at, start)])
        first, ids, offsets = ids[:cut], ids[cut:], [(a - start, b - start) for a, b in offsets[cut:]]
    else:
        first = tokenizer.encode(prompt.prompt)
        ids, offsets = tokenizer.encode_where(text)
    if not first or tokenizer.lacks(prompt.prompt, first):
        raise BadInput(
            f"prompt '{prompt.id}': {name}'s tokenizer has no tokens for all of its text, so {name} cannot be compared; leave out the "
            "prompt or the member"
        )
    covered = np.zeros(len(text) + 1, dtype=int)
    for a, b in offsets:
        covered[max(a, 0)] += 1
        covered[b] -= 1
    whole = bool((np.cumsum(covered)[: len(text)] > 0).all())
    return Read(first, ids, offsets) if whole and not tokenizer.lacks(text, ids) else None


def _finite(
    logp: Mapping[str, np.ndarray], loaded: Mapping[str, Loaded], teachers: Sequence[str], say: Told
) -> list[str]:
    """Members whose log-likelihoods are numbers."""
    broken = [name for name, x in logp.items() if not np.isfinite(x).all()]
    for name in broken:
        what = f"{name} gives NaN or infinite log-probabilities"
        if name in ("student", "base"):
            raise BadInput(f"{what}: every shift is measured from base to student; repair {loaded[name].path}")
        say(f"{what} and is left out; repair {loaded[name].path}")
    if all(t in broken for t in teachers):
        raise BadInput("no teacher with usable log-probabilities is left: there is nobody to attribute to")
    return [name for name in logp if name not in broken]


def _pieces(texts: Sequence[str], edges: Sequence[np.ndarray]) -> pd.DataFrame:
    """One row an aligned span: its text, its position among the answer's spans, its bytes [byte_start, byte_end)."""
    rows = [
        (text[a:b], i, where[a], where[b])
        for text, edge in zip(texts, edges, strict=True)
        for where in (byte_offsets(text),)
        for i, (a, b) in enumerate(pairwise(edge.tolist()))
    ]
    frame = pd.DataFrame(rows, columns=["token", "position", "byte_start", "byte_end"])
    return frame.astype({"position": int, "byte_start": int, "byte_end": int})
