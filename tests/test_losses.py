"""Every loss against a closed form on a small tensor; the chunked head and merging against their plain definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import decoder, shifted
from torch import Tensor
from torch.nn import functional as F

from mopd_diag.config import MOPDStage
from mopd_diag.engines import head
from mopd_diag.engines.head import chunks, head_loss
from mopd_diag.models.decoder import Decoder
from mopd_diag.training.algorithm import Part
from mopd_diag.training.distill import MOPD, reverse_kl, sampled_token_loss, topk_reverse_kl
from mopd_diag.training.grpo import entropy, group_advantages, grpo_loss
from mopd_diag.training.merge import average, task_arithmetic
from mopd_diag.training.sft import sft_loss
from mopd_diag.training.weighting import domain_weights

LN2 = math.log(2)


def log(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).log()


def random_logp(m: int, v: int, seed: int, spread: float = 2.0) -> Tensor:
    return torch.log_softmax(spread * torch.randn(m, v, generator=torch.Generator().manual_seed(seed)), -1)


@st.composite
def two_distributions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Student and teacher log-probabilities [M, V], from flat to peaked."""
    m, v = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    seed, spread = draw(st.integers(0, 10_000)), draw(st.sampled_from([0.1, 1.0, 4.0]))
    return random_logp(m, v, seed, spread), random_logp(m, v, seed + 1, spread)


# --- supervised ----------------------------------------------------------------------------------------------------


def test_sft_is_minus_log_probability() -> None:
    logits_MV = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])
    torch.testing.assert_close(sft_loss(logits_MV, torch.tensor([1, 0])), torch.tensor([math.log(4 / 3), LN2]))


# --- group-relative ------------------------------------------------------------------------------------------------


def test_group_advantages() -> None:
    advantage_GS, informs_G = group_advantages(
        torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    )
    deviation = math.sqrt(4 * 0.25 / 3)  # n − 1
    assert advantage_GS[0].tolist() == pytest.approx([0.5 / (deviation + 1e-4) * s for s in (1, -1, -1, 1)], rel=1e-6)
    assert informs_G.tolist() == [True, False, False]
    assert not advantage_GS[1:].any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.2, 2.0, -2.4, -2.4),  # inside: the gradient d loss / d log π is −r·A
        (1.5, 2.0, -1.28 * 2, 0.0),  # good and already likelier: clipped above
        (0.5, 2.0, -1.0, -1.0),  # good but become unlikely: never clipped
        (0.5, -2.0, 0.8 * 2, 0.0),  # bad and already unlikelier: clipped below
        (1.5, -2.0, 3.0, 3.0),  # bad but become likelier: never clipped
    ],
)
def test_grpo_clips_where_ppo_does(ratio: float, advantage: float, loss: float, slope: float) -> None:
    logp = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    got = grpo_loss(logp, torch.tensor([-1.0]), torch.tensor([advantage]), 0.2, 0.28)
    got.sum().backward()
    assert got.item() == pytest.approx(loss, rel=1e-5)
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_entropy() -> None:
    assert entropy(log([0.25] * 4, [0.5, 0.5, 1e-30, 1e-30])).tolist() == pytest.approx([2 * LN2, LN2])


# --- divergences ---------------------------------------------------------------------------------------------------


