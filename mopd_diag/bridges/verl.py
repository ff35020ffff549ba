"""verl: its own multi-teacher on-policy distillation, routed by a column of the prompts.

Keys are those of verl 0.9.1; `docs/bridges.md` says where they were read.
"""

from __future__ import annotations

from typing import Any

from mopd_diag.bridges.distillation import ASKED, Distillation, Translation, never_there
from mopd_diag.bridges.text import parquet, yaml_text
from mopd_diag.types import Item

VERBATIM = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""A chat template that shows a prompt as it is: ours have the form already that the model was trained on."""
REWARD = "pkg://mopd_diag.bridges.reward"


def to_verl(d: Distillation) -> Translation:
    """A Hydra config on top of verl's `ppo_trainer`, and the prompts as Parquet."""
    files = {
        "mopd.yaml": yaml_text(_config(d)),
        "prompts.parquet": parquet([_row(d, item, n) for n, item in enumerate(d.items)]),
        "eval.parquet": parquet([_row(d, item, n) for n, item in enumerate(d.held_out())]),
    }
    commands = ('python -m verl.trainer.main_ppo --config-path "$PWD" --config-name mopd',)
    return Translation(files, commands, _mapped(d), _left_out(d), _read_back(d))


def _row(d: Distillation, item: Item, index: int) -> dict[str, Any]:
    return {
        "data_source": item.domain,
        "prompt": [{"role": "user", "content": item.prompt}],
        "ability": item.domain,
        "teacher": d.stage.teachers[item.domain],
        "reward_model": {"style": "rule", "ground_truth": item.target},
        "extra_info": {"index": index, "id": item.item_id, "prompt": item.prompt},
    }


def _config(d: Distillation) -> dict[str, Any]:
    s, room = d.stage, d.longest_prompt + d.longest_answer + 1
    bounds = f"{s.weight_low}_{s.weight_high}"
    teachers = {
        _key(teacher): {
            "_target_": "verl.workers.config.DistillationTeacherModelConfig",
            "key": teacher,
            "model_path": d.path(teacher),
            "num_replicas": 1,
            "inference": {
                "_target_": "verl.workers.config.RolloutConfig",
                "name": "vllm",
                "tensor_model_parallel_size": 1,
                "gpu_memory_utilization": 0.4,
                "prompt_length": d.longest_prompt,
                "response_length": d.longest_answer,
                "max_model_len": room,
                "skip_tokenizer_init": True,
            },
        }
        for teacher in d.teachers
    }
    return {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "defaults": ["ppo_trainer", "_self_"],
        "algorithm": {
            "adv_estimator": "grpo",
            "norm_adv_by_std_in_grpo": True,
            "use_kl_in_reward": False,
            "rollout_correction": {"rollout_is": "token", "rollout_is_threshold": bounds}
            if s.form == "sampled"
            else {},
        },
        "data": {
            "train_files": "prompts.parquet",
            "val_files": "eval.parquet",
            "train_batch_size": s.prompts,
            "max_prompt_length": d.longest_prompt,
            "max_response_length": d.longest_answer,
            "shuffle": False,
        },
        "actor_rollout_ref": {
            "model": {"path": d.student, "custom_chat_template": VERBATIM},
            "actor": {
                "optim": {
                    "lr": s.learning_rate,
                    "lr_warmup_steps": s.warmup,
                    "lr_scheduler_type": "constant",
                    "weight_decay": 0.0,
                    "betas": [0.9, 0.95],
                },
                "grad_clip": 1.0,
                "ppo_mini_batch_size": s.prompts,
                "ppo_epochs": 1,
                "use_dynamic_bsz": True,
                "ppo_max_token_len_per_gpu": max(16384, room),
                "loss_agg_mode": "seq-mean-token-mean" if s.form == "sampled" else "token-mean",
            },
            "rollout": {
                "name": "vllm",
                "n": s.group,
                "temperature": s.temperature,
                "top_p": 1.0,
                "top_k": -1,
                "calculate_log_probs": True,
                "tensor_model_parallel_size": 1,
                "gpu_memory_utilization": 0.4,
                "max_model_len": room,
                "log_prob_use_dynamic_bsz": True,
            },
        },
        "reward": {"custom_reward_function": {"path": REWARD, "name": "compute_score", "reward_kwargs": _world(d)}},
        "distillation": {
            "enabled": True,
            "nnodes": 1,
            "n_gpus_per_node": len(teachers),
            "teacher_key": "teacher",
            "teacher_models": teachers,
            "distillation_loss": {
                "loss_mode": "k1",
                "use_policy_gradient": True,
                "use_task_rewards": s.alpha > 0,
                "distillation_loss_coef": 1.0 / s.alpha if s.alpha > 0 else 1.0,
            },
        },
        "trainer": {
            "total_training_steps": s.steps,
            "total_epochs": 1,
            "n_gpus_per_node": 1,
            "nnodes": 1,
            "logger": ["console"],
            "project_name": "mopd-diag",
            "experiment_name": d.study.plan.name,
            "default_local_dir": "out",
            "rollout_data_dir": "rollouts",
            "validation_data_dir": "validations",
            "val_before_train": False,
            "save_freq": s.steps,
            "test_freq": -1,
        },
    }


