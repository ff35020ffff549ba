"""Adapters: the same numbers as peft's on the same files, one base for many, and refusals that name the reason."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from tiny import SHAPES, TOKENIZER, decoder, in_transformers
from torch.nn import functional as F

from mopd_diag import attribute
from mopd_diag.config import SFTStage
from mopd_diag.engines.rollouts import pack
from mopd_diag.engines.scoring import score
from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.models.checkpoint import save_adapted, save_checkpoint
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.loading import load
from mopd_diag.models.lora import Adapted, Adapter, LowRank, Shared, load_adapter, save_adapter
from mopd_diag.training import loop
from mopd_diag.training.held import HeldAdapter
from mopd_diag.training.loop import Schedule, train
from mopd_diag.training.sft import SFT
from mopd_diag.worlds.world import load_world

IDS = torch.randint(4, TOKENIZER.vocab_size, (3, 17), generator=torch.Generator().manual_seed(1))
EVERYWHERE = torch.arange(IDS.numel())


def logits(model: Decoder) -> torch.Tensor:
    return (model.hidden_at(IDS, EVERYWHERE) @ model.head_VD.t()).view(*IDS.shape, -1)


def moved(model: Decoder, seed: int, size: LowRank | None = None) -> Adapter:
    """An adapter that has learned something: B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter.fresh(model, size or LowRank(rank=3, alpha=5.0), generator)
    with torch.no_grad():
        for b in adapter.up.values():
            b.normal_(0, 0.2, generator=generator)
    return adapter


