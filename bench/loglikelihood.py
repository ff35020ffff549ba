"""lm-eval's log-likelihood requests: our engine against lm-eval's own `hf` model on the same requests, in one process, in turn.

Both get text and give back log-likelihoods, so tokenizers are timed too. `hf` gets several batch sizes; the ratio is against its
fastest. Two kinds of requests: `answers` continue a context of their own with some tokens; `choices` are four answers of one token to
each context, which both sides read once. The micro model is random: its arithmetic costs what a trained one's does.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from transformers import AutoModelForCausalLM

from bench.scoring import MISSING, SMOLLM2, find_smollm2
from bench.timing import Job, alone, interleaved, machine, table
from mopd_diag.engines.harness import TorchLM, load_words
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.foreign import load_foreign
from mopd_diag.models.loading import load
from mopd_diag.models.tokenizer import character_tokenizer
from mopd_diag.worlds.documents import held_out

GOAL = 1.0
WORDS = (
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "takes",
    "finds",
    "makes",
    "old",
    "new",
    "red",
    "small",
    "house",
    "river",
    "hill",
    "road",
)

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Case:
    """One model under both, and what both are asked."""

    ours: TorchLM
    theirs: Mapping[int, HFLM]
    requests: Mapping[str, Pairs]
    rounds: int


def run(rounds: int = 7, seed: int = 0, *, smollm2: bool = True) -> dict[str, Any]:
    """Time of ours over the time of the fastest `hf`, and how far their log-likelihoods are apart."""
    with tempfile.TemporaryDirectory() as folder, alone():
        cases = _cases(rounds, seed, Path(folder), smollm2)
        models = {
            name: {kind: _timed(case, pairs) for kind, pairs in case.requests.items()} for name, case in cases.items()
        }
        about = machine()
    found = {"bench": "loglikelihood", "goal": GOAL, "machine": about, "models": models}
    return found if SMOLLM2 in models or not smollm2 else {**found, "missing": MISSING}


def _cases(rounds: int, seed: int, folder: Path, smollm2: bool) -> dict[str, Case]:
    tokenizer = character_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    save_checkpoint(Decoder.fresh(DecoderConfig(tokenizer.vocab_size), generator), tokenizer, folder / "micro")
    hf = AutoModelForCausalLM.from_pretrained(folder / "micro", dtype=torch.float32)
    cases = {"micro": _case(folder / "micro", hf, (16, 64, 256), _micro_requests(), rounds)}
    file = find_smollm2() if smollm2 else None
    if file is not None:
        twin = load_foreign(file.parent, file.name)
        cases[SMOLLM2] = _case(file, twin, (1, 4, 16), _word_requests(random.Random(seed)), max(3, rounds // 2))
    return cases


def _case(path: Path, hf: Any, batches: Sequence[int], requests: Mapping[str, Pairs], rounds: int) -> Case:
    words = load_words(path)
    theirs = {b: HFLM(pretrained=hf, tokenizer=copy.deepcopy(words), device="cpu", batch_size=b) for b in batches}
    return Case(TorchLM(load(path), words), theirs, requests, rounds)


def _micro_requests() -> dict[str, Pairs]:
    docs = [d for domain in ("addition", "stack", "lookup", "facts") for d in held_out("micro", domain, 128)]
    return {
        "answers": [(d["prompt"], d["target"]) for d in docs],
        "choices": [(d["prompt"], digit) for d in docs for digit in "0123"],
    }


def _word_requests(rng: random.Random) -> dict[str, Pairs]:
    said = [" ".join(rng.choices(WORDS, k=rng.randrange(12, 40))) for _ in range(16)]
    return {
        "answers": [(s, " " + " ".join(rng.choices(WORDS, k=rng.randrange(2, 9)))) for s in said],
        "choices": [(f"{s}\nAnswer:", f" {letter}") for s in said for letter in "ABCD"],
    }


def _timed(case: Case, pairs: Pairs) -> dict[str, Any]:
    asked = [Instance("loglikelihood", {}, pair, 0, metadata=("bench", k, 1)) for k, pair in enumerate(pairs)]

    def job(model: TorchLM | HFLM) -> Job:
        return lambda: len(model.loglikelihood(asked, disable_tqdm=True))

    timed = interleaved(
        {"ours": job(case.ours)} | {f"hf {b}": job(m) for b, m in case.theirs.items()}, case.rounds, warmup=1
    )
    fastest = max((f"hf {b}" for b in case.theirs), key=timed.median)
    ours, theirs = (m.loglikelihood(asked, disable_tqdm=True) for m in (case.ours, next(iter(case.theirs.values()))))
    return {
        "requests": len(pairs),
        "requests_per_second": {name: timed.median(name) for name in timed.rates},
        "fastest_hf": fastest,
        "time_ratio": timed.ratio(fastest, "ours"),  # rates: theirs over ours is our time over theirs
        "largest_difference": max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)),
        "same_greedy": all(a[1] == b[1] for a, b in zip(ours, theirs, strict=True)),
    }


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as a table."""
    title = f"Log-likelihood requests, one thread: our time over that of lm-eval's hf at its fastest batch; goal {result['goal']}"
    made = table(title, "model", "requests", "number", "ours, 1/s", "hf, 1/s", "batch", "time", "nats apart")
    for model, kinds in result["models"].items():
        for kind, found in kinds.items():
            ratio, rates = found["time_ratio"], found["requests_per_second"]
            made.add_row(
                model, kind, str(found["requests"]), f"{rates['ours']:,.0f}", f"{rates[found['fastest_hf']]:,.0f}",
                found["fastest_hf"].removeprefix("hf "), f"{ratio['median']:.2f} × ({ratio['low']:.2f} to {ratio['high']:.2f})",
                f"{found['largest_difference']:.1e}",
            )  # fmt: skip
    console = console or Console()
    console.print(made)
    if "missing" in result:
        console.print(result["missing"])


if __name__ == "__main__":
    show(run())
