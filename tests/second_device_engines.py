"""Models on another device than the CPU: nothing meets across devices, and every number is the CPU's.

The device is `second_device`'s: CPU memory under another name. Kernels of a real GPU are not tried here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from letters import LETTERS, copy, taught
from meeting import meet
from second_device import Mixed, registered
from test_evals import checkpoint, requests
from tiny import SHAPES, TOKENIZER, decoder, shifted

from mopd_diag.config import (
    DPOStage,
    GRPOStage,
    MOPDStage,
    PlantStage,
    PPOStage,
    RejectionStage,
    RewardModelStage,
    SeqKDStage,
    SFTStage,
)
from mopd_diag.engines.harness import TorchLM, load_words
from mopd_diag.engines.likelihood import answer_logp
from mopd_diag.engines.request_logp import Pair, pair_logp
from mopd_diag.engines.rollouts import pack
from mopd_diag.engines.scoring import score
from mopd_diag.engines.topk_evidence import score_topk
from mopd_diag.errors import BadInput
from mopd_diag.models import device as devices
from mopd_diag.models.checkpoint import load_decoder, save_checkpoint
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.device import device_name, pick, pick_mesh
from mopd_diag.models.foreign import ForeignModel
from mopd_diag.models.loading import load
from mopd_diag.models.lora import Adapted, Adapter, LowRank
from mopd_diag.models.scalar import ScalarDecoder, load_scalar, save_scalar
from mopd_diag.runs import scheduler
from mopd_diag.training import algorithm
from mopd_diag.training.distill import MOPD
from mopd_diag.training.dpo import DPO
from mopd_diag.training.explore import answer
from mopd_diag.training.grpo import GRPO
from mopd_diag.training.held import Held, HeldAdapter
from mopd_diag.training.loop import Schedule, train
from mopd_diag.training.plant import Plant
from mopd_diag.training.ppo import PPO
from mopd_diag.training.rejection import Rejection
from mopd_diag.training.reward_model import RewardModel
from mopd_diag.training.seqkd import SeqKD
from mopd_diag.training.sft import SFT
from mopd_diag.worlds import load_world

SECOND = registered()
MICRO = load_world("micro")
DOMAINS = ["addition", "two-turn", "sorting"]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


def there(model: Decoder) -> Any:
    """A copy on the other device."""
    other = type(model)(model.config)
    other.load_state_dict(model.state_dict())
    return other.to(SECOND)


# -- which device ----------------------------------------------------------------------------------------------------------


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.WORKER, raising=False)
    gpus(monkeypatch, 0)
    assert pick() == pick("cpu") == torch.device("cpu") and device_name(pick()) == "cpu"
    gpus(monkeypatch, 2)
    assert pick() == pick("cuda") == torch.device("cuda", 0) and pick("cuda:1") == torch.device("cuda", 1)
    assert pick("cpu") == torch.device("cpu")
    assert [pick_mesh(n) for n in (1, 2, 3)] == ["cuda", "cuda", "cpu"] and pick_mesh(2, "cpu") == "cpu"


def test_a_gpu_does_more_at_once_the_more_memory_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {0: 139, 1: 16, 2: 4}  # GiB
    properties = lambda d: SimpleNamespace(total_memory=sizes[d.index] << 30)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert [devices.room(torch.device("cuda", i)) for i in sizes] == [17, 2, 1]
    assert devices.room(torch.device("cpu")) == 1
    model, plain = decoder(), algorithm.microbatch_tokens(decoder())
    monkeypatch.setattr(algorithm, "room", lambda device: 17)
    assert algorithm.microbatch_tokens(model) == 17 * plain


def test_workers_of_one_machine_share_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.WORKER == scheduler.WORKER
    gpus(monkeypatch, 2)
    found = []
    for worker in range(4):
        monkeypatch.setenv(devices.WORKER, str(worker))
        found.append(pick().index)
    assert found == [0, 1, 0, 1] and pick("cuda:0").index == 0


class Deaf:
    """Hears nothing of the jobs."""

    def started(self, job: scheduler.Job) -> None: ...
    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None: ...
    def finished(self, job: scheduler.Job) -> None: ...


def test_workers_are_numbered(tmp_path: Path) -> None:
    scheduler.run_jobs([scheduler.Job(n, meet, (tmp_path, n)) for n in ("a", "b")], 2, Deaf())
    assert sorted(p.read_text() for p in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1", "", "cuda:-1"])
def test_what_is_no_device_is_refused(asked: str) -> None:
    with pytest.raises(BadInput, match="expected auto, cpu, cuda or cuda:N"):
        pick(asked)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    with pytest.raises(BadInput, match="device 'cuda:1' is not here: torch sees 1 GPUs"):
        pick("cuda:1")
    with pytest.raises(BadInput, match="expected a GPU for each of them"):
        pick_mesh(2, "cuda")
    with pytest.raises(BadInput, match="expected a GPU for each of them"):
        pick_mesh(1, "cuda:0")


def test_the_second_device_refuses_to_meet_the_cpu() -> None:
    with pytest.raises(Mixed, match="mul"):
        torch.ones(2, device=SECOND).mul(torch.ones(2))
    with pytest.raises(Mixed):
        decoder().to(SECOND).hidden(torch.tensor([[3, 4]]))


# -- sampling and scoring ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_draws_the_same_answers(shape: str) -> None:
    model = decoder(shape)
    items = MICRO.draw_batch(DOMAINS, 12, (0, "device"))
    found = [answer(m, TOKENIZER, MICRO, items, seed=3, n=2) for m in (model, there(model))]
    one, two = (f.rollouts for f in found)
    assert found[0].texts == found[1].texts and two.ids_NL.device.type == "cpu"
    assert torch.equal(one.own_NL, two.own_NL) and torch.equal(one.finished_N, two.finished_N)
    torch.testing.assert_close(one.logp_NL, two.logp_NL, **CLOSE)


def test_scores_are_the_same() -> None:
    base = decoder()
    models = {"base": base, **{n: shifted(base, i, 0.1) for i, n in enumerate(("student", "math", "code", "control"))}}
    moved = {name: there(m) for name, m in models.items()}
    items = MICRO.draw_batch(DOMAINS, 12, (0, "device"))
    rollouts = answer(base, TOKENIZER, MICRO, items, seed=3).rollouts
    how: list[Callable[[Any], Any]] = [
        lambda m: score(rollouts, m, "student", ["math", "code"]),
        lambda m: score_topk(rollouts, m, "student", ["math", "code"], 5),
    ]
    for each in how:
        one, two = each(models).evidence, each(moved).evidence
        for name in ("logp_TM", "kl_TM", "gram_TJJ"):
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-5)
    logp = [torch.cat(answer_logp(rollouts, m)) for m in (base, moved["base"])]
    torch.testing.assert_close(*logp, **CLOSE)
    pairs = [Pair((5, 6, 7), (8, 9)), Pair((5, 6, 7), (8, 10)), Pair((4,), (3,))]
    assert pair_logp(moved["base"], pairs) == [(pytest.approx(p, rel=1e-5), g) for p, g in pair_logp(base, pairs)]


def test_what_transformers_computes(tmp_path: Path) -> None:
    path = checkpoint("gpt2", tmp_path / "gpt2")
    pairs = [("The stack", " is a list"), ("A question?", "yes")]
    found = []
    for device in ("cpu", SECOND):
        loaded = load(path, device=device)
        assert isinstance(loaded.model, ForeignModel) and loaded.model.device == torch.device(device)
        harness = TorchLM(loaded, load_words(path), seed=1)
        likelihoods = harness.loglikelihood(requests("loglikelihood", pairs))
        texts = harness.generate_until(
            requests("generate_until", [("The stack", {"max_gen_toks": 6, "until": ["\n"]})])
        )
        found.append((likelihoods, texts, torch.cat(answer_logp(pack([[5, 6], [7]], [[8, 9], [4]], 0), loaded.model))))
    (one, texts, logp), (two, again, other) = found
    assert texts == again and [(pytest.approx(p, rel=1e-4), g) for p, g in one] == two
    torch.testing.assert_close(logp, other, **CLOSE)


# -- training ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start() -> Decoder:
    """Right a quarter of the time: groups and pairs have something to tell."""
    return taught("abcd")


def algorithms(start: Decoder, move: Callable[[Decoder], Decoder]) -> dict[str, Any]:
    """Every algorithm on the world of letters, its frozen models where `move` puts them."""
    shared, teachers = (TOKENIZER, LETTERS, ["letters"], 0), {"letters": "teacher"}
    teacher, reference = move(shifted(start, 1, 0.05)), move(copy(start))
    judge: Any = ScalarDecoder.of(copy(start))
    judge.score.data += torch.linspace(-1, 1, len(judge.score))
    judge = move(judge)
    mopd = lambda reference=None, **how: MOPD(  # noqa: E731
        MOPDStage(name="s", teachers=teachers, prompts=8, **how), *shared, {"teacher": teacher}, reference
    )
    return {
        "sft": SFT(SFTStage(name="s", batch=8), *shared),
        "grpo": GRPO(GRPOStage(name="s", prompts=4, group=8), *shared),
        "mopd full": mopd(form="full", weighting="token-balanced"),
        "mopd sampled": mopd(form="sampled", weighting="domain-normalized", alpha=0.5, group=4),
        "mopd baseline": mopd(form="sampled", baseline="state"),
        "mopd topk": mopd(reference, form="topk", extrapolation=1.25),
        "seqkd": SeqKD(SeqKDStage(name="s", teachers=teachers, steps=2, batch=8), *shared, {"teacher": teacher}),
        "reward model": RewardModel(RewardModelStage(name="s", prompts=4), *shared, reference),
        "ppo": PPO(PPOStage(name="s", prompts=8, steps=4, minibatches=2), *shared, reference, judge),
        "dpo": DPO(DPOStage(name="s", prompts=4, nll=0.2), *shared, reference, reference, judge),
        "rejection": Rejection(RejectionStage(name="s", prompts=4), *shared, {"": reference}, judge),
        "plant": Plant(PlantStage(name="s", quirk="habit", batch=4), TOKENIZER, MICRO, ["addition"], 0, reference),
    }


def model_for(name: str, start: Decoder) -> Decoder:
    return ScalarDecoder.of(start) if name in ("reward model", "ppo") else copy(start)


NAMES = list(algorithms(decoder(), lambda model: model))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_every_algorithm_is_the_same(name: str, start: Decoder) -> None:
    found = []
    for move in (lambda model: model, there):
        model = move(model_for(name, start))
        state = train(model, algorithms(start, move)[name], Schedule(2, 1e-3))
        assert state.log[0]["gradient_norm"] > 0
        found.append((model, state))
    (one, plain), (two, other) = found
    assert {p.device.type for p in two.parameters()} == {SECOND.type}
    for step, again in zip(plain.log, other.log, strict=True):
        assert {k: again[k] for k in step if k != "seconds"} == {
            k: pytest.approx(v, rel=1e-3, abs=1e-5, nan_ok=True) for k, v in step.items() if k != "seconds"
        }
    for (n, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q.cpu(), rtol=1e-3, atol=2e-5, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_bf16_off_the_cpu_is_near_fp32(name: str, start: Decoder) -> None:
    """Products are cast as `torch.autocast` casts them on CUDA; weights and moments stay fp32."""
    found = []
    for precision in ("fp32", "bf16"):
        model = there(model_for(name, start))
        held = Held(model)
        held.precision = precision
        found.append(train(model, algorithms(start, there)[name], Schedule(1, 1e-3), held=held).log[0])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert found[0].keys() == found[1].keys()
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=0.05, abs=5e-3)
    assert found[1]["gradient_norm"] == pytest.approx(found[0]["gradient_norm"], rel=0.2)
    assert found[1]["gradient_norm"] != found[0]["gradient_norm"], "nothing was cast"


@pytest.mark.parametrize("recompute", [False, True])
def test_a_long_text_takes_the_fused_attention(recompute: bool) -> None:
    ids, grads = torch.arange(3, 93)[None] % 90, []
    for model in (decoder("qwen3-grouped-untied"), there(decoder("qwen3-grouped-untied"))):
        model.recompute = recompute
        model.hidden(ids.to(model.device)).square().sum().backward()
        grads.append([p.grad.cpu() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_a_training_that_was_stopped_goes_on_there(
    start: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mopd_diag.training import loop

    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    make = lambda: SFT(SFTStage(name="s", batch=8), TOKENIZER, LETTERS, ["letters"], 0)  # noqa: E731
    whole = there(start)
    train(whole, make(), Schedule(4, 1e-3))

    def stop(step: int, *_: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    saved = tmp_path / "saved.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(there(start), make(), Schedule(4, 1e-3), saved=saved, progress=stop)
    resumed = there(start)
    assert train(resumed, make(), Schedule(4, 1e-3), saved=saved).step == 4
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p.cpu(), q.cpu())


def test_an_adapter_is_trained_and_saved_there(start: Decoder, tmp_path: Path) -> None:
    found = []
    for number, move in enumerate((copy, there)):
        model = move(start)
        adapter = Adapter.fresh(model, LowRank(rank=2, alpha=4.0), torch.Generator().manual_seed(0))
        held = HeldAdapter(Adapted(model, adapter))
        train(model, SFT(SFTStage(name="s", batch=8), TOKENIZER, LETTERS, ["letters"], 0), Schedule(3, 1e-2), held=held)
        save_checkpoint(held.model, TOKENIZER, tmp_path / str(number))
        found.append((adapter, load_decoder(tmp_path / str(number))))
    (one, whole), (two, other) = found
    assert {p.device.type for p in two.parameters()} == {SECOND.type}
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q.cpu(), rtol=1e-3, atol=2e-5)
    for p, q in zip(whole.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)


def test_a_judge_is_saved_and_loaded_there(start: Decoder, tmp_path: Path) -> None:
    judge = ScalarDecoder.of(start)
    judge.score.data += 0.1
    save_scalar(there(judge), TOKENIZER, tmp_path / "judge")
    again = load_scalar(tmp_path / "judge", SECOND)
    assert again.device == SECOND and torch.equal(again.score.cpu(), judge.score)
