"""Score given answers under a model behind an OpenAI-compatible server, by prompt log-probabilities.

Threads, not an event loop: a notebook already runs one. Each answer is one request (vLLM's `prompt_logprobs` on `/completions`, the
prompt as token ids) and goes into the cache as it comes.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.engines.served_cache import Cache, key_of
from mopd_diag.engines.served_http import Client, Described, ServerError
from mopd_diag.engines.top_tokens import TopTokens
from mopd_diag.errors import BadInput
from mopd_diag.models.tokenizer import Tokenizer

TOP_K = 20
"""What a vLLM server gives unless started with another `--max-logprobs`."""
SAME = 0.1
"""Mean nats a token by which a cached answer may differ when asked again: batching moves bf16 log-probabilities by less."""
Told = Callable[[str], None]
T = TypeVar("T")


def described(client: Client, cache: Cache, say: Told) -> Described:
    """What the server says of its model, or said when it last ran: with every answer in the cache it need not run now."""
    at = client.address
    try:
        found = client.describe()
    except ServerError as error:
        found = cache.described(at.url, at.model)
        if found is None:
            raise
        say(f"{error}; going on with the cache")
        return found
    cache.describe(at.url, at.model, found)
    return found


def score_served(
    client: Client, rollouts: Rollouts, k: int, tokenizer: Tokenizer, cache: Cache, about: Described, told: Told
) -> TopTokens:
    """The server's k likeliest tokens at every answer token of `rollouts`, in their order.

    Nothing is asked twice, but for one cached answer a call, which shows whether the server still gives the same numbers. Raises
    BadInput when it returns no prompt log-probabilities, reads other tokens, or has other numbers than before; ServerError when it
    stops answering: what it gave until then is in the cache.
    """
    at, fingerprint = client.address, tokenizer.fingerprint
    starts, rows = rollouts.prompt_N.tolist(), rollouts.ids_NL.tolist()
    prompts = [row[:p] for row, p in zip(rows, starts, strict=True)]
    answers = rollouts.responses()
    keys = [
        key_of(at.url, at.model, about.root, fingerprint, k, p, a) if a else ""
        for p, a in zip(prompts, answers, strict=True)
    ]
    wanted = {key: (p, a) for key, p, a in zip(keys, prompts, answers, strict=True) if key}
    found = cache.get(wanted, k)
    missing = [key for key in wanted if key not in found]
    told(f"{at.name}: {len(missing)} of {len(wanted)} answers to ask for, {len(found)} in the cache")
    asking = lambda key: ask(client, *wanted[key], k, tokenizer)  # noqa: E731
    if found and missing:
        first = next(iter(found))
        _check_same(at.name, found[first], asking(first), cache)
    for done, (key, answer) in enumerate(at_once(missing, asking, client), 1):
        cache.put(key, answer)
        found[key] = answer
        told(f"{at.name}: {done} of {len(missing)} answers")
    return TopTokens.join([found[key] for key in keys if key], k)


def at_once(keys: Sequence[str], asking: Callable[[str], T], client: Client) -> Iterator[tuple[str, T]]:
    """Answers as they come, a bounded number under way. After a failure what is under way is still handed out, then it is raised.

    Threads of our own: those of `concurrent.futures` keep the process from ending, after Ctrl-C too, until a slow server has answered.
    """
    waiting, lock, stop = iter(keys), threading.Lock(), threading.Event()
    done: queue.SimpleQueue[tuple[str, T | Exception] | None] = queue.SimpleQueue()

    def work() -> None:
        while not stop.is_set():
            with lock:
                key = next(waiting, None)
            if key is None:
                break
            try:
                done.put((key, asking(key)))
            except Exception as error:  # raised again where the answers are read
                stop.set()
                done.put((key, error))
        done.put(None)

    workers = min(client.address.concurrency, len(keys))
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    failure: Exception | None = None
    try:
        while workers:
            answer = done.get()
            if answer is None:
                workers -= 1
            elif isinstance(answer[1], Exception):
                failure = failure or answer[1]
            else:
                yield answer[0], answer[1]
    finally:
        stop.set()
        if workers:  # Ctrl-C, or a full disk: nobody waits for what is under way
            client.close()
    if failure is not None:
        raise failure


def ask(client: Client, prompt: Sequence[int], answer: Sequence[int], k: int, tokenizer: Tokenizer) -> TopTokens:
    """The numbers of one answer, from the server. Raises as `score_served`."""
    ids = [*prompt, *answer]
    found = client.complete({"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": k})
    return read_answer(client.address.name, found, ids, len(prompt), k, tokenizer)


def read_answer(
    name: str, found: dict[str, Any], ids: Sequence[int], start: int, k: int, tokenizer: Tokenizer
) -> TopTokens:
    """The numbers of `ids[start:]` in one response. Raises BadInput when they are missing or belong to other tokens."""
    choices = found.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    given = choice.get("prompt_logprobs")
    if not isinstance(given, list):
        raise BadInput(
            f"{name}: its server returns no prompt log-probabilities, so given answers cannot be scored; serve it with one that does (vLLM)"
        )
    if len(given) != len(ids):
        raise BadInput(
            f"{name}: its server read {len(given)} tokens where {len(ids)} were sent; it has another tokenizer"
        )
    rows = [_row(name, entry) for entry in given[start:]]
    for token, row in zip(ids[start:], rows, strict=True):
        if token not in row:
            raise BadInput(
                f"{name}: its server gave no log-probability for a token that was sent; it read other tokens"
            )
    _check_vocabulary(name, given[start:], tokenizer)
    return TopTokens.of(ids[start:], rows, k)


def _row(name: str, entry: Any) -> dict[int, float]:
    """id -> log-probability of one position."""
    try:
        row = {int(token): float(each["logprob"]) for token, each in entry.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadInput(
            f"{name}: its server's prompt log-probabilities are not in vLLM's form; serve it with vLLM"
        ) from None
    if any(not math.isfinite(x) or x > 1e-3 for x in row.values()):
        raise BadInput(
            f"{name}: its server gives log-probabilities that are none (NaN, infinite or above 0); repair the model"
        )
    return row


def _check_vocabulary(name: str, entries: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> None:
    """Raise BadInput when an id is another token's for the server, as far as it says what its tokens are."""
    said = {int(token): each.get("decoded_token") for entry in entries for token, each in entry.items()}
    beyond = [i for i in said if not 0 <= i < tokenizer.vocab_size and isinstance(said[i], str) and said[i]]
    other = [i for i, text in said.items() if 0 <= i < tokenizer.vocab_size and not alike(text, tokenizer.token(i))]
    if beyond:
        raise BadInput(
            f"{name}: its server knows a token {beyond[0]}, the student's tokenizer has {tokenizer.vocab_size}; "
            "served members need the student's tokenizer"
        )
    if other:
        theirs, ours = str(said[other[0]])[:40], tokenizer.token(other[0])
        raise BadInput(
            f"{name}: token {other[0]} is {theirs!r} for its server and {ours!r} for the student; "
            "served members need the student's tokenizer"
        )


def alike(theirs: Any, ours: str) -> bool:
    """Whether two spellings can be one token. Servers spell blanks and parts of characters in ways of their own."""
    if not isinstance(theirs, str) or "\ufffd" in theirs + ours or theirs.startswith("<0x"):
        return True
    a, b = theirs.strip(" \t\n\r▁ĠĊ"), ours.strip(" \t\n\r▁ĠĊ")
    return a == b or not a or not b


def _check_same(name: str, before: TopTokens, now: TopTokens, cache: Cache) -> None:
    gap = float(np.abs(before.logp_TK[:, 0] - now.logp_TK[:, 0]).mean())
    if gap > SAME:
        raise BadInput(
            f"{name}: its server gives other numbers than those in {cache.path} (by {gap:.2g} nats a token); "
            "the model was changed under its name: delete the cache"
        )
