"""Tokenisations of one text brought together, and the verdicts that likelihoods of aligned spans allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mopd_diag.errors import BadInput
from mopd_diag.estimators.alignment import boundaries, byte_offsets, common, span_sums
from mopd_diag.estimators.span_likelihood import CEILING, Aligned, judge_spans, runs
from mopd_diag.models.tokenizer import Tokenizer, character_tokenizer, difference

TEXTS = ["the cat sat on the mat", "a naïve cat ☃ sat", "mat 12+34=46 the\n  cat", "", "☃☃"]


def bpe(size: int) -> Tokenizer:
    """A byte-level BPE, as most models have: pieces of characters, blanks at the front of words, offsets that trim them."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    backend.train_from_iterator(TEXTS * 4, trainer)
    return Tokenizer(backend, 0, 0)


TOKENIZERS = [bpe(257), bpe(270), bpe(300)]


@given(st.text(max_size=40))
def test_aligned_spans_hold_whole_tokens_of_every_tokenizer(text: str) -> None:
    """Slow definition: a place is common when in every tokenisation the tokens before it decode to the text before it."""
    read = [t.encode_where(text) for t in TOKENIZERS]
    edges = common([boundaries(offsets, len(text))[0] for _, offsets in read])
    assert edges[0] == 0
    assert edges[-1] == len(text)
    for tokenizer, (ids, offsets) in zip(TOKENIZERS, read, strict=True):
        places = {len(tokenizer.decode(ids[:n], special=True)) for n in range(len(ids) + 1)
                  if text.startswith(tokenizer.decode(ids[:n], special=True))}  # fmt: skip
        assert set(edges.tolist()) <= places
        counts = span_sums(np.ones(len(ids)), offsets, edges)
        assert counts.sum() == len(ids)
        start = 0
        for a, b, n in zip(edges[:-1], edges[1:], counts.astype(int), strict=True):
            assert tokenizer.decode(ids[start : start + n], special=True) == text[a:b]
            start += n


def test_blanks_stay_with_their_word_though_offsets_are_trimmed() -> None:
    ids, offsets = TOKENIZERS[2].encode_where("the cat")
    assert offsets == [(0, 3), (3, 7)]
    assert TOKENIZERS[2].backend.encode("the cat").offsets[1] == (4, 7)
    assert ids == TOKENIZERS[2].encode("the cat")


def test_every_character_is_a_span_against_a_tokenizer_of_characters() -> None:
    letters = character_tokenizer()
    text = "the cat sat"
    parts = [boundaries(t.encode_where(text)[1], len(text))[0] for t in (letters, TOKENIZERS[2])]
    assert common(parts).tolist() == [0, 3, 7, 11]


def test_bytes_of_characters() -> None:
    text = "aé☃😀"
    assert byte_offsets(text).tolist() == [len(text[:i].encode()) for i in range(5)]


def test_text_that_a_tokenizer_drops_belongs_to_the_next_token() -> None:
    assert boundaries([(0, 2), (3, 5)], 5)[0].tolist() == [0, 2, 5]
    assert span_sums([1.0, 10.0], [(0, 2), (3, 5)], np.array([0, 2, 5])).tolist() == [1, 10]
    assert boundaries([(0, 0), (0, 2), (2, 3)], 3)[1].tolist() == [0, 2, 3], "a blank put in front has no characters"


# -- what differs between two tokenizers ----------------------------------------------------------------------------------------


def renamed(eos: str) -> Tokenizer:
    """The character tokenizer with another name for its end-of-sequence, and the same ids for everything else."""
    text = character_tokenizer().backend.to_str().replace('"<eos>"', f'"{eos}"')
    return Tokenizer(Backend.from_str(text), 1, 0)


def test_one_special_token_is_named() -> None:
    said = difference(character_tokenizer(), renamed("<end>"), ("student", "teacher-math"))
    assert said == (
        "the same ids for ordinary text, but only student has '<eos>' (id 1); only teacher-math has '<end>' (id 1); "
        "an answer ends with '<eos>' for student and with '<end>' for teacher-math"
    )


def test_an_added_token_and_another_end_are_named() -> None:
    more = character_tokenizer()
    more.backend.add_special_tokens(["<tool>"])
    assert (
        difference(character_tokenizer(), more)
        == "the same ids for ordinary text, but only the second has '<tool>' (id 99)"
    )
    ends = Tokenizer(character_tokenizer().backend, 0, 0)
    assert "ends with '<eos>' for the first and with '<pad>' for the second" in difference(character_tokenizer(), ends)


def test_other_rules_are_named() -> None:
    assert difference(character_tokenizer(), character_tokenizer()) == ""
    lower = character_tokenizer()
    lower.backend.normalizer = normalizers.Lowercase()
    assert difference(character_tokenizer(), lower) == "their normalizer differ"
    assert "their merges differ" in difference(TOKENIZERS[0], TOKENIZERS[1])
    moved = difference(character_tokenizer("ab"), character_tokenizer("ba"))
    assert "give other ids to 'a' (3 and 4), 'b' (4 and 3)" in moved
    assert "ordinary" not in moved


