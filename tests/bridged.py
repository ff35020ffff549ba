"""A small plan with a distilled student, and checkpoints under its models' names, for the tests of the bridges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny import TOKENIZER, decoder, shifted

from mopd_diag.config import Plan
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.study.resolve import Study, resolve

DOMAINS = ("addition", "stack")


def study(domains: tuple[str, ...] = DOMAINS, **settings: Any) -> Study:
    """A plan whose student is distilled for two steps, from one teacher a domain."""
    teachers = {d: f"teacher-{d}" for d in domains}
    trained = [
        {"name": t, "algorithm": "grpo", "start": "base", "domains": [d], "steps": 1} for d, t in teachers.items()
    ]
    student = {
        "name": "student",
        "algorithm": "mopd",
        "start": "base",
        "teachers": teachers,
        "steps": 2,
        "prompts": 8,
        **settings,
    }
    stages = [{"name": "base", "algorithm": "sft", "steps": 1}, *trained, student]
    plan = {"name": "tiny", "world": {"domains": domains}, "stages": stages, "evaluation": {"items": 8}}
    return resolve(Plan.model_validate(plan))


def write_models(folder: Path) -> Path:
    """A base, and a teacher for each of `DOMAINS`."""
    base = decoder("llama", std=0.5)
    save_checkpoint(base, TOKENIZER, folder / "base")
    for seed, domain in enumerate(DOMAINS, 1):
        save_checkpoint(shifted(base, seed, 0.2), TOKENIZER, folder / f"teacher-{domain}")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
