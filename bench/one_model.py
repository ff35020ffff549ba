"""Given answers scored under one model: ours, transformers, TRL, lm-eval's `hf`, and vLLM where it is installed.

All get the same token ids and give a log-probability for each answer token (lm-eval: their sum). `transformers` makes the logits of every
position; TRL, as its trainers do, those of the answers, from which its `selective_log_softmax` picks; lm-eval runs at its best batch size
of two. vLLM returns prompt log-probabilities as Python objects.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.timing import Job, interleaved
from mopd_diag.engines.likelihood import answer_logp
from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer


def compared(
    model: Decoder, tokenizer: Tokenizer, rollouts: Rollouts, folder: Path, rounds: int, *, vllm: bool = True
) -> dict[str, Any]:
    """Answer tokens per second of each, ours over theirs, and how far the sums of an answer are apart at most, in nats."""
    from transformers import AutoModelForCausalLM

    save_checkpoint(model, tokenizer, folder)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids, start = rollouts.ids_NL, int(rollouts.prompt_N[0])  # all answers are of one length here
    tokens = ids[:, start:].numel()
    found: dict[str, torch.Tensor] = {}

    def kept(name: str, summed: Any) -> Job:
        def job() -> int:
            with torch.inference_mode():
                found[name] = summed()
            return tokens

        return job

    def theirs() -> torch.Tensor:
        logp = torch.log_softmax(hf(input_ids=ids).logits[:, start - 1 : -1].float(), -1)
        return logp.gather(2, ids[:, start:, None]).sum((1, 2))

    def trls() -> torch.Tensor:
        from trl.trainer.utils import selective_log_softmax

        logits = hf(input_ids=ids, logits_to_keep=ids.shape[1] - start + 1).logits[:, :-1]
        return selective_log_softmax(logits, ids[:, start:]).sum(1)

    jobs = {
        "ours": kept("ours", lambda: torch.stack([x.sum() for x in answer_logp(rollouts, model)])),
        "transformers": kept("transformers", theirs),
        "TRL": kept("TRL", trls),
        **{f"lm-eval hf {b}": kept(f"lm-eval hf {b}", s) for b, s in _lm_eval(hf, folder, rollouts, start).items()},
    }
    if vllm and importlib.util.find_spec("vllm"):
        jobs["vllm"] = kept("vllm", _vllm(folder, rollouts))
    timed = interleaved(jobs, rounds, warmup=1)
    return {
        "answers": len(rollouts),
        "tokens": tokens,
        "tokens_per_second": {name: timed.median(name) for name in jobs},
        "ours_over": {name: timed.ratio("ours", name) for name in jobs if name != "ours"},
        "largest_difference": {n: float((found[n] - found["ours"]).abs().max()) for n in jobs if n != "ours"},
    }


def _lm_eval(hf: Any, folder: Path, rollouts: Rollouts, start: int) -> Mapping[str, Any]:
    from lm_eval.models.huggingface import HFLM

    from mopd_diag.engines.harness import load_words

    words = load_words(folder)
    rows = rollouts.ids_NL.tolist()
    # Their requests carry a text as key; each must have its own.
    asked = [((str(n), ""), row[:start], row[start:]) for n, row in enumerate(rows)]
    models = {
        b: HFLM(pretrained=hf, tokenizer=copy.deepcopy(words), device="cpu", batch_size=b)
        for b in {max(1, len(rows) // 4), len(rows)}
    }
    return {
        str(b): lambda m=m: torch.tensor([x for x, _ in m._loglikelihood_tokens(asked, disable_tqdm=True)])
        for b, m in models.items()
    }


def _vllm(folder: Path, rollouts: Rollouts) -> Any:
    from mopd_diag.engines.vllm import VLLMEngine

    context = rollouts.ids_NL.shape[1] + 2
    engine = VLLMEngine(
        folder, dtype="float32", max_logprobs=1, context=context, eager=True, max_num_seqs=len(rollouts)
    )
    torch.set_num_threads(1)
    answer = rollouts.length_N - rollouts.prompt_N

    def job() -> torch.Tensor:
        logp_T = torch.from_numpy(engine.score(rollouts, 1).logp_TK[:, 0]).float()
        return torch.stack([x.sum() for x in logp_T.split(answer.tolist())])

    return job
