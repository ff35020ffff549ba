"""A served model under lm-eval: its own `local-completions`, the student's tokens, and our client between it and the server.

What is asked (`echo` and `logprobs`, or a text) and how an answer is read is lm-eval's. Ours is what its model lacks: time-outs and refusals
in one line, the key in no log, answers kept as they come, and a look at whether what came back belongs to the tokens that were sent.
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
from mopd_diag.engines.harness_text import TextLM, Told, Wish
from mopd_diag.engines.served import alike, at_once
from mopd_diag.engines.served_http import Client
from mopd_diag.errors import BadInput
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.seeds import seed_of

AT_LEAST = 64
"""Texts asked for before progress is told; eight times the requests under way where that is more."""
PROBED = 64
"""Tokens, spread over the vocabulary, whose spelling is compared before anything else is asked."""


class OtherTokens(BadInput):
    """The server has another tokenizer than the student."""


class ServedLM(TextLM, LocalCompletionsAPI):
    """A model behind `client`, that reads `context` tokens. `words` and `tokenizer` are the student's; `kept` holds its answers so far.

    Sampled texts depend on `seed`, on the prompt and on how often it was asked before, as far as the server follows a request's seed.
    """

    def __init__(
        self, client: Client, words: Any, tokenizer: Tokenizer, context: int, kept: Asked, *, seed: int = 0, told: Told | None = None
    ) -> None:  # fmt: skip
        at = client.address
        # With a tokenizer of its own lm-eval would look for one under the served model's name.
        super().__init__(
            base_url=at.url, model=at.model, tokenizer_backend="none", max_length=context, max_retries=1, batch_size=2**31
        )
        self.tokenizer, self.tokenizer_backend, self.tokenized_requests = words, "huggingface", True
        self.client, self.where, self.kept = client, f"{at.name} ({at.url})", kept
        self.ids_of, self.eos_id, self.seed = tokenizer, tokenizer.eos_id, seed
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

    def _loglikelihood_tokens(self, requests: Any, **more: Any) -> list[tuple[float, bool]]:
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest >= self.max_length:
            raise BadInput(
                f"a task has an answer of {longest} tokens and {self.where} reads {self.max_length - 1} after the first; leave the task out"
            )
        return LocalCompletionsAPI._loglikelihood_tokens(self, requests, **more)

    def model_call(self, messages: Any, *, generate: bool = False, **_: Any) -> dict[str, Any]:
        """The scores of each text, one request each, as if they had been asked for in one."""
        documents = [self._create_payload(ids, generate=generate, seed=0) for ids in messages]
        read = lambda found, ids: read_scores(self.client.address.name, found, ids)  # noqa: E731
        return {"choices": [{**c, "index": n} for n, c in enumerate(self._asked(documents, read))]}

    def _texts(self, prompts: list[list[int]], wish: Wish, start: int) -> list[str]:
        documents = []
        for prompt in prompts:
            self._times[tuple(prompt)] += 1
            seed = seed_of(self.seed, "served", *prompt, self._times[tuple(prompt)]) % 2**31
            how = {"max_gen_toks": wish.limit, "temperature": wish.temperature, "until": list(wish.until)}
            documents.append(self._create_payload(prompt, generate=True, gen_kwargs=how, seed=seed))
        read = lambda found, _ids: read_text(self.client.address.name, found)  # noqa: E731
        texts = self.parse_generations([{"choices": [c]} for c in self._asked(documents, read)])
        return [postprocess_generated_text(t, list(wish.until), None) for t in texts]

    def _asked(
        self, documents: Sequence[dict[str, Any]], read: Callable[[dict[str, Any], list[int]], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The server's choice for each document, in their order; those that are kept, or alike, are asked for once."""
        keys = [hashlib.blake2b(json.dumps(d).encode(), digest_size=16).hexdigest() for d in documents]
        wanted = dict(zip(keys, documents, strict=True))
        missing = [key for key in wanted if key not in self.kept]
        asking = lambda key: read(self.client.complete(wanted[key]), wanted[key]["prompt"])  # noqa: E731
        for done, (key, choice) in enumerate(at_once(missing, asking, self.client), 1):
            self.kept.put(key, choice)
            self.told(len(wanted) - len(missing) + done, len(wanted))
        return [self.kept[key] for key in keys]


def check_scores(client: Client, tokenizer: Tokenizer, context: int) -> None:
    """Ask for the scores of a few tokens. Raises OtherTokens, or BadInput when the server gives no log-probabilities of a prompt."""
    spread = np.linspace(0, tokenizer.vocab_size - 1, max(2, min(PROBED, tokenizer.vocab_size, context - 2)))
    ids = spread.round().astype(int).tolist()
    found = client.complete(
        {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 0}
    )
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
            f"{name}: its server returns no log-probabilities of the prompt (`echo` with `logprobs`), so answers cannot be scored; serve it "
            "with one that does (vLLM), or ask it tasks that generate only"
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
    return {"logprobs": {"token_logprobs": [None, *logp], "top_logprobs": [None, *({"": b} for b in best)]}}


def read_text(name: str, found: dict[str, Any]) -> dict[str, Any]:
    text = _choice(name, found).get("text")
    if not isinstance(text, str):
        raise BadInput(f"{name}: its server's answer has no text; its url names something else than OpenAI's completions")
    return {"index": 0, "text": text}


def _choice(name: str, found: dict[str, Any]) -> dict[str, Any]:
    choices = found.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    raise BadInput(f"{name}: its server's answer has no choices; its url names something else than OpenAI's completions")