def test_reverse_kl_closed_form_and_direction() -> None:
    student, teacher = log([0.5, 0.5]), log([0.25, 0.75])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert reverse_kl(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    forward = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert abs(forward - expected) > 0.01  # the other direction is another number
    assert reverse_kl(teacher, student).item() == pytest.approx(forward, rel=1e-5)


@given(two_distributions())
def test_reverse_kl_is_torch_kl_div_and_not_negative(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    got = reverse_kl(student, teacher)
    torch.testing.assert_close(
        got, F.kl_div(teacher, student, log_target=True, reduction="none").sum(-1), atol=1e-5, rtol=1e-4
    )
    assert (got >= -1e-5).all()
    assert reverse_kl(student, student).abs().max() < 1e-6


def test_topk_closed_form() -> None:
    student, teacher = log([0.1, 0.2, 0.3, 0.4]), log([0.4, 0.3, 0.2, 0.1])
    # The teacher's two likeliest are tokens 0 and 1; the rest is one event of mass 0.7 under the student, 0.3 under it.
    expected = 0.1 * math.log(0.1 / 0.4) + 0.2 * math.log(0.2 / 0.3) + 0.7 * math.log(0.7 / 0.3)
    assert topk_reverse_kl(student, teacher, 2).item() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=50)
@given(two_distributions(), st.data())
def test_topk_is_a_lower_bound_that_is_tight_at_the_end(pair: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    student, teacher = pair
    v = student.shape[1]
    k = data.draw(st.integers(1, v))
    full = reverse_kl(student, teacher)
    assert (topk_reverse_kl(student, teacher, k) <= full + 1e-4).all()
    # With one token left over the bucket is that token; with none left over it is empty. Where the teacher gives that
    # token less than 1e-5, one minus the sum of the others cannot tell its size in fp32.
    clear = teacher.amin(-1) > math.log(1e-5)
    for all_of in (v - 1, v):
        torch.testing.assert_close(topk_reverse_kl(student, teacher, all_of)[clear], full[clear], atol=1e-3, rtol=1e-3)


def test_topk_gradient_equals_the_full_one_at_the_end() -> None:
    teacher, gradients = random_logp(5, 7, 3), []
    for loss in (reverse_kl, lambda s, t: topk_reverse_kl(s, t, 6)):
        logits = random_logp(5, 7, 2).requires_grad_()
        loss(torch.log_softmax(logits, -1), teacher).sum().backward()
        assert logits.grad is not None
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_topk_stays_finite_when_the_bucket_is_empty() -> None:
    teacher = torch.log_softmax(torch.tensor([[50.0, 0.0, 0.0, 0.0]]), -1)
    logits = torch.tensor([[40.0, 1.0, 0.0, 0.0]], requires_grad=True)
    loss = topk_reverse_kl(torch.log_softmax(logits, -1), teacher, 2)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None and logits.grad.isfinite().all()


# --- sampled token -------------------------------------------------------------------------------------------------


def test_sampled_token_loss_masks_truncated_weights() -> None:
    ratio = torch.tensor([0.4, 0.5, 1.0, 2.0, 2.1])
    behaviour, advantage = torch.full((5,), -2.0), torch.tensor([1.0, 1.0, -3.0, 1.0, 1.0])
    logp = (behaviour + ratio.log()).requires_grad_()
    loss = sampled_token_loss(logp, behaviour, advantage, 0.5 - 1e-6, 2.0 + 1e-6)
    loss.sum().backward()
    weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 0.0])  # outside [low, high]: zero, not the bound
    torch.testing.assert_close(loss, -weight * advantage * logp)
    torch.testing.assert_close(logp.grad, -weight * advantage)  # the weight itself is a constant


def mopd(**options) -> MOPD:
    stage = MOPDStage(name="student", teachers={"a": "t"}, **options)
    return MOPD(stage, None, None, ["a"], 0, {"t": decoder(vocab_size=7)})  # type: ignore[arg-type]


def test_how_far_the_sampler_is_from_the_trainer_is_reported() -> None:
    algorithm = mopd(form="sampled", weight_low=0.5, weight_high=2.0)
    logp_MV = random_logp(3, 7, 1)
    fields = {
        "behaviour": logp_MV[:, 0] - torch.log(torch.tensor([1.0, 0.4, 3.0])),
        "teacher": logp_MV[:, 0],
        "outcome": torch.zeros(3),
    }
    at, targets = torch.arange(3), torch.zeros(3, dtype=torch.long)
    part = Part(torch.zeros(1, 3, dtype=torch.long), at, targets, torch.ones(3), fields, "t")
    _, values = algorithm.token_loss(logp_MV, part, slice(0, 3))
    torch.testing.assert_close(values["importance_weight"], torch.tensor([1.0, 0.4, 3.0]))
    assert values["weight_dropped"].tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("baseline", ["none", "state"])
