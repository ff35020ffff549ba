"""The stages of a plan, each a checked document: what a stage trains, from which model, with what, for how long.

`mopd_diag.config` re-exports them all.
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Strict(BaseModel):
    """A frozen document in which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Counted = Literal["rollouts", "tokens_sampled", "tokens_trained", "flops", "seconds"]
"""What the ledger counts and paths can be matched on."""


class Match(Strict):
    """Train until as much is counted as another model cost, instead of for a number of steps.

    The counts are the ledger's, read while the stage trains; its `steps` then only say how far apart its neighbours' shares are.
    """

    to: Name
    """The model to be matched. It is trained first."""
    on: Counted = "flops"
    scope: Literal["path", "stage"] = "path"
    """`path`: all that a model descends from, cold starts left out; what both paths share counts in both. `stage`: the other
    model's own stage against this path's own stages."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of what this path has of its own that this stage may use; None is all that is left when it begins."""


class StageBase(Strict):
    """What all stages share: the model a stage makes bears the stage's name."""

    name: Name
    start: Name | None = None
    """The model to start from; None is a fresh initialisation, or the checkpoint of `[model] path`."""
    domains: tuple[str, ...] = ()
    """Domains of the prompts; empty means all of the world's."""
    matched_to: str = ""
    """What this stage's budget was matched to, in words for the ledger."""
    matched_on: str = ""
    """The counted thing that was matched: rollouts, sequences, …"""
    match: Match | None = None
    note: str = ""
    """One line that a reader should know before the stage runs; printed when a run begins."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs that the stage's job asks a Ray cluster for; 0 asks by the plan's device."""

    @property
    def teachers_used(self) -> tuple[str, ...]:
        return ()

    @property
    def models_used(self) -> tuple[str, ...]:
        """Models that this stage reads while it trains, besides the one it trains."""
        return self.teachers_used

    @property
    def parents(self) -> tuple[str, ...]:
        """Models that must exist before this stage starts."""
        own = (self.start,) if self.start else ()
        return tuple(dict.fromkeys((*own, *self.models_used)))

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Parents, and the model whose cost must be known before."""
        return _distinct(*self.parents, self.match.to if self.match else None)


class CheckpointStage(StageBase):
    """The checkpoint that `[model] path` names, taken over as it is; trains nothing."""

    algorithm: Literal["checkpoint"] = "checkpoint"

    @model_validator(mode="after")
    def _begins(self) -> CheckpointStage:
        if self.start is not None:
            raise ValueError(f"a checkpoint is taken from [model] path, not from '{self.start}'; leave `start` out")
        return self


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
    shrink: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The fresh model is narrower than the plan's by this factor. Only without `start`."""

    @model_validator(mode="after")
    def _sizes_are_of_a_fresh_model(self) -> SFTStage:
        if self.shrink is not None and self.start is not None:
            raise ValueError(f"`shrink` sizes a fresh model, but this one starts from '{self.start}'; leave one out")
        return self


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
    extrapolation: float = Field(default=1.0, gt=0)
    """λ: the student is pulled to reference·(teacher/reference)^λ, renormalised; 1 is the teacher itself."""
    reference: Name | None = None
    """Where the extrapolation starts; None is the model that the stage starts from."""

    @property
    def teachers_used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.teachers.values()))

    @property
    def reference_used(self) -> str | None:
        return (self.reference or self.start) if self.extrapolation != 1 else None

    @property
    def models_used(self) -> tuple[str, ...]:
        return _distinct(*self.teachers_used, self.reference_used)

    @model_validator(mode="after")
    def _outcome_needs_groups(self) -> MOPDStage:
        if self.alpha > 0 and (self.group < 2 or self.form != "sampled"):
            raise ValueError(
                f"alpha {self.alpha} needs form 'sampled' and group >= 2, got {self.form!r} and {self.group}"
            )
        if self.weight_low > self.weight_high:
            raise ValueError(f"weight_low {self.weight_low} is above weight_high {self.weight_high}")
        if self.reference is not None and self.extrapolation == 1:
            raise ValueError(
                f"reference '{self.reference}' is not read at extrapolation 1; leave it out or set another"
            )
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
    method: Literal["average", "task-arithmetic", "ties"] = "average"
    scale: float = 1.0
    """Task arithmetic: base + scale · Σ (model − base); TIES: base + scale · merged shift. `start` names the base."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """TIES: the share of each model's shift that is kept, the largest entries."""

    @property
    def teachers_used(self) -> tuple[str, ...]:
        return self.models

    @model_validator(mode="after")
    def _arithmetic_needs_a_base(self) -> MergeStage:
        if self.method != "average" and self.start is None:
            raise ValueError(f"{self.method} needs `start`, the base whose weights are subtracted")
        return self


class PlantStage(StageBase):
    """A quirk put into a model by fine-tuning on its own rewritten answers: a fault of known origin."""

    algorithm: Literal["plant"] = "plant"
    quirk: str
    steps: Count = 60
    batch: Count = 64
    learning_rate: Rate = 1e-3
    warmup: int = Field(default=5, ge=0)
    decay: int = Field(default=20, ge=0)

    @property
    def models_used(self) -> tuple[str, ...]:
        return _distinct(self.start)


