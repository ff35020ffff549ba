"""One MOPD step of ours against one step of TRL's `DistillationTrainer`, and against what the machine's matrix rate allows.

64 prompts, at most 24 new tokens, exact full-vocabulary reverse KL, a two-layer model 64 wide, one teacher (TRL takes one).
Every step is whole: draw, sample, score under the teacher, forward, backward, clip, AdamW. The two take turns inside TRL's
own training loop, from the same weights; TRL runs in fp32 without gradient checkpointing, which is its fastest on a CPU.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.timing import Rounds, alone, machine, matrix_rate, table
from mopd_diag.config import MOPDStage
from mopd_diag.models.checkpoint import load_decoder, save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.linear import linear
from mopd_diag.models.tokenizer import Tokenizer, character_tokenizer
from mopd_diag.training import loop
from mopd_diag.training.distill import MOPD
from mopd_diag.worlds import World
from mopd_diag.worlds.domain import Domain

PROMPTS, NEW_TOKENS, PROMPT_TOKENS = 64, 24, 12
RATE = 3e-4


class Chatter(Domain):
    """Prompts of twelve random characters; any answer of up to 24 tokens will do."""

    name = "chatter"
    family = "code"
    summary = "twelve random characters"
    max_new_tokens = NEW_TOKENS

    def draw(self, rng: random.Random) -> tuple[str, str]:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=PROMPT_TOKENS)), "x"

    def demonstrate(self, prompt: str, target: str, rng: random.Random) -> str:
        return target


def run(rounds: int = 15, warmup: int = 3, seed: int = 0, trl: bool = True) -> dict[str, Any]:
    """Tokens per second (sampled and trained on) of both, ours over theirs round by round, and our distance from the floor."""
    with alone(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run(rounds, warmup, seed, trl, Path(folder))


def _run(rounds: int, warmup: int, seed: int, trl: bool, folder: Path) -> dict[str, Any]:
    tokenizer = character_tokenizer()
    config = DecoderConfig(tokenizer.vocab_size)
    for i, name in enumerate(("student", "teacher")):
        save_checkpoint(Decoder.fresh(config, torch.Generator().manual_seed(seed + i)), tokenizer, folder / name)
    world = World("bench", {"chatter": Chatter()})
    ours = _Ours(folder, tokenizer, world, seed)
    measured = Rounds()
    seconds: list[float] = []

    def turn(record: bool) -> None:
        started = time.perf_counter()
        tokens = ours.step()
        if record:
            seconds.append(time.perf_counter() - started)
            measured.add("ours", tokens, seconds[-1])

    if trl:
        _trl(folder, world, seed, rounds, warmup, measured, turn)
    else:
        for r in range(warmup + rounds):
            turn(r >= warmup)
    flops = ours.state.work.flops / ours.state.step
    rates = {
        "torch": matrix_rate(_shapes(config), torch.nn.functional.linear),
        "ours": matrix_rate(_shapes(config), linear),
    }
    rate = max(rates.values())
    typical = statistics.median(seconds)
    return {
        "bench": "training",
        "prompts": PROMPTS,
        "new_tokens": NEW_TOKENS,
        "machine": machine(),
        "tokens_per_second": {name: measured.median(name) for name in measured.rates},
        "ours_over": {"trl": measured.ratio("ours", "trl")} if trl else {},
        "step_seconds": typical,
        "step_flops": flops,
        "matrix_flops_per_second": rates,
        "floor_seconds": flops / rate,
        "over_floor": typical * rate / flops,
    }


def _shapes(c: DecoderConfig) -> list[tuple[int, int, int]]:
    """The matrix products of one layer and the head for the tokens of one step, as (m, k, n)."""
    m, heads = PROMPTS * (PROMPT_TOKENS + NEW_TOKENS), c.num_attention_heads * c.head_dim
    qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    layer = [(m, c.hidden_size, qkv), (m, heads, c.hidden_size), (m, c.hidden_size, 2 * c.intermediate_size)]
    return [*layer, (m, c.intermediate_size, c.hidden_size), (m, c.hidden_size, c.vocab_size)]


class _Ours:
    """Our training loop, one step at a time."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, world: World, seed: int) -> None:
        self.student, teacher = load_decoder(folder / "student"), load_decoder(folder / "teacher")
        stage = MOPDStage(name="student", teachers={"chatter": "teacher"}, prompts=PROMPTS, learning_rate=RATE)
        self.algorithm = MOPD(stage, tokenizer, world, ["chatter"], seed, {"teacher": teacher})
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=RATE, betas=loop.BETAS, weight_decay=0.0, fused=True
        )
        self.state = loop.TrainingState()

    def step(self) -> int:
        before = self.state.work.tokens_trained
        loop._step(self.student, self.algorithm, self.state, self.optimizer)
        self.state.step += 1
        return self.state.work.tokens_trained - before


def _trl(
    folder: Path, world: World, seed: int, rounds: int, warmup: int, measured: Rounds, turn: Callable[[bool], None]
) -> None:  # fmt: skip
    """Train with TRL; after each of its steps, its clock stands still while ours takes a turn."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    steps = warmup + rounds
    prompts = [{"prompt": i.prompt} for i in world.draw_batch(["chatter"], PROMPTS * steps, (seed, "bench"))]
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    arguments = DistillationConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, max_steps=steps,
        per_device_train_batch_size=PROMPTS, max_completion_length=NEW_TOKENS, beta=1.0, temperature=1.0, top_k=0,
        learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=loop.CLIP_NORM, seed=seed, **quiet,
    )  # fmt: skip
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder / n, dtype=torch.float32) for n in ("student", "teacher")
    )
    trainer = DistillationTrainer(
        model=student, teacher_model=teacher, args=arguments, train_dataset=Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(folder / "student", padding_side="left"),
    )  # fmt: skip
    generate, tokens = trainer._generate_and_score_completions, [0]

    def counted(inputs: Any) -> Any:
        made = generate(inputs)
        tokens[0] = int(made["completion_mask"].sum())
        return made

    trainer._generate_and_score_completions = counted

    class TakeTurns(TrainerCallback):
        since = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds = time.perf_counter() - self.since
            record = state.global_step > warmup
            if record:
                measured.add("trl", tokens[0], seconds)
            turn(record)
            self.since = time.perf_counter()

    trainer.remove_callback(PrinterCallback)  # it writes on standard output, which belongs to our figures
    trainer.add_callback(TakeTurns())
    trainer.train()


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as a table and a line about the floor."""
    title = f"One MOPD step, {result['prompts']} prompts, up to {result['new_tokens']} new tokens, one thread"
    made = table(title, "contender", "tokens/s", "ours is faster by", "rounds")
    for name, rate in result["tokens_per_second"].items():
        ratio = result["ours_over"].get(name)
        said = "" if ratio is None else f"{ratio['median']:.2f} × ({ratio['low']:.2f} to {ratio['high']:.2f})"
        made.add_row(name, f"{rate:,.0f}", said, "" if ratio is None else str(ratio["rounds"]))
    console = console or Console()
    console.print(made)
    rates = {name: rate / 1e9 for name, rate in result["matrix_flops_per_second"].items()}
    console.print(
        f"Our step: {result['step_seconds'] * 1e3:.0f} ms for {result['step_flops'] / 1e9:.2f} GFLOP. Matrix products run at "
        f"{rates['ours']:.0f} GFLOP/s here (torch's own: {rates['torch']:.0f}), which alone would take "
        f"{result['floor_seconds'] * 1e3:.0f} ms: the step is {result['over_floor']:.1f} × the floor."
    )


if __name__ == "__main__":
    show(run())
