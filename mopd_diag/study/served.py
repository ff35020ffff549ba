"""The served members of a cast: addresses from the cast and the environment, and their numbers on given answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from mopd_diag.config import Cast
from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.engines.served import TOP_K, ask, described, score_served
from mopd_diag.engines.served_cache import Cache, default_path
from mopd_diag.engines.served_http import Address, Client, Described, key_from
from mopd_diag.engines.top_tokens import UNUSED, TopTokens, shared
from mopd_diag.errors import BadInput
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.study.answers import Told


def addresses(cast: Cast) -> dict[str, Address]:
    """Where the served members are, keys read from the environment. Raises BadInput when student or base are served."""
    found = {}
    for name, member in cast.members().items():
        if member.url is None or member.model is None:
            continue
        if name in ("base", "student"):
            raise BadInput(
                f"{name}: got a served model (`url`), expected a `path`: shifts are measured from base to student, token by token; "
                "only teachers, controls and rivals can be served"
            )
        key = key_from(name, member.key_env)
        found[name] = Address(name, member.url.rstrip("/"), member.model, key, member.concurrency, member.timeout_s)
    return found


@dataclass(frozen=True, slots=True)
class Servers:
    """Servers that were asked what they serve, and the cache they share."""

    clients: Mapping[str, Client]
    about: Mapping[str, Described]
    cache: Cache | None = None

    @property
    def contexts(self) -> list[int]:
        """The longest prompt with its answer that each takes, in tokens that are read: vLLM needs room for one more."""
        return [a.context - 2 for a in self.about.values() if a.context is not None]

    def top_tokens(self, rollouts: Rollouts, k: int | None, tokenizer: Tokenizer, told: Told) -> dict[str, TopTokens]:
        """Each server's k likeliest tokens on the answers, from the cache where they are."""
        if self.cache is None:
            return {}
        k = min(TOP_K if k is None else k, tokenizer.vocab_size - 1)
        return {
            name: score_served(client, rollouts, k, tokenizer, self.cache, self.about[name], told)
            for name, client in self.clients.items()
        }


@contextmanager
def open_servers(addresses: Mapping[str, Address], say: Told) -> Iterator[Servers]:
    """Ask every server what it serves, before anything is paid for. Raises BadInput or ServerError; opens nothing without addresses."""
    with ExitStack() as stack:
        if not addresses:
            yield Servers({}, {})
            return
        cache = stack.enter_context(Cache(default_path()))
        clients = {name: stack.enter_context(Client(address)) for name, address in addresses.items()}
        yield Servers(clients, {name: described(c, cache, say) for name, c in clients.items()}, cache)


def probe(address: Address, tokenizer: Tokenizer) -> str:
    """Ask a server for one token, nothing kept, and say what it is. Raises what scoring would raise."""
    with Client(address) as client:
        about = client.describe()
        ask(client, tokenizer.encode("1 ") or [tokenizer.eos_id], [tokenizer.eos_id], 1, tokenizer)
    context = "" if about.context is None else f", up to {about.context:,} tokens"
    return f"{address.url} serves '{address.model}' with prompt log-probabilities and the student's tokens{context}"


def seen(given: Mapping[str, TopTokens], who: str, by: str) -> str:
    """How much of the distributions the comparison rests on, in words, after `who` was asked and by whom the tokens were given."""
    known_TC = shared(list(given.values()))
    used_TC = known_TC != UNUSED
    rest = {n: float(np.mean(1 - np.where(used_TC, np.exp(g.at(known_TC)), 0).sum(1))) for n, g in given.items()}
    worst = max(rest, key=rest.__getitem__)
    return (
        f"{who}: all members are compared over the tokens that {by} gave, {used_TC.sum(1).mean():.1f} on "
        f"average, and one bucket for the rest, which holds {max(rest[worst], 0):.1%} of {worst}'s probability"
    )
