"""SFT, GRPO and full-vocabulary distillation against TRL: the same weights, the same batch, loss and every gradient.

Our side runs the algorithm's own `batch` and the loop's own backward pass; TRL's runs its trainers' `compute_loss`.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny import SHAPES, TOKENIZER, assert_same_gradients, decoder, in_transformers, shifted
from torch import Tensor

from mopd_diag.config import GRPOStage, MOPDStage, SFTStage
from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.models.decoder import Decoder
from mopd_diag.training import distill, grpo
from mopd_diag.training.algorithm import Algorithm, StepBatch
from mopd_diag.training.distill import MOPD
from mopd_diag.training.explore import Answers
from mopd_diag.training.grpo import GRPO, group_advantages
from mopd_diag.training.loop import _backward
from mopd_diag.training.sft import SFT
from mopd_diag.worlds import World, load_world

pytest.importorskip("trl", minversion="1.16")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.parametrize("shape", ["llama", "qwen3-grouped-untied"])]

WORLD = load_world("micro")


def options(tmp_path: Path, **more) -> dict:
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 64}
    return {"output_dir": str(tmp_path / "trl"), **quiet, **plain, **more}


def processing(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, padding_side="left")


def our_loss(model: Decoder, algorithm: Algorithm, batch: StepBatch) -> float:
    """The loop's loss of a whole step; gradients stay in the parameters."""
    assert len(batch.parts) > 0
    return sum(_backward(model, algorithm, part)[0] for part in batch.parts)


def captured(module, monkeypatch: pytest.MonkeyPatch) -> list[Answers]:
    """Collect what an algorithm samples."""
    seen: list[Answers] = []
    answer = module.answer
    monkeypatch.setattr(module, "answer", lambda *a, **k: seen.append(answer(*a, **k)) or seen[-1])
    return seen


def trl_batch(rollouts: Rollouts) -> dict[str, Tensor]:
    """Our right-padded rollouts as TRL's left-padded prompts and right-padded completions."""
    width = int(rollouts.prompt_N.max())
    length = int((rollouts.length_N - rollouts.prompt_N).max())
    table = {
        name: [] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "old")
    }
    for row, answer in enumerate(rollouts.responses()):
        p = int(rollouts.prompt_N[row])
        at = slice(p, p + len(answer))
        left, right = [0] * (width - p), [0] * (length - len(answer))
        table["prompt_ids"].append(left + rollouts.ids_NL[row, :p].tolist())
        table["prompt_mask"].append(left + [1] * p)
        table["completion_ids"].append(answer + right)
        table["completion_mask"].append([1] * len(answer) + right)
        table["tool_mask"].append(rollouts.own_NL[row, at].int().tolist() + right)
        table["old"].append(rollouts.logp_NL[row, at].tolist() + right)
    tensors = {name: torch.tensor(rows) for name, rows in table.items()}
    tensors["old_per_token_logps"] = tensors.pop("old")
    tensors["num_items_in_batch"] = tensors["tool_mask"].sum()
    return tensors


