"""One OpenAI-compatible server: time-outs, retries with back-off, and one line for everything it can do wrong.

No message holds the key: it is read from the environment, sent as a header and taken out of whatever the server says.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from mopd_diag.errors import BadInput, ResourceError, nearest

ATTEMPTS = 6
BACKOFF_S = 0.5
"""Before the second attempt; twice as long before each further one: 15 s in all."""
LONGEST_WAIT_S = 300.0
"""A server that asks for a longer pause (Retry-After) is told the user, not waited for."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
WORDS = 200
"""Characters of a server's own message that are repeated."""


class ServerError(ResourceError):
    """A server cannot be reached, or goes on failing; what it answered before is in the cache."""


@dataclass(frozen=True, slots=True)
class Address:
    """A served member: its name in the cast, where it is, the model's name there, and how it is asked."""

    name: str
    url: str
    model: str
    key: str = field(default="", repr=False)
    concurrency: int = 8
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Described:
    """What a server says of its model: what it was loaded from, and the most tokens it takes; unknown where it says nothing."""

    root: str = ""
    context: int | None = None


def key_from(name: str, variable: str | None, environment: Mapping[str, str] | None = None) -> str:
    """The key that a cast's `key_env` names, or nothing. Raises BadInput, without name or value: either may be the key itself."""
    if variable is None:
        return ""
    key = (os.environ if environment is None else environment).get(variable, "").strip()
    if not key:
        raise BadInput(
            f"{name}: the environment variable that its key_env names is not set; set it to the server's key"
        )
    if not key.isascii() or not key.isprintable():
        raise BadInput(f"{name}: the key in the environment holds characters that no header may; copy it again")
    return key


class Client:
    """Asks one server; safe to use from several threads. Close it, or use it in a `with`."""

    def __init__(self, address: Address, *, attempts: int = ATTEMPTS, backoff_s: float | None = None) -> None:
        self.address, self.attempts = address, attempts
        self.backoff_s = BACKOFF_S if backoff_s is None else backoff_s
        self._closed = threading.Event()
        local = httpx2.URL(address.url).host in ("localhost", "127.0.0.1", "::1")
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {address.key}"} if address.key else {},
            timeout=httpx2.Timeout(address.timeout_s, connect=min(10.0, address.timeout_s)),
            limits=httpx2.Limits(max_connections=address.concurrency),
            trust_env=not local,  # a proxy does not know this machine's own servers
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends waits at once; requests under way fail."""
        self._closed.set()
        self._http.close()

    def complete(self, document: dict[str, Any]) -> dict[str, Any]:
        """The answer to one completion request."""
        return self._ask("POST", "completions", {"model": self.address.model, **document})

    def describe(self) -> Described:
        """What the server says of the model. Raises BadInput when it serves others but not this one."""
        try:
            found = self._ask("GET", "models", None).get("data")
        except _NotThere:
            return Described()
        cards = {c["id"]: c for c in found if isinstance(c, dict) and "id" in c} if isinstance(found, list) else {}
        if cards and self.address.model not in cards:
            names = [_clean(str(n)) for n in cards]
            raise BadInput(f"{self._at} serves no model '{self.address.model}'; {nearest(self.address.model, names)}")
        card = cards.get(self.address.model, {})
        context = card.get("max_model_len")
        return Described(str(card.get("root") or ""), context if isinstance(context, int) and context > 0 else None)

    # -- one request --------------------------------------------------------------------------------------------------------

    @property
    def _at(self) -> str:
        return f"{self.address.name}: {self.address.url}"

    def _ask(self, method: str, path: str, document: dict[str, Any] | None) -> dict[str, Any]:
        problem, pause = "", 0.0
        for attempt in range(self.attempts):
            # The server's own wish counts where it is longer than ours.
            if attempt and self._closed.wait(max(pause, self.backoff_s * 2 ** (attempt - 1))):
                break
            pause = 0.0
            try:
                answer = self._http.request(method, f"{self.address.url.rstrip('/')}/{path}", json=document)
            except httpx2.TimeoutException:
                problem = f"no answer within {self.address.timeout_s:g} s"
                continue
            except (httpx2.RequestError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
                problem = f"cannot be reached, or broke off ({self._said(str(error)) or type(error).__name__})"
                continue
            if answer.status_code in PASSING:
                problem, pause = f"answers {answer.status_code} ({self._words(answer)})", _retry_after(answer)
                if pause > LONGEST_WAIT_S:
                    raise ServerError(
                        f"{self._at} asks to wait {pause:,.0f} s; repeat the command then, nothing is lost"
                    )
                continue
            if answer.status_code != 200:
                raise self._refusal(answer)
            try:
                found = answer.json()
            except ValueError:  # UnicodeDecodeError included
                problem = "answers with something that is not JSON"
                continue
            if isinstance(found, dict):
                return found
            problem = f"answers with a {type(found).__name__} instead of an object"
        raise ServerError(
            f"{self._at} {problem or 'was closed'}, tried {self.attempts} times; see that the server runs and repeat the command: "
            "what it answered is in the cache"
        )

    def _refusal(self, answer: httpx2.Response) -> BadInput:
        status, words = answer.status_code, self._words(answer)
        if status in (401, 403):
            todo = (
                "put a valid one into the environment variable that its key_env names"
                if self.address.key
                else "name the environment variable that holds it as key_env in the cast"
            )
            return BadInput(
                f"{self._at} refuses {'the' if self.address.key else 'to answer without a'} key ({status}); {todo}"
            )
        if status == 404:
            return _NotThere(f"{self._at} has no such address or model ({words}); check url and model in the cast")
        if 300 <= status < 400:
            return BadInput(f"{self._at} redirects ({status}), which is not followed; give the address it leads to")
        return BadInput(f"{self._at} refuses the request ({status}: {words}); see the server's settings")

    def _words(self, answer: httpx2.Response) -> str:
        """The server's own message, in one harmless line."""
        try:
            found = answer.json()
            error = found.get("error", found)
            text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        except (ValueError, AttributeError):
            text = answer.text
        return self._said(str(text or "")) or "no reason given"

    def _said(self, text: str) -> str:
        return _clean(text.replace(self.address.key, "…") if self.address.key else text)


class _NotThere(BadInput):
    """The server lacks this address."""


def _clean(text: str) -> str:
    """One line without control characters, cut to a readable length."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(line.split())[:WORDS]


def _retry_after(answer: httpx2.Response) -> float:
    """Seconds that the server asks to wait: a number, or a date; 0 when it asks for none."""
    said = answer.headers.get("retry-after", "").strip()
    if said.isdigit():
        return float(said)
    try:
        when = parsedate_to_datetime(said)
    except ValueError:
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
