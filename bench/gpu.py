"""On a GPU: an MOPD step and scoring of SmolLM2-135M and of a Qwen3 of 0.6 B random parameters, and the step beside TRL's.

Weights and moments in fp32, products in bf16 (`[compute] precision`), as TRL's `bf16`. Share of peak: FLOPs of the step over those that one
large bf16 product reaches here. Kernels are those of one profiled step, by their own time. Without a GPU it runs on the CPU, to be
tried out.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from bench.scoring import MISSING, SMOLLM2, find_smollm2
from bench.steps import Case, Ours, Theirs
from bench.timing import table
from bench.training import saved_pair
from mopd_diag.engines.rollouts import pack
from mopd_diag.engines.scoring import score
from mopd_diag.models.checkpoint import load_decoder
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.device import device_name, pick
from mopd_diag.models.loading import load
from mopd_diag.models.tokenizer import character_tokenizer

QWEN3 = DecoderConfig(
    vocab_size=151_936, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
    intermediate_size=3072, rope_theta=1e6, max_position_embeddings=4096, tie_word_embeddings=True, qk_norm=True,
)  # fmt: skip
"""Qwen3-0.6B's sizes, by its published config.json."""
KERNELS = 8
SQUARE = 8192


@dataclass(frozen=True, slots=True)
class Size:
    """How much is asked of one step, how many steps are timed, and the side of the product that peak is measured with."""

    prompts: int = 64
    new_tokens: int = 128
    steps: int = 5
    square: int = SQUARE


def run(size: Size | None = None, qwen3: DecoderConfig = QWEN3, *, smollm2: bool = True) -> dict[str, Any]:
    """Tokens per second, share of peak and largest memory of each model's step, of ours and of TRL's; tokens scored per second."""
    size, device = size or Size(), pick("auto")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = find_smollm2() if smollm2 else None
        peak = _peak(device, size.square)
        fresh = Decoder.fresh(qwen3, torch.Generator().manual_seed(0), std=0.02)
        models = {
            "Qwen3, random": _measured(
                saved_pair(Path(folder) / "qwen3", fresh, character_tokenizer(), 0), size, device, peak
            )
        }
        del fresh
        if file is not None:
            loaded = load(file)
            pair = saved_pair(Path(folder) / "smollm2", loaded.model, loaded.tokenizer, 0)
            models[SMOLLM2] = _measured(pair, size, device, peak)
    found = {
        "bench": "gpu",
        "device": device_name(device),
        "torch": torch.__version__,
        "peak_flops": peak,
        "models": models,
    }
    return {**found, "missing": MISSING} if smollm2 and file is None else found


def _peak(device: torch.device, square: int) -> float:
    """FLOPs a second of a bf16 product of two square matrices, the best of ten."""
    a, b = (torch.randn(square, square, device=device, dtype=torch.bfloat16) for _ in range(2))
    return max(2 * square**3 / _seconds(lambda: a @ b, device) for _ in range(10))


def _seconds(job: Any, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    job()
    wait()
    return time.perf_counter() - started


def _measured(folder: Path, size: Size, device: torch.device, peak: float) -> dict[str, Any]:
    case = Case(folder, size.prompts, size.new_tokens, 0, str(device), bf16=True)
    found: dict[str, Any] = {}
    ours = Ours(case)
    found["ours"] = _stepped(ours, size.steps, device)
    flops = ours.state.work.flops / ours.state.step
    found["share_of_peak"] = flops * found["ours"]["steps_per_second"] / peak
    found["kernels"] = _kernels(ours, device)
    del ours
    found["trl"] = _stepped(Theirs(case), size.steps, device)
    found["scored_per_second"] = _scored(folder, size, device)
    return found


def _stepped(contender: Ours | Theirs, steps: int, device: torch.device) -> dict[str, float | None]:
    """Of all steps but the first."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    told: list[tuple[int, float]] = []
    contender.steps(1 + steps, lambda tokens, seconds: told.append((tokens, seconds)))
    seconds = sum(s for _, s in told[1:])
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "tokens_per_second": sum(t for t, _ in told[1:]) / seconds,
        "steps_per_second": steps / seconds,
        "memory_bytes": held,
    }


def _kernels(ours: Ours, device: torch.device) -> list[dict[str, Any]]:
    """What takes most of one step: names, and shares of the time of all."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        ours.timed()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = sorted(profiled.key_averages(), key=lambda r: -getattr(r, key))
    total = sum(getattr(r, key) for r in rows) or 1.0
    return [{"name": r.key, "share": getattr(r, key) / total, "calls": r.count} for r in rows[:KERNELS]]


def _scored(folder: Path, size: Size, device: torch.device) -> float:
    """Answer tokens a second under three members, bases of one another."""
    members = {
        n: load_decoder(folder / p, device=device)
        for n, p in (("student", "student"), ("base", "student"), ("teacher", "teacher"))
    }
    vocabulary, prompt = members["base"].config.vocab_size, 32
    ids = torch.randint(
        vocabulary, (size.prompts, prompt + size.new_tokens), generator=torch.Generator().manual_seed(0)
    ).tolist()
    rollouts = pack([row[:prompt] for row in ids], [row[prompt:] for row in ids], 0)
    job = lambda: score(rollouts, members, "student", ["teacher"])  # noqa: E731
    job()
    return size.prompts * size.new_tokens / _seconds(job, device)


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Two tables: rates and memory, and where the time of a step goes."""
    title = f"On {result['device']}, bf16 products at {result['peak_flops'] / 1e12:.2f} TFLOP/s"
    made = table(
        title, "model", "ours, tokens/s", "TRL, tokens/s", "ours, GiB", "TRL, GiB", "share of peak", "scored, tokens/s"
    )
    kernels = table("Of one step", "model", "kernel", "share", "calls")
    for name, found in result["models"].items():
        gib = [
            "–" if found[who]["memory_bytes"] is None else f"{found[who]['memory_bytes'] / 2**30:.1f}"
            for who in ("ours", "trl")
        ]
        rates = [f"{found[who]['tokens_per_second']:,.0f}" for who in ("ours", "trl")]
        made.add_row(name, *rates, *gib, f"{found['share_of_peak']:.1%}", f"{found['scored_per_second']:,.0f}")
        _rows(kernels, name, found["kernels"])
    console = console or Console()
    console.print(made)
    console.print(kernels)
    if "missing" in result:
        console.print(result["missing"])


def _rows(made: Any, name: str, kernels: Sequence[dict[str, Any]]) -> None:
    for row in kernels:
        made.add_row(name, row["name"][:60], f"{row['share']:.1%}", f"{row['calls']:,}")


if __name__ == "__main__":
    show(run())
