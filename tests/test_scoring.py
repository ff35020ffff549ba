"""Batched scoring under many models against one plain forward pass an answer and the definitions in numpy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tiny import decoder, shifted
from torch.profiler import ProfilerActivity, profile

from mopd_diag.engines import evidence_kernel, scoring
from mopd_diag.engines.evidence_kernel import chunk_shape
from mopd_diag.engines.rollouts import Rollouts, by_size, pack
from mopd_diag.engines.sampling import sample
from mopd_diag.engines.scoring import score
from mopd_diag.errors import BadInput
from mopd_diag.estimators.divergences import evidence_from_logp, log_softmax
from mopd_diag.estimators.evidence import Evidence
from mopd_diag.models.decoder import Decoder

VOCABULARY, EOS = 12, 1
NUMBERS = {"logp_TM": 2e-5, "kl_TM": 2e-5, "gram_TJJ": 2e-4}
"""Largest error allowed against double precision; the logits of these casts spread over some twenty nats."""


def cast(vocabulary: int = VOCABULARY) -> dict[str, Decoder]:
    base = decoder(std=0.3, vocab_size=vocabulary)
    return {name: shifted(base, i, 0.1) for i, name in enumerate(("student", "one", "two"))} | {"base": base}


def sampled(models: Mapping[str, Decoder]) -> Rollouts:
    """27 answers of 1 to 9 tokens in no order of length, some with a turn that the world wrote."""
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 11]] * 9
    return sample(
        models["student"], prompts, eos_id=EOS, pad_id=0, max_new_tokens=[1 + i % 9 for i in range(27)],
        generator=torch.Generator().manual_seed(0), turn_id=5, reply=lambda row, transcript: [2, 2],
    )  # fmt: skip


def by_definition(rollouts: Rollouts, models: Mapping[str, Decoder], teachers: list[str]) -> Evidence:
    """The same evidence from one forward pass an answer and whole log-probability vectors, in double precision."""
    order = list(dict.fromkeys(("student", "base", *teachers, *models)))
    logits: dict[str, list[np.ndarray]] = {m: [] for m in order}
    tokens: list[int] = []
    for row in range(len(rollouts)):
        start, stop = int(rollouts.prompt_N[row]), int(rollouts.length_N[row])
        text = rollouts.ids_NL[row : row + 1, :stop]
        tokens += text[0, start:].tolist()
        for m in order:
            with torch.no_grad():
                logits[m].append(models[m](text)[0, start - 1 : -1].numpy())
    logp = {m: log_softmax(np.concatenate(logits[m])) for m in order}
    counts = (rollouts.length_N - rollouts.prompt_N).tolist()
    return evidence_from_logp(logp, tokens, teachers, np.repeat(np.arange(len(counts)), counts))


def assert_same(found: Evidence, expected: Evidence) -> None:
    assert (found.members, found.teachers) == (expected.members, expected.teachers)
    for name, error in NUMBERS.items():
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=error, rtol=1e-3, err_msg=name)
    np.testing.assert_array_equal(found.answer_T, expected.answer_T)
    np.testing.assert_array_equal(found.position_T, expected.position_T)


@pytest.mark.parametrize("tokens", [30, 4096])
def test_scores_equal_plain_forward_passes(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models = cast()
    rollouts = sampled(models)
    assert rollouts.sampled_tokens < int((rollouts.length_N - rollouts.prompt_N).sum())
    monkeypatch.setattr(scoring, "BATCH_TOKENS", tokens)
    scored = score(rollouts, models, "student", ["one", "two"])
    assert_same(scored.evidence, by_definition(rollouts, models, ["one", "two"]))
    assert scored.token_T.tolist() == [t for row in rollouts.responses() for t in row]
    rows = zip(rollouts.own_NL, rollouts.prompt_N.tolist(), rollouts.length_N.tolist(), strict=True)
    assert scored.evidence.own_T.tolist() == [x for own, start, stop in rows for x in own[start:stop].tolist()]
    assert scored.tokens_scored == 4 * len(scored.token_T)
    assert scored.evidence.full_vocabulary


@pytest.mark.parametrize(("vocabulary", "workspace"), [(333, 1), (333, 1 << 15), (64, 1), (97, 1), (333, 1 << 30)])
def test_slices_of_the_vocabulary_add_up(vocabulary: int, workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many slices, with a short last one; exactly one; the mass on a different slice each token; chunks of tokens too."""
    models = cast(vocabulary)
    models["decoy"] = shifted(models["base"], 9, 0.1)
    ids = torch.randint(vocabulary, (40, 16), generator=torch.Generator().manual_seed(1)).tolist()
    rollouts = pack([r[:3] for r in ids], [r[3 : 6 + i % 11] for i, r in enumerate(ids)], 0)
    monkeypatch.setattr(evidence_kernel, "WORKSPACE", workspace)
    monkeypatch.setattr(evidence_kernel, "ENOUGH", 48)
    tokens = int((rollouts.length_N - rollouts.prompt_N).sum())
    rows, columns = chunk_shape(tokens, 5, vocabulary)
    assert (rows < tokens, columns < vocabulary) == (workspace < 1 << 30, workspace < 1 << 30 and vocabulary > 64)
    assert_same(
        score(rollouts, models, "student", ["one", "two"]).evidence, by_definition(rollouts, models, ["one", "two"])
    )


