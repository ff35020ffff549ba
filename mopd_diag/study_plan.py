"""A study as a checked document: several recipes, several seeds, one world, one counted quantity on which they are matched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mopd_diag.config import (
    Budget,
    ComputeConfig,
    Counted,
    DiagnosisConfig,
    EvaluationConfig,
    ModelConfig,
    Name,
    Strict,
    WorldConfig,
)

Seed = Annotated[int, Field(ge=0)]


class StudySection(Strict):
    """Which recipes are compared with which, and on what they are matched."""

    name: Name
    summary: str = ""
    reference: Name = "mopd"
    """The recipe whose final model is `student` and whose cost the others are matched to."""
    recipes: tuple[Name, ...] = ()
    """The others; the final model of each is `rival-RECIPE`. Without any, the reference's own rivals are what it is compared with."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    budget: Budget = "small"
    match: Counted = "flops"
    scope: Literal["path", "student"] = "path"
    """`path`: a rival may cost what the reference cost with its teachers. `student`: its own stages may cost what the student's
    own stage did; then a rival without teachers gets far less."""

    @model_validator(mode="after")
    def _nothing_twice(self) -> StudySection:
        for what, values in (("seed", self.seeds), ("recipe", (self.reference, *self.recipes))):
            twice = next((v for k, v in enumerate(values) if v in values[:k]), None)
            if twice is not None:
                raise ValueError(f"{what} {twice!r} stands twice; each trains once, and a repeat would count double")
        return self


class StudyPlan(Strict):
    """The document of `mopd-diag run study.toml`, recognised by its [study] table."""

    study: StudySection
    world: WorldConfig = WorldConfig()
    model: ModelConfig = ModelConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    diagnosis: DiagnosisConfig = DiagnosisConfig()
    compute: ComputeConfig = ComputeConfig()
