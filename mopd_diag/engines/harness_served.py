"""A served model under lm-eval: its own `local-completions`, the student's tokens, and our client between it and the server.

What is asked (`echo` and `logprobs`, or a text) and how an answer is read is lm-eval's. Ours is what its model lacks: every failure in one
line, the key in no log, answers kept as they come, and a look at whether what came back belongs to the tokens that were sent.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import postprocess_generated_text

from mopd_diag.engines.asked import Asked
from mopd_diag.engines.harness_text import DEFAULT_LENGTH, TextLM, Told, Wish
from mopd_diag.engines.served import alike, at_once
from mopd_diag.engines.served_http import Client, Described
from mopd_diag.errors import BadInput
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.seeds import seed_of

AT_LEAST = 64
"""Texts asked for before progress is told; eight times the requests under way where that is more."""
Completions: Any = LocalCompletionsAPI  # its decorator hides what it is
PROBED = 64
"""Tokens, spread over the vocabulary, whose spelling (and that of the end of a text) is compared before anything else is asked."""


class OtherTokens(BadInput):
    """The server has another tokenizer than the student."""


class ServedLM(TextLM, Completions):
    """A model behind `client`. `words` is the student's tokenizer, `about` what the server says of itself, `kept` its answers so far.

    Sampled texts depend on `seed`, on the prompt and on how often it was asked before, as far as the server follows a request's seed.
    """

    def __init__(
        self, client: Client, words: Any, eos_id: int, about: Described, kept: Asked, *, seed: int = 0, told: Told | None = None
    ) -> None:  # fmt: skip
        at = client.address
        # With a tokenizer of its own lm-eval would look for one under the served model's name.
        Completions.__init__(
            self, base_url=at.url, model=at.model, tokenizer_backend="none", max_length=about.context or DEFAULT_LENGTH
        )
        self.tokenizer, self.tokenizer_backend, self.tokenized_requests = words, "huggingface", True
        self.client, self.where, self.root, self.kept = client, f"{at.name} ({at.url})", about.root, kept
        self.eos_id, self.seed = eos_id, seed
        self.rows = max(AT_LEAST, 8 * at.concurrency)
        self.told = told or (lambda _done, _of: None)
        self._times: Counter[tuple[int, ...]] = Counter()

    @property
    def window(self) -> int:
        # `local-completions` cuts context and answer together to `max_length`, and a first token has no probability.
        return self.max_length - 1

    @property
    def api_key(self) -> str:
        return ""  # never the environment's OPENAI_API_KEY: the client has the key that the cast names

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        """A text too long for the server loses its beginning."""
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest >= self.max_length:
            raise BadInput(
                f"a task has an answer of {longest} tokens and {self.where} reads {self.max_length - 1} after the first; leave the task out"
            )
        texts, starts, names = self.batch_loglikelihood_requests([requests])
        documents = [self._create_payload(ids, generate=False, seed=0) for ids in texts]
        given = self._asked(documents, starts, self._score)
        found = [(float(logp), bool(greedy)) for logp, greedy in given]
        for name, answer in zip(names, found, strict=True):
            if name is not None:  # a window of a rolling text has no name of its own
                self.cache_hook.add_partial("loglikelihood", name, answer)
        return found

    def _score(self, found: dict[str, Any], document: dict[str, Any], start: int) -> tuple[float, bool]:
        scores = read_scores(self.client.address.name, found, document["prompt"])
        return self.parse_logprobs({"choices": [{"index": 0, "logprobs": scores}]}, ctxlens=[start])[0]

    def _texts(self, prompts: list[list[int]], wish: Wish, start: int) -> list[str]:
        documents = []
        for prompt in prompts:
            self._times[tuple(prompt)] += 1
            seed = seed_of(self.seed, "served", *prompt, self._times[tuple(prompt)]) % 2**31
            how = {"max_gen_toks": wish.limit, "temperature": wish.temperature, "until": list(wish.until)}
            documents.append(self._create_payload(prompt, generate=True, gen_kwargs=how, seed=seed))
        given = self._asked(documents, [0] * len(documents), self._text)
        return [postprocess_generated_text(text, list(wish.until), None) for text in given]

    def _text(self, found: dict[str, Any], _document: dict[str, Any], _start: int) -> str:
        return self.parse_generations({"choices": [read_text(self.client.address.name, found)]})[0]

    def _asked(
        self, documents: Sequence[dict[str, Any]], starts: Sequence[int], read: Callable[[dict[str, Any], dict[str, Any], int], Any]
    ) -> list[Any]:  # fmt: skip
        """What was read from the server's answer to each document; those that are kept, or alike, are asked for once."""
        keys = [
            hashlib.blake2b(json.dumps([self.root, d, s]).encode(), digest_size=16).hexdigest()
            for d, s in zip(documents, starts, strict=True)
        ]
        wanted = dict(zip(keys, zip(documents, starts, strict=True), strict=True))
        missing = [key for key in wanted if key not in self.kept]
        asking = lambda key: read(self.client.complete(wanted[key][0]), *wanted[key])  # noqa: E731
        for done, (key, answer) in enumerate(at_once(missing, asking, self.client), 1):
            self.kept.put(key, answer)
            self.told(len(wanted) - len(missing) + done, len(wanted))
        return [self.kept[key] for key in keys]


