"""Architectures the fast decoder does not compute, through `transformers`, behind the same small face."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mopd_diag.errors import CheckpointError

AGREE = 1e-3  # nats: the head applied to the last hidden states must give the model's own log-probabilities


@dataclass(frozen=True, slots=True)
class ForeignConfig:
    """What scoring asks of a configuration."""

    vocab_size: int
    parameters: int

    def forward_flops(self, tokens: int, context: float, heads: int) -> int:
        """2 FLOPs a parameter and position; attention and the sparse head are not told apart."""
        return 2 * self.parameters * tokens


class ForeignModel:
    """Any Hugging Face causal LM whose logits are its output embedding applied to its last hidden states."""

    def __init__(self, model: Any, source: str) -> None:
        self.model = model.eval()
        self.head_VD: Tensor = model.get_output_embeddings().weight.detach()
        self.config = ForeignConfig(self.head_VD.shape[0], sum(p.numel() for p in model.parameters()))
        self._check(source)

    @property
    def device(self) -> torch.device:
        return self.head_VD.device

    @torch.inference_mode()
    def hidden(self, ids_NL: Tensor) -> Tensor:
        """Last hidden states after the final norm, [N, L, D], of a right-padded batch."""
        return self.model.base_model(input_ids=ids_NL).last_hidden_state

    def hidden_at(self, ids_NL: Tensor, at_M: Tensor) -> Tensor:
        """`hidden` at the flat positions `at_M`, [M, D]."""
        return self.hidden(ids_NL).flatten(0, 1).index_select(0, at_M)

    def _check(self, source: str) -> None:
        """Refuse models whose logits are softcapped, scaled or biased after the head: they would be scored wrongly."""
        ids = torch.arange(8, device=self.device)[None] % self.config.vocab_size
        with torch.inference_mode():
            own = torch.log_softmax(self.model(input_ids=ids).logits.float(), -1)
            ours = torch.log_softmax((self.hidden(ids) @ self.head_VD.t()).float(), -1)
        if not own.isfinite().all():
            return  # broken weights tell nothing of the architecture; scoring names the member and leaves it out
        gap = float((own - ours).abs().max())
        if not gap < AGREE:
            raise CheckpointError(
                f"{source}: {type(self.model).__name__} changes its logits after the head (differs by {gap:.2g} nats); "
                "such architectures cannot be scored yet"
            )


def load_foreign(folder: Path, gguf: str | None = None, device: torch.device | str = "cpu") -> Any:
    """A model that `transformers` can load, in fp32 on a device. Raises CheckpointError with its reason when it cannot."""
    from transformers import AutoModelForCausalLM

    options = {"gguf_file": gguf} if gguf else {}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=None if gguf else True,
            trust_remote_code=False,
            **options,
        )
        return model.to(device)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{folder / gguf if gguf else folder} cannot be loaded by transformers: {reason}"
        ) from error
