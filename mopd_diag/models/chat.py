"""What a tokenizer's chat template makes of one question, as a plain text in which the question can be put."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mopd_diag.errors import CheckpointError

QUESTION = "{prompt}"
"""Stands for the question in a form (`mopd_diag.worlds.form`)."""


def chat_form(template: str, names: dict[str, str], source: str) -> str:
    """The text that the template makes of a user's one message `{prompt}` when the model is to answer next.

    `names` are the special tokens that a template may spell (`bos_token`, `eos_token`). Templates come with checkpoints that
    strangers made: they are run in jinja's sandbox, as `transformers` does, and see nothing but these.

    Raises CheckpointError when the template is broken or does not hand the question on as it stands.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    try:
        text = environment.from_string(template).render(
            messages=[{"role": "user", "content": QUESTION}], add_generation_prompt=True, **names
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{source}: its chat template cannot be rendered ({reason}); set chat = false in [model]"
        ) from error
    if text.count(QUESTION) != 1:
        raise CheckpointError(
            f"{source}: its chat template shows a question {text.count(QUESTION)} times, expected once as it stands; "
            "set chat = false in [model], or give a `template` in [world]"
        )
    return text


def _refuse(message: Any) -> None:
    raise TemplateError(str(message))
