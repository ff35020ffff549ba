"""What 2, 12 and 40 teachers of 1, 30 and 300 B parameters cost to sample from, score and attribute: arithmetic, nothing is run.

A forward pass costs 2 FLOPs a (active) parameter and token; a reduction of J full-vocabulary vectors to their Gram matrix 2·J²·V a
token; decoding reads every weight once a step. The machine is a published datasheet (H200: 989 TFLOP/s in bf16, 141 GB at 4.8 TB/s),
and the share of it that real engines reach is an assumption that stands in the output. Change either and run it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True)
class Size:
    """A model: parameters, hidden width D, vocabulary V. Experts count whole in memory and by what is active in FLOPs."""

    name: str
    parameters: float
    active: float
    hidden: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Machine:
    """One accelerator and what leads to it, in FLOPs and bytes a second."""

    flops: float = 989 * TERA
    memory: float = 141 * GIGA
    bandwidth: float = 4.8 * TERA
    disk: float = 5 * GIGA
    network: float = 1.25 * GIGA  # 10 Gbit/s
    prefill_share: float = 0.4
    reduction_share: float = 0.25
    decode_share: float = 0.5


SIZES = (
    Size("1 B", 1.24e9, 1.24e9, 2048, 128_256),
    Size("30 B", 32.8e9, 32.8e9, 5120, 151_936),
    Size("300 B, dense", 300e9, 300e9, 14_336, 151_936),
    Size("309 B, 15 B active", 309e9, 15e9, 4096, 152_576),
)
TEACHERS = (2, 12, 40)
ITEMS, PROMPT, ANSWER = 2_000, 500, 1_000
"""Answers that are attributed, and the tokens of each."""
BATCH = 256
"""Answers decoded side by side."""
SERVED_BYTES = 20 * len('"12345":{"logprob":-12.345678,"rank":12,"decoded_token":" token"},')
"""A served token: twenty alternatives, each an entry of `prompt_logprobs` as vLLM writes it."""
HALF = 2  # bytes of a bf16 number


def cost(size: Size, teachers: int, machine: Machine) -> dict[str, Any]:
    """GPU-hours, bytes, and what bounds each step, for one diagnosis of `ITEMS` answers."""
    members, read, answered = teachers + 2, ITEMS * (PROMPT + ANSWER), ITEMS * ANSWER
    weights = HALF * size.parameters
    gpus = max(1, -(-weights * 1.2 // machine.memory))
    steps = -(-ITEMS // BATCH) * ANSWER
    touched = min(weights, HALF * size.active * BATCH)  # a large batch wakes nearly every expert
    decode = max(2 * size.active * answered / machine.flops, steps * touched / machine.bandwidth) / machine.decode_share
    score = members * 2 * size.active * read / (machine.flops * machine.prefill_share)
    reduce = 2 * members**2 * size.vocabulary * answered / (machine.flops * machine.reduction_share)
    load = members * weights / machine.disk
    hidden = members * answered * size.hidden * HALF
    served = teachers * answered * SERVED_BYTES
    clock = {"sampling": decode / gpus, "loading": load, "scoring": score / gpus, "reduction": reduce}
    return {
        "size": size.name, "teachers": teachers, "gpus_a_member": int(gpus), "sample_gpu_hours": decode / 3600,
        "score_gpu_hours": score / 3600, "attribute_gpu_hours": reduce / 3600, "load_hours": load / 3600,
        "weights_bytes": members * weights, "hidden_bytes": hidden, "served_bytes": served,
        "served_network_hours": served / machine.network / 3600, "bound": max(clock, key=clock.__getitem__),
    }  # fmt: skip


def run(machine: Machine | None = None) -> dict[str, Any]:
    """Every size with every number of teachers."""
    machine = machine or Machine()
    return {
        "bench": "costs", "answers": ITEMS, "prompt_tokens": PROMPT, "answer_tokens": ANSWER,
        "machine": {f: getattr(machine, f) for f in Machine.__slots__},
        "rows": [cost(s, k, machine) for s in SIZES for k in TEACHERS],
    }  # fmt: skip


def show(figures: dict[str, Any]) -> None:
    """One row a size and number of teachers."""
    shown = Table(
        "size", "teachers", "GPUs a member", "sample, GPU h", "score, GPU h", "attribute, GPU h", "load all once, h", "weights, TB",
        "hidden states, GB", "served top-20, GB", "takes longest", box=None,
    )  # fmt: skip
    for r in figures["rows"]:
        shown.add_row(
            r["size"], str(r["teachers"]), str(r["gpus_a_member"]), f"{r['sample_gpu_hours']:.2f}", f"{r['score_gpu_hours']:.2f}",
            f"{r['attribute_gpu_hours']:.2f}", f"{r['load_hours']:.2f}", f"{r['weights_bytes'] / 1e12:.2f}",
            f"{r['hidden_bytes'] / 1e9:.0f}", f"{r['served_bytes'] / 1e9:.1f}", r["bound"],
        )  # fmt: skip
    Console(width=180).print(shown)


if __name__ == "__main__":
    show(run())
