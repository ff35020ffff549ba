"""A decoder that also reads one number from its last hidden state: a reward model, or a policy with a value head.

On disk a reward model is an ordinary Hugging Face checkpoint with one more file, `reward_head.safetensors`, that holds
`score.weight` of shape [1, D]: the name and shape that `AutoModelForSequenceClassification` with one label gives it. The
score of a text is `score.weight · h`, h the hidden state of its last token (end-of-sequence included) after the final norm.

Axis letters: N sequences, L positions, M selected positions, D hidden.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mopd_diag.errors import CheckpointError
from mopd_diag.models.checkpoint import load_decoder, save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.tokenizer import Tokenizer

HEAD_FILE = "reward_head.safetensors"
HEAD_NAME = "score.weight"


class ScalarDecoder(Decoder):
    """A decoder with a linear scalar head `score` [D], without bias; 0 until it is trained."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.score = nn.Parameter(torch.zeros(config.hidden_size))

    @classmethod
    def of(cls, model: Decoder) -> ScalarDecoder:
        """A copy of a decoder, where it lies, with a new head, or of a scalar decoder with its own."""
        scalar = cls(model.config).to(model.embed)
        scalar.load_state_dict({"score": scalar.score, **model.state_dict()})
        return scalar

    def scores(self, hidden_MD: Tensor) -> Tensor:
        """The scalar at each of the last hidden states, [M]."""
        return hidden_MD @ self.score

    def score_texts(self, ids_NL: Tensor, length_N: Tensor) -> Tensor:
        """The score of each right-padded text, [N], read at its last token."""
        rows, width = ids_NL.shape
        return self.scores(self.hidden_at(ids_NL, torch.arange(rows, device=ids_NL.device) * width + length_N - 1))


def save_scalar(model: ScalarDecoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Write checkpoint and head together, whole or not at all. Raises ResourceError when they cannot be written."""
    head = {HEAD_NAME: model.score.detach()[None].cpu().clone()}
    save_checkpoint(model, tokenizer, folder, {HEAD_FILE: head})


def load_scalar(folder: Path, device: torch.device | str = "cpu") -> ScalarDecoder:
    """Load a reward model on a device. Raises CheckpointError when the folder is none, or its head is missing, damaged or misshapen."""
    model = ScalarDecoder.of(load_decoder(folder, device=device))
    path = folder / HEAD_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {HEAD_FILE}: expected a reward model; name a reward-model stage")
    try:
        weight = load_file(path)[HEAD_NAME]
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or lacks {HEAD_NAME} ({error}); train that stage again") from error
    if weight.shape != (1, model.config.hidden_size):
        raise CheckpointError(
            f"{path}: {HEAD_NAME} has shape {list(weight.shape)}, expected [1, {model.config.hidden_size}]; "
            "it belongs to another model"
        )
    with torch.no_grad():
        model.score.copy_(weight[0])
    return model