def test_chunks_stay_within_the_workspace() -> None:
    shapes = [(t, m, v) for t in (1, 100, 272, 2000, 5000) for m in (4, 8, 14) for v in (99, 5000, 49_152, 151_936)]
    for shape in shapes:
        rows, columns = chunk_shape(*shape)
        assert rows * columns * shape[1] <= 1.6 * evidence_kernel.WORKSPACE, shape
        assert columns <= shape[2]


def test_slices_without_any_mass_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits thousands of nats apart: whole slices have probability 0 in double precision."""
    monkeypatch.setattr(evidence_kernel, "WORKSPACE", 1)
    models = cast(333)
    for model in models.values():
        with torch.no_grad():
            model.norm.mul_(300)
    rollouts = sampled(models)
    scored = score(rollouts, models, "student", ["one", "two"])
    assert scored.left_out == ()
    exact = by_definition(rollouts, models, ["one", "two"])
    np.testing.assert_allclose(scored.evidence.kl_TM, exact.kl_TM, rtol=1e-3, atol=0.01)
    np.testing.assert_allclose(scored.evidence.gram_TJJ, exact.gram_TJJ, rtol=1e-2, atol=1)


def test_equal_models_differ_by_exactly_nothing() -> None:
    models = cast(200)
    models |= {"copy of base": copy.deepcopy(models["base"]), "copy": copy.deepcopy(models["student"])}
    rollouts = sampled(models)
    found = score(rollouts, models, "student", ["copy of base", "one", "copy"]).evidence
    of = found.members.index
    assert (found.kl_TM[:, of("student")] == 0).all()
    assert (found.kl_TM[:, of("copy")] == 0).all()
    assert (found.logp_TM[:, of("copy")] == found.logp_TM[:, of("student")]).all()
    assert (found.gram_TJJ[:, 1] == 0).all()
    np.testing.assert_allclose(found.gram_TJJ[:, 3], found.gram_TJJ[:, 0], rtol=1e-5, atol=1e-6)
    assert (found.gram_TJJ[:, 0, 0] > 0).all()


def test_small_divergences_are_not_lost_in_rounding() -> None:
    """A student one thousandth of the way to a teacher: KL of some 1e-6 nats, logits that are 20 nats wide."""
    models = cast(200)
    models["student"] = shifted(models["base"], 3, 1e-4)
    rollouts = sampled(models)
    found, expected = score(rollouts, models, "student", ["one"]).evidence, by_definition(rollouts, models, ["one"])
    divergence, exact = found.kl_TM.sum(0), expected.kl_TM.sum(0)
    np.testing.assert_allclose(divergence[1:], exact[1:], rtol=0.02)
    assert exact[1] / len(found.kl_TM) < 1e-4
    size, right = (np.trace(e.gram_TJJ[:, :1, :1].sum(0)) for e in (found, expected))
    assert size == pytest.approx(right, rel=1e-2)


def test_the_base_scores_itself_as_no_shift() -> None:
    models = cast()
    rollouts = sampled(models)
    found = score(rollouts, models, "base", ["one", "two", "student"]).evidence
    assert found.members == ("base", "one", "two", "student")
    assert (found.kl_TM[:, 0] == 0).all()
    assert (found.gram_TJJ[:, 0] == 0).all()
    usual = score(rollouts, models, "student", ["one", "two"]).evidence
    np.testing.assert_allclose(found.logp_TM, usual.logp_TM[:, [1, 2, 3, 0]], rtol=1e-6)
    assert (found.kl_TM[:, 1:] > 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_teacher_is_left_out_and_spoils_nobody(value: float) -> None:
    models = cast()
    rollouts = sampled(models)
    alone = score(rollouts, {m: models[m] for m in ("student", "base", "two")}, "student", ["two"])
    with torch.no_grad():
        models["one"].norm[3] = value
    scored = score(rollouts, models, "student", ["one", "two"])
    assert (alone.left_out, scored.left_out) == ((), ("one",))
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(scored.evidence, name), getattr(alone.evidence, name))
    for name in ("student", "base"):
        broken = models | {name: models["one"]}
        with pytest.raises(BadInput, match=f"^'{name}' cannot be left out"):
            score(rollouts, broken | {"one": models["two"]}, "student", ["one"])


def test_a_student_that_is_itself_a_candidate() -> None:
    models = cast()
    found = score(sampled(models), models, "one", ["one", "two"]).evidence
    assert found.members == ("one", "base", "two", "student")
    np.testing.assert_allclose(found.gram_TJJ[:, 1], found.gram_TJJ[:, 0], rtol=1e-5, atol=1e-6)


def test_nothing_to_score() -> None:
    models = cast()
    for rollouts in (pack([], [], 0), pack([[3, 4], [5]], [[], []], 0)):
        scored = score(rollouts, models, "student", ["one", "two"])
        assert scored.evidence.gram_TJJ.shape == (0, 4, 4)
        assert (scored.tokens_scored, scored.left_out) == (0, ())


def test_memory_does_not_grow_with_vocabulary_times_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak of the tensors at 12 teachers: some workspaces and hidden states, far below one array [T, J, V]."""
    monkeypatch.setattr(evidence_kernel, "WORKSPACE", 1 << 17)
    monkeypatch.setattr(evidence_kernel, "ENOUGH", 32)
    base = decoder(vocab_size=2000)
    teachers = [f"teacher-{k}" for k in range(12)]
    models = {name: shifted(base, i, 0.01) for i, name in enumerate(["student", *teachers])} | {"base": base}
    ids = torch.randint(2000, (16, 15), generator=torch.Generator().manual_seed(1)).tolist()
    rollouts = pack([r[:2] for r in ids], [r[2:] for r in ids], 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        score(rollouts, models, "student", teachers)
    assert profiled.profiler is not None
    events: list[Any] = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    assert 0 < np.cumsum([size for _, size in changes]).max() < 0.1 * (16 * 13 * 14 * 2000 * 4)


def test_by_size_keeps_order_and_bounds() -> None:
    lengths = sorted(5 + i % 13 for i in range(100))
    parts = list(by_size(range(100), lengths, 200))
    assert [row for part in parts for row in part] == list(range(100))
    assert all(len(part) * lengths[part[-1]] <= 200 for part in parts)
    assert all(len(part) % 16 == 0 for part in parts[:-1] if len(part) > 16)
    assert [len(part) for part in by_size(range(3), [50, 60, 70], 10)] == [1, 1, 1]  # a row is never cut
