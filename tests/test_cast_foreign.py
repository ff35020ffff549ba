"""Casts that share no tokenizer, compared by the likelihood of the same bytes; and architectures only `transformers` computes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cast_models import BASE, MOVED, PROMPTS, paths, rollouts_file, save_models
from safetensors.torch import load_file, save_file
from test_alignment import renamed
from tiny import TOKENIZER, decoder, shifted
from tokenizers import Tokenizer as Backend

import mopd_diag
from mopd_diag.cli import main
from mopd_diag.engines.foreign_sampling import sample_foreign
from mopd_diag.engines.likelihood import answer_logp
from mopd_diag.engines.rollouts import pack
from mopd_diag.errors import BadInput
from mopd_diag.estimators.span_likelihood import CEILING, EVIDENCE
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.foreign import ForeignModel
from mopd_diag.models.loading import load
from mopd_diag.models.tokenizer import Tokenizer, character_tokenizer

ANSWERS = ["15,09=95;M:77", "(3*4)-2 is 10", "", "stop"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


def shuffled(model: Decoder, folder: Path) -> Path:
    """The same model of text with other token ids: every likelihood of a text stays what it was."""
    order = torch.cat((torch.arange(3), 3 + torch.randperm(96, generator=torch.Generator().manual_seed(1))))
    state = json.loads(character_tokenizer().backend.to_str())
    state["model"]["vocab"] = {t: int(order[i]) for t, i in state["model"]["vocab"].items()}
    other = Decoder(model.config)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.embed[order] = model.embed.clone()
    save_checkpoint(other, Tokenizer(Backend.from_str(json.dumps(state)), 1, 0), folder)
    return folder


def attributed(
    cast: dict[str, Any], responses: list[str] | None = None, **how: Any
) -> tuple[mopd_diag.Attribution, list[str]]:
    said: list[str] = []
    if responses is None:
        found = mopd_diag.attribute(cast, prompts=PROMPTS, max_new_tokens=10, warn=said.append, **how)
    else:
        rollouts = [{**p, "response": r} for p, r in zip(PROMPTS, responses, strict=False)]
        found = mopd_diag.attribute(cast, rollouts=rollouts, warn=said.append, **how)
    return found, said


# -- byte-aligned likelihood -----------------------------------------------------------------------------------------------------


def test_other_ids_for_the_same_text_change_no_likelihood(models: Path, tmp_path: Path) -> None:
    cast = paths(models, "math", code=shuffled(MOVED["code"], tmp_path / "code"))
    found, said = attributed(cast, ANSWERS)
    plain, _ = attributed(paths(models), ANSWERS)
    assert "1 of 4 answers are empty (q2)" in said[0]
    assert "teacher-code and student have different tokenizers (student and teacher-code give other ids to" in said[1]
    assert "a weaker verdict" in said[1]
    own = plain.tokens[(plain.tokens["token"] != "<eos>") & plain.tokens["sampled"]].reset_index(drop=True)
    assert found.tokens["token"].tolist() == own["token"].tolist()
    for member in ("student", "base", "teacher-math", "teacher-code"):
        np.testing.assert_allclose(found.tokens[f"logp_{member}"], own[f"logp_{member}"], atol=1e-4)
    assert {"token_id", "kl_teacher-code", "share_own", "label", "confidence", "evidence"} <= set(found.tokens.columns)
    assert found.tokens["kl_teacher-math"].isna().all()


def test_the_weaker_verdict_is_labelled_everywhere(models: Path, tmp_path: Path) -> None:
    found, _ = attributed(paths(models, "math", code=shuffled(MOVED["code"], tmp_path / "code")))
    for frame in (found.answers, found.spans, found.tokens):
        assert set(frame["evidence"]) == {EVIDENCE}
        assert frame["confidence"].max() <= CEILING
        assert "teacher:code" not in set(frame["label"])
    assert found.summary()["teacher:math"] > 0.6
    document = found.to_dict()
    assert (document["vocabulary"], document["evidence"], document["calibration"]) == ("none", EVIDENCE, "uncalibrated")
    json.dumps(document, allow_nan=False)
    shares = found.answers[["share_teacher-math", "share_teacher-code", "share_own"]].sum(axis=1)
    assert shares[found.answers["response"] != ""].round(6).eq(1).all()
    spans = found.spans.groupby("item_id")["text"].agg("".join)
    answers = found.answers.set_index("item_id")["response"]
    assert spans.to_dict() == answers[answers != ""].to_dict()


def test_copies_across_tokenizers(models: Path, tmp_path: Path) -> None:
    """The student and its base keep their tokenizer, one teacher has another: the true one, then the wrong one."""
    code = shuffled(MOVED["code"], tmp_path / "code")
    for student, allowed in (("code", {"teacher:code"}), ("base", {"pre-existing"})):
        found, _ = attributed(paths(models, student, code=code))
        labels = found.answers.loc[found.answers["response"] != "", "label"]
        assert set(labels) <= allowed | {"abstain", "several"}
        assert labels.isin(allowed).mean() > 0.5


def test_one_special_token_is_said_and_goes_the_byte_aligned_way(models: Path, tmp_path: Path) -> None:
    save_checkpoint(MOVED["math"], renamed("<end>"), tmp_path / "math")
    found, said = attributed(paths(models, models / "math", math=tmp_path / "math"), ["12,34=55+M"])
    assert (
        "the same ids for ordinary text, but only student has '<eos>' (id 1); only teacher-math has '<end>'" in said[0]
    )
    assert found.evidence == EVIDENCE
    assert "<e" not in "".join(found.tokens["token"]), "the end is another token for each and is not compared"
    assert found.tokens["logp_student"].round(4).equals(found.tokens["logp_teacher-math"].round(4))


def test_a_teacher_that_cannot_write_the_answers(models: Path, tmp_path: Path) -> None:
    few = character_tokenizer("0123456789+:M=,")
    save_checkpoint(decoder(vocab_size=few.vocab_size), few, tmp_path / "few")
    cast = paths(models, code=tmp_path / "few")
    found, said = attributed(cast, ["12=12", "no", "34"])
    assert said[-1] == "1 of 3 answers are left out (q1): not to be written in teacher-code's tokens"
    assert found.answers["item_id"].tolist() == ["q0", "q2"]
    with pytest.raises(BadInput, match="every prompt with its answer is not to be written in teacher-code's tokens"):
        attributed(cast, ["no"])
    with pytest.raises(BadInput, match="prompt 'p': teacher-code's tokenizer has no tokens for all of its text"):
        mopd_diag.attribute(cast, rollouts=[{"id": "p", "prompt": "What?", "response": "12"}], warn=lambda _: None)
    with pytest.raises(BadInput, match="top-k evidence needs one tokenizer"):
        attributed(cast, ["12"], top_k=4)


def test_two_teachers_that_are_the_same_file_are_several(models: Path, tmp_path: Path) -> None:
    twin = shuffled(MOVED["math"], tmp_path / "twin")
    found, said = attributed(paths(models, "math", math=twin, code=twin) | {"student": models / "math"})
    assert "teacher-math and teacher-code are the same model" in said[0]
    for frame in (found.answers, found.spans, found.tokens):
        assert not frame["label"].str.startswith("teacher:").any()
    assert found.summary()["several"] > 0.5


def test_nothing_but_empty_answers(models: Path, tmp_path: Path) -> None:
    found, _ = attributed(paths(models, code=shuffled(MOVED["code"], tmp_path / "code")), ["", ""])
    assert found.summary()["abstain"] == 1.0
    assert found.tokens.empty and found.spans.empty
    assert set(found.answers["reason"]) == {"no text"}


def test_a_broken_teacher_with_another_tokenizer_is_left_out(models: Path, tmp_path: Path) -> None:
    folder = shuffled(MOVED["code"], tmp_path / "code")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found, said = attributed(paths(models, "math", code=folder), ["12=12"])
    assert said[-1].startswith("teacher-code gives NaN or infinite log-probabilities and is left out; repair")
    assert found.teachers == ("teacher-math",)
    with pytest.raises(BadInput, match="base gives NaN or infinite log-probabilities"):
        attributed(paths(models, "math", base=folder), ["12=12"])


def test_the_command_line_says_it_too(capsys, models: Path, tmp_path: Path) -> None:
    code = shuffled(MOVED["code"], tmp_path / "code")
    (tmp_path / "cast.toml").write_text(
        f'[base]\npath = "{models / "base"}"\n[student]\npath = "{models / "math"}"\n'
        f'[teachers.math]\npath = "{models / "math"}"\n[teachers.code]\npath = "{code}"\n'
    )
    rollouts = rollouts_file(tmp_path, ANSWERS)
    with pytest.raises(SystemExit) as stopped:
        main(["attribute", str(tmp_path / "cast.toml"), "--rollouts", str(rollouts), "--out", str(tmp_path / "out")])
    assert not stopped.value.code
    out, err = capsys.readouterr()
    assert "byte-aligned likelihood; confidence is not calibrated" in out
    assert "different tokenizers" in err
    trace = pd.read_parquet(tmp_path / "out" / "traces" / "student.parquet")
    assert {"item_id", "sample", "position", "token_id", "token", "logp_base", "kl_teacher-math", "byte_end"} <= set(
        trace.columns
    )


# -- architectures that only `transformers` computes -----------------------------------------------------------------------------


def gpt2(folder: Path, seed: int = 0, moved: float = 0.0, **settings: Any) -> Path:
    """A tiny GPT-2: learned positions, biases, layer norms."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=TOKENIZER.vocab_size, n_positions=48, n_embd=16, n_layer=2, n_head=2, eos_token_id=1, bos_token_id=1,
        initializer_range=0.4,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(moved * torch.randn(p.shape, generator=generator))
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    TOKENIZER.save(folder)
    return folder


