"""A world of one letter, learned in a second; and models that end their answers: for the tests of training."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tiny import TOKENIZER, shifted
from torch import Tensor

from mopd_diag.config import SFTStage
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.training.explore import answer
from mopd_diag.training.loop import Schedule, train
from mopd_diag.training.sft import SFT
from mopd_diag.worlds import World
from mopd_diag.worlds.domain import Domain


@dataclass(frozen=True)
class Letters(Domain):
    """`q?:` → one letter of four. Demonstrations are `shown`; the verifier likes `a`."""

    name = "letters"
    family = "code"
    summary = "one letter"
    max_new_tokens = 3
    shown: str = "abcd"

    def draw(self, rng: random.Random) -> tuple[str, str]:
        return f"q{rng.randrange(1000)}:", "a"

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        return rng.choice(self.shown)


LETTERS = World("letters", {"letters": Letters()})


def small(seed: int = 0) -> Decoder:
    config = DecoderConfig(TOKENIZER.vocab_size, 32, 2, 2, 2, 16, 64)
    return Decoder.fresh(config, torch.Generator().manual_seed(seed), 0.08)


def taught(shown: str, model: Decoder | None = None, steps: int = 60) -> Decoder:
    """A model that answers with the letters `shown`, all alike."""
    model = model or small()
    stage = SFTStage(name="base", batch=48)
    sft = SFT(stage, TOKENIZER, World("letters", {"letters": Letters(shown)}), ["letters"], 0)
    train(model, sft, Schedule(steps, 1e-2, 5, 10))
    return model


def copy(model: Decoder) -> Decoder:
    return shifted(model, 0, 0.0)


def accuracy(model: Decoder) -> float:
    """Share of `a` among 256 sampled answers."""
    items = LETTERS.draw_batch(["letters"], 256, ("held out",))
    scores = answer(model, TOKENIZER, LETTERS, items, seed=1).scores
    return sum(scores) / len(scores)


def weights(model: Decoder) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_weights(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@torch.no_grad()
def ending(model: Decoder) -> Decoder:
    """Made to end its answers and call the world often: both tokens' embeddings are longer."""
    for token in (TOKENIZER.eos_id, TOKENIZER.encode("~")[0]):
        (model.embed if model.head is None else model.head)[token] *= 3
    return model