def test_expected_sampled_gradient_is_the_full_gradient(baseline: str) -> None:
    """Enumerate the vocabulary: Σ_y π(y) · ∇ sampled loss(y) = ∇ KL(student‖teacher), with and without the baseline."""
    v, positions = 7, 3
    algorithm = mopd(form="sampled", baseline=baseline)
    teacher = algorithm.teachers["t"]
    hidden_MD = torch.randn(positions, teacher.config.hidden_size, generator=torch.Generator().manual_seed(0))
    teacher_MV = torch.log_softmax(F.linear(hidden_MD, teacher.head_VD), -1).detach()
    start = random_logp(positions, v, 1)

    logits = start.clone().requires_grad_()
    reverse_kl(torch.log_softmax(logits, -1), teacher_MV).sum().backward()
    full = logits.grad

    logits = start.clone().requires_grad_()
    total, advantage = torch.zeros(()), torch.zeros(positions)
    for y in range(v):
        targets = torch.full((positions,), y)
        fields = {
            "behaviour": start[:, y],
            "teacher": teacher_MV[:, y],
            "outcome": torch.zeros(positions),
            "teacher_hidden": hidden_MD,
        }
        part = Part(
            torch.zeros(1, positions, dtype=torch.long),
            torch.arange(positions),
            targets,
            torch.ones(positions),
            fields,
            "t",
        )
        losses, _ = algorithm.token_loss(logits, part, slice(0, positions))
        total = total + (start[:, y].exp() * losses).sum()
        advantage += start[:, y].exp() * (-losses / start[:, y]).detach()
    total.backward()
    divergence = reverse_kl(start, teacher_MV)
    torch.testing.assert_close(
        advantage, -divergence if baseline == "none" else torch.zeros(positions), atol=1e-5, rtol=1e-4
    )
    assert full is not None and full.abs().max() > 0.1
    torch.testing.assert_close(logits.grad, full, atol=1e-5, rtol=1e-4)


def test_outcome_term_adds_alpha_times_advantage() -> None:
    part = Part(
        torch.zeros(1, 2, dtype=torch.long), torch.arange(2), torch.tensor([1, 2]), torch.ones(2),
        {"behaviour": torch.tensor([-1.0, -1.0]), "teacher": torch.tensor([-0.5, -2.0]), "outcome": torch.tensor([2.0, -1.0])}, "t",
    )  # fmt: skip
    logp = torch.tensor([-1.0, -1.0])
    logits = torch.log(torch.tensor([[0.2, math.exp(-1), 0.3], [0.3, 0.2, math.exp(-1)]]))
    logits = torch.cat((logits, (1 - logits.exp().sum(-1, keepdim=True)).log()), -1)
    losses, values = mopd(form="sampled", alpha=0.5, group=2).token_loss(logits, part, slice(0, 2))
    advantage = torch.tensor([-0.5, -2.0]) - logp + 0.5 * torch.tensor([2.0, -1.0])
    torch.testing.assert_close(losses, -advantage * logp)
    torch.testing.assert_close(values["kl"], torch.tensor([-0.5, 1.0]))


# --- domain weights ------------------------------------------------------------------------------------------------

DOMAIN_M = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])


def test_no_weighting() -> None:
    assert domain_weights(DOMAIN_M, 3, "none").tolist() == [1, 1, 1]


def test_token_balanced_gives_each_present_domain_the_same_share() -> None:
    weight_d = domain_weights(DOMAIN_M, 3, "token-balanced")
    assert weight_d.tolist() == pytest.approx([8 / 2 / 6, 8 / 2 / 2, 1.0])
    per_token = weight_d[DOMAIN_M]
    assert per_token[:6].sum().item() == pytest.approx(per_token[6:].sum().item()) == pytest.approx(4.0)
    assert per_token.sum().item() == pytest.approx(len(DOMAIN_M))  # the step size stays


def test_domain_normalized_is_a_clipped_ratio_of_deviations() -> None:
    ratio_M = torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -3.0, 3.0])
    everything = math.sqrt((6 * 1 + 2 * 9) / 8)
    assert domain_weights(DOMAIN_M, 2, "domain-normalized", ratio_M).tolist() == pytest.approx(
        [everything, everything / 3]
    )
    quiet = torch.cat((torch.full((6,), 1e-4) * torch.tensor([1.0, -1] * 3), torch.tensor([-30.0, 30.0])))
    weights = domain_weights(DOMAIN_M, 2, "domain-normalized", quiet).tolist()
    assert weights == pytest.approx([4.0, math.sqrt(2 * 900 / 8) / 30])


