"""Small casts on disk whose truth is known: models that moved from one base in different directions. Shared by the tests of casts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import TOKENIZER, decoder, shifted

from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder

PROMPTS: list[dict[str, Any]] = [
    {"id": f"q{i}", "prompt": f"M{10 + i}+{90 - i}:", "domain": "math" if i % 2 else "code"} for i in range(12)
]
BASE = decoder()
MOVED: dict[str, Decoder] = {
    "base": BASE,
    **{n: shifted(BASE, s, 0.1) for n, s in (("math", 1), ("code", 2), ("control", 3))},
}


def save_models(folder: Path) -> Path:
    """A base, two teachers that moved in different directions, and a control that moved in a third."""
    for name, model in MOVED.items():
        save_checkpoint(model, TOKENIZER, folder / name)
    return folder


def part_of_the_way(model: Decoder, share: float) -> Decoder:
    """base + share · (model − base): a student that did not quite arrive."""
    between = Decoder(model.config)
    with torch.no_grad():
        for p, q, b in zip(between.parameters(), model.parameters(), BASE.parameters(), strict=True):
            p.copy_(b + share * (q - b))
    return between


def paths(models: Path, student: str | Path = "math", **other: Path) -> dict[str, Any]:
    """A cast as `mopd_diag.attribute` takes it."""
    at = {name: models / name for name in MOVED} | other
    return {
        "base": at["base"],
        "student": models / student if isinstance(student, str) else student,
        "teachers": {n: {"path": at[n], "domains": [n]} for n in ("math", "code")},
    }


def rollouts_file(folder: Path, responses: list[str]) -> Path:
    lines = [json.dumps({**p, "response": r}) for p, r in zip(PROMPTS, responses, strict=False)]
    (folder / "rollouts.jsonl").write_text("\n".join(lines))
    return folder / "rollouts.jsonl"
