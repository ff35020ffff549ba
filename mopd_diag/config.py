"""Plans, stages and casts as checked documents: unknown keys are refused with the nearest valid one."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mopd_diag.errors import BadInput, nearest

Budget = Literal["smoke", "small", "full"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Strict(BaseModel):
    """A frozen document in which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StageBase(Strict):
    """What all stages share: the model a stage makes bears the stage's name."""

    name: Name
    start: Name | None = None
    """The model to start from; None is a fresh initialisation."""
    domains: tuple[str, ...] = ()
    """Domains of the prompts; empty means all of the world's."""
    matched_to: str = ""
    """What this stage's budget was matched to, in words for the ledger."""
    matched_on: str = ""
    """The counted thing that was matched: rollouts, sequences, …"""

    @property
    def teachers_used(self) -> tuple[str, ...]:
        return ()

    @property
    def parents(self) -> tuple[str, ...]:
        """Models that must exist before this stage starts."""
        own = (self.start,) if self.start else ()
        return tuple(dict.fromkeys((*own, *self.teachers_used)))


class SFTStage(StageBase):
    """Supervised fine-tuning on the domains' imperfect demonstrations."""

    algorithm: Literal["sft"] = "sft"
    steps: Count = 1000
    batch: Count = 64
    learning_rate: Rate = 3e-3
    warmup: int = Field(default=50, ge=0)
    decay: int = Field(default=200, ge=0)
    gate: tuple[Share, Share] | None = None
    """Extend the training, up to `extensions` times a fifth, until each domain's sampled accuracy has reached the low
    end; what ends above the high end is reported, not undone."""
    extensions: int = Field(default=4, ge=0)


class GRPOStage(StageBase):
    """Group-relative policy optimisation against the domains' verifiers."""

    algorithm: Literal["grpo"] = "grpo"
    steps: Count = 250
    prompts: Count = 32
    group: Annotated[int, Field(ge=2)] = 8
    learning_rate: Rate = 3e-4
    warmup: int = Field(default=10, ge=0)
    temperature: Annotated[float, Field(gt=0)] = 1.0
    clip_low: Rate = 0.2
    clip_high: Rate = 0.28


class MOPDStage(StageBase):
    """Multi-teacher on-policy distillation: each prompt's answers are pulled toward its domain's teacher."""

    algorithm: Literal["mopd"] = "mopd"
    teachers: dict[str, Name]
    """Domain → model that teaches it."""
    form: Literal["full", "sampled", "topk"] = "full"
    steps: Count = 300
    prompts: Count = 128
    group: Count = 1
    learning_rate: Rate = 3e-4
    warmup: int = Field(default=10, ge=0)
    temperature: Annotated[float, Field(gt=0)] = 1.0
    alpha: float = Field(default=0.0, ge=0)
    """Weight of the outcome advantage (sampled form only; needs group ≥ 2)."""
    weight_low: float = Field(default=0.5, ge=0)
    weight_high: float = Field(default=2.0, gt=0)
    baseline: Literal["none", "state"] = "none"
    top_k: Count = 8
    weighting: Literal["none", "token-balanced", "domain-normalized"] = "none"

    @property
    def teachers_used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.teachers.values()))

    @model_validator(mode="after")
    def _outcome_needs_groups(self) -> MOPDStage:
        if self.alpha > 0 and (self.group < 2 or self.form != "sampled"):
            raise ValueError(
                f"alpha {self.alpha} needs form 'sampled' and group >= 2, got {self.form!r} and {self.group}"
            )
        if self.weight_low > self.weight_high:
            raise ValueError(f"weight_low {self.weight_low} is above weight_high {self.weight_high}")
        return self


class SeqKDStage(StageBase):
    """Off-policy distillation: supervised fine-tuning on answers sampled from each domain's teacher."""

    algorithm: Literal["seqkd"] = "seqkd"
    teachers: dict[str, Name]
    steps: Count = 300
    batch: Count = 128
    learning_rate: Rate = 1e-3
    warmup: int = Field(default=10, ge=0)
    decay: int = Field(default=60, ge=0)
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @property
    def teachers_used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.teachers.values()))


class MergeStage(StageBase):
    """Arithmetic on parameters; trains nothing."""

    algorithm: Literal["merge"] = "merge"
    models: Annotated[tuple[Name, ...], Field(min_length=2)]
    method: Literal["average", "task-arithmetic"] = "average"
    scale: float = 1.0
    """Task arithmetic: base + scale · Σ (model − base); `start` names the base."""

    @property
    def teachers_used(self) -> tuple[str, ...]:
        return self.models

    @model_validator(mode="after")
    def _arithmetic_needs_a_base(self) -> MergeStage:
        if self.method == "task-arithmetic" and self.start is None:
            raise ValueError("task-arithmetic needs `start`, the base whose weights are subtracted")
        return self


Stage = Annotated[Union[SFTStage, GRPOStage, MOPDStage, SeqKDStage, MergeStage], Field(discriminator="algorithm")]  # noqa: UP007


class WorldConfig(Strict):
    """Which world, and which of its domains; none means all of them."""

    name: str = "micro"
    domains: tuple[str, ...] = ()


