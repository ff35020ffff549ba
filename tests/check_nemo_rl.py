"""Run by a Python that has what NeMo-RL imports, in an exported folder, with a checkout of NeMo-RL as the second argument.

Loads the config as NeMo-RL's own entry points do. NeMo-RL's models allow unknown keys, so each key that was written is looked up in
the configs that it extends, in a recipe of NeMo-RL's own, and among the models' fields. Prints one JSON document.
"""

from __future__ import annotations

import json
import os
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typing_extensions

# NeMo-RL asks for Python 3.13; on an older one pydantic wants the typed dicts of typing_extensions.
if sys.version_info < (3, 12):
    typing.TypedDict, typing.NotRequired = typing_extensions.TypedDict, typing_extensions.NotRequired

from nemo_rl.algorithms.distillation import MasterConfig as DistillationMaster
from nemo_rl.algorithms.grpo import MasterConfig as GRPOMaster
from nemo_rl.utils.config import load_config, register_omegaconf_resolvers
from omegaconf import OmegaConf
from pydantic import BaseModel

NAMES = (
    "on_policy_distillation.teacher_model_by_agent_name.",
    "env.nemo_gym.",
    "policy.generation.vllm_cfg.http_server_serving_chat_kwargs.",
)
"""Keys below these are names, or another program's settings."""
OPTIONAL = (
    "data.train.input_key",
    "data.train.output_key",
    "data.train.data_path",
    "policy.tokenizer.chat_template",
    "teacher.tokenizer.chat_template",
)
"""Optional keys of ResponseDataset and get_tokenizer, which no config of NeMo-RL's spells out."""


def leaves(table: object, at: str = "") -> Iterator[str]:
    if isinstance(table, dict) and table:
        for key, value in table.items():
            yield from leaves(value, f"{at}{key}.")
    else:
        yield at[:-1]


def known(model: Any, path: str) -> bool:
    """Is the dotted path a field of the pydantic model that was made?"""
    for part in path.split("."):
        if isinstance(model, BaseModel) and part in type(model).model_fields:
            model = getattr(model, part)
        else:
            return False
    return True


if __name__ == "__main__":
    here, checkout = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    os.environ["PWD"] = str(here)
    if not (here / "nemo-rl").exists():
        (here / "nemo-rl").symlink_to(checkout)
    register_omegaconf_resolvers()
    several = (here / "mopd.yaml").is_file()
    name = "mopd.yaml" if several else "distillation.yaml"
    resolved = OmegaConf.to_container(load_config(str(here / name)), resolve=True)
    assert isinstance(resolved, dict)
    config = (GRPOMaster if several else DistillationMaster)(**resolved)
    written = OmegaConf.to_container(OmegaConf.load(here / name))
    assert isinstance(written, dict)
    parents = [load_config(str(here / written.pop("defaults")))]
    parents.append(load_config(str(checkout / "examples/configs/recipes/llm/mopd-qwen3-1.7b-3n8g-megatron-pack.yaml")))
    unknown = [
        k for k in leaves(written)
        if not k.startswith(NAMES) and k not in OPTIONAL and not known(config, k)
        and all(OmegaConf.select(p, k, default="?") == "?" for p in parents)
    ]  # fmt: skip
    document: dict[str, Any] = {
        "unknown": unknown,
        "model": config.policy["model_name"],
        "nodes": config.cluster["num_nodes"],
    }
    if several:
        opd = config.on_policy_distillation
        document |= {"teachers": opd.teacher_model_by_agent_name, "estimator": config.grpo.adv_estimator.name}
        loss = config.loss_fn
        document["gate"] = [
            loss.truncated_importance_sampling_type, loss.truncated_importance_sampling_ratio_min, loss.truncated_importance_sampling_ratio,
        ]  # fmt: skip
        document["prompts"] = config.grpo.num_prompts_per_step
    else:
        document |= {
            "teacher": config.teacher["model_name"],
            "k": config.distillation.topk_logits_k,
            "kl": config.loss_fn.kl_type,
        }
        document["prompts"] = config.distillation.num_prompts_per_step
    print(json.dumps(document))