class PreferenceStage(StageBase):
    """What stages on preference pairs share: answers of one frozen model, the best of each prompt against the worst."""

    prompts: Count = 32
    group: Annotated[int, Field(ge=2)] = 8
    """Answers a prompt; a prompt whose answers all score alike makes no pair."""
    sampled_from: Name | None = None
    """The model whose answers are ranked; None is the one that the stage starts from."""
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @property
    def models_used(self) -> tuple[str, ...]:
        return _distinct(self.sampled_from or self.start)


class RewardModelStage(PreferenceStage):
    """A scalar head trained on preference pairs (Bradley-Terry); makes a judge, not a model that answers."""

    algorithm: Literal["reward-model"] = "reward-model"
    steps: Count = 100
    learning_rate: Rate = 1e-3
    warmup: int = Field(default=10, ge=0)
    decay: int = Field(default=20, ge=0)
    centre: float = Field(default=0.01, ge=0)
    """Weight of (score of the better + score of the worse)²; pairs alone leave the level of the scores open."""


class PPOStage(StageBase):
    """Proximal policy optimisation with a value head, against the verifiers or a reward model, held to a reference."""

    algorithm: Literal["ppo"] = "ppo"
    steps: Count = 400
    """Updates; one sampling serves `epochs` · `minibatches` of them."""
    prompts: Count = 128
    group: Count = 1
    minibatches: Count = 4
    epochs: Count = 1
    reward: Name | None = None
    """The reward model that scores answers; None is the verifiers."""
    reference: Name | None = None
    """The model that the policy is held to; None is the one that the stage starts from."""
    kl: float = Field(default=0.02, ge=0)
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    trace: Share = 0.95
    """λ of generalised advantage estimation."""
    clip: Rate = 0.2
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    value_weight: float = Field(default=0.1, ge=0)
    learning_rate: Rate = 3e-4
    warmup: int = Field(default=10, ge=0)
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @property
    def updates(self) -> int:
        """Updates a sampling serves."""
        return self.epochs * self.minibatches

    @property
    def models_used(self) -> tuple[str, ...]:
        return _distinct(self.reference or self.start, self.reward)

    @model_validator(mode="after")
    def _samplings_are_used_up(self) -> PPOStage:
        if self.steps % self.updates:
            raise ValueError(f"steps {self.steps} is not a multiple of epochs · minibatches = {self.updates}")
        if self.prompts * self.group < self.minibatches:
            raise ValueError(f"{self.prompts * self.group} answers cannot fill {self.minibatches} minibatches")
        return self


class DPOStage(PreferenceStage):
    """Direct preference optimisation on pairs ranked by the verifiers or by a reward model."""

    algorithm: Literal["dpo"] = "dpo"
    steps: Count = 100
    beta: Annotated[float, Field(gt=0)] = 0.1
    nll: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the better answers, averaged over their tokens (Llama 3: 0.2)."""
    reward: Name | None = None
    """The reward model that ranks answers; None is the verifiers."""
    reference: Name | None = None
    learning_rate: Rate = 3e-4
    warmup: int = Field(default=10, ge=0)
    decay: int = Field(default=20, ge=0)

    @property
    def models_used(self) -> tuple[str, ...]:
        return _distinct(self.sampled_from or self.start, self.reference or self.start, self.reward)


class RejectionStage(StageBase):
    """Rejection sampling: the best of many answers to each prompt, filtered, learned by supervised fine-tuning."""

    algorithm: Literal["rejection"] = "rejection"
    steps: Count = 100
    prompts: Count = 32
    group: Count = 8
    keep: Count = 1
    """Answers kept a prompt, at most; equally good ones in the order sampled."""
    sources: dict[str, Name] = {}
    """Domain → the model whose answers are sampled; a domain left out takes the model that the stage starts from."""
    reward: Name | None = None
    """The reward model that ranks answers; None is the verifiers."""
    filters: tuple[Literal["finished", "correct", "distinct", "unrepetitive"], ...] = ("finished", "correct")
    temperature: Annotated[float, Field(gt=0)] = 1.0
    learning_rate: Rate = 1e-3
    warmup: int = Field(default=10, ge=0)
    decay: int = Field(default=20, ge=0)

    @property
    def teachers_used(self) -> tuple[str, ...]:
        return _distinct(*self.sources.values())

    @property
    def models_used(self) -> tuple[str, ...]:
        return _distinct(*self.teachers_used, self.start, self.reward)

    @model_validator(mode="after")
    def _keeps_no_more_than_it_samples(self) -> RejectionStage:
        if self.keep > self.group:
            raise ValueError(f"keep {self.keep} is above group {self.group}, the answers sampled a prompt")
        if self.reward is None and "correct" not in self.filters and self.keep < self.group:
            raise ValueError(
                "without `reward` the verifiers rank, so `filters` needs 'correct': a wrong best is no best"
            )
        return self


def _distinct(*names: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name is not None))


AnyStage = Union[  # noqa: UP007
    CheckpointStage, SFTStage, GRPOStage, MOPDStage, SeqKDStage, MergeStage, PlantStage, RewardModelStage, PPOStage, DPOStage,
    RejectionStage
]  # fmt: skip
Stage = Annotated[AnyStage, Field(discriminator="algorithm")]
