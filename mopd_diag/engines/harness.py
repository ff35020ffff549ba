"""lm-eval's model interface on our own engines: `loglikelihood`, `loglikelihood_rolling` and `generate_until`.

What lm-eval's own `hf` model decides about text is decided alike here: which special tokens are added, which side of a border a blank
belongs to, what is cut when a text is too long, where a generated text ends. Only the arithmetic is ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import AutoTokenizer

from mopd_diag.engines.foreign_sampling import sample_foreign
from mopd_diag.engines.request_logp import Pair, pair_logp
from mopd_diag.engines.sampling import sample
from mopd_diag.errors import BadInput
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.foreign import ForeignModel
from mopd_diag.models.loading import Loaded
from mopd_diag.seeds import seed_of

DEFAULT_LENGTH = 2048
"""Context of a model whose configuration names none, as lm-eval's `hf` assumes."""
DEFAULT_NEW = 256
FIRST_LEG = 32
"""Tokens sampled before texts are looked through for stop strings; each further leg is twice as long."""
SAMPLING_ROWS = 256
SHAPING = {
    "top_k": (0, 50),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "repetition_penalty": (1.0,),
    "num_beams": (1,),
}
"""Settings that change a sampled text, with the values under which they change nothing or that only `transformers` defaults to."""

Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """How one text is to be generated."""

    limit: int
    until: tuple[str, ...]
    temperature: float

    @classmethod
    def of(cls, settings: dict[str, Any], eos: str) -> Wish:
        """From lm-eval's generation settings. Raises BadInput for a way of sampling that is not offered here."""
        table: dict[str, Any] = {**normalize_gen_kwargs(settings, DEFAULT_NEW)}
        temperature = float(table.get("temperature") or 0.0) if table.get("do_sample") else 0.0
        changed = [k for k, same in SHAPING.items() if table.get(k) is not None and table[k] not in same]
        if (temperature > 0 and changed) or "repetition_penalty" in changed or "num_beams" in changed:
            raise BadInput(
                f"a task asks for {changed[0]} = {table[changed[0]]!r}; texts are generated greedily or from the model's plain "
                "distribution: leave the task out, or run it with lm-eval's own `hf` model"
            )
        until = tuple(dict.fromkeys(u for u in (*table["until"], eos) if u))
        return cls(int(table["max_gen_toks"]), until, temperature)


def load_words(path: Path) -> Any:
    """The tokenizer of a checkpoint as lm-eval reads it, with its special tokens and its chat template."""
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **where)


class TorchLM(TemplateLM):
    """A loaded checkpoint as lm-eval asks models. Weights are fp32 whatever the checkpoint's are.

    `rows` bounds how many texts are read or written at once (default: by their length). `told` hears how many requests of how many are
    answered. Sampled texts depend on `seed` and on the requests, not on what was asked before.
    """

    def __init__(
        self, loaded: Loaded, words: Any, *, rows: int | None = None, seed: int = 0, told: Told | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.path = loaded.model, loaded.path
        self.tokenizer: Any = words
        self.eos_id, self.pad_id = loaded.tokenizer.eos_id, loaded.tokenizer.pad_id
        self.rows, self.seed = rows, seed
        self.told = told or (lambda _done, _of: None)
        config = loaded.model.model.config if isinstance(loaded.model, ForeignModel) else loaded.model.config
        self.max_length = int(getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH)
        self.end_ids = {self.eos_id, *_more_ends(loaded.path)}

    @property
    def eot_token_id(self) -> int:
        return self.eos_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eos_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt
        )  # fmt: skip

    # -- text to tokens -----------------------------------------------------------------------------------------------------

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._encoded([string], add_special_tokens)[string]

    def _encoded(self, texts: Iterable[str], special: bool | None = None) -> dict[str, list[int]]:
        """Each different text with its ids. Special tokens (a BOS) go in front unless the text spells them, or as told."""
        texts = dict.fromkeys(texts)
        spelt = self.tokenizer.decode([self.prefix_token_id])
        bare = {t: special is False or (special is None and has_bos_prefix(t, spelt)) for t in texts}
        found: dict[str, list[int]] = {}
        for without in (True, False):
            some = [t for t in texts if bare[t] == without]
            ids = self.tokenizer.backend_tokenizer.encode_batch_fast(some, add_special_tokens=not without)
            found |= {t: e.ids for t, e in zip(some, ids, strict=True)}
        return found

    # -- likelihoods ----------------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        asked: list[tuple[str, str]] = [_arguments(r) for r in requests]
        moved = [_blanks_moved(context, continuation) for context, continuation in asked]
        ids = self._encoded([t for c, a in moved if c for t in (c, c + a)])
        alone = self._encoded([a for c, a in moved if not c], special=False)
        rows: list[tuple[tuple[str, str], list[int], list[int]]] = []
        for pair, (context, answer) in zip(asked, moved, strict=True):
            if context:
                before = ids[context]
                rows.append((pair, before, ids[context + answer][len(before) :]))
            else:
                given = alone[answer]
                prefix = given[:1] if given[:1] == [self.prefix_token_id] else [self.prefix_token_id]
                rows.append((pair, prefix, given[1:] if given[:1] == prefix else given))
        return self._loglikelihood_tokens(rows)

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

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        texts: list[str] = [_arguments(r)[0] for r in requests]
        ids = self._encoded(texts)
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for number, text in enumerate(texts):
            cut = get_rolling_token_windows(ids[text], self.prefix_token_id, self.max_length, 1)
            for window in map(make_disjoint_window, cut):
                windows.append((None, *window))
                owners.append(number)
        totals = [0.0] * len(texts)
        for number, (logp, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += logp
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    # -- texts ------------------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        eos = self.tokenizer.decode([self.eos_id], skip_special_tokens=False)
        wishes: dict[Wish, list[int]] = {}
        for number, request in enumerate(requests):
            wishes.setdefault(Wish.of(_arguments(request)[1], eos), []).append(number)
        ids = self._encoded(_arguments(r)[0] for r in requests)
        found, done = [""] * len(requests), 0
        for wish, numbers in wishes.items():
            room = self.max_length - wish.limit
            if room < 1:
                raise BadInput(
                    f"a task asks for up to {wish.limit} new tokens and {self.path} has {self.max_length} positions; leave the task out"
                )
            prompts = {n: (ids[_arguments(requests[n])[0]] or [self.prefix_token_id])[-room:] for n in numbers}
            numbers = sorted(numbers, key=lambda n: len(prompts[n]))
            size = self.rows or SAMPLING_ROWS
            for start in range(0, len(numbers), size):
                some = numbers[start : start + size]
                for number, text in zip(some, self._texts([prompts[n] for n in some], wish, start), strict=True):
                    found[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
                done += len(some)
                self.told(done, len(requests))
        return found

    def _texts(self, prompts: list[list[int]], wish: Wish, start: int) -> list[str]:
        """Sampled in legs, so that a text which has come to a stop string keeps nobody waiting for the longest one."""
        generator = torch.Generator(self.model.head_VD.device).manual_seed(seed_of(self.seed, "harness", start))
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


def _arguments(request: Instance) -> Any:
    """(context, continuation), (text,) or (context, settings), by the kind of request."""
    return request.args


def _blanks_moved(context: str, continuation: str) -> tuple[str, str]:
    """Blanks at the end of a context belong to what follows: so words keep their tokens."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _more_ends(path: Path) -> list[int]:
    """Tokens at which `transformers` would end a text too."""
    file = path / "generation_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return [named] if isinstance(named, int) else list(named or [])
