"""Models whose every next-token probability is planted, and a world in which the value of every prefix follows from them by hand.

A decoder without mixing (attention and feed-forward write zeros) predicts from its last token alone: an exact Markov chain.
"""

from __future__ import annotations

import math
import random
import tomllib
from pathlib import Path

import torch
from tiny import TOKENIZER

from mopd_diag.config import Plan, parse
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.study.jobs import run_job
from mopd_diag.study.resolve import resolve
from mopd_diag.study.run import claim
from mopd_diag.worlds.domain import Domain

END = "<eos>"
Table = dict[str, dict[str, float]]


def bigram(table: Table) -> Decoder:
    """The chain with P(next | last) = `table[last][next]`; what is not named ends the answer."""
    size = TOKENIZER.vocab_size
    ids = {c: TOKENIZER.encode(c)[0] for row in table for c in (row, *table[row]) if c != END} | {END: TOKENIZER.eos_id}
    config = DecoderConfig(
        size, hidden_size=size, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=8,
        intermediate_size=8, tie_word_embeddings=False,
    )  # fmt: skip
    model = Decoder(config)
    logits = torch.full((size, size), -30.0)
    logits[:, TOKENIZER.eos_id] = 0.0
    for last, row in table.items():
        logits[ids[last]] = -30.0
        for token, p in row.items():
            logits[ids[last], ids[token]] = math.log(p)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for block in model.blocks:
            block.norm_attention.fill_(1.0)
            block.norm_mlp.fill_(1.0)
        model.norm.fill_(1.0)
        model.embed.copy_(10.0 * torch.eye(size))
        assert model.head is not None
        model.head.copy_(logits.T / math.sqrt(size))
    return model


class _Planted(Domain):
    family = "math"
    summary = "planted"
    max_new_tokens = 8
    mark, target = "", ""

    def draw(self, rng: random.Random) -> tuple[str, str]:
        return f"{rng.randrange(1000):03d}{self.mark}", self.target

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        return target


class Left(_Planted):
    name, mark, target = "left", "+", "abc"


class Right(_Planted):
    name, mark, target = "right", "*", "de"


class Call(_Planted):
    """`m~`, the world says `5;`, and the answer repeats the digit."""

    name, mark, target = "call", "@", "m~5;5"

    def reply(self, prompt: str, target: str, transcript: str) -> str | None:
        return "5;" if transcript == "m~" else None


DOMAINS: dict[str, Domain] = {d.name: d for d in (Left(), Right(), Call())}

AFTER = {"a": {"b": 1.0}, "q": {"r": 1.0}, "d": {"e": 1.0}, "m": {"~": 1.0}}
CHAINS: dict[str, Table] = {
    # `left`: V(start) = 0.7 × 0.9 = 0.63, V(a) = V(ab) = 0.9; `q` is what teacher-right wants (it goes on differently).
    "student": {"+": {"a": 0.7, "q": 0.3}, "b": {"c": 0.9, "z": 0.1}, "*": {"d": 0.8, "k": 0.2}, "@": {"m": 0.8, "z": 0.2},
                ";": {"5": 0.6, "6": 0.4}},
    "teacher-left": {"+": {"a": 0.98, "q": 0.02}, "b": {"c": 0.99, "z": 0.01}, "*": {"d": 0.4, "k": 0.6}, "@": {"m": 0.95, "z": 0.05},
                     ";": {"5": 0.95, "6": 0.05}},
    "teacher-right": {"+": {"a": 0.1, "q": 0.9}, "b": {"c": 0.5, "z": 0.5}, "*": {"d": 0.99, "k": 0.01}, "@": {"m": 0.5, "z": 0.5},
                      ";": {"5": 0.5, "6": 0.5}, "q": {"s": 1.0}},
    "base": {"+": {"a": 0.5, "q": 0.1, "x": 0.4}, "b": {"c": 0.5, "z": 0.5}, "*": {"d": 0.4, "k": 0.6}, "@": {"m": 0.5, "z": 0.5},
             ";": {"5": 0.5, "6": 0.5}},
}  # fmt: skip
LEFT_START, LEFT_A = 0.7 * 0.9, 0.9

TOML = """
name = "planted"
[world]
name = "planted"
[evaluation]
items = 24
samples = 3
[diagnosis]
attribution_items = 10
[[stages]]
name = "base"
algorithm = "sft"
steps = 1
[[stages]]
name = "teacher-left"
algorithm = "grpo"
start = "base"
[[stages]]
name = "teacher-right"
algorithm = "grpo"
start = "base"
[[stages]]
name = "student"
algorithm = "mopd"
start = "base"
[stages.teachers]
left = "teacher-left"
right = "teacher-right"
call = "teacher-left"
[[stages]]
name = "rival-mixed-rl"
algorithm = "grpo"
start = "base"
"""


def chain(name: str) -> Decoder:
    return bigram({**AFTER, **CHAINS.get(name, CHAINS["base"])})


def write_planted_run(path: Path) -> RunDirectory:
    """A run directory with planted models, evaluated and traced by the real jobs. `BUILT_IN["planted"]` must be `DOMAINS`."""
    study = resolve(parse(Plan, tomllib.loads(TOML), "planted"))
    run = claim(path, study, study.identity())
    for stage in study.stages:
        save_checkpoint(chain(stage.name), TOKENIZER, path / "models" / stage.name)
        run_job(path, study.identity(), "evaluate", stage.name, 0.0, lambda *_: None)
    run_job(path, study.identity(), "trace", "student", 0.0, lambda *_: None)
    return run
