"""Reward extrapolation: the target in closed form, that it is the optimum it claims to be, λ = 1, and a student past its teacher;
and two properties of the full-vocabulary form: what is cached, and in what order teachers are asked."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from letters import LETTERS, accuracy, assert_same_weights, copy, ending, taught, weights
from pydantic import ValidationError
from tiny import TOKENIZER, decoder, shifted
from torch import Tensor

from mopd_diag.config import MOPDStage
from mopd_diag.models.decoder import Decoder
from mopd_diag.training import loop
from mopd_diag.training.distill import MOPD, extrapolated, reverse_kl
from mopd_diag.training.loop import Schedule, train
from mopd_diag.worlds import load_world

MICRO = load_world("micro")
DOMAINS = ["addition", "two-turn", "sorting"]
ROUTE = {"addition": "one", "two-turn": "two", "sorting": "one"}


def random_logp(seed: int, m: int = 4, v: int = 9, spread: float = 2.0) -> Tensor:
    return torch.log_softmax(spread * torch.randn(m, v, generator=torch.Generator().manual_seed(seed)), -1)


def test_target_in_closed_form() -> None:
    reference, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    # The odds 1 became 4; at scale 2 they become 16, at ½ they become 2.
    assert extrapolated(teacher, reference, 2.0).exp()[0].tolist() == pytest.approx([16 / 17, 1 / 17])
    assert extrapolated(teacher, reference, 0.5).exp()[0].tolist() == pytest.approx([2 / 3, 1 / 3])


@given(st.integers(0, 1000), st.sampled_from([0.1, 1.0, 6.0]))
def test_its_ends_are_reference_and_teacher(seed: int, spread: float) -> None:
    teacher, reference = random_logp(seed, spread=spread), random_logp(seed + 1, spread=spread)
    torch.testing.assert_close(extrapolated(teacher, reference, 1.0), teacher, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(extrapolated(teacher, reference, 0.0), reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25, 3.0])
def test_reverse_kl_to_it_is_the_published_objective_but_for_a_constant(scale: float) -> None:
    """J(π) = E_π[λ log π*/π_ref] − KL(π‖π_ref): same gradient as −KL(π‖target), and J + KL is the same number for every π."""
    teacher, reference = random_logp(1), random_logp(2)
    constants = []
    for seed in (3, 4):
        gradients = []
        for published in (True, False):
            logits = random_logp(seed).clone().requires_grad_()
            logp = torch.log_softmax(logits, -1)
            if published:
                value = (logp.exp() * scale * (teacher - reference)).sum(-1) - reverse_kl(logp, reference)
            else:
                value = -reverse_kl(logp, extrapolated(teacher, reference, scale))
            value.sum().backward()
            gradients.append(logits.grad)
            constants.append(value.detach())
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(constants[0] - constants[1], constants[2] - constants[3], atol=1e-5, rtol=1e-4)
    best = extrapolated(teacher, reference, scale)
    log_normaliser = (reference + scale * (teacher - reference)).logsumexp(-1)
    reached = (best.exp() * scale * (teacher - reference)).sum(-1) - reverse_kl(best, reference)
    torch.testing.assert_close(reached, log_normaliser, atol=1e-5, rtol=1e-4)


def step(model: Decoder, method: MOPD) -> tuple[float, Tensor]:
    model.zero_grad()
    loss = sum(loop._backward(model, method, part)[0] for part in method.batch(model, 0).parts)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    "options", [{"form": "full"}, {"form": "topk"}, {"form": "sampled", "baseline": "state"}], ids=str
)
def test_at_one_it_is_plain_distillation(options: dict) -> None:
    """λ → 1 with a reference gives the loss and gradient of λ = 1 without; λ = 2 gives others."""
    student = ending(decoder())
    teachers, reference = {"one": shifted(student, 1, 0.1), "two": shifted(student, 2, 0.1)}, shifted(student, 3, 0.1)
    stage = {"name": "student", "start": "base", "teachers": ROUTE, "prompts": 12, **options}
    plain = step(student, MOPD(MOPDStage(**stage), TOKENIZER, MICRO, DOMAINS, 0, teachers))
    near, far = (
        step(student, MOPD(MOPDStage(**stage, extrapolation=x), TOKENIZER, MICRO, DOMAINS, 0, teachers, reference))
        for x in (1 + 1e-6, 2.0)
    )
    assert near[0] == pytest.approx(plain[0], rel=1e-3, abs=1e-4)
    torch.testing.assert_close(near[1], plain[1], atol=1e-3 * float(plain[1].abs().max()), rtol=1e-2)
    assert float((far[1] - plain[1]).abs().max()) > 0.1 * float(plain[1].abs().max())


def test_full_form_against_the_whole_table() -> None:
    student = ending(decoder())
    teacher, reference = shifted(student, 1, 0.1), shifted(student, 3, 0.1)
    stage = MOPDStage(name="student", start="base", teachers=dict.fromkeys(DOMAINS, "t"), prompts=12, extrapolation=1.5)
    method = MOPD(stage, TOKENIZER, MICRO, DOMAINS, 0, {"t": teacher}, reference)
    batch = method.batch(student, 0)
    total = torch.zeros(())
    for part in batch.parts:
        with torch.no_grad():
            s, t, r = (
                torch.log_softmax(m(part.ids_NL), -1).flatten(0, 1)[part.at_M] for m in (student, teacher, reference)
            )
        target = torch.log_softmax(1.5 * t - 0.5 * r, -1)
        total += (reverse_kl(s, target) * part.weight_M).sum()
    assert step(student, method)[0] == pytest.approx(total.item(), rel=1e-5)
    assert batch.work.tokens_scored == 2 * batch.work.tokens_sampled  # teacher and reference


@pytest.fixture(scope="module")
def letter_model() -> Decoder:
    return taught("abcd")


@pytest.mark.parametrize("form", ["full", "sampled"])
def test_the_student_passes_its_teacher(form: str, letter_model: Decoder) -> None:
    teacher = taught("aabcd", copy(letter_model), 30)
    frozen = weights(letter_model)
    reached = {}
    for scale in (1.0, 3.0):
        stage = MOPDStage(
            name="student", start="base", teachers={"letters": "t"}, prompts=64, form=form, baseline="state", extrapolation=scale
        )  # fmt: skip
        student = copy(letter_model)
        method = MOPD(stage, TOKENIZER, LETTERS, ["letters"], 0, {"t": teacher}, letter_model if scale != 1 else None)
        train(student, method, Schedule(25, 2e-3, 2))
        reached[scale] = accuracy(student)
    assert reached[1.0] == pytest.approx(accuracy(teacher), abs=0.1)
    assert reached[3.0] > accuracy(teacher) + 0.15
    assert_same_weights(frozen, weights(letter_model))


def test_a_reference_and_an_extrapolation_go_together() -> None:
    stage = {"name": "student", "start": "base", "teachers": {"letters": "t"}}
    with pytest.raises(ValidationError, match="reference 'old' is not read at extrapolation 1"):
        MOPDStage(**stage, reference="old")
    with pytest.raises(ValueError, match="go together"):
        MOPD(MOPDStage(**stage, extrapolation=2.0), TOKENIZER, LETTERS, ["letters"], 0, {"t": decoder()})
    assert MOPDStage(**stage, extrapolation=2.0).parents == ("base", "t")
    assert MOPDStage(**stage, extrapolation=2.0, reference="old").parents == ("base", "t", "old")
    assert MOPDStage(**stage).parents == ("base", "t")


# --- what the full-vocabulary form holds (DeepSeek V4) --------------------------------------------------------------


def test_hidden_states_are_cached_and_teachers_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the vocabulary's width is kept for a teacher, and the parts of one teacher stand together: one head after another."""
    student = ending(decoder())
    teachers = {"one": shifted(student, 1, 0.1), "two": shifted(student, 2, 0.1)}
    monkeypatch.setattr("mopd_diag.training.algorithm.MICROBATCH_TOKENS", 64)
    stage = MOPDStage(name="student", start="base", teachers=ROUTE, prompts=24)
    parts = MOPD(stage, TOKENIZER, MICRO, DOMAINS, 0, teachers).batch(student, 0).parts
    order = [p.teacher for p in parts]
    assert len(parts) > 6 and sum(a != b for a, b in itertools.pairwise(order)) == 1
    for part in parts:
        assert part.fields["teacher_hidden"].shape == (len(part.targets_M), student.config.hidden_size)
        assert all(f.dim() == 1 or f.shape[1] < student.config.vocab_size for f in part.fields.values())
