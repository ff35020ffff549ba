"""Attribution for any checkpoints: load a cast, take or sample the student's answers, score them, name the teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mopd_diag.config import Cast
from mopd_diag.diagnostics.attribution import Attribution, attribute
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.engines.sampling import sample
from mopd_diag.engines.scoring import score
from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.loading import Loaded, Model, load
from mopd_diag.prompts import Prompt
from mopd_diag.runs.directory import write_json, write_table
from mopd_diag.seeds import seed_of

SAMPLING_ROWS = 256
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CastModels:
    """The members of a cast, loaded, all with one tokenizer."""

    loaded: dict[str, Loaded]
    teachers: tuple[str, ...]
    route: dict[str, str]

    @property
    def tokenizer(self):  # noqa: ANN201
        return self.loaded["student"].tokenizer

    @property
    def models(self) -> dict[str, Model]:
        return {name: each.model for name, each in self.loaded.items()}


def load_members(cast: Cast, told: Told = lambda _: None) -> CastModels:
    """Load every member. Raises CheckpointError when one cannot be loaded or its tokenizer differs from the student's."""
    loaded: dict[str, Loaded] = {}
    for name, member in cast.members().items():
        if member.path is None:
            raise BadInput(f"{name}: served models (`url`) cannot be scored yet; give a `path` to a checkpoint")
        told(f"loading {name}")
        loaded[name] = load(member.path)
    mine = loaded["student"].tokenizer.fingerprint
    for name, each in loaded.items():
        if each.tokenizer.fingerprint != mine:
            raise CheckpointError(
                f"{name} and student have different tokenizers ({each.path}, {loaded['student'].path}); "
                "token-level attribution needs one tokenizer for the whole cast"
            )
        if each.model.config.vocab_size != loaded["student"].model.config.vocab_size:
            raise CheckpointError(
                f"{name} has {each.model.config.vocab_size} logits, student {loaded['student'].model.config.vocab_size}; pad both alike"
            )
    teachers = tuple(f"teacher-{n}" for n in cast.teachers)
    route = {d: f"teacher-{n}" for n, m in cast.teachers.items() for d in m.domains}
    return CastModels(loaded, teachers, route)


def attribute_cast(
    cast: Cast, prompts: Sequence[Prompt], *, max_new_tokens: int = 256, temperature: float = 1.0, seed: int = 0,
    told: Told = lambda _: None, warn: Told = lambda _: None,
) -> Attribution:  # fmt: skip
    """Attribute the student's answers, sampled here where a prompt has no response, to base and teachers.

    `told` hears what is going on, `warn` what was left out.

    Raises BadInput for a prompt that does not fit, CheckpointError for members that cannot be compared.
    """
    members = load_members(cast, told)
    answers, rollouts = _answers(members, prompts, max_new_tokens, temperature, seed, told)
    told(f"scoring {len(rollouts)} answers")
    # Rivals may have been taught by the same teachers, so they are no null; controls never were.
    models: dict[str, Any] = {name: m for name, m in members.models.items() if not name.startswith("rival-")}
    scored = score(rollouts, models, "student", members.teachers)
    for name in scored.left_out:
        warn(f"{name} gives NaN or infinite logits and is left out; repair {members.loaded[name].path}")
    route = {d: t for d, t in members.route.items() if t not in scored.left_out}
    names = {int(t): members.tokenizer.token(int(t)) for t in set(scored.token_T.tolist())}
    tokens = pd.DataFrame({"token_id": scored.token_T, "token": [names[int(t)] for t in scored.token_T]})
    return attribute(scored.evidence, answers, tokens, routed=route or None)


def write_attribution(attribution: Attribution, out: Path) -> None:
    """Traces, answers and the summary into a directory."""
    write_table(out / "traces" / "student.parquet", attribution.tokens)
    write_table(out / "attribution" / "student.parquet", attribution.answers)
    write_json(out / "attribution.json", attribution.to_dict())


def _answers(
    members: CastModels, prompts: Sequence[Prompt], max_new_tokens: int, temperature: float, seed: int, told: Told
) -> tuple[pd.DataFrame, Rollouts]:  # fmt: skip
    tokenizer = members.tokenizer
    ids = tokenizer.encode_all([p.prompt for p in prompts])
    given = [p.response for p in prompts]
    if any(r is None for r in given):
        model = members.loaded["student"].model
        if not isinstance(model, Decoder):
            raise BadInput(
                "the student's architecture cannot be sampled here yet; sample it elsewhere and give --rollouts"
            )
        told(f"sampling {len(prompts)} answers of the student")
        rows = []
        for start in range(0, len(prompts), SAMPLING_ROWS):
            generator = torch.Generator().manual_seed(seed_of(seed, "attribute", start))
            sampled = sample(
                model,
                ids[start : start + SAMPLING_ROWS],
                eos_id=tokenizer.eos_id,
                pad_id=tokenizer.pad_id,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                generator=generator,
            )
            rows += sampled.responses()
        texts = tokenizer.decode_all(rows)
    else:
        texts = [r or "" for r in given]
        # Given texts end where they end: the end-of-sequence is added, as it was sampled unless the answer was cut.
        rows = [[*a, tokenizer.eos_id] for a in tokenizer.encode_all(texts)]
        for prompt, row in zip(prompts, rows, strict=True):
            if tokenizer.decode(row) != prompt.response:
                raise BadInput(
                    f"rollout '{prompt.id}': its text does not survive this tokenizer; was it sampled with another one?"
                )
    frame = pd.DataFrame(
        {
            "item_id": [p.id for p in prompts],
            "sample": 0,
            "domain": [p.domain for p in prompts],
            "prompt": [p.prompt for p in prompts],
            "response": texts,
            "score": [float("nan") if p.score is None else p.score for p in prompts],
        }
    )
    return frame, pack(ids, rows, tokenizer.pad_id)
