"""Held-out items as the documents of an evaluation harness, and the verdict on what a harness brings back.

A harness asks once and hears once. Where the world replies in the middle of an answer, the document is asked twice: from the prompt, and
from the prompt with the right call and the world's reply (`opening`). An exact call gets this reply and no other call gets any, so a
transcript put together from the two has the score, greedy, and the distribution of scores, sampled, that it has in the world itself.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, TypeGuard

from mopd_diag.types import Item
from mopd_diag.worlds.domain import TURN, Domain
from mopd_diag.worlds.world import World, load_world

ITEMS = 256
"""Held-out items a domain: as many as a plan evaluates unless it says otherwise. Fewer are the first of these."""
EXAMPLES = 32
"""Training items a domain, for those who show a model some before they ask."""
FIELDS = frozenset(("world", "item_id", "domain", "prompt", "target", "opening", "prompt_hash", "target_hash"))

Document = Mapping[str, Any]


@functools.cache
def domain_of(world: str, name: str) -> Domain:
    """One object a domain and process: some can only judge what they have drawn themselves."""
    return load_world(world, [name]).domain(name)


def held_out(world: str, domain: str, items: int = ITEMS) -> list[dict[str, str]]:
    """The items on which a run evaluates its models, in its order."""
    drawn = World(world, {domain: domain_of(world, domain)}).evaluation_items(domain, items, ("evaluation",))
    return [_document(world, item) for item in drawn]


def examples(world: str, domain: str, items: int = EXAMPLES) -> list[dict[str, str]]:
    """Training items, none of which is held out."""
    drawn = World(world, {domain: domain_of(world, domain)}).draw_batch([domain], items, ("examples",))
    return [_document(world, item) for item in drawn]


def is_document(found: Any) -> TypeGuard[Document]:
    return isinstance(found, Mapping) and found.keys() >= FIELDS and all(isinstance(found[f], str) for f in FIELDS)


def transcript(document: Document, first: str, rest: str = "") -> str:
    """The whole answer: `first` was answered to the prompt, `rest` to the prompt with the opening."""
    opening = document["opening"]
    call = opening[: opening.find(TURN) + 1]
    return opening + rest if call and first.startswith(call) else first


def score(document: Document, answer: str) -> float:
    """1.0 when the whole answer is right, else 0.0."""
    domain = domain_of(document["world"], document["domain"])
    return domain.score(document["prompt"], document["target"], answer)


def content_hash(text: str) -> str:
    """As a run's records hash prompts and targets."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _document(world: str, item: Item) -> dict[str, str]:
    return {
        "world": world,
        "item_id": item.item_id,
        "domain": item.domain,
        "prompt": item.prompt,
        "target": item.target,
        "opening": _opening(domain_of(world, item.domain), item),
        "prompt_hash": content_hash(item.prompt),
        "target_hash": content_hash(item.target),
    }


def _opening(domain: Domain, item: Item) -> str:
    """The right transcript as far as the world's reply; empty where the world says nothing."""
    call = item.target[: item.target.find(TURN) + 1]
    reply = domain.reply(item.prompt, item.target, call) if call else None
    return call + reply if reply else ""
