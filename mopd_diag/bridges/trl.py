"""TRL: `AsyncDistillationTrainer` routes prompts to several served teachers, `DistillationTrainer` has one and the exact loss.

Keys are those of TRL 1.16; `docs/bridges.md` says where they were read.
"""

from __future__ import annotations

import json
from typing import Any

from mopd_diag.bridges.distillation import ASKED, Distillation, Translation, never_there
from mopd_diag.bridges.text import jsonl, yaml_text

PORT = 8001
"""Of the first teacher's server; TRL expects the student's at 8000."""
WHY_FULL = "full: the exact divergence, which `topk` bounds from below and whose gradient `sampled` estimates"


def to_trl(d: Distillation) -> Translation:
    """One config of `DistillationTrainer` a teacher, and one of `AsyncDistillationTrainer` for all where there are several."""
    files: dict[str, bytes] = {}
    commands: list[str] = []
    for teacher, domains in d.teachers.items():
        rows = [d.row(i) for i in d.items if i.domain in domains for _ in range(d.stage.group)]
        files[f"prompts-{teacher}.jsonl"] = jsonl(rows)
        files[f"{teacher}.yaml"] = yaml_text(_one_teacher(d, teacher, len(rows)))
        commands.append(f"trl distillation --config {teacher}.yaml")
    several = len(d.teachers) > 1
    if several:
        rows = [{**d.row(i), "teacher_id": d.row(i)["teacher"]} for i in d.items for _ in range(d.stage.group)]
        files["prompts.jsonl"] = jsonl(rows)
        files["mopd.yaml"] = yaml_text(_all_teachers(d))
        files["mopd.py"] = _SCRIPT.format(student=json.dumps(d.student)).encode()
        commands = [
            "# all teachers at once; each line in a terminal of its own",
            *_servers(d),
            "python mopd.py --config mopd.yaml",
            "# or one teacher a student, with the exact divergence",
            *commands,
        ]
    return Translation(files, tuple(commands), _mapped(d, several), _left_out(d, several), _read_back(d))


def _shared(d: Distillation, name: str) -> dict[str, Any]:
    """What both trainers take from `transformers.TrainingArguments` and call alike."""
    s = d.stage
    return {
        "output_dir": f"out/{name}",
        "learning_rate": s.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": s.warmup,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": s.prompts * s.group,
        "gradient_accumulation_steps": 1,
        "bf16": False,
        "seed": d.study.plan.seed,
        "max_completion_length": d.longest_answer,
        "temperature": s.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "log_completions": True,
        "num_completions_to_print": 0,
        "report_to": "none",
    }


def _one_teacher(d: Distillation, teacher: str, rows: int) -> dict[str, Any]:
    batch = d.stage.prompts * d.stage.group
    return {
        "model_name_or_path": d.student,
        "dtype": "float32",
        "teacher_model_name_or_path": d.path(teacher),
        "datasets": [{"path": "json", "data_files": f"prompts-{teacher}.jsonl"}],
        **_shared(d, teacher),
        "max_steps": -(-rows // batch),
        "shuffle_dataset": False,
        "gradient_checkpointing": False,
    }


def _all_teachers(d: Distillation) -> dict[str, Any]:
    return {
        **_shared(d, d.stage.name),
        "dtype": "float32",
        "max_steps": d.stage.steps,
        "teacher_server_urls": {t: f"http://localhost:{PORT + n}" for n, t in enumerate(d.teachers)},
        "teacher_temperature": 1.0,
        "teacher_top_k": d.stage.top_k,
        "add_tail_bucket": True,
        "weight_sync_steps": 1,
        "max_staleness": 1,
    }


def _servers(d: Distillation) -> list[str]:
    exact = "--logprobs-mode processed_logprobs --max-logprobs -1"
    transfer = """--weight-transfer-config '{"backend":"nccl"}'"""
    student = f"VLLM_SERVER_DEV_MODE=1 vllm serve {d.student} --port 8000 {exact} {transfer}"
    return [student, *(f"vllm serve {d.path(t)} --port {PORT + n} {exact}" for n, t in enumerate(d.teachers))]


def _mapped(d: Distillation, several: bool) -> dict[str, str]:
    s = d.stage
    routes = "`teacher_id` of a prompt picks from `teacher_server_urls` (mopd.yaml)" if several else "one teacher: none"
    return {
        "direction KL(student‖teacher)": "beta: 1.0",
        "teachers by domain": routes,
        f"learning_rate = {s.learning_rate:g}, warmup = {s.warmup}": "learning_rate, warmup_steps, constant_with_warmup",
        "AdamW (0.9, 0.95), no decay, norm clipped at 1": "adam_beta1, adam_beta2, weight_decay, max_grad_norm",
        f"prompts = {s.prompts}, group = {s.group}": "per_device_train_batch_size; a prompt stands `group` times in the file",
        f"steps = {s.steps}": "max_steps (of a single teacher: enough for its prompts)",
        f"temperature = {s.temperature:g}": "temperature",
        "longest answer": f"max_completion_length: {d.longest_answer}",
        "prompts and their order": "prompts*.jsonl; shuffle_dataset: false where TRL has it",
        "seed": "seed (the draws differ: another sampler)",
    }


def _left_out(d: Distillation, several: bool) -> dict[str, str]:
    s, missing = d.stage, never_there(d)
    if s.form != "full":
        missing[f'form = "{s.form}"'] = WHY_FULL
    if s.form == "sampled":
        missing["weight_low, weight_high"] = "no weight of sampler against trainer"
    if s.alpha > 0:
        missing[f"alpha = {s.alpha:g}"] = "no outcome term: the teachers alone teach"
    if s.temperature != 1:
        missing["temperature of sampling only"] = "DistillationTrainer takes the loss at the same temperature"
    if several:
        missing["exact divergence from several teachers"] = (
            "mopd.yaml compares two events and a tail (the teacher's likeliest token, the sampled one); exact are the configs of one "
            "teacher, which train a student each, or one after the other when `model_name_or_path` names the last output"
        )
        missing["answers of the current weights"] = "AsyncDistillationTrainer's may be one update old (max_staleness)"
        missing["machine of mopd.yaml"] = "a GPU with FlashAttention, and vLLM servers for student and teachers"
    return missing


def _read_back(d: Distillation) -> tuple[str, ...]:
    one = next(iter(d.teachers))
    return (
        f"out/{one} is a checkpoint: name it as the student of cast.toml",
        f"mopd-diag attribute cast.toml --rollouts out/{one}/completions/completions_00001.parquet --domains {ASKED} --out found",
    )


_SCRIPT = '''"""Multi-teacher on-policy distillation with TRL: python mopd.py --config mopd.yaml"""

from datasets import load_dataset
from trl import TrlParser
from trl.experimental.async_distillation import AsyncDistillationConfig, AsyncDistillationTrainer

if __name__ == "__main__":
    (args,) = TrlParser(AsyncDistillationConfig).parse_args_and_config()
    prompts = load_dataset("json", data_files="prompts.jsonl", split="train")
    trainer = AsyncDistillationTrainer(model={student}, args=args, train_dataset=prompts)
    trainer.train()
    trainer.save_model(args.output_dir)
'''