IDS = [[5, 6, 7, 8], [9], [10, 11, 12]]


def foreign(folder: Path, **settings: Any) -> ForeignModel:
    model = load(gpt2(folder, **settings)).model
    assert isinstance(model, ForeignModel)
    return model


def test_foreign_samples_repeat_and_leave_the_global_source_alone(tmp_path: Path) -> None:
    model = foreign(tmp_path)
    draw = lambda seed: sample_foreign(  # noqa: E731
        model, IDS * 8, eos_id=1, pad_id=0, max_new_tokens=12, generator=torch.Generator().manual_seed(seed)
    )
    state = torch.random.get_rng_state()
    once, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert once.responses() == again.responses() != other.responses()
    assert once.ids_NL[:3, :1].squeeze(1).tolist() == [5, 9, 10]
    for row, done in zip(once.responses(), once.finished_N.tolist(), strict=True):
        assert done == (row[-1] == 1)
        assert 1 not in row[:-1]
        assert done or len(row) == 12


def test_foreign_sampling_follows_the_model_and_none_of_its_settings(tmp_path: Path) -> None:
    """First-token frequencies against the model's own distribution, though the checkpoint asks for top-1 and a penalty."""
    model = foreign(tmp_path, do_sample=True, top_k=1, min_p=0.9, repetition_penalty=3.0)
    n = 2000
    drawn = sample_foreign(
        model, [[9, 10]] * n + [[9]], eos_id=1, pad_id=0, max_new_tokens=1, generator=torch.Generator().manual_seed(0)
    )
    first = torch.tensor([r[0] for r in drawn.responses()[:n]])
    p = torch.softmax(model.hidden(torch.tensor([[9, 10]]))[0, -1] @ model.head_VD.t(), -1)
    error = (torch.bincount(first, minlength=99) / n - p).abs()
    assert (error <= 5 * (p * (1 - p) / n).sqrt() + 1 / n).all()