def check_scores(client: Client, tokenizer: Tokenizer, context: int) -> None:
    """Ask for the scores of a few tokens. Raises OtherTokens, or BadInput when the server gives no log-probabilities of a prompt."""
    spread = np.linspace(0, tokenizer.vocab_size - 1, max(1, min(PROBED, tokenizer.vocab_size, context - 2)))
    ids = [tokenizer.eos_id, *spread.round().astype(int).tolist()]
    found = client.complete({"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 0})
    name = client.address.name
    read_scores(name, found, ids)
    spelt = found["choices"][0]["logprobs"].get("tokens")
    if not isinstance(spelt, list):
        return  # a server that sends no texts cannot be checked
    for token, theirs in zip(ids, spelt, strict=False):
        if not alike(theirs, tokenizer.token(token)):
            raise OtherTokens(
                f"{name}: token {token} is {str(theirs)[:40]!r} for its server and {tokenizer.token(token)!r} for the student; served "
                "members need the student's tokenizer"
            )


def read_scores(name: str, found: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Of one response, what `local-completions` reads: the log-probability of each token, and the largest at its place."""
    given = _choice(name, found).get("logprobs")
    tokens, tops = (given.get(k) if isinstance(given, dict) else None for k in ("token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(tops, list) or len(tokens) < len(ids):
        raise BadInput(
            f"{name}: its server returns no log-probabilities of the prompt (`echo` with `logprobs`), so answers cannot be scored; serve "
            "it with one that does (vLLM), or ask it tasks that generate only"
        )
    if len(tokens) != len(ids) + 1 or len(tops) != len(tokens):
        raise OtherTokens(
            f"{name}: its server read {len(tokens) - 1} tokens where {len(ids)} were sent; it has another tokenizer"
        )
    try:
        logp = [float(x) for x in tokens[1:]]
        best = [max(map(float, top.values())) for top in tops[1:]]
    except (AttributeError, TypeError, ValueError):
        raise BadInput(
            f"{name}: its server's log-probabilities are not in the form of OpenAI's completions; serve it with vLLM"
        ) from None
    if not all(math.isfinite(x) and x <= 1e-3 for x in (*logp, *best)):
        raise BadInput(
            f"{name}: its server gives log-probabilities that are none (NaN, infinite or above 0); repair the model"
        )
    return {"token_logprobs": [None, *logp], "top_logprobs": [None, *({"": b} for b in best)]}


def read_text(name: str, found: dict[str, Any]) -> dict[str, Any]:
    text = _choice(name, found).get("text")
    if not isinstance(text, str):
        raise BadInput(
            f"{name}: its server's answer has no text; its url names something else than OpenAI's completions"
        )
    return {"index": 0, "text": text}


def _choice(name: str, found: dict[str, Any]) -> dict[str, Any]:
    choices = found.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    raise BadInput(
        f"{name}: its server's answer has no choices; its url names something else than OpenAI's completions"
    )
