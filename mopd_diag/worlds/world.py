"""A world is a set of domains with seeded draws over them; through it the rest of the package meets prompts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from mopd_diag.config import WorldConfig
from mopd_diag.errors import BadInput, nearest
from mopd_diag.types import Item
from mopd_diag.worlds.domain import Domain, Family
from mopd_diag.worlds.form import Form
from mopd_diag.worlds.gym import gym_domains
from mopd_diag.worlds.jsonl import jsonl_domains
from mopd_diag.worlds.micro import DOMAINS as MICRO
from mopd_diag.worlds.micro.planted import ENTANGLED, PLANTED

BUILT_IN: dict[str, dict[str, Domain]] = {"micro": MICRO, "planted": {**PLANTED}, "entangled": {**ENTANGLED}}
WORLDS = ("micro", "planted", "entangled", "jsonl", "gym")

Seed = tuple[int | str, ...]


@dataclass(frozen=True)
class World:
    """Domains by name, in the order of tables and reports. Every draw is a pure function of its arguments."""

    name: str
    domains: dict[str, Domain]

    def domain(self, name: str) -> Domain:
        if name not in self.domains:
            raise BadInput(f"world '{self.name}' has no domain '{name}'; {nearest(name, self.domains)}")
        return self.domains[name]

    def families(self) -> dict[Family, list[str]]:
        """The names of the domains of each family."""
        families: dict[Family, list[str]] = {}
        for domain in self.domains.values():
            families.setdefault(domain.family, []).append(domain.name)
        return families

    def draw_batch(self, domains: Sequence[str], n: int, seed: Seed) -> list[Item]:
        """`n` different training items, round-robin over `domains`: no domain gets more than one item beyond another.

        A domain's items depend on the seed and on its own name only, not on the company it is drawn in. Items repeat
        only where more are asked for than the domain has.
        """
        drawn: dict[str, Iterable[Item]] = {}
        for name, share in self._shares(domains, n, seed).items():
            found = self.domains[name].distinct("train", share, _generator(seed, name))
            drawn[name] = islice(cycle(found), share)
        return _round_robin(drawn)

    def demonstrations(self, domains: Sequence[str], n: int, seed: Seed) -> list[tuple[Item, str]]:
        """`n` training items with an imperfect demonstration each, for the cold start; items may repeat."""
        drawn = {
            name: islice(self.domains[name].items("train", _generator(seed, name)), share)
            for name, share in self._shares(domains, n, seed).items()
        }
        rng = _generator(seed, "demonstrations")
        items = _round_robin(drawn)
        return [(item, self.domains[item.domain].demonstrate(item.prompt, item.target, rng)) for item in items]

    def evaluation_items(self, domain: str, n: int, seed: Seed) -> list[Item]:
        """`n` different held-out items of one domain; fewer when it has no more."""
        return self.domain(domain).distinct("eval", n, _generator(seed, domain))

    def score(self, item: Item, response: str) -> float:
        """1.0 when the whole response (the world's replies included) is right, else 0.0."""
        return self.domain(item.domain).score(item.prompt, item.target, response)

    def reward(self, item: Item, response: str) -> float:
        """What training may reward: the score, or a domain's shaped reward; `score` stays what is reported."""
        return self.domain(item.domain).reward(item.prompt, item.target, response)

    def shapes(self, domains: Sequence[str]) -> bool:
        """Whether some of the domains reward other than they score."""
        return any(self.domains[name].shapes for name in domains)

    def judge(self, item: Item, response: str) -> tuple[float, float]:
        """Score and reward at once, for one look of the verifier."""
        domain = self.domain(item.domain)
        if domain.shapes:
            return domain.judge(item.prompt, item.target, response)
        score = self.score(item, response)
        return score, score

    def reply(self, item: Item, transcript: str) -> str | None:
        """What the world says after a transcript that ends in `TURN`; None where it has nothing to say."""
        return self.domain(item.domain).reply(item.prompt, item.target, transcript)

    def world_spans(self, item: Item, transcript: str) -> list[tuple[int, int]]:
        """Character spans of a transcript that the world wrote: no loss, no attribution."""
        return self.domain(item.domain).world_spans(item.prompt, item.target, transcript)

    def _shares(self, domains: Sequence[str], n: int, seed: Seed) -> Counter[str]:
        """How many of `n` each domain gets; who gets the remainder changes with the seed and evens out over steps."""
        names = [self.domain(name).name for name in dict.fromkeys(domains)]
        if not names:
            raise BadInput("no domains to draw from; name at least one")
        base, rest = divmod(n, len(names))
        favoured = set(_generator(seed, "remainder").sample(names, rest)) if rest else set()
        return Counter({name: base + (name in favoured) for name in names})


def load_world(
    name: str,
    domains: Sequence[str] | None = None,
    *,
    path: str | Path | None = None,
    verifier: str | None = None,
    template: str = "plain",
    tags: bool = False,
    max_new_tokens: int | None = None,
) -> World:
    """The world called `name`, with all its domains or with those named; their order is the world's own.

    `jsonl` needs `path`, a file of prompts. The options after it belong to the worlds of questions; see docs/worlds.md.

    >>> list(load_world("micro", ["stack", "addition"]).domains)
    ['addition', 'stack']
    """
    if domains is not None and not domains:
        raise BadInput(f"world '{name}' was asked for with an empty list of domains; name at least one, or none at all")
    if name == "gym":
        return World(name, {**gym_domains(domains, Form(template, tags), max_new_tokens)})
    if name == "jsonl" and path is None:
        raise BadInput("the jsonl world needs a file of prompts: `--world jsonl:PATH`, or `path` in [world]")
    if name == "jsonl":
        world = World(name, {**jsonl_domains(Path(path or ""), verifier, Form(template, tags), max_new_tokens)})
    elif name in BUILT_IN:
        world = World(name, dict(BUILT_IN[name]))
    else:
        raise BadInput(f"no world is called '{name}'; {nearest(name, WORLDS)}")
    if domains is None:
        return world
    wanted = {world.domain(each).name for each in domains}
    return World(name, {each: domain for each, domain in world.domains.items() if each in wanted})


def world_of(config: WorldConfig) -> World:
    """The world of a plan's [world] table."""
    return load_world(
        config.name, config.domains or None, path=config.path, verifier=config.verifier, template=config.template,
        tags=config.tags, max_new_tokens=config.max_new_tokens,
    )  # fmt: skip


def world_table(spec: str) -> dict[str, Any]:
    """The [world] table that `--world` stands for.

    >>> world_table("micro:stack,addition"), world_table("jsonl:my/prompts.jsonl")
    ({'name': 'micro', 'domains': ['stack', 'addition']}, {'name': 'jsonl', 'path': 'my/prompts.jsonl'})
    """
    name, _, rest = spec.partition(":")
    if name == "jsonl":
        return {"name": name, **({"path": rest} if rest else {})}
    return {"name": name, "domains": [d for d in rest.split(",") if d]}


def _generator(seed: Seed, purpose: str) -> random.Random:
    """`repr`, because strings seed `random` alike in every process, where hashes of strings do not."""
    return random.Random(repr((*seed, purpose)))


def _round_robin(drawn: Mapping[str, Iterable[Item]]) -> list[Item]:
    """One item of each domain in turn, until all are used up."""
    items: list[Item] = []
    rows = [iter(each) for each in drawn.values()]
    while rows:
        left = []
        for row in rows:
            item = next(row, None)
            if item is not None:
                items.append(item)
                left.append(row)
        rows = left
    return items
