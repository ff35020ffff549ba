"""The local members of a cast in vLLM, one after the other: only tokenizers and settings are read here, never weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mopd_diag.config import Cast
from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.engines.top_tokens import TopTokens
from mopd_diag.engines.vllm import VLLMEngine
from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.models.outline import Outline, read_outline
from mopd_diag.models.tokenizer import difference
from mopd_diag.seeds import seed_of
from mopd_diag.study.answers import Draw, Sampling, Told

RELOADED = ("llama", "qwen3")
"""Architectures whose weights were seen to be replaced right in a running engine; all others get an engine of their own."""


def read_members(cast: Cast) -> dict[str, Outline]:
    """The members of a cast that have a path.

    Raises BadInput for adapters, GGUF files and different tokenizers, CheckpointError for folders that are no checkpoint and for
    other sizes of the vocabulary.
    """
    found = {n: _outline(n, m.path.resolve()) for n, m in cast.members().items() if m.path is not None}
    student = found["student"]
    for name, each in found.items():
        how = difference(student.tokenizer, each.tokenizer, ("student", name))
        if how:
            raise BadInput(
                f"--engine vllm needs one tokenizer for the whole cast, but {name} and student differ ({how}); leave --engine out"
            )
        if each.vocab_size != student.vocab_size:
            raise CheckpointError(f"{name} has {each.vocab_size} logits, student {student.vocab_size}; pad both alike")
    return found


def _outline(name: str, path: Path) -> Outline:
    try:
        return read_outline(path)
    except BadInput as error:
        raise type(error)(f"{name}: {error}") from None


@dataclass(slots=True)
class Turns:
    """One vLLM engine at a time, in which the members of a cast take turns.

    All are loaded in one precision, so that none moves by rounding alone: fp32 when all checkpoints are, else what vLLM chooses.
    `k`: how many likeliest tokens are asked for. `options` go to `vllm.LLM`.
    """

    members: Mapping[str, Outline]
    k: int
    told: Told
    options: Mapping[str, Any] = field(default_factory=dict)
    room: int = 0
    """Tokens of the longest prompt with its answer: a large context would cost memory that nobody needs."""
    version: str = ""
    dtype: str = ""
    _engine: VLLMEngine | None = None
    _now: Outline | None = None

    def enter(self, name: str) -> VLLMEngine:
        """The engine with this member's weights."""
        member = self.members[name]
        if self._engine is not None and self._now is not None:
            if self._now.path == member.path:
                return self._engine
            if not self.options and _fits(self._now, member):
                self.told(f"vLLM: the weights of {name}")
                self._engine.reload(member.path)
                self._now = member
                return self._engine
        self.close()
        self.told(f"vLLM: loading {name}")
        single = all(m.single_precision for m in self.members.values())
        bounds = [m.context for m in self.members.values() if m.context is not None]
        settings = {"dtype": "float32" if single else "auto", "eager": True, **self.options}
        self._engine = VLLMEngine(member.path, max_logprobs=self.k, context=min([self.room + 2, *bounds]), **settings)
        self._now, self.version, self.dtype = member, self._engine.version, self._engine.dtype
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = self._now = None

    def draw(self, how: Sampling) -> Draw:
        """What samples the student's answers."""

        def drawn(prompts: Sequence[list[int]], limits: Sequence[int]) -> tuple[list[list[int]], list[bool]]:
            tokenizer = self.members["student"].tokenizer
            self.room = max(len(p) + n for p, n in zip(prompts, limits, strict=True))
            found = self.enter("student").sample(
                prompts, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, max_new_tokens=limits, temperature=how.temperature,
                seed=seed_of(how.seed, "attribute", 0),
            )  # fmt: skip
            return found.responses(), found.finished_N.tolist()

        return drawn

    def top_tokens(self, rollouts: Rollouts) -> dict[str, TopTokens]:
        """Every member's likeliest tokens on the answers; one checkpoint is asked once, and the one that is loaded first."""
        self.room = max(self.room, *rollouts.length_N.tolist(), 0)
        homes: dict[Path, list[str]] = {}
        for name, member in self.members.items():
            homes.setdefault(member.path, []).append(name)
        order = sorted(homes, key=lambda p: self._now is None or p != self._now.path)
        found: dict[str, TopTokens] = {}
        for path in order:
            engine = self.enter(homes[path][0])
            self.told(f"vLLM: {' and '.join(homes[path])} on {len(rollouts)} answers")
            found |= dict.fromkeys(homes[path], engine.score(rollouts, self.k))
        return {name: found[name] for name in self.members}


@contextmanager
def turns(members: Mapping[str, Outline], k: int, told: Told, options: Mapping[str, Any]) -> Iterator[Turns]:
    """Turns whose engine is closed at the end, whatever happens."""
    taken = Turns(members, k, told, options)
    try:
        yield taken
    finally:
        taken.close()


def _fits(now: Outline, other: Outline) -> bool:
    """Whether one's weights can be put where the other's are."""
    return (
        now.config.get("model_type") in RELOADED
        and "quantization_config" not in now.config
        and now.settings() == other.settings()
    )