@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapter_means_the_same_to_peft(shape: str, tmp_path: Path):
    model = decoder(shape)
    twin = in_transformers(model, tmp_path / "base")
    adapter = moved(model, 2)
    save_adapter(adapter, tmp_path / "adapter", str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(twin, tmp_path / "adapter")
    plain = logits(model).detach().clone()
    adapted = Adapted(model, load_adapter(tmp_path / "adapter"))
    assert (logits(model) - theirs(IDS).logits).abs().max() < 1e-4
    assert (logits(model) - plain).abs().max() > 0.1
    adapted.off()
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_get_the_gradients_that_peft_gives_them(shape: str, tmp_path: Path):
    model = decoder(shape)
    twin = in_transformers(model, tmp_path / "base")
    save_adapter(moved(model, 2), tmp_path / "adapter", "base")
    theirs = peft.PeftModel.from_pretrained(twin, tmp_path / "adapter", is_trainable=True)
    adapted = Adapted(model, load_adapter(tmp_path / "adapter"))
    with adapted.training():
        for half in (slice(0, 1), slice(1, 3)):  # two microbatches: gradients add up
            n = IDS[half].shape[0]
            hidden = model.hidden_at(IDS[half, :-1], torch.arange(n * 16))
            F.cross_entropy(hidden @ model.head_VD.t(), IDS[half, 1:].flatten(), reduction="sum").backward()
    out = theirs(IDS[:, :-1]).logits
    F.cross_entropy(out.flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum").backward()
    named = dict(theirs.named_parameters())
    for name, (a, b) in adapted.adapter.factors().items():
        for factor, letter in ((a, "A"), (b, "B")):
            expected = named[f"base_model.model.{name}.lora_{letter}.default.weight"].grad
            assert factor.grad is not None and expected is not None and expected.abs().max() > 0
            assert (factor.grad - expected).abs().max() <= 1e-4 * expected.abs().max(), name
    assert all(p.grad is None and p.requires_grad for p in model.parameters()), (
        "nothing else learned; the model is as before"
    )


def test_an_adapter_that_peft_trained_is_read(tmp_path: Path):
    model = decoder("qwen3")
    twin = in_transformers(model, tmp_path / "base")
    theirs = peft.get_peft_model(
        twin, peft.LoraConfig(r=2, lora_alpha=7, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    theirs.save_pretrained(tmp_path / "theirs")
    Adapted(model, load_adapter(tmp_path / "theirs"))
    assert (logits(model) - theirs(IDS).logits).abs().max() < 1e-4


def test_a_fresh_adapter_changes_nothing():
    model = decoder()
    before = logits(model).detach().clone()
    Adapted(model, Adapter.fresh(model, LowRank(), torch.Generator().manual_seed(0)))
    assert torch.equal(logits(model), before)


def test_many_adapters_over_one_base_score_as_whole_models_do():
    names = ("student", "teacher-a", "teacher-b")
    adapters = {name: moved(decoder(), k) for k, name in enumerate(names)}
    whole = {"base": decoder()}
    for name in names:
        whole[name] = decoder()
        Adapted(whole[name], adapters[name])
    shared = Shared(decoder(), {"base": None, **adapters})
    rollouts = pack([[5, 6, 7], [8, 9]], [[10, 11, 12], [13, 14, 15, 16]], TOKENIZER.pad_id)
    one = score(rollouts, shared, "student", ["teacher-a", "teacher-b"])  # type: ignore[arg-type]
    other = score(rollouts, whole, "student", ["teacher-a", "teacher-b"])
    assert one.evidence.members == other.evidence.members
    torch.testing.assert_close(one.evidence.logp_TM, other.evidence.logp_TM, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.evidence.kl_TM, other.evidence.kl_TM, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path):
    save_adapter(moved(decoder(), 0), tmp_path, "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"belongs to another base: its update of .*_proj is \d+ × \d+, this base's is"
    ):
        Adapted(decoder(hidden_size=32), load_adapter(tmp_path))
    deeper = moved(decoder(num_hidden_layers=3), 0)
    with pytest.raises(CheckpointError, match=r"layers\.2.*which this base lacks"):
        Adapted(decoder(), deeper)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "use_dora, which is not read here"),
        ({"peft_type": "IA3"}, "expected LORA"),
        ({"bias": "all"}, "uses bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_is_no_plain_lora_is_refused(change: dict, said: str, tmp_path: Path):
    save_adapter(moved(decoder(), 0), tmp_path, "base")
    table = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(table | change))
    with pytest.raises(CheckpointError, match=said):
        load_adapter(tmp_path)


def test_a_half_written_adapter_and_an_unknown_projection_are_refused(tmp_path: Path):
    save_adapter(moved(decoder(), 0), tmp_path, "base")
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_adapter(tmp_path)
    with pytest.raises(BadInput, match="no projection attention; expected some of q_proj"):
        Adapter.fresh(decoder(), LowRank(targets=("attention",)), torch.Generator())


class Stopped(Exception):
    pass


def test_an_adapter_learns_goes_on_where_it_stopped_and_leaves_its_base_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    task = SFT(SFTStage(name="base", domains=("addition",), batch=8), TOKENIZER, load_world("micro"), ("addition",), 0)
    schedule = Schedule(12, 2e-2)

    def learned(stop: int | None = None, saved: Path | None = None) -> tuple[Adapted, list[dict[str, float]]]:
        model = decoder(std=0.1)
        adapted = Adapted(model, Adapter.fresh(model, LowRank(rank=4, alpha=8.0), torch.Generator().manual_seed(3)))

        def progress(step: int, *_: object) -> None:
            if step == stop:
                raise Stopped

        state = train(model, task, schedule, held=HeldAdapter(adapted), saved=saved, progress=progress)
        return adapted, state.log

    whole, log = learned()
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    with pytest.raises(Stopped):
        learned(stop=7, saved=tmp_path / "saved.safetensors")
    again, _ = learned(saved=tmp_path / "saved.safetensors")
    assert torch.equal(logits(again.model), logits(whole.model))
    again.off()
    for ours, base in zip(again.model.parameters(), decoder(std=0.1).parameters(), strict=True):
        assert torch.equal(ours, base)


def test_a_cast_of_adapters_is_judged_as_the_cast_of_whole_models_is(tmp_path: Path):
    whole, thin = tmp_path / "whole", tmp_path / "thin"
    save_checkpoint(decoder(), TOKENIZER, whole / "base")
    adapters = {name: moved(decoder(), k) for k, name in enumerate(("student", "math", "code", "control"))}
    for name, adapter in adapters.items():
        model = decoder()
        Adapted(model, adapter)
        save_checkpoint(model, TOKENIZER, whole / name)
        save_adapted(adapter, TOKENIZER, thin / name, whole / "base")
    rollouts = [
        {"id": str(k), "prompt": "12+3=", "response": r, "domain": "math"} for k, r in enumerate(("15", "16", "7 "))
    ]
    said = []
    for folder in (whole, thin):
        cast = {
            "base": whole / "base", "student": folder / "student", "controls": {"c": {"path": folder / "control"}},
            "teachers": {n: {"path": folder / n, "domains": [n]} for n in ("math", "code")},
        }  # fmt: skip
        said.append(attribute(cast, rollouts=rollouts))
    assert list(said[0].tokens) == list(said[1].tokens)
    for column in ("logp_student", "logp_teacher-math", "kl_teacher-code", "share_teacher-math"):
        torch.testing.assert_close(
            torch.tensor(said[0].tokens[column].to_numpy()), torch.tensor(said[1].tokens[column].to_numpy()), atol=1e-4, rtol=1e-3
        )  # fmt: skip


def test_an_adapter_whose_base_is_elsewhere_is_opened_on_the_base_of_the_cast_or_refused(tmp_path: Path):
    save_checkpoint(decoder(), TOKENIZER, tmp_path / "base")
    adapter = moved(decoder(), 1)
    save_adapter(adapter, tmp_path / "adapter", "someone/hub-name")
    loaded = load(tmp_path / "adapter", tmp_path / "base").model
    expected = decoder()
    Adapted(expected, adapter)
    assert isinstance(loaded, Decoder) and torch.equal(logits(loaded), logits(expected))
    with pytest.raises(CheckpointError, match="is an adapter of 'someone/hub-name', which is no folder here"):
        load(tmp_path / "adapter")