def _key(teacher: str) -> str:
    """A key of Hydra's. `teacher_model` alone is taken: verl drops it when there are others."""
    return "of_" + "".join(c if c.isalnum() else "_" for c in teacher)


def _world(d: Distillation) -> dict[str, Any]:
    """What `bridges.reward` needs to make the world again in verl's reward workers."""
    return {"world": d.study.plan.world.model_dump(mode="json", exclude_defaults=True) or {"name": d.study.world.name}}


def _mapped(d: Distillation) -> dict[str, str]:
    s = d.stage
    found = {
        "direction KL(student‖teacher)": "distillation_loss: k1 with use_policy_gradient (advantage log q − log π of the sampled token)",
        "teachers by domain": "distillation.teacher_models, picked by the column `teacher` (teacher_key)",
        f"learning_rate = {s.learning_rate:g}, warmup = {s.warmup}": "actor.optim: lr, lr_warmup_steps, constant",
        "AdamW (0.9, 0.95), no decay, norm clipped at 1": "actor.optim: betas, weight_decay; actor.grad_clip",
        f"prompts = {s.prompts}, group = {s.group}": "data.train_batch_size, ppo_mini_batch_size; rollout.n",
        f"steps = {s.steps}": "trainer.total_training_steps",
        f"temperature = {s.temperature:g}": "rollout.temperature (the teachers score at 1, as ours do)",
        "average over tokens or answers": "actor.loss_agg_mode, as the form has it",
        "longest answer": f"data.max_response_length: {d.longest_answer}",
        "prompts and their order": "prompts.parquet, shuffle: false, shown as they are (custom_chat_template)",
        "verifiers": "reward.custom_reward_function: mopd_diag.bridges.reward (scores are logged; they teach only with alpha)",
    }
    if s.form == "sampled":
        found[f"weight_low = {s.weight_low:g}, weight_high = {s.weight_high:g}"] = (
            "algorithm.rollout_correction: token weights, 0 outside the bounds, sampler against trainer"
        )
    if s.alpha > 0:
        found[f"alpha = {s.alpha:g}"] = (
            "use_task_rewards with distillation_loss_coef = 1/alpha: the whole gradient times 1/alpha, which Adam does not see"
        )
    return found


def _left_out(d: Distillation) -> dict[str, str]:
    s, missing = d.stage, never_there(d)
    if s.form != "sampled":
        missing[f'form = "{s.form}"'] = (
            "k1: its gradient is the exact divergence's on average, with noise. verl's `forward_kl_topk` has the other direction, and "
            "backpropagating k3 does not give this one's gradient"
        )
    if s.alpha > 0:
        missing["one clipped loss"] = "the outcome term is clipped as PPO clips it, separately"
    missing["sizes of the machine"] = "one GPU a model and no parallelism: set what yours has"
    return missing


def _read_back(d: Distillation) -> tuple[str, ...]:
    last = f"out/global_step_{d.stage.steps}/actor"
    return (
        f"python -m verl.model_merger merge --backend fsdp --local_dir {last} --target_dir student, then name it in cast.toml",
        f"mopd-diag attribute cast.toml --rollouts rollouts/1.jsonl --domains {ASKED} --out found",
    )
