"""What every model of ours decides alike under lm-eval, whoever does the arithmetic: a checkpoint here, or a server.

It is what lm-eval's own `hf` model decides: which special tokens are added, which side of a border a blank belongs to, what is cut when
a text is too long, where a generated text ends.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mopd_diag.errors import BadInput

DEFAULT_LENGTH = 2048
"""Context of a model that names none, as lm-eval's `hf` assumes."""
DEFAULT_NEW = 256
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


class TextLM(TemplateLM):
    """Requests of texts as requests of tokens. `where` names the model in messages; `max_length` is how many tokens it reads.

    A subclass gives the numbers (`_loglikelihood_tokens`) and the texts (`_texts`).
    """

    tokenizer: Any
    eos_id: int
    max_length: int
    where: str
    rows: int | None
    told: Told

    @property
    def window(self) -> int:
        """Tokens that a part of a rolling text is scored from."""
        return self.max_length

    @abstractmethod
    def _texts(self, prompts: list[list[int]], wish: Wish, start: int) -> list[str]:
        """What is written after each prompt; `start` tells one call of a task from the next."""

    @property
    def eot_token_id(self) -> int:
        return self.eos_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eos_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.where.replace("/", "__")

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

    # -- likelihoods ------------------------------------------------------------------------------------------------------------

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

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        texts: list[str] = [_arguments(r)[0] for r in requests]
        ids = self._encoded(texts)
        windows: list[Any] = []
        owners: list[int] = []
        for number, text in enumerate(texts):
            cut = get_rolling_token_windows(ids[text], self.prefix_token_id, self.window, 1)
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
                    f"a task asks for up to {wish.limit} new tokens and {self.where} has {self.max_length} positions; leave the task out"
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


def _arguments(request: Instance) -> Any:
    """(context, continuation), (text,) or (context, settings), by the kind of request."""
    return request.args


def _blanks_moved(context: str, continuation: str) -> tuple[str, str]:
    """Blanks at the end of a context belong to what follows: so words keep their tokens."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
