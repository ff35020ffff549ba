"""Our sampler against `transformers.generate`, and against vLLM where it is installed, on the micro model.

Same weights, prompts of the micro world (mixed lengths), temperature 1 without any cut of the distribution, and the same
number of new tokens: no row may end early. One thread, one process, contenders in turn, a few batches each turn.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.timing import Job, alone, interleaved, machine, table
from mopd_diag.engines.sampling import sample
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.tokenizer import character_tokenizer
from mopd_diag.worlds import load_world

NEW_TOKENS = 24
AT_A_TURN = 3


def run(batches: tuple[int, ...] = (64, 256), rounds: int = 9, seed: int = 0, vllm: bool = True) -> dict[str, Any]:
    """Tokens per second of each contender at each batch size, and ours over theirs as medians over the rounds."""
    with alone(), tempfile.TemporaryDirectory() as folder:
        return _run(batches, rounds, seed, vllm, Path(folder) / "model")


def _run(batches: tuple[int, ...], rounds: int, seed: int, vllm: bool, folder: Path) -> dict[str, Any]:
    tokenizer = character_tokenizer()
    model = Decoder.fresh(DecoderConfig(tokenizer.vocab_size), torch.Generator().manual_seed(seed))
    save_checkpoint(model, tokenizer, folder)
    world = load_world("micro")
    engine = _vllm_engine(folder, max(batches)) if vllm and importlib.util.find_spec("vllm") else None
    result: dict[str, Any] = {"bench": "sampling", "new_tokens": NEW_TOKENS, "machine": machine(), "batches": {}}
    for batch in batches:
        items = world.draw_batch(list(world.domains), batch, (seed, "bench", batch))
        prompts = tokenizer.encode_all([i.prompt for i in items])
        jobs = {"ours": _ours(model, prompts, seed), "transformers": _transformers(folder, prompts, tokenizer.pad_id)}
        if engine is not None:
            jobs["vllm"] = _vllm(engine, prompts)
        measured = interleaved(jobs, rounds)
        result["batches"][str(batch)] = {
            "tokens_per_second": {name: measured.median(name) for name in jobs},
            "ours_over": {name: measured.ratio("ours", name) for name in jobs if name != "ours"},
        }
    return result


def _ours(model: Decoder, prompts: list[list[int]], seed: int) -> Job:
    generator = torch.Generator().manual_seed(seed)

    def job() -> int:
        # No token has the id −1: no answer can end before its limit.
        options = {"eos_id": -1, "pad_id": 0, "max_new_tokens": NEW_TOKENS, "generator": generator}
        return sum(sample(model, prompts, **options).sampled_tokens for _ in range(AT_A_TURN))

    return job


def _transformers(folder: Path, prompts: list[list[int]], pad_id: int) -> Job:
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    config = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS, pad_token_id=pad_id, eos_token_id=None
    )
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def job() -> int:
        with torch.inference_mode():
            for _ in range(AT_A_TURN):
                out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
                if out.shape[1] != width + NEW_TOKENS:
                    raise RuntimeError(f"generate made {out.shape[1] - width} tokens a row, expected {NEW_TOKENS}")
        return AT_A_TURN * NEW_TOKENS * len(prompts)

    return job


def _vllm_engine(folder: Path, batch: int) -> Any:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM

    engine = LLM(model=str(folder), dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=batch, seed=0)
    torch.set_num_threads(1)
    return engine


def _vllm(engine: Any, prompts: list[list[int]]) -> Job:
    from vllm import SamplingParams

    settings = SamplingParams(temperature=1.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": p} for p in prompts]

    def job() -> int:
        turns = [engine.generate(asked, settings, use_tqdm=False) for _ in range(AT_A_TURN)]
        return sum(len(answer.outputs[0].token_ids) for answers in turns for answer in answers)

    return job


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as a table."""
    title = f"Sampling, {result['new_tokens']} new tokens, one thread"
    made = table(title, "contender", "batch", "tokens/s", "ours is faster by", "rounds")
    for batch, each in result["batches"].items():
        for name, rate in each["tokens_per_second"].items():
            ratio = each["ours_over"].get(name)
            said = "" if ratio is None else f"{ratio['median']:.2f} × ({ratio['low']:.2f} to {ratio['high']:.2f})"
            made.add_row(name, batch, f"{rate:,.0f}", said, "" if ratio is None else str(ratio["rounds"]))
    (console or Console()).print(made)


if __name__ == "__main__":
    show(run())
