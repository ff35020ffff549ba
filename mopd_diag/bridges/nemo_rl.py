"""NeMo-RL: MOPD on asynchronous GRPO for several teachers, `run_distillation.py` for one.

Keys are those of NeMo-RL 0.6 (main of 22 August 2026); `docs/bridges.md` says where they were read.
"""

from __future__ import annotations

from typing import Any

from mopd_diag.bridges.distillation import ASKED, Distillation, Translation, never_there
from mopd_diag.bridges.text import jsonl, yaml_text
from mopd_diag.bridges.verl import VERBATIM
from mopd_diag.models.tokenizer import character_tokenizer
from mopd_diag.types import Item

HERE = "${oc.env:PWD}"
"""The folder of the export: NeMo-RL's workers run elsewhere."""
WIDEST = 1024
"""Tokens of the teacher's distribution that are still sent for `full`; a vocabulary up to that is compared whole."""
CHECKOUT = "ln -s /path/to/your/NeMo-RL nemo-rl  # the checkout that holds the configs which these extend"


def to_nemo_rl(d: Distillation) -> Translation:
    """One teacher: on-policy distillation with the exact or the top-k divergence. Several: MOPD, routed by NeMo Gym's agents."""
    return _one_teacher(d) if len(d.teachers) == 1 else _mopd(d)


def _policy(d: Distillation, model: str) -> dict[str, Any]:
    s = d.stage
    return {
        "model_name": model,
        "tokenizer": {"name": d.student if d.models.is_absolute() else f"{HERE}/{d.student}", "chat_template": None},
        "train_global_batch_size": s.prompts * s.group,
        "max_total_sequence_length": d.longest_prompt + d.longest_answer + 1,
        "precision": "float32",
        "max_grad_norm": 1.0,
        "generation": {"max_new_tokens": d.longest_answer, "temperature": s.temperature, "top_p": 1.0, "top_k": None},
    }


def _place(d: Distillation, model: str) -> str:
    path = d.path(model)
    return path if d.models.is_absolute() else f"{HERE}/{path}"


def _logger(d: Distillation) -> dict[str, Any]:
    return {
        "log_dir": f"{HERE}/logs",
        "wandb_enabled": False,
        "tensorboard_enabled": True,
        "num_val_samples_to_print": 0,
    }


# -- one teacher --------------------------------------------------------------------------------------------------------------


def _one_teacher(d: Distillation) -> Translation:
    s, (teacher,) = d.stage, d.teachers
    policy, k = _policy(d, _place(d, s.start or "base")), _width(d)
    parallel = {"tensor_parallel_size": 1, "context_parallel_size": 1}
    policy |= {
        "dtensor_cfg": parallel,
        "optimizer": {"kwargs": {"lr": s.learning_rate, "weight_decay": 0.0, "betas": [0.9, 0.95]}},
        "scheduler": _warmup(s.warmup),
    }
    same = {n: policy[n] for n in ("tokenizer", "max_total_sequence_length", "precision", "train_global_batch_size")}
    config = {
        "defaults": "nemo-rl/examples/configs/distillation_math.yaml",
        "distillation": {
            "num_prompts_per_step": s.prompts,
            "num_generations_per_prompt": s.group,
            "max_num_steps": s.steps,
            "max_num_epochs": 1,
            "val_period": 0,
            "topk_logits_k": k,
            "seed": d.study.plan.seed,
        },
        "loss_fn": {"kl_type": "reverse", "zero_outside_topk": False},
        "policy": policy,
        "teacher": {"model_name": _place(d, teacher), "dtensor_cfg": parallel, **same},
        "data": {
            "shuffle": False,
            "train": {
                "dataset_name": "ResponseDataset",
                "data_path": f"{HERE}/prompts.jsonl",
                "input_key": "prompt",
                "output_key": "answer",
            },
            "validation": None,
            "default": {"prompt_file": None, "processor": "math_hf_data_processor", "env_name": "math"},
        },
        "checkpointing": {"checkpoint_dir": f"{HERE}/out", "save_period": s.steps, "metric_name": None},
        "logger": _logger(d),
        "cluster": {"gpus_per_node": 1, "num_nodes": 1},
    }
    files = {"distillation.yaml": yaml_text(config), "prompts.jsonl": jsonl([d.row(i) for i in d.items])}
    commands = (CHECKOUT, "uv run --project nemo-rl nemo-rl/examples/run_distillation.py --config distillation.yaml")
    mapped = _mapped(d) | {
        "direction KL(student‖teacher)": "loss_fn.kl_type: reverse",
        "teachers by domain": "one teacher: `teacher`",
        f"learning_rate = {s.learning_rate:g}, warmup = {s.warmup}": "policy.optimizer.kwargs.lr, policy.scheduler",
        "AdamW (0.9, 0.95), no decay, norm clipped at 1": "policy.optimizer.kwargs, policy.max_grad_norm",
        "prompts and their order": "prompts.jsonl, data.shuffle: false, shown as they are (chat_template: null)",
    }
    return Translation(files, commands, mapped, _left_out_one(d, k), _read_back(d))


