"""Plans, stages and casts as checked documents: unknown keys are refused with the nearest valid one."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from mopd_diag.errors import BadInput, nearest
from mopd_diag.stages import (
    AnyStage,
    Count,
    DPOStage,
    GRPOStage,
    MergeStage,
    MOPDStage,
    Name,
    PlantStage,
    PPOStage,
    PreferenceStage,
    Rate,
    RejectionStage,
    RewardModelStage,
    SeqKDStage,
    SFTStage,
    Share,
    Stage,
    StageBase,
    Strict,
)

__all__ = [
    "AnyStage",
    "Budget",
    "Cast",
    "Count",
    "DPOStage",
    "DiagnosisConfig",
    "EvaluationConfig",
    "GRPOStage",
    "MOPDStage",
    "Member",
    "MergeStage",
    "ModelConfig",
    "Name",
    "PPOStage",
    "Plan",
    "PlantStage",
    "PreferenceStage",
    "Rate",
    "RejectionStage",
    "RewardModelStage",
    "SFTStage",
    "SeqKDStage",
    "Share",
    "Stage",
    "StageBase",
    "Strict",
    "WorldConfig",
    "load_cast",
    "parse",
    "read_toml",
]

Budget = Literal["smoke", "small", "full"]


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
    rivals: dict[Name, Member] = Field(default_factory=dict)
    controls: dict[Name, Member] = Field(default_factory=dict)

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