def test_what_only_trims_offsets_makes_no_difference() -> None:
    plain = bpe(270)
    plain.backend.post_processor = processors.ByteLevel(trim_offsets=False)
    assert difference(TOKENIZERS[1], plain) == ""


# -- verdicts ---------------------------------------------------------------------------------------------------------------------


def aligned(shift: np.ndarray, teachers: np.ndarray, decoys: np.ndarray | None = None, length: int = 8) -> Aligned:
    """Spans of a base with log-likelihoods around −2; `shift` (S) of the subject and (S, K) of the teachers are added."""
    base = -2 + np.random.default_rng(5).normal(size=len(shift)) / 2
    columns = [
        base + shift,
        base,
        *(base[:, None] + teachers).T,
        *([] if decoys is None else (base[:, None] + decoys).T),
    ]
    names = tuple(f"teacher-{'abcdef'[k]}" for k in range(teachers.shape[1]))
    members = ("student", "base", *names, *(f"control-{i}" for i in range(len(columns) - 2 - len(names))))
    return Aligned(members, names, np.stack(columns, 1), np.arange(len(shift)) // length)


def answers_judged(spans: Aligned):
    return judge_spans(spans, spans.answer_S, int(spans.answer_S[-1]) + 1)


def drawn(n: int = 320, teachers: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, teachers))


@pytest.mark.parametrize("seed", range(3))
def test_a_subject_that_follows_one_teacher_is_given_to_it_or_to_nobody(seed: int) -> None:
    shifts = drawn(seed=seed)
    noise = 0.1 * np.random.default_rng(9).normal(size=len(shifts))
    found = answers_judged(aligned(0.9 * shifts[:, 1] + noise, shifts))
    assert (found.kind_N == "teacher").mean() >= 0.8
    assert set(found.best_N[found.kind_N == "teacher"]) == {1}
    assert found.set_NK[found.kind_N == "several", 1].all()
    assert found.confidence_N.max() <= CEILING
    np.testing.assert_allclose(found.share_NK.sum(1) + found.own_N, 1)
    assert found.share_NK[:, 1].mean() > 0.9


def test_the_base_itself_is_pre_existing() -> None:
    found = answers_judged(aligned(np.zeros(80), drawn(80)))
    assert set(found.kind_N) == {"pre-existing"}


def test_equal_teachers_are_several() -> None:
    shifts = drawn()
    shifts[:, 2] = shifts[:, 1]
    found = answers_judged(aligned(shifts[:, 1], shifts))
    assert set(found.kind_N) == {"several"}
    assert (found.set_NK == [False, True, True]).all()


def test_what_no_teacher_follows_is_own_only_when_the_subject_alone_finds_it_likely() -> None:
    alone = np.full(80, 1.0)
    assert set(answers_judged(aligned(alone, drawn(80) / 4)).kind_N) == {"own"}
    shifts = drawn()
    found = answers_judged(aligned(shifts[:, 0], shifts[:, 1:]))
    assert not np.isin(found.kind_N, ("teacher", "several")).any()
    assert "no teacher's likelihood follows the subject's" in set(found.reason_N[found.kind_N == "abstain"])


def test_one_informative_span_is_too_little() -> None:
    shifts = np.zeros((16, 2))
    shifts[3] = [1.0, 0.4]
    found = answers_judged(aligned(0.9 * shifts[:, 0], shifts, length=16))
    assert (found.kind_N[0], found.reason_N[0]) == ("abstain", "too little evidence")
    assert found.informative_N[0] == pytest.approx(1.0)


def test_a_decoy_as_near_acquits() -> None:
    shifts = drawn()
    found = answers_judged(aligned(0.9 * shifts[:, 1], shifts, decoys=0.95 * shifts[:, 1:2]))
    assert set(found.kind_N) == {"abstain"}


def test_runs_are_of_one_class_and_answer() -> None:
    shifts = drawn(32)
    shifts[:4] = shifts[8:12] = 0
    spans = aligned(shifts[:, 0], shifts)
    judged = judge_spans(spans, np.arange(32), 32)
    run_S = runs(judged, spans.answer_S)
    assert (np.diff(run_S) >= 0).all()
    for run in range(run_S[-1] + 1):
        assert len(set(judged.kind_N[run_S == run])) == len(set(spans.answer_S[run_S == run])) == 1


def test_broken_numbers_are_refused_by_name() -> None:
    shifts = drawn(8)
    shifts[0, 1] = np.nan
    with pytest.raises(BadInput, match="'teacher-b' gave NaN"):
        aligned(shifts[:, 0], shifts)
