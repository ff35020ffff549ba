"""The student's answers, sampled here or given: what fits the models' contexts, and what is left out and said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch

from mopd_diag.engines.foreign_sampling import sample_foreign
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.engines.sampling import sample
from mopd_diag.errors import BadInput
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.foreign import ForeignModel
from mopd_diag.models.loading import Loaded, Model
from mopd_diag.models.outline import Outline
from mopd_diag.prompts import Prompt
from mopd_diag.seeds import seed_of

SAMPLING_ROWS = 256
NAMED = 3
"""Ids that a note lists before it only counts."""
Told = Callable[[str], None]
Draw = Callable[[Sequence[list[int]], Sequence[int]], tuple[list[list[int]], list[bool]]]
"""Answers to prompts (token ids), each with its own limit of tokens, and which of them ended by themselves."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are sampled where none are given."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """Answered prompts with their token ids under the student's tokenizer; answers end with the end-of-sequence unless cut."""

    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[list[int], ...]
    answer_ids: tuple[list[int], ...]

    def frame(self) -> pd.DataFrame:
        """One row an answer: item_id, sample, domain, prompt, response, score."""
        return frame_of(self.prompts)

    def rollouts(self, pad_id: int) -> Rollouts:
        """The answers for scoring. Empty ones have no token of the student's own: an end alone is no behaviour to attribute."""
        packed = pack(self.prompt_ids, self.answer_ids, pad_id)
        empty = torch.tensor([not p.response for p in self.prompts])
        return replace(packed, own_NL=packed.own_NL & ~empty[:, None])


def frame_of(prompts: Sequence[Prompt]) -> pd.DataFrame:
    """One row an answer: item_id, sample, domain, prompt, response, score."""
    return pd.DataFrame(
        {
            "item_id": [p.id for p in prompts],
            "sample": 0,
            "domain": [p.domain for p in prompts],
            "prompt": [p.prompt for p in prompts],
            "response": [p.response for p in prompts],
            "score": [float("nan") if p.score is None else p.score for p in prompts],
        }
    )


def context_of(model: Model) -> int | None:
    """How many positions a model was made for; None where its configuration sets no bound."""
    config = model.model.config if isinstance(model, ForeignModel) else model.config
    return getattr(config, "max_position_embeddings", None)


def answers_of(
    student: Loaded | Outline, prompts: Sequence[Prompt], how: Sampling, draw: Draw, context: int | None, told: Told, say: Told,
) -> Answers:  # fmt: skip
    """The prompts' responses, or the student's own answers, drawn by `draw`, where none are given (all or none are).

    What does not fit into `context` tokens is left out, and `say` hears it. Raises BadInput for a prompt that the student's tokenizer
    cannot encode, a response that does not survive it, or when nothing is left.
    """
    ids = [_encoded(student, p) for p in prompts]
    given = all(p.response is not None for p in prompts)
    if not given and any(p.response is not None for p in prompts):
        raise BadInput("some prompts have a response and some have none; give answers to all of them or to none")
    rows = [_given(student, p) for p in prompts] if given else [[] for _ in prompts]
    # The last token of an answer is never read by a model, but a prompt needs room for one token to sample.
    needed = [len(p) + (len(a) - 1 if given else 1) for p, a in zip(ids, rows, strict=True)]
    fits = [context is None or n <= context for n in needed]
    leave_out(prompts, fits, f"longer than the context of {context} tokens", say)
    kept = [p for p, f in zip(prompts, fits, strict=True) if f]
    ids, rows = ([x for x, f in zip(xs, fits, strict=True) if f] for xs in (ids, rows))
    if not given:
        told(f"sampling {len(kept)} answers of the student")
        rows = _sampled(ids, how, draw, context, say)
        texts = student.tokenizer.decode_all(rows)
        kept = [replace(p, response=t) for p, t in zip(kept, texts, strict=True)]
    empty = [p.id for p in kept if not p.response]
    if empty:
        say(f"{len(empty)} of {len(kept)} answers are empty ({listed(empty)}): kept, and abstained on")
    return Answers(tuple(kept), tuple(ids), tuple(rows))


def leave_out(prompts: Sequence[Prompt], fits: Sequence[bool], why: str, say: Told) -> None:
    """Say which prompts are left out and why. Raises BadInput when none would be left."""
    out = [p.id for p, f in zip(prompts, fits, strict=True) if not f]
    if len(out) == len(prompts):
        raise BadInput(f"every prompt with its answer is {why}; nothing is left to attribute")
    if out:
        say(f"{len(out)} of {len(prompts)} answers are left out ({listed(out)}): {why}")


def listed(ids: Sequence[str]) -> str:
    """The first few ids, and how many more there are."""
    return ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")


def _encoded(student: Loaded | Outline, prompt: Prompt) -> list[int]:
    ids = student.tokenizer.encode(prompt.prompt)
    if not ids or student.tokenizer.lacks(prompt.prompt, ids):
        raise BadInput(
            f"prompt '{prompt.id}': the student's tokenizer has no tokens for all of its text; leave the prompt out, or use the "
            "tokenizer that the models were trained with"
        )
    return ids


def _given(student: Loaded | Outline, prompt: Prompt) -> list[int]:
    """Token ids of a given response. It ends where it ends: the end-of-sequence is added unless the text spells it."""
    text = prompt.response or ""
    ids = student.tokenizer.encode(text)
    if student.tokenizer.lacks(text, ids) or student.tokenizer.decode(ids, special=True) != text:
        raise BadInput(
            f"rollout '{prompt.id}': its text does not survive this tokenizer; was it sampled with another one?"
        )
    eos = student.tokenizer.eos_id
    return ids if ids and ids[-1] == eos else [*ids, eos]


def _sampled(ids: Sequence[list[int]], how: Sampling, draw: Draw, context: int | None, say: Told) -> list[list[int]]:
    limits = [how.max_new_tokens if context is None else min(how.max_new_tokens, context - len(p)) for p in ids]
    rows, ended = draw(ids, limits)
    cut = sum(not e and n < how.max_new_tokens for e, n in zip(ended, limits, strict=True))
    if cut:
        say(f"{cut} of {len(ids)} answers are cut where the context of {context} tokens ends")
    return rows


def by_torch(student: Loaded, how: Sampling) -> Draw:
    """Answers sampled from a loaded model. Raises BadInput when its logits are broken."""
    return lambda ids, limits: _torch_drawn(student, how, ids, limits)


def _torch_drawn(
    student: Loaded, how: Sampling, ids: Sequence[list[int]], limits: Sequence[int]
) -> tuple[list[list[int]], list[bool]]:
    tokenizer, model = student.tokenizer, student.model
    with torch.inference_mode():
        if not model.hidden(torch.tensor(ids[:1], device=model.device)).isfinite().all():
            raise BadInput(
                f"'student' gives NaN or infinite logits: nothing can be sampled from it; repair {student.path}"
            )
    rows, ended = [], []
    for start in range(0, len(ids), SAMPLING_ROWS):
        some = slice(start, start + SAMPLING_ROWS)
        draw = sample if isinstance(model, Decoder) else sample_foreign
        drawn = draw(
            model,  # type: ignore[arg-type]  # each draws from its own kind
            ids[some],
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            max_new_tokens=limits[some],
            temperature=how.temperature,
            generator=torch.Generator().manual_seed(seed_of(how.seed, "attribute", start)),
        )
        rows += drawn.responses()
        ended += drawn.finished_N.tolist()
    return rows, ended
