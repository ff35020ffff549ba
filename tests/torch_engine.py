"""What stands in for vLLM where it is not installed: the same face over the torch engines, with what vLLM refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.engines.sampling import sample
from mopd_diag.engines.top_tokens import TopTokens
from mopd_diag.errors import BadInput
from mopd_diag.models.checkpoint import load_decoder
from mopd_diag.models.decoder import Decoder


def log_probabilities(model: Decoder, given: Rollouts) -> np.ndarray:
    """log p of the whole vocabulary before every answer token, in order, [T, V]."""
    rows = []
    for row, p, n in zip(range(len(given)), given.prompt_N.tolist(), given.length_N.tolist(), strict=True):
        with torch.inference_mode():
            rows.append(torch.log_softmax(model(given.ids_NL[row, None, :n])[0, p - 1 : -1], -1))
    return torch.cat(rows).numpy()


def likeliest(model: Decoder, given: Rollouts, k: int) -> TopTokens:
    logp_TV = log_probabilities(model, given)
    tokens = [t for a in given.responses() for t in a]
    chosen = [{t, *np.argsort(-x)[:k].tolist()} for t, x in zip(tokens, logp_TV, strict=True)]
    return TopTokens.of(tokens, [{i: float(x[i]) for i in c} for c, x in zip(chosen, logp_TV, strict=True)], k)


class TorchEngine:
    """`VLLMEngine` by torch. `story`: what was done with all engines, in order; `made`: with what settings they began."""

    story: ClassVar[list[tuple[str, str]]] = []
    made: ClassVar[list[dict[str, Any]]] = []
    version, dtype = "0", "float32"

    def __init__(self, path: Path, *, dtype: str, max_logprobs: int, context: int, eager: bool, **options: Any) -> None:
        self.model, self.max_logprobs, self.context, self.options = load_decoder(path), max_logprobs, context, options
        assert context <= self.model.config.max_position_embeddings, "vLLM refuses a context that the model lacks"
        self.story.append(("new", path.name))
        self.made.append({"dtype": dtype, "context": context, **options})

    def sample(
        self, prompts: Sequence[Sequence[int]], *, eos_id: int, pad_id: int, max_new_tokens: Sequence[int], temperature: float,
        seed: int,
    ) -> Rollouts:  # fmt: skip
        assert all(len(p) + n < self.context for p, n in zip(prompts, max_new_tokens, strict=True))
        generator = torch.Generator().manual_seed(seed)
        return sample(
            self.model, prompts, eos_id=eos_id, pad_id=pad_id, max_new_tokens=max_new_tokens, temperature=temperature,
            generator=generator,
        )  # fmt: skip

    def score(self, rollouts: Rollouts, k: int) -> TopTokens:
        if int(rollouts.length_N.max()) >= self.context or k > self.max_logprobs:
            raise BadInput(f"does not fit into {self.context} tokens or {self.max_logprobs} likeliest ones")
        return likeliest(self.model, rollouts, k)

    def reload(self, path: Path) -> None:
        other = load_decoder(path)
        assert other.config == self.model.config
        self.model = other
        self.story.append(("reload", path.name))

    def close(self) -> None:
        self.story.append(("close", ""))
