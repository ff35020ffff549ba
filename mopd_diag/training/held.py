"""What the loop trains, and where it lies: all weights of a model in one process, or an adapter on it.

(`mopd_diag.training.sharded` has the third: weights in pieces over several processes.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from mopd_diag.models.decoder import Decoder
from mopd_diag.models.lora import Adapted
from mopd_diag.training.algorithm import Part

Agreed = TypeVar("Agreed")


class Held:
    """All weights, in this process."""

    writes = True
    """Is this the process that saves?"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What products are made in; weights and moments are what they are."""

    def __init__(self, model: Decoder) -> None:
        self.model = model

    @property
    def learner(self) -> nn.Module:
        """Whose parameters the optimizer moves."""
        return self.model

    def named(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.learner.named_parameters())

    def mine(self, parts: Sequence[Part]) -> list[tuple[Part, bool]]:
        """The microbatches that this process does, and whether each counts."""
        return [(part, True) for part in parts]

    def together(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums over processes."""
        return dict(numbers)

    def agreed(self, said: Agreed) -> Agreed:
        """What the first process says: clocks differ, and all must do the same."""
        return said

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it the model's weights are whole, to sample and to score with."""
        yield

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around all steps."""
        yield

    def clip(self, most: float) -> float:
        """Scale the gradients to a norm of at most `most`; returns the norm before."""
        return float(nn.utils.clip_grad_norm_(self.learner.parameters(), most, foreach=True))

    def stepped(self) -> None:
        """After the optimizer moved."""

    def gathered(self, tensor: Tensor) -> Tensor:
        """A parameter, or a moment of one, as a whole."""
        return tensor

    def placed(self, whole: Tensor, like: Tensor) -> Tensor:
        """The opposite of `gathered`, where that parameter lies."""
        return whole.to(like.device)


class HeldAdapter(Held):
    """An adapter; the model's own weights stand still beneath it."""

    def __init__(self, adapted: Adapted) -> None:
        super().__init__(adapted.model)
        self.adapted = adapted

    @property
    def learner(self) -> nn.Module:
        return self.adapted.adapter

    @contextmanager
    def training(self) -> Iterator[None]:
        with self.adapted.training():
            yield

    def stepped(self) -> None:
        self.adapted.on()


def optimizer_of(held: Held, learning_rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW without weight decay; one kernel for all parameters where torch has one."""
    parameters = [p for _, p in held.named()]
    fused = all(type(p.data) is Tensor and p.dtype == torch.float32 for p in parameters)
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=0.0, fused=fused)
