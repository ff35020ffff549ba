"""Which device models lie on and compute on: a GPU where there is one, else the CPU."""

from __future__ import annotations

import os
import re
from typing import Literal

import torch

from mopd_diag.config import DEVICE
from mopd_diag.errors import BadInput

WORKER = "MOPD_DIAG_WORKER"
"""Environment variable with the number of a worker process on this machine; set by the local scheduler."""


def pick(asked: str = "auto") -> torch.device:
    """The device that is meant by `auto`, `cpu`, `cuda` or `cuda:N`. Raises BadInput for one that is not there.

    `auto` and `cuda` share a machine's GPUs out over the local workers: worker w takes GPU w modulo their number. What
    CUDA_VISIBLE_DEVICES hides does not count.
    """
    if not re.fullmatch(DEVICE, asked):
        raise BadInput(f"no device '{asked}'; expected auto, cpu, cuda or cuda:N")
    kind, _, number = asked.partition(":")
    count = gpus()
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    index = int(number) if number else int(os.environ.get(WORKER, "0")) % max(1, count)
    if index >= count:
        raise BadInput(f"device '{asked}' is not here: torch sees {count} GPUs; choose auto, cpu or one that is there")
    return torch.device("cuda", index)


def pick_mesh(processes: int, asked: str = "auto") -> Literal["cpu", "cuda"]:
    """On what several processes train one model together: a GPU each where there are enough, else the CPU.

    Raises BadInput when GPUs are asked for and there are fewer, or one alone.
    """
    if asked.startswith("cuda") and (gpus() < processes or ":" in asked):
        raise BadInput(
            f"device '{asked}' for {processes} processes, expected a GPU for each of them and torch sees {gpus()}; choose auto or cpu"
        )
    return "cuda" if asked != "cpu" and gpus() >= processes else "cpu"


def gpus() -> int:
    """How many GPUs torch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_name(device: torch.device) -> str:
    """For the ledger: `cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def room(device: torch.device) -> int:
    """How many times a CPU core's share of work is done at once on a device: one for every 8 GiB that a GPU has.

    The CPU's shares fit its caches; with them a large GPU would only wait for its kernels to be started. Not tuned on a GPU.
    """
    return max(1, torch.cuda.get_device_properties(device).total_memory >> 33) if device.type == "cuda" else 1
