"""Plans, stages and casts as checked documents: unknown keys are refused with the nearest valid one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from mopd_diag.errors import BadInput, nearest
from mopd_diag.stages import (
    AnyStage,
    CheckpointStage,
    Count,
    Counted,
    DPOStage,
    GRPOStage,
    Match,
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
    "CHECKPOINT_KEYS",
    "AnyStage",
    "Budget",
    "Cast",
    "CheckpointStage",
    "Count",
    "Counted",
    "DPOStage",
    "DiagnosisConfig",
    "EvaluationConfig",
    "GRPOStage",
    "MOPDStage",
    "Match",
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
    path: Path | None = None
    """jsonl: the file of prompts."""
    verifier: str | None = None
    """jsonl: who judges lines that name no verifier; a verifier's name or `package.module:function`."""
    template: str = "plain"
    """jsonl, gym: how a question is shown; a chat template's name or a text with `{prompt}`."""
    tags: bool = False
    """jsonl, gym: ask for the answer between <answer> tags, and judge only what stands there."""
    max_new_tokens: Count | None = None
    """jsonl, gym: upper bound on an answer's tokens; None is each domain's own."""

    @model_validator(mode="after")
    def _keys_belong_to_the_world(self) -> WorldConfig:
        if self.name == "jsonl" and self.path is None:
            raise ValueError("the jsonl world needs `path`, a file of prompts (`--world jsonl:PATH`)")
        of_jsonl, of_questions = {"path", "verifier"}, {"template", "tags", "max_new_tokens"}
        foreign = {"jsonl": set(), "gym": of_jsonl}.get(self.name, of_jsonl | of_questions) & self.model_fields_set
        wrong = sorted(key for key in foreign if getattr(self, key) != type(self).model_fields[key].default)
        if wrong:
            raise ValueError(f"`{wrong[0]}` means nothing in world '{self.name}'; leave it out")
        return self


PROJECTIONS = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoRAConfig(Strict):
    """Low-rank adapters in place of whole weights (2106.09685): an update of a projection is alpha / rank · B A."""

    rank: Count = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    targets: Annotated[tuple[PROJECTIONS, ...], Field(min_length=1)] = get_args(PROJECTIONS)


DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
"""How a device is named."""


class ComputeConfig(Strict):
    """How and where models are run, not what they are trained to: with other values here results differ by rounding."""

    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    """What every job of the run computes on. auto: a GPU where torch sees one and the run begins from a checkpoint, else the CPU."""
    processes: Count = 1
    """Processes over which weights, gradients and moments of a stage lie in pieces (FSDP2): one a GPU, or on CPUs through Gloo."""
    recompute: bool = False
    """Gradient checkpointing: a backward pass computes each block again instead of keeping what it held."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: products in bf16, weights and moments in fp32 (torch autocast)."""
    sampler: Literal["torch", "vllm"] = "torch"
    """Who samples answers, in training and evaluation: our decoder, or vLLM, which is given the weights before each batch."""


CHECKPOINT_KEYS = ("path", "chat", "cold_start", "rate_scale")


class ModelConfig(Strict):
    """What stages without parents begin with: a checkpoint (`path`), or fresh weights of the micro model's sizes.

    Head widths of 32 and more are what vLLM's CPU attention accepts.
    """

    path: str | None = None
    """A Hugging Face directory, a GGUF file, or `package:NAME` for the GGUF file inside an installed Python package."""
    chat: Literal["auto"] | bool = "auto"
    """Show questions in the checkpoint's chat template. `auto`: where it has one, and the world's template is `plain`."""
    cold_start: int = Field(default=0, ge=0)
    """Only with `path`: steps of fine-tuning on right answers with which a recipe's base begins; 0 takes the checkpoint as it is."""
    rate_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only with `path`: the recipes' learning rates times this; None is 64 over the checkpoint's width."""
    architecture: Literal["llama", "qwen3"] = "llama"
    hidden: Count = 64
    layers: Count = 2
    heads: Count = 4
    key_value_heads: Count = 4
    head_width: Count = 32
    feed_forward: Count = 168
    init_std: Rate = 0.08
    lora: LoRAConfig | None = None
    """Train adapters on the run's first model instead of whole weights."""

    @model_validator(mode="after")
    def _path_or_sizes(self) -> ModelConfig:
        differ = [n for n, f in type(self).model_fields.items() if n != "lora" and getattr(self, n) != f.default]
        sizes = [n for n in differ if n not in CHECKPOINT_KEYS]
        if self.path is not None and sizes:
            raise ValueError(
                f"`{sizes[0]}` sizes fresh weights, but `path` names a checkpoint with sizes of its own; leave one out"
            )
        if self.path is None and (others := [n for n in differ if n not in sizes]):
            raise ValueError(f"`{others[0]}` belongs to a checkpoint; give its `path` too, or leave it out")
        return self

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelConfig:
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of key_value_heads {self.key_value_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width {self.head_width} is odd; rotary positions need pairs")
        return self

    def shrunk(self, factor: float | None) -> ModelConfig:
        """The same shape with narrower hidden and feed-forward layers, to a multiple of four."""
        narrow = lambda width: max(4, int(width * (factor or 1.0)) // 4 * 4)  # noqa: E731
        widths = {"hidden": narrow(self.hidden), "feed_forward": narrow(self.feed_forward)}
        return self if factor is None else self.model_copy(update=widths)


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
    """Equivalence margin of the cap verdicts, in accuracy."""
    probe_steps: int = Field(default=0, ge=0)
    """RL steps from the student that ask whether its cap binds; 0 trains none."""


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
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _one_way(self) -> Plan:
        if self.model.lora is not None and self.compute.processes > 1:
            raise ValueError("`[model] lora` trains in one process; leave out `[compute] processes`, or lora")
        if self.compute.sampler == "vllm" and self.compute.processes > 1:
            raise ValueError("vLLM samples for a stage of one process; leave out `[compute] processes`, or sampler")
        return self

    @model_validator(mode="after")
    def _recipe_or_stages(self) -> Plan:
        if (self.recipe is None) == (not self.stages):
            raise ValueError("a plan has either `recipe` or `stages`, not both and not neither")
        return self


class Member(Strict):
    """One model of a cast: a local checkpoint, or a `model` behind an OpenAI-compatible server (`docs/served.md`).

    `key_env` names the environment variable that holds the server's key: a key itself never stands in a file.
    """

    path: Path | None = None
    url: str | None = None
    model: str | None = None
    key_env: str | None = None
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    timeout_s: float = Field(default=120.0, gt=0)
    domains: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_place(self) -> Member:
        if (self.path is None) == (self.url is None):
            raise ValueError(
                "give either `path` (a checkpoint directory) or `url` (a server), not both and not neither"
            )
        servers = {"model", "key_env", "concurrency", "timeout_s"} & self.model_fields_set
        if self.path is not None and servers:
            raise ValueError(f"`{min(servers)}` belongs to a server's `url`, not to a `path`")
        if self.url is not None:
            self._check_server(self.url)
        return self

    def _check_server(self, url: str) -> None:
        # No message repeats the values: each of them may hold a key by mistake.
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("`url` is an http or https address, such as http://127.0.0.1:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "`url` holds a user, a password or a query; name the variable that holds a key as `key_env`"
            )
        if not self.model:
            raise ValueError("a server's `url` needs `model`, the name under which it serves the model")
        if self.key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            raise ValueError("`key_env` is the name of an environment variable, not a key")


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
