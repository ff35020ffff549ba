"""Gradient conflict module by module: conflict that cancels in the whole is seen, chance is not taken for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import SHAPES, TOKENIZER, decoder, shifted

from mopd_diag.errors import BadInput
from mopd_diag.estimators.gradients import auroc, first_order_effects, gradient_geometry
from mopd_diag.study import gradients
from mopd_diag.study.gradients import affordable_items, kept_gradient, module_gradients, pieces, task_vectors
from mopd_diag.worlds import load_world
from mopd_diag.worlds.micro.planted import planted_relations


def noisy(rng: np.random.Generator, *means: np.ndarray, batches: int = 4, noise: float = 0.05) -> np.ndarray:
    return np.stack([m + noise * rng.standard_normal((batches, len(m))) for m in means])


def test_conflict_in_one_module_that_cancels_in_the_whole_is_seen() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 400))
    found = gradient_geometry({"agree": noisy(rng, x, x), "fight": noisy(rng, y, -y), "idle": np.zeros((2, 4, 3))})
    assert abs(found.whole_DD[0, 1]) < 0.1
    assert found.cosine_MDD[0, 0, 1] > 0.95 and found.cosine_MDD[1, 0, 1] < -0.95
    assert found.conflict_DD[0, 1] == pytest.approx(0.5, abs=0.06)
    assert found.synergy_DD[0, 1] == pytest.approx(0.5, abs=0.06)
    assert np.isnan(found.cosine_MDD[2, 0, 1]) and np.isnan(
        found.control_M[2]
    )  # nothing moves there: unknown, not zero
    np.testing.assert_allclose(found.energy_MD.sum(0), 1)


def test_domains_in_different_modules_neither_fight_nor_help() -> None:
    rng = np.random.default_rng(1)
    x, nothing = rng.standard_normal(50), np.zeros(50)
    found = gradient_geometry({"a": noisy(rng, x, nothing, noise=1e-6), "b": noisy(rng, nothing, -x, noise=1e-6)})
    assert found.conflict_DD[0, 1] < 1e-3 and found.synergy_DD[0, 1] < 1e-3


def test_unrelated_gradients_exceed_the_control_as_often_as_it_says() -> None:
    """Forty domains whose gradients are random directions in ten dimensions of a thousand: 5 % of the pairs exceed it."""
    rng = np.random.default_rng(2)
    span = np.linalg.qr(rng.standard_normal((1000, 10)))[0].T
    gradients = (rng.standard_normal((60, 1, 10)) @ span)[:, :1]
    found = gradient_geometry({"m": gradients})
    assert found.rank_M[0] == pytest.approx(1 / (1 / 10 + 1 / 60), rel=0.1)  # what 60 draws show of ten dimensions
    pairs = np.triu_indices(60, 1)
    assert found.beyond_chance_MDD[0][pairs].mean() == pytest.approx(0.05, abs=0.02)
    assert found.control_M[0] > 5 / np.sqrt(1000)  # directions of the full space would have hidden that they are few


def test_the_error_of_a_conflict_shrinks_with_the_noise_between_batches() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(200)
    calm, rough = (gradient_geometry({"m": noisy(rng, x, -x, noise=n)}) for n in (0.05, 1.0))
    assert 0 < 10 * calm.conflict_error_DD[0, 1] < rough.conflict_error_DD[0, 1] < 0.1
    assert np.isnan(gradient_geometry({"m": noisy(rng, x, -x, batches=1)}).conflict_error_DD[0, 1])


def test_the_first_order_effect_is_what_a_small_step_does() -> None:
    """Two quadratic losses; a step down the scaled gradient of one changes the other by what was said, per own gain."""
    rng = np.random.default_rng(4)
    target = rng.standard_normal((2, 6))
    at = rng.standard_normal(6)
    gradients = np.stack([at - t for t in target])[:, None] * np.ones((1, 3, 1))
    scale = np.sqrt((gradients**2).mean((0, 1)))
    loss = lambda x, d: 0.5 * ((x - target[d]) ** 2).sum()  # noqa: E731
    done = np.array(
        [[(loss(at - 1e-6 * gradients[i, 0] / scale, j) - loss(at, j)) / -1e-6 for j in (0, 1)] for i in (0, 1)]
    )
    np.testing.assert_allclose(first_order_effects({"m": gradients}), done / np.diag(done), rtol=1e-3)
    still = first_order_effects({"m": np.stack([gradients[0], np.zeros((3, 6))])})
    assert np.isnan(still[0, 1]) and still[1, 0] == 0  # nothing to gain there: unknown, not zero


def test_a_ranking_of_pairs() -> None:
    assert auroc([3, 2, 1, 0], [True, True, False, False]) == 1
    assert auroc([1, 1, 1], [True, False, False]) == 0.5
    assert np.isnan(auroc([1.0], [True]))


@pytest.mark.parametrize(
    ("gradients", "said"),
    [
        ({"a": np.zeros((1, 2, 3))}, "2 or more domains"),
        ({"a": np.zeros((2, 2, 3)), "b": np.zeros((3, 2, 3))}, "2 or more domains"),
        ({"a": np.zeros((2, 3))}, "D × B × P"),
        ({"a": np.full((2, 2, 3), np.nan)}, "'a' are not finite"),
        ({}, "2 or more domains"),
    ],
)
def test_what_cannot_be_compared_is_refused(gradients: dict, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        gradient_geometry(gradients)


def test_opposite_answers_to_the_same_prompts_ask_opposite_things_of_the_head_and_equal_ones_the_same() -> None:
    """On a random model, before any training: prompts of a helping pair are one distribution, so their gradients agree."""
    world = load_world("planted", ["rising", "falling", "sum", "ones"])
    asked = module_gradients(decoder(), TOKENIZER, world, batches=2, items=24)
    names = list(world.domains)
    assert all(g.shape[:2] == (4, 2) for g in asked.values())
    found = gradient_geometry(asked)
    at = names.index
    help_, conflict = found.synergy_DD[at("sum"), at("ones")], found.synergy_DD[at("rising"), at("falling")]
    assert help_ > 0.7 and help_ > conflict
    assert planted_relations()[frozenset(("sum", "ones"))] == "help"


# -- modules ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_modules_hold_every_parameter_once(shape: str) -> None:
    model = decoder(shape)
    number = {n: torch.arange(p.numel()).view(p.shape) for n, p in model.named_parameters()}
    first, count = {}, 0
    for name, p in model.named_parameters():
        first[name], count = count, count + p.numel()
    held = np.concatenate([piece.of(number) + first[piece.parameter] for piece in pieces(model, 1).values()])
    assert sorted(held) == list(range(count))


def test_heads_are_the_rows_that_make_their_queries_keys_and_values() -> None:
    """With the rows of one query head at zero, its piece is zero and no other."""
    model = decoder("llama-grouped-untied")
    with torch.no_grad():
        model.blocks[0].qkv[8:16] = 0
    tables = {n: p.detach() for n, p in model.named_parameters()}
    zero = {n for n, p in pieces(model, 1).items() if not p.of(tables).any()}
    assert zero == {"layers.0.q1"}


def test_what_is_kept_of_a_large_model_fits_and_is_the_same_each_time() -> None:
    model = decoder(hidden_size=64, head_dim=32, intermediate_size=400)
    size = sum(p.numel() for p in model.parameters())
    some = pieces(model, 10, kept_bytes=4 * 10 * size // 3)
    kept = kept_gradient(model, some)
    assert 0.3 * size < sum(map(len, kept.values())) < 0.8 * size  # small modules are kept whole
    other = shifted(model, 1, 0.1)
    np.testing.assert_array_equal(
        task_vectors(model, [other], some),
        task_vectors(model, [other], pieces(model, 10, kept_bytes=4 * 10 * size // 3)),
    )


def test_a_large_model_gets_fewer_items(monkeypatch: pytest.MonkeyPatch) -> None:
    world, model = load_world("planted", ["larger", "smaller"]), decoder()
    assert affordable_items(model, TOKENIZER, world) == 64
    monkeypatch.setattr(gradients, "FLOPS", gradients.FLOPS / 1e5)
    assert 4 <= affordable_items(model, TOKENIZER, world) < 64
    monkeypatch.setattr(gradients, "FLOPS", 0.0)
    assert affordable_items(model, TOKENIZER, world) == 4


def test_the_gradient_of_accuracy_is_that_of_the_chance_of_right_answers() -> None:
    """Against autograd through the product of the answer's token probabilities, on a world with one right answer."""
    world, model = load_world("planted", ["larger", "smaller"]), decoder(std=0.1)
    found = module_gradients(model, TOKENIZER, world, objective="accuracy", batches=1, items=8)
    items = world.draw_batch(["larger"], 8, (0, "gradients", 0))
    chances = []
    for item in items:
        prompt, answer = TOKENIZER.encode(item.prompt), [*TOKENIZER.encode(item.target), TOKENIZER.eos_id]
        logp = torch.log_softmax(model(torch.tensor([[*prompt, *answer]]))[0], -1)
        chances.append(logp[range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer].sum().exp())
    (-torch.stack(chances).mean()).backward()
    expected = kept_gradient(model, pieces(model, 2))
    for name, g in found.items():
        np.testing.assert_allclose(g[0, 0], expected[name], atol=1e-3 * np.abs(expected["embed"]).max(), err_msg=name)
