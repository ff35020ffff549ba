"""What only the checkpoint itself can decide: how questions are shown to it, how fast it may learn, and which weights it holds."""

from __future__ import annotations

from dataclasses import replace

from mopd_diag.config import ModelConfig, Stage, WorldConfig
from mopd_diag.errors import BadInput
from mopd_diag.models.chat import chat_form
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.study.resolve import Study
from mopd_diag.worlds.world import world_of

RECIPE_WIDTH = 64
"""Hidden width of the micro model, for which the recipes' learning rates were found."""
PLAIN = WorldConfig.model_fields["template"].default
IN_WORDS = ("jsonl", "gym")
"""Worlds whose questions have a form; the others' are formulas, the same for every model."""


def settled(study: Study, *, of_recipes: bool | None = None) -> Study:
    """The study with its checkpoint read: template, learning rates of a recipe's stages, hash of the weights.

    A study of fresh weights is returned as it is. `of_recipes` says whether the stages are a recipe's (their rates are for the micro
    model); None asks the plan. Raises CheckpointError when the checkpoint cannot be used, BadInput when `chat` does not fit.
    """
    first = study.first
    if first is None or study.model is not None:
        return study
    plan = study.plan
    world = plan.world.model_copy(update={"template": _template(plan.model, plan.world, first.tokenizer)})
    stages = study.stages
    if plan.recipe is not None if of_recipes is None else of_recipes:
        # Adam's best rate for hidden matrices falls as one over the width (2203.03466).
        scale = plan.model.rate_scale or min(1.0, RECIPE_WIDTH / first.config.hidden_size)
        stages = tuple(_slowed(s, scale) for s in stages)
    plan = plan.model_copy(update={"world": world})
    return replace(study, plan=plan, world=world_of(world), stages=stages, model=first.hash)


def _template(model: ModelConfig, world: WorldConfig, tokenizer: Tokenizer) -> str:
    """The world's template, or the checkpoint's own where `chat` asks for it."""
    if world.name not in IN_WORDS:
        if model.chat is True:
            raise BadInput(
                f"[model] chat = true, but world '{world.name}' has formulas, not questions; leave `chat` out"
            )
        return world.template
    if model.chat is False or (model.chat == "auto" and (tokenizer.chat_template is None or world.template != PLAIN)):
        return world.template
    if tokenizer.chat_template is None:
        raise BadInput(
            f"[model] chat = true, but {model.path} has no chat template; leave `chat` out, or give [world] template"
        )
    if world.template != PLAIN:
        raise BadInput(f"[model] chat = true and [world] template = {world.template!r}: give only one of them")
    return chat_form(tokenizer.chat_template, tokenizer.special_names, str(model.path))


def _slowed(stage: Stage, scale: float) -> Stage:
    rate = getattr(stage, "learning_rate", None)
    return stage if rate is None else stage.model_copy(update={"learning_rate": rate * scale})
