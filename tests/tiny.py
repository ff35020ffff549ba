"""Small decoders and their `transformers` twins, shared by the tests of models, engines and training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mopd_diag.models.checkpoint import save_checkpoint, to_hf
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.tokenizer import Tokenizer, character_tokenizer

torch.set_num_threads(1)

TOKENIZER = character_tokenizer()

# What differs between the architectures we claim: grouped heads, qk-norm, an untied head, another theta, odd widths.
SHAPES: dict[str, dict] = {
    "llama": {},
    "llama-grouped-untied": {"num_key_value_heads": 2, "tie_word_embeddings": False, "rope_theta": 500.0},
    "qwen3": {"qk_norm": True},
    "qwen3-grouped-untied": {"qk_norm": True, "num_key_value_heads": 1, "tie_word_embeddings": False, "head_dim": 10},
}


def decoder(
    shape: str = "llama", seed: int = 0, std: float = 0.3, vocab_size: int = TOKENIZER.vocab_size, **sizes
) -> Decoder:
    """A random decoder. Its norms differ from one, so that a norm forgotten, or folded in the wrong place, shows."""
    small = {
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "intermediate_size": 40,
    }
    config = DecoderConfig(vocab_size, **{**small, **SHAPES[shape], **sizes})
    generator = torch.Generator().manual_seed(seed)
    model = Decoder.fresh(config, generator, std)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
    return model


def shifted(model: Decoder, seed: int, size: float) -> Decoder:
    """The same model a little further on: a teacher, or the student after an update."""
    other = type(model)(model.config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p, q in zip(other.parameters(), model.parameters(), strict=True):
            p.copy_(q + size * torch.randn(q.shape, generator=generator))
    return other


def in_transformers(model: Decoder, folder: Path, tokenizer: Tokenizer = TOKENIZER):
    """The same model, saved by us and loaded by `transformers`."""
    from transformers import AutoModelForCausalLM

    save_checkpoint(model, tokenizer, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def gradients_hf(model: Decoder) -> dict[str, Tensor]:
    """Our gradients under Hugging Face's names and in its layout: they are permuted exactly as the weights are."""
    holder, ours = Decoder(model.config), dict(model.named_parameters())
    with torch.no_grad():
        for name, p in holder.named_parameters():
            q = ours[name]
            p.copy_(q.grad if q.grad is not None else torch.zeros_like(q))
    return to_hf(holder)


def assert_same_gradients(model: Decoder, twin: torch.nn.Module, rtol: float = 2e-5) -> None:
    """Every parameter's gradient agrees, measured against the largest entry of that gradient.

    But for one row: `transformers` gives the pad token's input embedding no gradient, and a random student samples it.
    """
    ours = gradients_hf(model)
    theirs = {name: p.grad for name, p in twin.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert theirs[name] is not None, name
        if name == "model.embed_tokens.weight":
            gradient[TOKENIZER.pad_id] = theirs[name][TOKENIZER.pad_id]
        scale = float(theirs[name].abs().max())
        assert scale > 0, f"{name} has no gradient: the comparison would be empty"
        error = float((gradient - theirs[name]).abs().max())
        assert error <= rtol * scale, f"{name}: {error:.2e} against a largest entry of {scale:.2e}"
