"""Run by a Python that has verl, in an exported folder: composes `mopd.yaml` as verl's own entry point does and makes verl's dataclasses.

Prints one JSON document: what verl understood.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.config import omega_conf_to_dataclass

OURS = ("distillation.teacher_models.of_", "reward.custom_reward_function.reward_kwargs", "hydra.")
REQUIRED = ("actor_rollout_ref.rollout.name",)
"""Settings without a default."""
"""Keys that are names or arguments, not settings of verl."""


def leaves(table: object, at: str = "") -> Iterator[str]:
    if isinstance(table, dict) and table:
        for key, value in table.items():
            yield from leaves(value, f"{at}{key}.")
    else:
        yield at[:-1]


def composed(folder: str, name: str) -> DictConfig:
    with initialize_config_dir(config_dir=folder, version_base=None):
        return compose(config_name=name)


if __name__ == "__main__":
    here = Path(sys.argv[1]).resolve()
    bare = here / "bare.yaml"
    bare.write_text("hydra:\n  searchpath: [pkg://verl.trainer.config]\ndefaults: [ppo_trainer, _self_]\n")
    config, default = composed(str(here), "mopd"), composed(str(here), "bare")
    bare.unlink()
    written = OmegaConf.to_container(OmegaConf.load(here / "mopd.yaml"))
    assert isinstance(written, dict)
    del written["defaults"]
    asked = [k for k in leaves(written) if not k.startswith(OURS) and k not in REQUIRED]
    unknown = [k for k in asked if OmegaConf.select(default, k, default="?") == "?"]
    distillation = omega_conf_to_dataclass(config.distillation)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    algorithm = omega_conf_to_dataclass(config.algorithm)
    rows = json.loads((here / "eval.jsonl").read_text().splitlines()[0])
    reward = get_custom_reward_fn(config)
    asked = {"data_source": rows["domain"], "ground_truth": rows["answer"], "extra_info": rows}
    print(
        json.dumps(
            {
                "unknown": unknown,
                "teachers": {t.key: t.model_path for t in distillation.teacher_models.values()},
                "pool": distillation.n_gpus_per_node * distillation.nnodes,
                "footprint": sum(t.world_size for t in distillation.teacher_models.values()),
                "loss": distillation.distillation_loss.loss_mode,
                "task_rewards": distillation.distillation_loss.use_task_rewards,
                "lr": actor.optim.lr,
                "betas": list(actor.optim.betas),
                "temperature": rollout.temperature,
                "n": rollout.n,
                "weights": dict(algorithm.rollout_correction),
                "right": reward(solution_str=rows["answer"], **asked) if reward else None,
                "wrong": reward(solution_str=rows["answer"] + "?", **asked) if reward else None,
            }
        )
    )