class ModelConfig(Strict):
    """Sizes of the micro model. Head widths of 32 and more are what vLLM's CPU attention accepts."""

    architecture: Literal["llama", "qwen3"] = "llama"
    hidden: Count = 64
    layers: Count = 2
    heads: Count = 4
    key_value_heads: Count = 4
    head_width: Count = 32
    feed_forward: Count = 168
    init_std: Rate = 0.08

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelConfig:
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of key_value_heads {self.key_value_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width {self.head_width} is odd; rotary positions need pairs")
        return self


class EvaluationConfig(Strict):
    """How every model is evaluated on every domain."""

    items: Annotated[int, Field(ge=8)] = 256
    samples: Count = 4
    temperature: float = Field(default=1.0, ge=0)


class DiagnosisConfig(Strict):
    """What is diagnosed at the end."""

    attribution_items: Annotated[int, Field(ge=1)] = 128
    """Items a domain whose first sampled answers are traced token by token."""
    margin: Share = 0.05
    """Equivalence margin of the cap verdicts, in recovered share of the headroom."""


class Plan(Strict):
    """A study: world, recipe or stages, budget, seed, evaluation, diagnosis."""

    name: Name
    summary: str = ""
    world: WorldConfig = WorldConfig()
    model: ModelConfig = ModelConfig()
    recipe: str | None = None
    stages: tuple[Stage, ...] = ()
    budget: Budget = "small"
    seed: int = Field(default=0, ge=0)
    evaluation: EvaluationConfig = EvaluationConfig()
    diagnosis: DiagnosisConfig = DiagnosisConfig()

    @model_validator(mode="after")
    def _recipe_or_stages(self) -> Plan:
        if (self.recipe is None) == (not self.stages):
            raise ValueError("a plan has either `recipe` or `stages`, not both and not neither")
        return self


class Member(Strict):
    """One model of a cast: a local checkpoint (a server's `url` and `model` are accepted for later engines)."""

    path: Path | None = None
    url: str | None = None
    model: str | None = None
    domains: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_place(self) -> Member:
        if (self.path is None) == (self.url is None):
            raise ValueError(
                "give either `path` (a checkpoint directory) or `url` (a server), not both and not neither"
            )
        return self


class Cast(Strict):
    """The models of one study. Member names become `teacher-NAME`, `rival-NAME`, `control-NAME`."""

    base: Member
    student: Member
    teachers: Annotated[dict[Name, Member], Field(min_length=1)]
    rivals: dict[Name, Member] = {}
    controls: dict[Name, Member] = {}

    def members(self) -> dict[str, Member]:
        """Every model under its full name, base and student first."""
        named = {"base": self.base, "student": self.student}
        for role, group in (("teacher", self.teachers), ("rival", self.rivals), ("control", self.controls)):
            named |= {f"{role}-{name}": member for name, member in group.items()}
        return named

    @field_validator("teachers", "rivals", "controls")
    @classmethod
    def _no_prefix(cls, group: dict[str, Member]) -> dict[str, Member]:
        for name in group:
            if name.split("-")[0] in ("teacher", "rival", "control"):
                raise ValueError(f"'{name}': leave the role out of the name, it is added")
        return group


Document = TypeVar("Document", bound=BaseModel)


def parse(model: type[Document], table: dict[str, Any], source: str) -> Document:
    """A checked document, or BadInput with the first problem in one line."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise BadInput(f"{source}: {_first_problem(model, error)}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a table. Raises BadInput when it is missing, unreadable or broken (with the line)."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no file {path}: expected a TOML file; check the path") from None
    except (IsADirectoryError, PermissionError) as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from None


def load_cast(path: Path) -> Cast:
    """A cast file; relative checkpoint paths are taken from the file's own folder."""
    cast = parse(Cast, read_toml(path), str(path))
    fix = lambda m: m if m.path is None else m.model_copy(update={"path": (path.parent / m.path).resolve()})  # noqa: E731
    groups = {g: {n: fix(m) for n, m in getattr(cast, g).items()} for g in ("teachers", "rivals", "controls")}
    return cast.model_copy(update={"base": fix(cast.base), "student": fix(cast.student), **groups})


def _first_problem(model: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    at = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{at}'; {nearest(str(problem['loc'][-1]), _keys_at(model, problem['loc'][:-1]))}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    got = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{at or 'document'}: {message}{got}"


def _keys_at(model: Any, where: Iterable[Any]) -> list[str]:
    """The valid keys of the table at a place in a document, found by walking the type annotations."""
    current: list[Any] = [model]
    for part in where:
        step: list[Any] = []
        for kind in current:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                step += _models_in(kind.model_fields[part].annotation) if part in kind.model_fields else []
                step += [kind] if kind.model_fields.get("algorithm", None) and _tag(kind) == part else []
            else:
                step.append(kind)
        current = step or current
    return [name for kind in current for name in kind.model_fields]


def _tag(kind: type[BaseModel]) -> Any:
    return kind.model_fields["algorithm"].default


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in _models_in(part)]
