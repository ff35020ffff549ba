"""MOPD steps to be timed: our loop's, and those of TRL's `DistillationTrainer`, from one folder with a student and a teacher.

Both draw the same number of prompts, sample at temperature 1 up to the same length, take the exact full-vocabulary reverse KL to one
teacher (TRL takes one), clip, and step AdamW. Weights are fp32 in both. TRL runs without gradient checkpointing, which is its fastest.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd_diag.config import MOPDStage
from mopd_diag.models.checkpoint import load_decoder
from mopd_diag.models.tokenizer import load_tokenizer
from mopd_diag.training import loop
from mopd_diag.training.distill import MOPD
from mopd_diag.training.held import Held, optimizer_of
from mopd_diag.worlds import World
from mopd_diag.worlds.domain import Domain

PROMPT_CHARACTERS = 12
RATE = 3e-4
OURS, TRL = "ours", "trl"

Told = Callable[[int, float], None]
"""After a step: tokens sampled and trained on, and seconds."""


@dataclass(frozen=True, slots=True)
class Case:
    """A folder with `student` and `teacher`, and how large a step is."""

    folder: Path
    prompts: int
    new_tokens: int
    seed: int
    device: str = "cpu"
    bf16: bool = False

    @property
    def world(self) -> World:
        return World("bench", {"chatter": Chatter(self.new_tokens)})


class Chatter(Domain):
    """Prompts of twelve random characters; any answer within the limit will do."""

    name = "chatter"
    family = "code"
    summary = "twelve random characters"

    def __init__(self, max_new_tokens: int) -> None:
        self.max_new_tokens = max_new_tokens

    def draw(self, rng: random.Random) -> tuple[str, str]:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=PROMPT_CHARACTERS)), "x"

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        return target


class Ours:
    """Our training loop, one step at a time."""

    def __init__(self, case: Case) -> None:
        student, teacher = (load_decoder(case.folder / n, device=case.device) for n in ("student", "teacher"))
        stage = MOPDStage(name="student", teachers={"chatter": "teacher"}, prompts=case.prompts, learning_rate=RATE)
        tokenizer = load_tokenizer(case.folder / "student")
        self.algorithm = MOPD(stage, tokenizer, case.world, ["chatter"], case.seed, {"teacher": teacher})
        self.held = Held(student)
        self.held.precision = "bf16" if case.bf16 else "fp32"
        self.optimizer = optimizer_of(self.held, RATE, loop.BETAS)
        self.state = loop.TrainingState()

    def timed(self) -> tuple[int, float]:
        """One step: tokens sampled and trained on, and seconds."""
        started, before = time.perf_counter(), self.state.work.tokens_trained
        loop._step(self.held, self.algorithm, self.state, self.optimizer)
        self.state.step += 1
        return self.state.work.tokens_trained - before, time.perf_counter() - started

    def steps(self, number: int, told: Told) -> None:
        for _ in range(number):
            told(*self.timed())


class Theirs:
    """TRL's trainer. Its clock stands still while `told` is at work."""

    def __init__(self, case: Case) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.case = case
        self.student, self.teacher = (
            AutoModelForCausalLM.from_pretrained(case.folder / n, dtype="float32") for n in ("student", "teacher")
        )
        self.tokenizer = AutoTokenizer.from_pretrained(case.folder / "student", padding_side="left")

    def steps(self, number: int, told: Told) -> None:
        from datasets import Dataset
        from transformers import PrinterCallback, TrainerCallback
        from trl import DistillationConfig, DistillationTrainer

        case = self.case
        prompts = case.world.draw_batch(["chatter"], case.prompts * number, (case.seed, "bench"))
        quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        arguments = DistillationConfig(
            output_dir=str(case.folder / "trl"), use_cpu=case.device == "cpu", bf16=case.bf16, gradient_checkpointing=False,
            max_steps=number, per_device_train_batch_size=case.prompts, max_completion_length=case.new_tokens, beta=1.0, temperature=1.0,
            top_k=0, learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=loop.CLIP_NORM, seed=case.seed, **quiet,
        )  # fmt: skip
        trainer = DistillationTrainer(
            model=self.student, teacher_model=self.teacher, args=arguments, processing_class=self.tokenizer,
            train_dataset=Dataset.from_list([{"prompt": i.prompt} for i in prompts]),
        )  # fmt: skip
        generate, tokens = trainer._generate_and_score_completions, [0]

        def counted(inputs: Any) -> Any:
            made = generate(inputs)
            tokens[0] = int(made["completion_mask"].sum())
            return made

        trainer._generate_and_score_completions = counted

        class Clock(TrainerCallback):
            since = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                told(tokens[0], time.perf_counter() - self.since)
                self.since = time.perf_counter()

        trainer.remove_callback(PrinterCallback)  # it writes on standard output, which belongs to our figures
        trainer.add_callback(Clock())
        trainer.train()
