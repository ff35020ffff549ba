"""Sampling from a model in training with vLLM: its weights go over as a checkpoint before each batch, and the engine stays.

What vLLM returns is log μ of the distribution that it sampled from. Its kernels are not the trainer's, so μ differs a little from the
trainer's π even with the same weights: the truncated weight of MOPD's sampled form exists for that (2601.02780).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.engines.vllm import VLLMEngine
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer

GPU_SHARE = 0.4
"""Of a GPU's memory for vLLM; weights in training, gradients and moments need the rest."""


class VLLMSampler:
    """One engine for all models of a job; it starts with the first batch."""

    def __init__(self, context: int, dtype: str) -> None:
        """`context`: tokens of the longest prompt with its answer. `dtype`: "float32" or "bfloat16"."""
        self.context, self.dtype = context, dtype
        self._engine: VLLMEngine | None = None

    def sample(
        self, model: Decoder, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], *,
        max_new_tokens: Sequence[int], temperature: float, n: int, seed: int,
    ) -> Rollouts:  # fmt: skip
        """`n` answers to each prompt from the weights that `model` has now, rows of one prompt together.

        Raises BadInput when vLLM is absent or does not take the model.
        """
        with tempfile.TemporaryDirectory(prefix="mopd-diag-weights-") as folder:
            weights = Path(folder) / "model"
            save_checkpoint(model, tokenizer, weights)
            if self._engine is None:
                share = {"gpu_memory_utilization": GPU_SHARE} if torch.cuda.is_available() else {}
                self._engine = VLLMEngine(
                    weights, dtype=self.dtype, max_logprobs=1, context=self.context + 1, eager=True, **share
                )
            else:
                self._engine.reload(weights)
        return self._engine.sample(
            [p for p in prompts for _ in range(n)], eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
            max_new_tokens=[m for m in max_new_tokens for _ in range(n)], temperature=temperature, seed=seed,
        )  # fmt: skip

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


_SAMPLER: ContextVar[VLLMSampler | None] = ContextVar("sampler", default=None)


def sampler() -> VLLMSampler | None:
    """Who samples in here; None: our own decoder."""
    return _SAMPLER.get()


@contextmanager
def sampled_by(chosen: VLLMSampler | None) -> Iterator[None]:
    """Within it, answers are sampled by `chosen`, which is closed at the end."""
    token = _SAMPLER.set(chosen)
    try:
        yield
    finally:
        _SAMPLER.reset(token)
        if chosen is not None:
            chosen.close()
