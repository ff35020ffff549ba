"""Decoder, checkpoint and tokenizer against `transformers`, and every way a checkpoint can be half there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import SHAPES, TOKENIZER, assert_same_gradients, decoder, in_transformers
from torch.utils.flop_counter import FlopCounterMode

from mopd_diag.errors import CheckpointError, ResourceError
from mopd_diag.models import checkpoint
from mopd_diag.models import linear as linear_module
from mopd_diag.models.checkpoint import decoder_config, load_decoder, read_config, save_checkpoint
from mopd_diag.models.decoder import half_split, interleave
from mopd_diag.models.linear import linear
from mopd_diag.models.tokenizer import CHARACTERS, EOS, PAD, UNKNOWN, character_tokenizer, load_tokenizer

every_shape = pytest.mark.parametrize("shape", SHAPES)
PRINTABLE = "".join(chr(c) for c in range(0x20, 0x7F))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save_checkpoint(decoder(), TOKENIZER, folder)
    return folder


# --- the decoder computes what transformers computes ---------------------------------------------------------------


@every_shape
def test_logits_equal_transformers(shape: str, tmp_path: Path) -> None:
    ours = decoder(shape)
    theirs = in_transformers(ours, tmp_path / "model")
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if "qwen3" in shape else "LlamaForCausalLM")
    ids_NL = torch.randint(3, TOKENIZER.vocab_size, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = theirs(ids_NL).logits, ours(ids_NL)
    assert got.std() > 0.5  # a flat model would agree with anything
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [(64, 16), (2, 90)])  # enough for oneDNN, and long enough for fused attention
@pytest.mark.parametrize("shape", ["llama-grouped-untied", "qwen3"])
def test_large_batches_and_long_texts_equal_transformers(shape: str, rows: tuple[int, int], tmp_path: Path) -> None:
    ours = decoder(shape)
    theirs = in_transformers(ours, tmp_path / "model")
    ids_NL = torch.randint(3, TOKENIZER.vocab_size, rows, generator=torch.Generator().manual_seed(1))
    theirs(ids_NL).logits.square().mean().backward()
    ours(ids_NL).square().mean().backward()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids_NL), theirs(ids_NL).logits, atol=5e-5, rtol=1e-4)
    assert_same_gradients(ours, theirs)


def test_hidden_at_is_hidden_there() -> None:
    model = decoder("qwen3-grouped-untied")
    ids_NL = torch.randint(3, 99, (5, 13), generator=torch.Generator().manual_seed(1))
    for at_M in (torch.tensor([0, 7, 12, 13, 40, 64]), torch.arange(65), torch.tensor([3])):
        with torch.no_grad():
            expected = model.hidden(ids_NL).flatten(0, 1)[at_M]
            torch.testing.assert_close(model.hidden_at(ids_NL, at_M), expected, atol=1e-5, rtol=1e-5)


@every_shape
def test_flops_are_what_is_computed(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "_ONEDNN", False)  # the counter knows torch's own products
    model = decoder(shape, num_hidden_layers=3)
    ids_NL, at_M = torch.randint(3, 99, (8, 20)), torch.arange(0, 96, 2)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        torch.nn.functional.linear(model.hidden_at(ids_NL, at_M), model.head_VD)
    assert counter.get_total_flops() == model.config.forward_flops(ids_NL.numel(), 20, len(at_M))


@every_shape
def test_right_padding_needs_no_mask(shape: str) -> None:
    model = decoder(shape)
    ids_NL = torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(1))
    padded = ids_NL.clone()
    padded[1, 7:] = TOKENIZER.pad_id
    with torch.no_grad():
        torch.testing.assert_close(model(padded)[1, :7], model(ids_NL[1:, :7])[0], atol=1e-5, rtol=1e-5)


def test_positions_beyond_the_rotary_table(tmp_path: Path) -> None:
    ours = decoder(max_position_embeddings=8)
    theirs = in_transformers(ours, tmp_path / "model")
    ids_NL = torch.arange(3, 33)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids_NL), theirs(ids_NL).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [(512,), (32, 20), (33, 16)])
@pytest.mark.parametrize("upstream", ["dense", "one number", "transposed"])
def test_linear_equals_torch(rows: tuple[int, ...], upstream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and both gradients, whatever the layout of the gradient that comes in; from enough rows on another library runs."""
    generator = torch.Generator().manual_seed(0)
    calls = []
    onednn = linear_module._onednn
    monkeypatch.setattr(linear_module, "_onednn", lambda x, w: calls.append(x.shape) or onednn(x, w))
    given = torch.randn(*rows, 24, generator=generator), torch.randn(40, 24, generator=generator)
    found = []
    for product in (torch.nn.functional.linear, linear):
        x, w = (t.clone().requires_grad_() for t in given)
        y = product(x, w)
        scale = {
            "dense": y.detach().sin(),
            "one number": torch.ones(()),
            "transposed": y.detach().cos().mT.contiguous().mT,
        }[upstream]
        (y * scale if upstream != "one number" else y).sum().backward()
        found.append((y.detach(), x.grad, w.grad))
    assert len(calls) == (3 if linear_module._ONEDNN else 0)
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)
    with torch.inference_mode():
        assert torch.equal(linear(*given), found[1][0])


