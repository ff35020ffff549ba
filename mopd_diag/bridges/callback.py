"""A callback for TRL's trainers, and any `transformers.Trainer`: where the student stands between its start and its teachers.

Every few steps the student answers a small set of held-out prompts. Logged are, beside the trainer's own numbers:

- `accuracy/DOMAIN`, and `recovery/DOMAIN` with its 95 % interval: (student − start)/(teacher − start), only where the teacher is surely
  above the start (`estimators.caps`);
- `kl/TEACHER`: KL(student‖teacher) in nats a token, exact over the vocabulary, on the student's answers to its prompts;
- `token_share/DOMAIN`: the share of own tokens that a domain has in training, from the lengths of these answers and the prompts that
  are trained on (alike many of each domain, unless `prompts` says otherwise).

Axis letters: N answers, L positions, M own tokens, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mopd_diag.errors import BadInput
from mopd_diag.estimators.caps import cap
from mopd_diag.prompts import read_prompts
from mopd_diag.seeds import seed_of
from mopd_diag.training.distill import reverse_kl
from mopd_diag.types import Item

Judge = Callable[[Item, str], float]
"""Scores an answer from 0 to 1; a world's `score`, or one's own."""


def held_out(path: Path | str) -> list[Item]:
    """The items of an export's `eval.jsonl`. Raises BadInput for a line without domain or answer."""
    prompts = read_prompts(Path(path), responses=False)
    bare = next((p for p in prompts if not p.domain or p.answer is None), None)
    if bare is not None:
        raise BadInput(
            f"{path}: prompt '{bare.id}' has no domain or no answer; recovery is read by domain, against right answers"
        )
    return [Item(p.id, p.domain, p.prompt, p.answer or "") for p in prompts]


@dataclass(frozen=True)
class Answered:
    """Answers of one model: token ids, where each prompt ends, which tokens are its own, scores by domain, own tokens by domain."""

    ids_NL: Tensor
    own_NL: Tensor
    score_N: list[float]
    length_N: list[int]


