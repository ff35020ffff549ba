"""Everything that can be wrong with a cast or with answers: named, left out or refused in one line, never silently used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from cast_models import MOVED, PROMPTS, paths, save_models
from safetensors.torch import load_file, save_file
from tiny import TOKENIZER, decoder

import mopd_diag
from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.models.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


def attributed(
    cast: dict[str, Any], responses: list[str] | None = None, **how: Any
) -> tuple[mopd_diag.Attribution, list[str]]:
    """The attribution, and what it warned of."""
    said: list[str] = []
    if responses is None:
        found = mopd_diag.attribute(cast, prompts=PROMPTS, max_new_tokens=8, warn=said.append, **how)
    else:
        rollouts = [{**p, "response": r} for p, r in zip(PROMPTS, responses, strict=False)]
        found = mopd_diag.attribute(cast, rollouts=rollouts, warn=said.append, **how)
    assert list(found.notes[: len(said)]) == said
    return found, said


def broken(folder: Path, value: float) -> Path:
    save_checkpoint(MOVED["code"], TOKENIZER, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_teacher_with_broken_logits_is_named_and_left_out(
    value: float, top_k: int | None, models: Path, tmp_path: Path
) -> None:
    found, said = attributed(paths(models, code=broken(tmp_path / "broken", value)), top_k=top_k)
    (note,) = said
    assert note.startswith("teacher-code gives NaN or infinite logits and is left out; repair")
    assert found.teachers == ("teacher-math",)
    assert found.summary()["teacher:math"] > 0.8


def test_broken_base_and_only_teacher_are_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'base'"):
        attributed(paths(models, base=broken(tmp_path / "base", math.nan)))
    only = {**paths(models), "teachers": {"code": broken(tmp_path / "code", math.nan)}}
    with pytest.raises(BadInput, match="'teacher-code' is the only teacher"):
        attributed(only)


def test_one_teacher(models: Path) -> None:
    for student, label in (("math", "teacher:math"), ("base", "pre-existing"), ("control", "own")):
        found, said = attributed({**paths(models, student), "teachers": {"math": models / "math"}}, ["15,09=95"] * 6)
        assert not said
        assert found.summary()[label] > 0.8
        assert found.answers[["share_teacher-math", "share_own"]].sum(axis=1).round(6).isin([0, 1]).all()


@pytest.mark.parametrize("copied", [False, True])
def test_two_teachers_that_are_the_same_file_are_several(copied: bool, models: Path, tmp_path: Path) -> None:
    twin = models / "math"
    if copied:
        save_checkpoint(MOVED["math"], TOKENIZER, tmp_path / "twin")
        twin = tmp_path / "twin"
    found, said = attributed(paths(models, "math", code=twin))
    assert said == ["teacher-math and teacher-code are the same model: what one taught is given to both, as 'several'"]
    for frame in (found.answers, found.spans, found.tokens):
        assert not frame["label"].str.startswith("teacher:").any()
    assert found.summary()["several"] > 0.8
    assert set(found.answers.loc[found.answers["label"] == "several", "set"]) == {"math+code"}


def test_a_teacher_that_is_the_base_is_said(models: Path) -> None:
    found, said = attributed(paths(models, "math", code=models / "base"))
    assert said == ["teacher-code is a copy of the base: it has no shift of its own and can explain nothing"]
    assert found.summary()["teacher:math"] > 0.8


@pytest.mark.parametrize("top_k", [None, 4])
def test_empty_answers_are_kept_and_abstained_on(top_k: int | None, models: Path) -> None:
    found, said = attributed(paths(models), ["", "15,09=95", "", "7"], top_k=top_k)
    assert said == ["2 of 4 answers are empty (q0, q2): kept, and abstained on"]
    assert found.answers["item_id"].tolist() == ["q0", "q1", "q2", "q3"]
    assert (found.answers["label"] == "abstain").tolist() == [True, False, True, False]
    assert set(found.answers.loc[[0, 2], "reason"]) == {"no token of its own"}


def test_nothing_but_empty_answers(models: Path) -> None:
    found, said = attributed(paths(models), ["", ""])
    assert found.summary()["abstain"] == 1.0
    assert "2 of 2 answers are empty" in said[0]


def test_answers_longer_than_the_context_are_left_out(models: Path) -> None:
    room = 128 - len(PROMPTS[0]["prompt"])
    found, said = attributed(paths(models), ["1" * room, "1" * (room + 1), "12"])
    assert said == ["1 of 3 answers are left out (q1): longer than the context of 128 tokens"]
    assert found.answers["item_id"].tolist() == ["q0", "q2"]
    with pytest.raises(BadInput, match="every prompt with its answer is longer than the context of 128 tokens"):
        attributed(paths(models), ["1" * 500])


def test_the_smallest_context_of_the_cast_counts(models: Path, tmp_path: Path) -> None:
    config = MOVED["code"].config
    narrow = decoder(max_position_embeddings=24)
    narrow.load_state_dict(MOVED["code"].state_dict())
    assert config.max_position_embeddings == 128
    save_checkpoint(narrow, TOKENIZER, tmp_path / "narrow")
    found, said = attributed(paths(models, code=tmp_path / "narrow"), ["1" * 40, "12"])
    assert said == ["1 of 2 answers are left out (q0): longer than the context of 24 tokens"]
    assert len(found.answers) == 1


def test_sampled_answers_end_with_the_context_and_too_long_prompts_are_left_out(models: Path) -> None:
    said: list[str] = []
    prompts = [
        {"id": "short", "prompt": "M1+1:"},
        {"id": "long", "prompt": "9" * 120},
        {"id": "full", "prompt": "9" * 128},
    ]
    found = mopd_diag.attribute(paths(models), prompts=prompts, max_new_tokens=20, seed=3, warn=said.append)
    assert said[0] == "1 of 3 answers are left out (full): longer than the context of 128 tokens"
    assert found.answers["item_id"].tolist() == ["short", "long"]
    assert found.tokens.groupby("item_id")["position"].max()["long"] <= 8


def test_a_prompt_that_the_tokenizer_lacks_is_refused(models: Path) -> None:
    with pytest.raises(BadInput, match="prompt 'x': the student's tokenizer has no tokens for all of its text"):
        mopd_diag.attribute(paths(models), prompts=[{"id": "x", "prompt": "☃ + 1"}])


def test_a_response_that_does_not_tokenise_to_itself_is_refused(models: Path) -> None:
    for text in ("naïve", "a\tb"):
        with pytest.raises(BadInput, match="rollout 'q1': its text does not survive this tokenizer"):
            attributed(paths(models), ["12", text])


def test_a_response_that_spells_its_end_gets_no_second_one(models: Path) -> None:
    found, _ = attributed(paths(models), ["12", "12<eos>"])
    first, second = (found.tokens[found.tokens["item_id"] == i] for i in ("q0", "q1"))
    assert first["token"].tolist() == second["token"].tolist() == ["1", "2", "<eos>"]


def test_other_sizes_of_the_vocabulary_are_refused(models: Path, tmp_path: Path) -> None:
    save_checkpoint(decoder(vocab_size=TOKENIZER.vocab_size + 5), TOKENIZER, tmp_path / "wide")
    with pytest.raises(CheckpointError, match="teacher-code has 104 logits, student 99; pad both alike"):
        attributed(paths(models, code=tmp_path / "wide"))


def test_warnings_are_python_warnings_by_default(models: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 2 answers are empty"):
        mopd_diag.attribute(
            paths(models), rollouts=[{**p, "response": r} for p, r in zip(PROMPTS, ("", "7"), strict=False)]
        )