def test_linear_leaves_odd_numbers_of_rows_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "_onednn", None)
    for rows in (16, linear_module.ENOUGH - 16, linear_module.ENOUGH + 1, linear_module.ENOUGH + 8):
        assert linear(torch.ones(rows, 4), torch.ones(3, 4)).shape == (rows, 3)


def test_rotary_layouts_are_inverse() -> None:
    rows = torch.arange(2 * 6 * 5.0).view(12, 5)
    assert interleave(rows, 6)[:, 0].tolist() == [0, 15, 5, 20, 10, 25, 30, 45, 35, 50, 40, 55]
    assert torch.equal(half_split(interleave(rows, 6), 6), rows)


@every_shape
def test_round_trip_is_bitwise(shape: str, tmp_path: Path) -> None:
    model = decoder(shape)
    save_checkpoint(model, TOKENIZER, tmp_path / "model")
    again = load_decoder(tmp_path / "model")
    assert again.config == model.config
    weights, back = dict(model.named_parameters()), dict(again.named_parameters())
    assert weights.keys() == back.keys()
    assert all(torch.equal(weights[name], back[name]) for name in weights)


def test_sharded_weights_load(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "sharded")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(state)}
    for part in set(where.values()):
        save_file({n: t for n, t in state.items() if where[n] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    whole, sharded = load_decoder(saved), load_decoder(folder)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), sharded.parameters(), strict=True))
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks part-1.safetensors"):
        load_decoder(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(saved: Path, change: dict) -> None:
    table = read_config(saved)
    assert decoder_config(table) is not None
    assert decoder_config(table | change) is None


# --- half-written checkpoints --------------------------------------------------------------------------------------


def truncate(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def reconfigure(folder: Path, change: Callable[[dict], None]) -> None:
    table = json.loads((folder / "config.json").read_text())
    change(table)
    (folder / "config.json").write_text(json.dumps(table))


def pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no checkpoint at"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "half a config": (lambda f: truncate(f / "config.json", 0.5), "not JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "config lacks a size": (lambda f: reconfigure(f, lambda t: t.pop("intermediate_size")), "intermediate_size"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
    "half the weights": (lambda f: truncate(f / "model.safetensors", 0.5), "half-written"),
    "half the header": (lambda f: truncate(f / "model.safetensors", 0.01), "half-written"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "half-written"),
    "half an index": (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {'), "index.json"),
    "pickle only": (pickle_only, "only safetensors"),
    "a weight is missing": (lambda f: rewrite(f, lambda s: s.pop("model.norm.weight")), "model.norm.weight"),
    "a weight is too small": (
        lambda f: rewrite(f, lambda s: s.update({"model.layers.1.mlp.down_proj.weight": torch.zeros(24, 39)})),
        "do not fit config.json",
    ),
    "a weight would broadcast": (
        lambda f: rewrite(f, lambda s: s.update({"model.norm.weight": torch.zeros(1)})),
        "do not fit config.json",
    ),
    "config says another width": (
        lambda f: reconfigure(f, lambda t: t.update(hidden_size=32)),
        "do not fit config.json",
    ),
    "another architecture": (lambda f: reconfigure(f, lambda t: t.update(model_type="mamba")), "mamba"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint_is_one_clear_line(kind: str, saved: Path, tmp_path: Path) -> None:
    damage, says = DAMAGE[kind]
    folder = shutil.copytree(saved, tmp_path / "broken")
    damage(folder)
    with pytest.raises(CheckpointError) as error:
        load_decoder(folder)
    message = str(error.value)
    assert "\n" not in message
    assert says in message and str(folder) in message
    assert error.value.exit_code == 2


TOKENIZER_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "half a tokenizer": (lambda f: truncate(f / "tokenizer.json", 0.5), "cannot be read"),
    "half a tokenizer config": (lambda f: truncate(f / "tokenizer_config.json", 0.5), "not JSON"),
    "no end of sequence": (lambda f: (f / "tokenizer_config.json").write_text("{}"), "no eos_token"),
}


@pytest.mark.parametrize("kind", TOKENIZER_DAMAGE)
def test_damaged_tokenizer_is_one_clear_line(kind: str, saved: Path, tmp_path: Path) -> None:
    damage, says = TOKENIZER_DAMAGE[kind]
    folder = shutil.copytree(saved, tmp_path / "broken")
    damage(folder)
    with pytest.raises(CheckpointError, match=says) as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)


# --- saving is whole or not at all ---------------------------------------------------------------------------------


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fails", ["weights", "tokenizer", "rename"])
def test_failed_save_leaves_the_old_checkpoint(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    old = decoder(seed=1)
    save_checkpoint(old, TOKENIZER, folder)
    with monkeypatch.context() as patch:
        if fails == "weights":
            patch.setattr(checkpoint, "save_file", full_disk)
        elif fails == "tokenizer":
            patch.setattr(type(TOKENIZER), "save", full_disk)
        else:
            patch.setattr(os, "replace", _refuse_once(os.replace, folder))
        with pytest.raises(ResourceError, match="No space left"):
            save_checkpoint(decoder(seed=2), TOKENIZER, folder)
    assert torch.equal(load_decoder(folder).embed, old.embed)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def _refuse_once(replace: Callable, folder: Path) -> Callable:
    """Fail the first time something is put in the folder's place; what then puts the old one back gets through."""
    refused = []

    def call(source: Path, target: Path) -> None:
        if Path(target) == folder and not refused:
            refused.append(source)
            full_disk()
        replace(source, target)

    return call


def test_first_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(ResourceError, match="No space left"):
        save_checkpoint(decoder(), TOKENIZER, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_save_replaces(tmp_path: Path) -> None:
    save_checkpoint(decoder(seed=1), TOKENIZER, tmp_path / "model")
    (tmp_path / "model" / "stale.bin").write_text("from another format")
    new = decoder(seed=2)
    save_checkpoint(new, TOKENIZER, tmp_path / "model")
    assert torch.equal(load_decoder(tmp_path / "model").embed, new.embed)
    assert not (tmp_path / "model" / "stale.bin").exists()


# --- the tokenizer -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def auto_tokenizer(saved: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(saved)


def test_all_printable_ascii_round_trips() -> None:
    ids = TOKENIZER.encode(PRINTABLE)
    assert len(ids) == len(PRINTABLE) == len(set(ids))
    assert TOKENIZER.decode(ids) == PRINTABLE
    assert not {TOKENIZER.pad_id, TOKENIZER.eos_id, TOKENIZER.encode("é")[0]} & set(ids)


@given(st.text(alphabet=CHARACTERS, max_size=60))
def test_text_round_trips(text: str) -> None:
    assume(not any(name in text for name in (PAD, EOS, UNKNOWN)))  # spelled out, these are the special tokens
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([*ids, TOKENIZER.eos_id, TOKENIZER.pad_id]) == text
    assert TOKENIZER.encode_all([text, "x"]) == [ids, TOKENIZER.encode("x")]
    assert TOKENIZER.decode_all([ids, []]) == [text, ""]
    assert "".join(TOKENIZER.token(i) for i in ids) == text


@settings(max_examples=60)
@given(st.text(alphabet=CHARACTERS + "é…", max_size=60))
def test_auto_tokenizer_gives_the_same_ids(auto_tokenizer, text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert auto_tokenizer(text)["input_ids"] == ids
    assert auto_tokenizer.decode(ids, skip_special_tokens=True) == TOKENIZER.decode(ids)


def test_auto_tokenizer_knows_the_special_tokens(auto_tokenizer) -> None:
    assert auto_tokenizer.eos_token_id == TOKENIZER.eos_id
    assert auto_tokenizer.pad_token_id == TOKENIZER.pad_id
    assert len(auto_tokenizer) == TOKENIZER.vocab_size


def test_fingerprint_tells_tokenizers_apart(saved: Path) -> None:
    loaded = load_tokenizer(saved)
    assert loaded.fingerprint == TOKENIZER.fingerprint
    assert (loaded.eos_id, loaded.pad_id, loaded.vocab_size) == (
        TOKENIZER.eos_id,
        TOKENIZER.pad_id,
        TOKENIZER.vocab_size,
    )
    reordered = character_tokenizer(CHARACTERS[::-1])
    assert reordered.vocab_size == TOKENIZER.vocab_size
    assert reordered.fingerprint != TOKENIZER.fingerprint