def test_sft(shape: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    domains = ["addition", "sorting", "brackets"]
    algorithm = SFT(SFTStage(name="base", batch=24), TOKENIZER, WORLD, domains, seed=3)
    shown = WORLD.demonstrations(domains, 24, (3, "base", 0))
    ours = decoder(shape)
    theirs = in_transformers(ours, tmp_path / "model")
    loss = our_loss(ours, algorithm, algorithm.batch(ours, 0))

    rows = Dataset.from_list([{"prompt": item.prompt, "completion": text} for item, text in shown])
    tokenizer = processing(tmp_path / "model")
    trainer = SFTTrainer(
        model=theirs, args=SFTConfig(**options(tmp_path)), train_dataset=rows, processing_class=tokenizer
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(theirs, inputs)
    expected.backward()
    assert int((inputs["labels"] != -100).sum()) == sum(len(text) + 1 for _, text in shown)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_grpo(shape: str, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples come from a slightly older model, so that the clip bites on both sides."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    monkeypatch.setattr(World, "score", lambda _, item, text: float(item.domain == "addition" or len(text) % 2))
    seen = captured(grpo, monkeypatch)
    stage = GRPOStage(name="t", prompts=6, group=4, temperature=temperature)
    algorithm = GRPO(stage, TOKENIZER, WORLD, ["addition", "two-turn", "sorting"], seed=3)
    old = endings(decoder(shape))
    batch = algorithm.batch(old, 0)
    ours = shifted(old, 5, 0.02)
    theirs = in_transformers(ours, tmp_path / "model")
    loss = our_loss(ours, algorithm, batch)

    rollouts = seen[0].rollouts
    advantage_GS, informs_G = group_advantages(torch.tensor(seen[0].scores).view(-1, 4))
    assert 0 < informs_G.sum() < len(informs_G)  # some groups inform, some have no variance
    inputs = trl_batch(rollouts) | {"advantages": advantage_GS.flatten()}
    arguments = GRPOConfig(
        **options(tmp_path), num_generations=4, loss_type="bnpo", epsilon=0.2, epsilon_high=0.28, beta=0.0, temperature=temperature
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=theirs, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "x"}]), processing_class=processing(tmp_path / "model"),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    theirs.train()  # no dropout in it; TRL divides by its accumulation steps only then
    expected = trainer._compute_loss(theirs, inputs)
    expected.backward()
    clipped = trainer._metrics["train"]
    assert clipped["clip_ratio/low_mean"][0] > 0 and clipped["clip_ratio/high_mean"][0] > 0
    assert loss == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert_same_gradients(ours, theirs, rtol=5e-5)


def test_full_vocabulary_reverse_kl(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The world's replies are TRL's tool results: read, never trained on."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    seen = captured(distill, monkeypatch)
    monkeypatch.setattr(World, "reply", lambda _, item, transcript: "7;")  # a random student never calls well
    domains = ["addition", "two-turn", "facts"]
    ours = endings(decoder(shape))
    teacher = shifted(ours, 5, 0.05)
    stage = MOPDStage(name="student", teachers=dict.fromkeys(domains, "teacher"), prompts=48)
    algorithm = MOPD(stage, TOKENIZER, WORLD, domains, 3, {"teacher": teacher})
    theirs = in_transformers(ours, tmp_path / "model")
    loss = our_loss(ours, algorithm, algorithm.batch(ours, 0))

    inputs = trl_batch(seen[0].rollouts)
    assert inputs["tool_mask"].sum() < inputs["completion_mask"].sum()
    trainer = DistillationTrainer(
        model=theirs, teacher_model=in_transformers(teacher, tmp_path / "teacher"),
        args=DistillationConfig(**options(tmp_path), beta=1.0), train_dataset=Dataset.from_list([{"prompt": "x"}]),
        processing_class=processing(tmp_path / "model"),
    )  # fmt: skip
    expected = trainer.compute_loss(theirs, inputs)
    expected.backward()
    assert loss > 1e-3
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(ours, theirs)


@torch.no_grad()
def endings(model: Decoder) -> Decoder:
    """A model that ends its answers and calls the world often enough: both tokens' embeddings made longer."""
    for token in (TOKENIZER.eos_id, TOKENIZER.encode("~")[0]):
        (model.embed if model.head is None else model.head)[token] *= 3
    return model


def test_direction_of_beta(shape: str) -> None:
    """TRL's beta = 1 is KL(student‖teacher): the direction our `reverse_kl` names."""
    if shape != "llama":
        pytest.skip("a property of the loss alone")
    from trl.experimental.gkd import GKDTrainer

    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    got = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=1.0, reduction="batchmean")
    assert distill.reverse_kl(student, teacher).item() == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-5
    )
    assert got.item() == pytest.approx(distill.reverse_kl(student, teacher).item(), rel=1e-5)


assert set(SHAPES) >= {"llama", "qwen3-grouped-untied"}
