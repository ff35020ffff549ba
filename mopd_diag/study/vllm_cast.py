"""How far vLLM's sampling of a cast's student is from the torch trainer of the same weights (`docs/served.md`).

Axis letters: T sampled tokens, N answers, S sums of one answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.importance import OUTSIDE
from mopd_diag.models.loading import Loaded
from mopd_diag.models.outline import read_outline
from mopd_diag.prompts import Prompt
from mopd_diag.types import Estimate, Finding

GAP = 0.1
"""Nats a token of mean |log π − log μ|: bf16 sampling against an fp32 trainer was measured at 0.04 (`docs/served.md`)."""


def sampler_mismatch(student: Loaded, prompts: Sequence[Prompt], seed: int, *, max_new_tokens: int = 128) -> Finding:
    """Answers of the student sampled by vLLM at temperature 1, their returned log-probabilities against those of the torch model.

    vLLM chooses its precision, as it would for a trainer's rollouts: bf16 for fp32 weights too. Raises BadInput when vLLM is not
    installed, the student is an adapter or a GGUF file, a prompt fills the context, or no answer has a token.
    """
    import torch

    from mopd_diag.engines.likelihood import answer_logp
    from mopd_diag.engines.vllm import VLLMEngine

    tokenizer, context = student.tokenizer, read_outline(student.path).context
    ids = tokenizer.encode_all([p.prompt for p in prompts])
    limits = room_for(prompts, ids, context, max_new_tokens)
    longest = max(len(p) + n for p, n in zip(ids, limits, strict=True))
    engine = VLLMEngine(student.path, max_logprobs=1, context=longest + 1)
    try:
        drawn = engine.sample(ids, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, max_new_tokens=limits, seed=seed)
    finally:
        engine.close()
    trained_T = torch.cat(answer_logp(drawn, student.model)).numpy()
    answer_T = drawn.own_NL.nonzero()[:, 0].numpy()
    sampler = f"vLLM {engine.version} in {engine.dtype}"
    return mismatch_finding(trained_T, drawn.logp_NL[drawn.own_NL].numpy(), answer_T, seed, sampler=sampler)


def room_for(prompts: Sequence[Prompt], ids: Sequence[list[int]], context: int | None, most: int) -> list[int]:
    """How many tokens each answer may have. Raises BadInput for a prompt that leaves no room for one."""
    if context is None:
        return [most] * len(ids)
    # vLLM wants room for one token more than prompt and answer have.
    limits = [min(most, context - 1 - len(row)) for row in ids]
    for prompt, row, limit in zip(prompts, ids, limits, strict=True):
        if limit < 1:
            raise BadInput(
                f"prompt '{prompt.id}' has {len(row)} tokens, and with an answer's first vLLM takes at most {context - 1} of the "
                f"student's context of {context}; leave the prompt out"
            )
    return limits


def mismatch_finding(
    trainer_T: np.ndarray, sampler_T: np.ndarray, answer_T: np.ndarray, seed: int, *, sampler: str = "the sampler"
) -> Finding:
    """From log π and log μ of the sampled tokens, nats, and the answer of each; answers are resampled, never tokens.

    `sampler` names who sampled, in what precision."""
    log_w_T = np.asarray(trainer_T, dtype=float) - np.asarray(sampler_T, dtype=float)
    if not len(log_w_T) or not np.isfinite(log_w_T).all():
        raise BadInput(
            f"got {len(log_w_T)} sampled tokens, {int((~np.isfinite(log_w_T)).sum())} of them without a finite log-probability; expected "
            "some, all finite: is the checkpoint whole?"
        )
    w_T = np.exp(log_w_T)
    beyond_T = (w_T < OUTSIDE[0]) | (w_T > OUTSIDE[1])
    columns = [np.ones(len(w_T)), np.abs(log_w_T), -log_w_T, w_T, w_T**2, beyond_T]
    sums_NS = np.stack([np.bincount(answer_T, c) for c in columns], 1)
    sums_NS = sums_NS[sums_NS[:, 0] > 0]
    drawn = Bootstrap.of(sums_NS, seed=seed, bounds=None)
    gap = drawn.estimate(lambda m: m[..., 1] / m[..., 0], unit="nats a token", note="mean |log π − log μ|")
    more: dict[str, Estimate] = {
        "kl": drawn.estimate(lambda m: m[..., 2] / m[..., 0], unit="nats a token", note="KL(sampler ‖ trainer)"),
        "effective": drawn.estimate(lambda m: m[..., 3] ** 2 / (m[..., 0] * m[..., 4]), note="effective sample size"),
        # A mean over answers has bounds, and so an interval even where no token lies outside.
        "outside": Bootstrap.of(sums_NS[:, 5] / sums_NS[:, 0], seed=seed).column(
            0,
            note=f"of an answer's tokens with a weight outside [{OUTSIDE[0]}, {OUTSIDE[1]}], which MOPD drops by default",
        ),
    }
    verdict = "differs" if gap.low > GAP else "agrees" if gap.high < GAP else "undetermined"
    note = f"mean gap of {sampler} and the trainer against a limit of {GAP} nats, {len(w_T)} tokens of {len(sums_NS)} answers"
    return Finding(
        "preflight-sampler-mismatch", "preflight", "student", verdict, "warning" if verdict == "differs" else "info", gap,
        {"tokens": len(w_T), "sampler": sampler, **{n: e.to_dict() for n, e in more.items()}, "note": note},
    )  # fmt: skip
