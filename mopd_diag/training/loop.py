"""The one training loop: batch, microbatches, backward, clip, step, log, save, go on where it stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mopd_diag.config import Counted
from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.errors import writing
from mopd_diag.models.decoder import Decoder
from mopd_diag.training.algorithm import Algorithm, Part, PartAlgorithm, Work, token_losses, training_flops
from mopd_diag.training.held import Held, optimizer_of

SAVE_EVERY_SECONDS = 15.0
SAVE_SECONDS = 0.75
"""A save may take this long; one that takes k times as long is made k times less often. Larger models write gigabytes."""
CLIP_NORM = 1.0
BETAS = (0.9, 0.95)

Progress = Callable[[int, int, dict[str, float]], None]
"""(step, steps, metrics of the step); may raise to stop the run."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up, constant, linear decay to a tenth over the last `decay` steps."""

    steps: int
    learning_rate: float
    warmup: int = 0
    decay: int = 0

    def rate(self, step: int) -> float:
        up = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        left = self.steps - step
        down = max(0.1, left / self.decay) if self.decay and left < self.decay else 1.0
        return self.learning_rate * min(up, down)


@dataclass(slots=True)
class TrainingState:
    """Everything that a stopped training needs besides weights and moments."""

    step: int = 0
    seconds: float = 0.0
    seconds_model: float = 0.0
    work: Work = field(default_factory=Work)
    log: list[dict[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Until:
    """Train until `amount` of what the ledger counts as `on` is reached, to the nearest block of steps."""

    on: Counted
    amount: float

    def total(self, state: TrainingState, total: int, block: int) -> int:
        """Steps in all, from the work of the steps so far. Only whole blocks tell: work is counted where a block begins.

        What is not counted at all (tokens sampled by fine-tuning, say) leaves the total as it was.
        """
        blocks, within = divmod(state.step, block)
        spent = state.seconds if self.on == "seconds" else float(getattr(state.work, self.on))
        if within or not blocks or not spent:
            return total
        return state.step + block * max(0, round((self.amount - spent) / (spent / blocks)))


def train(
    model: Decoder,
    algorithm: Algorithm | PartAlgorithm,
    schedule: Schedule,
    *,
    saved: Path | None = None,
    progress: Progress | None = None,
    extend: Callable[[Decoder, TrainingState], int] | None = None,
    until: Until | None = None,
    held: Held | None = None,
) -> TrainingState:
    """Train `model` in place for `schedule.steps` steps, or until enough is counted, and return what was done.

    With `saved`, weights, moments and counters are written there every few seconds, and a call that finds the file goes on
    from it; because a step's data depend on its number only, the result is that of an uninterrupted run. `extend` is asked
    once, before the decay begins, how many steps to add (and again before the decay after that). With `until`, the schedule's
    steps are a first guess of the total, corrected as work is counted, and the decay grows or shrinks with it.
    `held` trains something other than all of the model's weights in this process: an adapter, or shards.
    """
    held = held or Held(model)
    with held.training():
        return _train(held, algorithm, schedule, saved, progress, extend, until)


def _train(
    held: Held,
    algorithm: Algorithm | PartAlgorithm,
    schedule: Schedule,
    saved: Path | None,
    progress: Progress | None,
    extend: Callable[[Decoder, TrainingState], int] | None,
    until: Until | None,
) -> TrainingState:
    model, optimizer = held.model, optimizer_of(held, schedule.learning_rate, BETAS)
    state = TrainingState()
    if saved is not None and saved.is_file():
        state = _restore(saved, held, optimizer) or state
    started, model_started = time.perf_counter() - state.seconds, MODEL_TIME.seconds - state.seconds_model
    written, pause = time.perf_counter(), SAVE_EVERY_SECONDS
    total = schedule.steps + int(state.extra.get("extended", 0))
    every = algorithm.resumes_every if isinstance(algorithm, PartAlgorithm) else 1
    block = getattr(algorithm, "counts_every", every)
    if until is not None:
        total = int(state.extra.get("total", -(-total // block) * block))
    while state.step < total:
        if extend is not None and state.step == total - schedule.decay:
            with held.whole():
                added = extend(model, state)
            state.extra["extended"] = int(state.extra.get("extended", 0)) + added
            total += added
        decay = schedule.decay if until is None else schedule.decay * total // schedule.steps
        now = Schedule(total, schedule.learning_rate, schedule.warmup, decay)
        for group in optimizer.param_groups:
            group["lr"] = now.rate(state.step)
        metrics = _step(held, algorithm, state, optimizer)
        state.step += 1
        state.seconds = time.perf_counter() - started
        state.seconds_model = MODEL_TIME.seconds - model_started
        metrics |= {"step": float(state.step), "seconds": state.seconds}
        state.log.append(metrics)
        if until is not None:
            total = state.extra["total"] = held.agreed(until.total(state, total, block))
        if progress is not None:
            done = state.work.tokens_sampled + state.work.tokens_trained
            progress(state.step, total, metrics | {"tokens_per_second": done / max(state.seconds, 1e-9)})
        due = saved is not None and state.step % every == 0
        if due and saved is not None and held.agreed(time.perf_counter() - written > pause):
            saving = time.perf_counter()
            _save(saved, held, optimizer, state)
            written = time.perf_counter()
            pause = SAVE_EVERY_SECONDS * max(1.0, (written - saving) / SAVE_SECONDS)
    return state


def _step(
    held: Held, algorithm: Algorithm | PartAlgorithm, state: TrainingState, optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """One update; returns the batch's metrics, the loss, and the mean of each reported value (over the batch's tokens)."""
    model = held.model
    with held.whole():
        batch = algorithm.batch(model, state.step)
    state.work += batch.work
    sums = {"loss": 0.0}
    for part, counts in held.mine(batch.parts):
        with torch.autocast(part.ids_NL.device.type, torch.bfloat16, enabled=held.precision == "bf16"):
            loss, values = _backward(model, algorithm, part, counts)
        if counts:
            sums["loss"] += loss
            for name, value_M in values.items():
                sums[f"sum.{name}"] = sums.get(f"sum.{name}", 0.0) + float(value_M.sum())
                sums[f"count.{name}"] = sums.get(f"count.{name}", 0.0) + len(value_M)
    state.work.flops += sum(training_flops(model, part.ids_NL, len(part.targets_M)) for part in batch.parts)
    state.work.tokens_trained += sum(len(part.targets_M) for part in batch.parts)
    if not batch.parts:
        return batch.metrics | {"loss": math.nan, "gradient_norm": 0.0}
    sums = held.together(sums)
    norm = held.clip(CLIP_NORM)
    if math.isfinite(norm):
        optimizer.step()
        held.stepped()
    optimizer.zero_grad(set_to_none=True)
    names = [name.removeprefix("sum.") for name in sums if name.startswith("sum.")]
    means = {name: sums[f"sum.{name}"] / sums[f"count.{name}"] for name in names}
    return batch.metrics | means | {"loss": sums["loss"], "gradient_norm": norm}


def _backward(
    model: Decoder, algorithm: Algorithm | PartAlgorithm, part: Part, counts: bool = True
) -> tuple[float, dict[str, torch.Tensor]]:
    with MODEL_TIME:
        hidden_MD = model.hidden_at(part.ids_NL, part.at_M)
        if isinstance(algorithm, PartAlgorithm):
            loss, values = algorithm.part_loss(model, hidden_MD, part)
        else:
            loss, values = token_losses(model, hidden_MD, part, algorithm.token_loss)
        (loss if counts else loss * 0.0).backward()
        spent = float(loss.detach())  # in here: on a GPU this waits for what was only begun
    return spent, values


def _save(path: Path, held: Held, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    tensors = {f"weight.{n}": held.gathered(p.detach()) for n, p in held.named()}
    for name, p in held.named():
        tensors |= {f"{key}.{name}": held.gathered(value) for key, value in optimizer.state.get(p, {}).items()}
    if not held.writes:
        return
    with writing(path, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        save_file(tensors, draft, metadata={"state": json.dumps(asdict(state))})
        draft.replace(path)


def _restore(path: Path, held: Held, optimizer: torch.optim.AdamW) -> TrainingState | None:
    """Put weights and moments back; None when the file was cut short (training then starts anew)."""
    try:
        with safe_open(path, "pt") as file:
            table = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    with torch.no_grad():
        for name, p in held.named():
            p.copy_(held.placed(tensors[f"weight.{name}"], p))
            if f"exp_avg.{name}" in tensors:
                moments = {key: held.placed(tensors[f"{key}.{name}"], p) for key in ("exp_avg", "exp_avg_sq")}
                step = tensors[f"step.{name}"]  # the fused kernel reads it beside the weights, torch's loops on the CPU
                optimizer.state[p] = {"step": step.to(p.device) if optimizer.defaults["fused"] else step, **moments}
    held.stepped()
    return TrainingState(**{**table, "work": Work(**table["work"])})
