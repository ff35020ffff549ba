"""lm-eval's model interface on our own engines: `loglikelihood`, `loglikelihood_rolling` and `generate_until`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.utils import postprocess_generated_text
from transformers import AutoTokenizer

from mopd_diag.engines.foreign_sampling import sample_foreign
from mopd_diag.engines.harness_text import DEFAULT_LENGTH, TextLM, Told, Wish
from mopd_diag.engines.request_logp import Pair, pair_logp
from mopd_diag.engines.sampling import sample
from mopd_diag.errors import BadInput
from mopd_diag.models.checkpoint import base_folder
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.foreign import ForeignModel
from mopd_diag.models.loading import Loaded
from mopd_diag.models.lora import base_of, is_adapter
from mopd_diag.seeds import seed_of

FIRST_LEG = 32
"""Tokens sampled before texts are looked through for stop strings; each further leg is twice as long."""


def load_words(path: Path, base: Path | None = None) -> Any:
    """The tokenizer of a checkpoint as lm-eval reads it, with its special tokens and its chat template.

    Of an adapter that brought none, its base's: the one that it names, or else `base`.
    """
    if is_adapter(path) and not (path / "tokenizer.json").is_file():
        path = base if base_of(path) is None and base is not None else base_folder(path)
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **where)


class TorchLM(TextLM):
    """A loaded checkpoint as lm-eval asks models. Weights are fp32 whatever the checkpoint's are.

    `rows` bounds how many texts are read or written at once (default: by their length). `told` hears how many requests of how many are
    answered. Sampled texts depend on `seed` and on the requests, not on what was asked before.
    """

    def __init__(
        self, loaded: Loaded, words: Any, *, rows: int | None = None, seed: int = 0, told: Told | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.path, self.where = loaded.model, loaded.path, str(loaded.path)
        self.tokenizer: Any = words
        self.eos_id, self.pad_id = loaded.tokenizer.eos_id, loaded.tokenizer.pad_id
        self.rows, self.seed = rows, seed
        self.told = told or (lambda _done, _of: None)
        config = loaded.model.model.config if isinstance(loaded.model, ForeignModel) else loaded.model.config
        self.max_length = int(getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH)
        self.end_ids = {self.eos_id, *_more_ends(loaded.path)}

    # -- likelihoods ----------------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """A text too long for the model loses its beginning; one that continues nothing has the log-likelihood 0."""
        pairs, numbers = [], []
        for number, (_, context, answer) in enumerate(requests):
            room = self.max_length + 1 - len(answer)
            if room < 1:
                raise BadInput(
                    f"a task has an answer of {len(answer)} tokens and {self.path} reads {self.max_length}; leave the task out"
                )
            if answer:
                pairs.append(Pair(tuple(context[-room:]), tuple(answer)))
                numbers.append(number)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for number, answer in zip(numbers, pair_logp(self.model, pairs, self.rows), strict=True):
            found[number] = answer
        for request, answer in zip(requests, found, strict=True):
            if request[0] is not None:  # a window of a rolling text has no name of its own
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        self.told(len(requests), len(requests))
        return found

    # -- texts ------------------------------------------------------------------------------------------------------------------

    def _texts(self, prompts: list[list[int]], wish: Wish, start: int) -> list[str]:
        """Sampled in legs, so that a text which has come to a stop string keeps nobody waiting for the longest one."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "harness", start))
        draw: Any = sample if isinstance(self.model, Decoder) else sample_foreign
        answers: list[list[int]] = [[] for _ in prompts]
        going, done, leg = list(range(len(prompts))), 0, FIRST_LEG
        while going:
            steps = min(leg, wish.limit - done)
            drawn = draw(
                self.model, [prompts[r] + answers[r] for r in going], eos_id=self.eos_id, pad_id=self.pad_id, max_new_tokens=steps,
                temperature=wish.temperature, generator=generator,
            )  # fmt: skip
            for row, new in zip(going, drawn.responses(), strict=True):
                answers[row] += new
            done, leg = done + steps, 2 * leg
            going = [r for r in going if done < wish.limit and not self._ended(answers[r], wish)]
        return [postprocess_generated_text(self._spoken(a), list(wish.until), None) for a in answers]

    def _ended(self, answer: list[int], wish: Wish) -> bool:
        if not self.end_ids.isdisjoint(answer):
            return True
        text = self._spoken(answer)
        return any(stop in text for stop in wish.until)

    def _spoken(self, answer: list[int]) -> str:
        end = next((k for k, token in enumerate(answer) if token in self.end_ids), len(answer))
        return self.tokenizer.decode(answer[:end], skip_special_tokens=True)


def _more_ends(path: Path) -> list[int]:
    """Tokens at which `transformers` would end a text too."""
    file = path / "generation_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return [named] if isinstance(named, int) else list(named or [])