def test_domain_normalized_edges() -> None:
    still = domain_weights(DOMAIN_M, 3, "domain-normalized", torch.zeros(8))
    assert still.isfinite().all() and still.tolist() == [1, 1, 1]
    lone = domain_weights(torch.tensor([0, 0, 1]), 2, "domain-normalized", torch.tensor([1.0, -1.0, 5.0]))
    assert lone[1].item() == 1  # one token has no deviation
    with pytest.raises(ValueError, match="log-ratios"):
        domain_weights(DOMAIN_M, 2, "domain-normalized")


# --- the chunked head ----------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 100))
def test_chunks_cover_once(positions: int, vocabulary: int, elements: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "CHUNK_ELEMENTS", elements)
        slices = list(chunks(positions, vocabulary))
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(positions))
    assert all((s.stop - s.start) * vocabulary <= max(elements, vocabulary) for s in slices)


@pytest.mark.parametrize("shape", ["llama", "llama-grouped-untied"])
def test_chunked_head_equals_plain_head(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value, reported values, and the gradients of all parameters; tied embeddings collect both of their gradients."""
    ids_NL = torch.randint(0, 99, (3, 11), generator=torch.Generator().manual_seed(0))
    targets_M, weight_M = ids_NL.flatten().roll(-1), torch.rand(33, generator=torch.Generator().manual_seed(1))
    teacher_MV = random_logp(33, 99, 5)

    def loss(logits: Tensor, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        logp = torch.log_softmax(logits, -1)
        each = reverse_kl(logp, teacher_MV[where]) + F.nll_loss(logp, targets_M[where], reduction="none")
        return each * weight_M[where], {"entropy": entropy(logp.detach())}

    plain = decoder(shape)
    losses, values = loss(plain(ids_NL).flatten(0, 1), slice(0, 33))
    (2.5 * losses.sum()).backward()

    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 99 * 4)
    model = decoder(shape)
    total, reported = head_loss(model.hidden(ids_NL).flatten(0, 1), model.head_VD, loss)
    (2.5 * total).backward()
    assert total.item() == pytest.approx(losses.sum().item(), rel=1e-5)
    torch.testing.assert_close(reported["entropy"], values["entropy"])
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert p.grad is not None and p.grad.abs().max() > 0, name
        torch.testing.assert_close(q.grad, p.grad, atol=2e-6 * float(p.grad.abs().max()) + 1e-7, rtol=1e-4, msg=name)


def test_frozen_head_gets_no_gradient() -> None:
    hidden = torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(5, 3)
    total, _ = head_loss(hidden, weight, lambda logits, _: (logits.square().sum(-1), {}))
    total.backward()
    torch.testing.assert_close(hidden.grad, 2 * (hidden @ weight.T @ weight).detach())


# --- merging -------------------------------------------------------------------------------------------------------


def test_average_and_task_arithmetic() -> None:
    base = decoder()
    one, two = shifted(base, 1, 0.1), shifted(base, 2, 0.1)
    weights = lambda m: torch.cat([p.detach().flatten() for p in m.parameters()])  # noqa: E731
    torch.testing.assert_close(weights(average([one, two])), (weights(one) + weights(two)) / 2)
    expected = weights(base) + 0.7 * (weights(one) - weights(base) + weights(two) - weights(base))
    torch.testing.assert_close(weights(task_arithmetic(base, [one, two], 0.7)), expected)
    torch.testing.assert_close(weights(task_arithmetic(base, [one, two], 0.0)), weights(base))
    assert torch.equal(weights(average([one, two])), weights(average([two, one])))
    assert not any(a is b for a in average([one, two]).parameters() for b in one.parameters())


def test_merging_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        average([decoder(), decoder("llama-grouped-untied")])


def test_merged_model_computes() -> None:
    merged: Decoder = average([decoder(seed=1), decoder(seed=2)])
    assert merged(torch.tensor([[3, 4, 5]])).isfinite().all()