def test_greedy_foreign_samples_are_the_most_likely_tokens_whatever_stands_beside(tmp_path: Path) -> None:
    model = foreign(tmp_path)
    drawn = sample_foreign(model, IDS, eos_id=1, pad_id=0, max_new_tokens=[6, 3, 6], temperature=0.0)
    assert len(drawn.responses()[1]) <= 3
    for prompt, row in zip(IDS, drawn.responses(), strict=True):
        logits = model.hidden(torch.tensor([[*prompt, *row]]))[0, len(prompt) - 1 : -1] @ model.head_VD.t()
        assert logits.argmax(-1).tolist() == row
    with pytest.raises(ValueError, match="temperature"):
        sample_foreign(model, IDS, eos_id=1, pad_id=0, max_new_tokens=3)
    with pytest.raises(ValueError, match="at least one token"):
        sample_foreign(model, [[]], eos_id=1, pad_id=0, max_new_tokens=3, temperature=0.0)


def test_a_foreign_cast_from_prompts_to_verdict(tmp_path: Path) -> None:
    cast = {
        "base": gpt2(tmp_path / "base"), "student": gpt2(tmp_path / "student", seed=1, moved=0.1),
        "teachers": {"one": gpt2(tmp_path / "one", seed=1, moved=0.1), "two": gpt2(tmp_path / "two", seed=2, moved=0.1)},
    }  # fmt: skip
    said: list[str] = []
    found = mopd_diag.attribute(cast, prompts=PROMPTS, max_new_tokens=60, warn=said.append)
    assert found.summary()["teacher:one"] > 0.8
    assert found.vocabulary == "full"
    longest = found.tokens.groupby("item_id")["position"].max().max()
    assert longest < 48 - len(PROMPTS[0]["prompt"])
    assert not said or "cut where the context of 48 tokens ends" in said[0]


def test_a_broken_foreign_teacher_is_left_out_and_a_broken_student_refused(tmp_path: Path) -> None:
    cast = {
        "base": gpt2(tmp_path / "base"), "student": gpt2(tmp_path / "student", seed=1, moved=0.1),
        "teachers": {"one": tmp_path / "student", "two": gpt2(tmp_path / "two", seed=2, moved=math.inf)},
    }  # fmt: skip
    said: list[str] = []
    found = mopd_diag.attribute(cast, prompts=PROMPTS, max_new_tokens=8, warn=said.append)
    assert said[0].startswith("teacher-two gives NaN or infinite logits and is left out")
    assert found.teachers == ("teacher-one",)
    with pytest.raises(BadInput, match="'student' gives NaN or infinite logits: nothing can be sampled"):
        mopd_diag.attribute({**cast, "student": tmp_path / "two"}, prompts=PROMPTS)


@pytest.mark.parametrize("kind", ["decoder", "foreign"])
def test_likelihoods_equal_plain_forward_passes(kind: str, tmp_path: Path) -> None:
    model = shifted(BASE, 4, 0.1) if kind == "decoder" else foreign(tmp_path)
    answers = [[20, 21, 1], [], [30, 31, 32, 33, 34]]
    found = answer_logp(pack(IDS, answers, 0), model)
    for prompt, answer, logp in zip(IDS, answers, found, strict=True):
        hidden = model.hidden(torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(hidden @ model.head_VD.t(), -1)[torch.arange(len(answer)), answer]
        torch.testing.assert_close(logp, expected.detach(), atol=1e-4, rtol=1e-4)
