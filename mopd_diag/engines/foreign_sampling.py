"""Sampling from architectures the fast decoder does not compute, through `transformers`' own generation loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import GenerationConfig

from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.models.foreign import ForeignModel


def sample_foreign(
    model: ForeignModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int | Sequence[int],
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
) -> Rollouts:
    """Sample one answer to each prompt from the model's plain distribution: no top-k, top-p or penalty of its own settings.

    Arguments as `engines.sampling.sample`. Prompts are padded on the left and masked; log-probabilities are not kept (NaN).
    Raises ValueError for an empty prompt, a temperature below 0, or sampling without a generator.
    """
    if temperature < 0 or (temperature > 0 and generator is None):
        raise ValueError(f"temperature {temperature} needs to be 0, or positive with a generator")
    if not prompts or min(len(p) for p in prompts) == 0:
        raise ValueError("every prompt needs at least one token")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    answers: list[list[int]] = [[]] * len(prompts)
    device = model.device
    # The loop draws from the device's global source, which is put back afterwards.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
        # One limit at a time: a longer one would run a long prompt over the end of its positions.
        for limit in sorted(set(limits)):
            rows = [r for r, each in enumerate(limits) if each == limit]
            drawn = _generate(model, [prompts[r] for r in rows], eos_id, pad_id, limit, temperature)
            for row, ids in zip(rows, drawn, strict=True):
                answers[row] = ids
    rollouts = pack(prompts, answers, pad_id)
    return replace(rollouts, finished_N=torch.tensor([a[-1] == eos_id for a in answers]))


def _generate(
    model: ForeignModel, prompts: Sequence[Sequence[int]], eos_id: int, pad_id: int, limit: int, temperature: float
) -> list[list[int]]:
    width = max(len(p) for p in prompts)
    left = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    plain = GenerationConfig(max_new_tokens=limit, eos_token_id=eos_id, pad_token_id=pad_id, do_sample=temperature > 0)
    if temperature > 0:
        plain.update(temperature=temperature, top_k=0, top_p=1.0)
    model.model.generation_config = plain  # else the checkpoint's own settings would fill in what is not set here
    with torch.inference_mode():
        ids = model.model.generate(input_ids=left, attention_mask=mask, generation_config=plain)
    return [row[: row.index(eos_id) + 1] if eos_id in row else row for row in ids[:, width:].tolist()]