class RecoveryCallback(TrainerCallback):
    """Add it with `trainer.add_callback(RecoveryCallback(trainer, items, world.score, teachers, route))`."""

    def __init__(
        self,
        trainer: Trainer,
        items: Sequence[Item],
        judge: Judge,
        teachers: Mapping[str, Any],
        route: Mapping[str, str],
        *,
        every: int = 50,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        prompts: Mapping[str, int] | None = None,
        batch: int = 64,
        seed: int = 0,
    ) -> None:
        """`teachers` are models, or paths of checkpoints; `route` says which teaches a domain; `prompts` how many prompts of each
        domain are trained on.

        Raises BadInput for items of a domain that no teacher teaches.
        """
        self.domains = tuple(dict.fromkeys(i.domain for i in items))
        for domain in self.domains:
            if route.get(domain) not in teachers:
                raise BadInput(
                    f"domain '{domain}' has no teacher: route names {route.get(domain)!r}, expected one of {', '.join(teachers)}"
                )
        if every < 1:
            raise BadInput(f"got every {every}, expected at least 1 step")
        self.trainer, self.judge, self.route, self.every = trainer, judge, dict(route), every
        self.items = [i for d in self.domains for i in items if i.domain == d]
        self.max_new_tokens, self.temperature, self.batch, self.seed = max_new_tokens, temperature, batch, seed
        self.prompts = prompts or Counter(dict.fromkeys(self.domains, 1))
        self.teachers = {
            name: model if isinstance(model, torch.nn.Module) else _loaded(model) for name, model in teachers.items()
        }
        self.start_N: list[float] = []
        self.taught_N: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The two ends of the scale: the student as it starts, and each teacher on its own domains."""
        student = self._student()
        for teacher in self.teachers.values():
            teacher.to(student.device).eval().requires_grad_(False)
        self.start_N = self._answer(student, self.items, 0).score_N
        self.taught_N = []
        for domain in self.domains:
            items = [i for i in self.items if i.domain == domain]
            self.taught_N += self._answer(self.teachers[self.route[domain]], items, 0).score_N

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            # The base class's: TRL's own `log` also empties what the trainer has gathered for its next line.
            wanted = control.should_log
            Trainer.log(self.trainer, self.measure(state.global_step))
            control.should_log = wanted  # logging resets it, and the trainer's own line of this step comes after

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """The numbers of this moment. The trainer's random numbers are left as they were."""
        student = self._student()
        answered = self._answer(student, self.items, step)
        found: dict[str, float] = {}
        spent = dict.fromkeys(self.domains, 0.0)
        for domain in self.domains:
            rows = [n for n, i in enumerate(self.items) if i.domain == domain]
            own, start, taught = (
                np.array([s[n] for n in rows]) for s in (answered.score_N, self.start_N, self.taught_N)
            )
            found[f"accuracy/{domain}"] = float(own.mean())
            recovery = cap(own[:, None], start[:, None], [taught[:, None]], seed=self.seed).recovery
            if recovery.defined:
                found[f"recovery/{domain}"] = recovery.value
                found[f"recovery_low/{domain}"], found[f"recovery_high/{domain}"] = recovery.low, recovery.high
            spent[domain] = self.prompts.get(domain, 0) * float(np.mean([answered.length_N[n] for n in rows]))
        total = sum(spent.values())
        found |= {f"token_share/{d}": tokens / total for d, tokens in spent.items() if total > 0}
        return found | {
            f"kl/{t}": self._kl(student, t, answered) for t in dict.fromkeys(self.route[d] for d in self.domains)
        }

    def _student(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def _kl(self, student: Any, teacher: str, answered: Answered) -> float:
        rows = torch.tensor([n for n, i in enumerate(self.items) if self.route[i.domain] == teacher])
        total, count = 0.0, 0
        for part in rows.split(self.batch):
            ids_NL, own_NL = answered.ids_NL[part].to(student.device), answered.own_NL[part]
            # Padded on the right: a causal model's own tokens never see it, so it needs no mask.
            ours_MV, theirs_MV = (_logp(m, ids_NL, own_NL) for m in (student, self.teachers[teacher]))
            total += float(reverse_kl(ours_MV, theirs_MV).sum())
            count += len(ours_MV)
        return total / max(count, 1)

    @torch.no_grad()
    def _answer(self, model: Any, items: Sequence[Item], step: int) -> Answered:
        tokenizer: Any = self.trainer.processing_class
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        rows: list[tuple[list[int], list[int]]] = []
        was_training = model.training
        model.eval()
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed_of(self.seed, "recovery", step))
            for at in range(0, len(items), self.batch):
                rows += self._generated(model, tokenizer, items[at : at + self.batch], pad)
        model.train(was_training)
        scores = []
        for item, (_, answer) in zip(items, rows, strict=True):
            finished = bool(answer) and answer[-1] == tokenizer.eos_token_id  # an answer that never ended is wrong
            text = tokenizer.decode(answer[:-1] if finished else answer, skip_special_tokens=False)
            scores.append(self.judge(item, text) if finished else 0.0)
        longest = max(len(p) + len(a) for p, a in rows)
        ids_NL = torch.full((len(rows), longest), pad)
        own_NL = torch.zeros(len(rows), longest, dtype=torch.bool)
        for n, (prompt, answer) in enumerate(rows):
            ids_NL[n, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            own_NL[n, len(prompt) : len(prompt) + len(answer)] = True
        return Answered(ids_NL, own_NL, scores, [len(a) for _, a in rows])

    def _generated(
        self, model: Any, tokenizer: Any, items: Sequence[Item], pad: int
    ) -> list[tuple[list[int], list[int]]]:
        """(prompt, answer) ids of each item; an answer ends with the end-of-sequence, or where its room ends."""
        prompts = [tokenizer(i.prompt)["input_ids"] for i in items]
        width = max(map(len, prompts))
        padded = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        sampling = (
            {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
            if self.temperature
            else {"do_sample": False}
        )
        drawn = model.generate(
            input_ids=padded, attention_mask=mask, max_new_tokens=self.max_new_tokens, pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id, use_cache=True, **sampling,
        )  # fmt: skip
        answers = []
        for row in drawn[:, width:].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            answers.append(row[:end])
        return list(zip(prompts, answers, strict=True))


def _logp(model: Any, ids_NL: Tensor, own_NL: Tensor) -> Tensor:
    """Log-probabilities over the vocabulary at the own tokens, [M, V]."""
    logits_NLV = model(input_ids=ids_NL, attention_mask=torch.ones_like(ids_NL)).logits
    return torch.log_softmax(logits_NLV[:, :-1][own_NL[:, 1:].to(ids_NL.device)].float(), -1)


def _loaded(path: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)