def _width(d: Distillation) -> int:
    """Tokens of the teacher's distribution that are compared."""
    first = d.study.first
    vocabulary = character_tokenizer().vocab_size if first is None else first.config.vocab_size
    return min(d.stage.top_k, vocabulary) if d.stage.form == "topk" else min(WIDEST, vocabulary)


def _warmup(steps: int) -> list[dict[str, Any]]:
    name = "torch.optim.lr_scheduler."
    constant = {"name": f"{name}ConstantLR", "kwargs": {"factor": 1.0, "total_iters": 10_000_000_000}}
    rise = {
        "name": f"{name}LinearLR",
        "kwargs": {"start_factor": 1.0 / max(steps, 1), "end_factor": 1.0, "total_iters": steps},
    }
    return [rise, constant, {"milestones": [steps]}] if steps else [constant]


def _left_out_one(d: Distillation, k: int) -> dict[str, str]:
    s, missing = d.stage, never_there(d)
    if s.form == "topk":
        missing["the event *anything else* of topk"] = "NeMo-RL renormalises nothing and sums over the k tokens only"
    if s.form == "sampled":
        missing['form = "sampled"'] = f"the divergence over the teacher's {k} likeliest tokens; no importance weight"
    if s.form == "full" and k == WIDEST:
        missing["the whole vocabulary"] = f"the teacher's {k} likeliest tokens (topk_logits_k)"
    if s.alpha > 0:
        missing[f"alpha = {s.alpha:g}"] = "no outcome term: the teacher alone teaches"
    missing["verifiers"] = "the environment `math` judges answers for its log only; it teaches nothing"
    return missing


# -- several teachers ---------------------------------------------------------------------------------------------------------


def _mopd(d: Distillation) -> Translation:
    s = d.stage
    policy = _policy(d, _place(d, s.start or "base"))
    rate = s.learning_rate
    policy |= {
        "dtensor_cfg": {"enabled": False},
        "megatron_cfg": {
            "enabled": True,
            "tensor_model_parallel_size": 1,
            "optimizer": {"lr": rate, "min_lr": rate, "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.95},
            "scheduler": {
                "lr_warmup_iters": s.warmup,
                "lr_warmup_init": rate / max(s.warmup, 1),
                "lr_decay_iters": None,
            },
        },
        "optimizer": None,
        "scheduler": None,
    }
    chat = {"chat_template": VERBATIM}
    policy["generation"] |= {
        "vllm_cfg": {"async_engine": True, "tensor_parallel_size": 1, "expose_http_server": True, "http_server_serving_chat_kwargs": chat},
        "colocated": {"enabled": False, "resources": {"gpus_per_node": 1, "num_nodes": 1}},
    }  # fmt: skip
    config = {
        "defaults": "nemo-rl/examples/configs/grpo_math_1B.yaml",
        "grpo": {
            "num_prompts_per_step": s.prompts,
            "num_generations_per_prompt": s.group,
            "max_num_steps": s.steps,
            "max_num_epochs": 1,
            "val_period": -1,
            "max_val_samples": None,
            "val_batch_size": None,
            "seed": d.study.plan.seed,
            "async_grpo": {"enabled": True, "max_trajectory_age_steps": 1},
            "adv_estimator": {"name": "opd"},
            "seq_logprob_error_threshold": 2.0,
        },
        "loss_fn": {
            "reference_policy_kl_penalty": 0.0,
            "disable_ppo_ratio": True,
            "token_level_loss": s.form != "sampled",
            "use_importance_sampling_correction": True,
            "truncated_importance_sampling_type": "icepop",
            "truncated_importance_sampling_ratio_min": s.weight_low,
            "truncated_importance_sampling_ratio": s.weight_high,
        },
        "policy": policy,
        "data": {
            "shuffle": False,
            "max_input_seq_length": None,
            "train": {"dataset_name": "NemoGymDataset", "data_path": f"{HERE}/prompts.jsonl"},
            "validation": None,
            "default": {"env_name": "nemo_gym", "prompt_file": None, "processor": "nemo_gym_data_processor"},
        },
        "env": {"should_use_nemo_gym": True, "nemo_gym": _gym(d)},
        "on_policy_distillation": {
            "enabled": True,
            "teacher_model_by_agent_name": {_agent(n): _place(d, s.teachers[n]) for n in d.domains},
            "strict_agent_name_match": True,
            "deduplicate_shared_teacher_checkpoints": True,
            "non_colocated_teachers": {
                "enabled": True,
                "default_teacher_cfg": {"num_nodes": 1, "gpus_per_node": 1, "precision": "fp32", "micro_batch_size": 4},
            },
        },
        "checkpointing": {"checkpoint_dir": f"{HERE}/out", "save_period": s.steps, "metric_name": None},
        "logger": _logger(d),
        "cluster": {"gpus_per_node": 1, "num_nodes": 2 + len(d.teachers)},
    }
    files = {"mopd.yaml": yaml_text(config), "prompts.jsonl": jsonl([_row(d, i) for i in d.items])}
    commands = (CHECKOUT, "uv run --project nemo-rl nemo-rl/examples/nemo_gym/run_grpo_nemo_gym.py --config mopd.yaml")
    mapped = _mapped(d) | {
        "direction KL(student‖teacher)": "grpo.adv_estimator: opd (advantage log q − log π of the sampled token)",
        "teachers by domain": "on_policy_distillation.teacher_model_by_agent_name: an agent of NeMo Gym a domain",
        f"learning_rate = {rate:g}, warmup = {s.warmup}": "policy.megatron_cfg: optimizer, scheduler",
        "AdamW (0.9, 0.95), no decay, norm clipped at 1": "policy.megatron_cfg.optimizer, policy.max_grad_norm",
        f"weight_low = {s.weight_low:g}, weight_high = {s.weight_high:g}": "loss_fn: icepop between the two bounds",
        "average over tokens or answers": "loss_fn.token_level_loss, as the form has it",
        "prompts and their order": "prompts.jsonl, data.shuffle: false, shown as they are (chat_template)",
    }
    return Translation(files, commands, mapped, _left_out_many(d), _read_back(d))


def _agent(domain: str) -> str:
    return "agent_" + "".join(c if c.isalnum() else "_" for c in domain)


def _row(d: Distillation, item: Item) -> dict[str, Any]:
    return {
        "responses_create_params": {"input": [{"role": "user", "content": item.prompt}]},
        "agent_ref": {"type": "responses_api_agents", "name": _agent(item.domain)},
        "expected_answer": item.target,
        "extraction_mode": "full_response",
        "case_sensitive": True,
        **d.row(item),
    }


def _gym(d: Distillation) -> dict[str, Any]:
    """One agent a domain, all with the same server: the agents are what teachers are routed by."""
    simple = {
        "entrypoint": "app.py",
        "resources_server": {"type": "resources_servers", "name": "string_match"},
        "model_server": {"type": "responses_api_models", "name": "policy_model"},
    }
    return {
        "config_paths": [
            "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml",
            "resources_servers/string_match/configs/string_match.yaml",
        ],
        **{_agent(n): {"responses_api_agents": {"simple_agent": dict(simple)}} for n in d.domains},
    }


def _left_out_many(d: Distillation) -> dict[str, str]:
    s, missing = d.stage, never_there(d)
    if s.form != "sampled":
        missing[f'form = "{s.form}"'] = (
            "the sampled token's advantage: the same gradient on average, with noise (run_distillation.py has top-k, and one teacher)"
        )
        missing["no importance weight"] = "tokens outside the bounds above are dropped, which these forms do not do"
    if s.alpha > 0:
        missing[f"alpha = {s.alpha:g}"] = "no outcome term: `opd` ignores rewards"
    missing["verifiers"] = "NeMo Gym's string_match compares whole answers, for the log only; it teaches nothing"
    missing["answers of the current weights"] = "GRPO is asynchronous: answers may be one update old"
    missing["sizes of the machine"] = (
        "a node a teacher, one for training, one for sampling, one GPU each: set what yours has"
    )
    return missing


# -- both ---------------------------------------------------------------------------------------------------------------------


def _mapped(d: Distillation) -> dict[str, str]:
    s = d.stage
    return {
        f"prompts = {s.prompts}, group = {s.group}": "num_prompts_per_step, num_generations_per_prompt",
        f"steps = {s.steps}": "max_num_steps",
        f"temperature = {s.temperature:g}": "policy.generation.temperature",
        "longest answer": f"policy.generation.max_new_tokens: {d.longest_answer}",
        "seed": "seed (the draws differ: another sampler)",
    }


def _read_back(d: Distillation) -> tuple[str, ...]:
    return (
        f"out/step_{d.stage.steps}/policy/weights: convert it to a Hugging Face directory with NeMo-RL's "
        "examples/converters, then name it in cast.toml",
        f"mopd-diag attribute cast.toml --rollouts logs/exp_001/train_data_step1.jsonl --domains {ASKED} --out found",
    )
