"""`attribute(engine="vllm")` with torch in vLLM's place: what is asked of the engine, in what order, and what becomes of the answers."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cast_models import MOVED, PROMPTS, part_of_the_way, paths, rollouts_file, save_models
from safetensors.torch import load_file, save_file
from served_casts import rollouts
from small_server import SmallServer, running
from tiny import TOKENIZER, decoder
from torch_engine import TorchEngine, likeliest

import mopd_diag
from mopd_diag.cli import main
from mopd_diag.engines.top_tokens import TopTokens
from mopd_diag.engines.topk_evidence import score_given, score_topk
from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.outline import check_weights
from mopd_diag.models.tokenizer import character_tokenizer

ANSWERS = ["15,09=95;M:77", "(3*4)-2 is 10", "stop", "no", "12=12", "7"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> type[TorchEngine]:
    monkeypatch.setattr("mopd_diag.study.vllm_members.VLLMEngine", TorchEngine)
    monkeypatch.setattr(TorchEngine, "story", [])
    monkeypatch.setattr(TorchEngine, "made", [])
    return TorchEngine


def attributed(cast: dict[str, Any], answers: list[str] | None = ANSWERS, **how: Any):
    said: list[str] = []
    how = {"engine": "vllm", "warn": said.append, "top_k": 60, **how}
    if answers is None:
        return mopd_diag.attribute(cast, prompts=PROMPTS, max_new_tokens=8, **how), said
    lines = [{**p, "response": r} for p, r in zip(PROMPTS, answers, strict=False)]
    return mopd_diag.attribute(cast, rollouts=lines, **how), said


# -- the numbers ----------------------------------------------------------------------------------------------------------------


def test_the_same_answers_are_given_to_the_same_teachers(models: Path) -> None:
    found, said = attributed(paths(models))
    here, _ = attributed(paths(models), engine="torch", top_k=None)
    assert found.answers["label"].tolist() == here.answers["label"].tolist() == ["teacher:math"] * 6
    assert (found.vocabulary, found.calibration) == ("top-k", "uncalibrated")
    for name in ("base", "student", "teacher-math", "teacher-code"):
        np.testing.assert_allclose(found.tokens[f"logp_{name}"], here.tokens[f"logp_{name}"], atol=1e-4)
    for name in ("base", "teacher-code"):
        assert (found.tokens[f"kl_{name}"] <= here.tokens[f"kl_{name}"] + 1e-4).all()
    assert said[0].startswith(
        "4 members scored by vLLM 0 in float32: all members are compared over the tokens that each of them gave, "
    )


@pytest.mark.parametrize("k", [1, 5, 40])
def test_evidence_of_given_members_is_that_of_served_ones(k: int) -> None:
    """Subject and base that gave all but one of their tokens leave the partition to the teachers, as loaded ones do."""
    local = {"student": part_of_the_way(MOVED["math"], 0.7), "base": MOVED["base"]}
    remote = {"math": MOVED["math"], "code": MOVED["code"]}
    answers = rollouts()
    served = {n: likeliest(m, answers, k) for n, m in remote.items()}
    given = {n: likeliest(m, answers, 98) for n, m in local.items()} | served
    one = score_given(answers, given, "student", ["math", "code"])
    other = score_topk(answers, local, "student", ["math", "code"], k, served=served)
    assert one.evidence.members == other.evidence.members and not one.evidence.full_vocabulary
    assert one.token_T.tolist() == other.token_T.tolist()
    for name in ("answer_T", "position_T", "own_T"):
        assert (getattr(one.evidence, name) == getattr(other.evidence, name)).all()
    for name in ("logp_TM", "kl_TM", "gram_TJJ"):
        np.testing.assert_allclose(getattr(one.evidence, name), getattr(other.evidence, name), atol=1e-3, rtol=2e-3)


def test_a_partition_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = rollouts()
    given = {n: likeliest(MOVED[n], answers, 4) for n in ("base", "math", "code")}
    whole = score_given(answers, given, "math", ["code"]).evidence
    monkeypatch.setattr("mopd_diag.engines.topk_evidence.CHUNK_ROWS", 3)
    cut = score_given(answers, given, "math", ["code"]).evidence
    np.testing.assert_allclose(cut.gram_TJJ, whole.gram_TJJ, atol=1e-12)
    np.testing.assert_allclose(cut.kl_TM, whole.kl_TM, atol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(value: float) -> None:
    """A teacher with one is left out and does not touch the others; subject and base are refused; the world's tokens may hold any."""
    answers = rollouts()
    given = {n: likeliest(MOVED[n], answers, 4) for n in ("base", "math", "code", "control")}
    spoilt = TopTokens(given["code"].ids_TK, given["code"].logp_TK.copy())
    spoilt.logp_TK[7, 1] = value
    found = score_given(answers, {**given, "code": spoilt}, "math", ["control", "code"])
    alone = score_given(answers, {n: g for n, g in given.items() if n != "code"}, "math", ["control"])
    assert found.left_out == ("code",)
    np.testing.assert_array_equal(found.evidence.gram_TJJ, alone.evidence.gram_TJJ)
    for name in ("base", "student"):
        with pytest.raises(BadInput, match=f"'{name}'"):
            cast = {"base": given["base"], "student": given["math"], "control": given["control"], name: spoilt}
            score_given(answers, cast, "student", ["control"])
    flat = int((answers.prompt_N[0] + 7).item())
    answers.own_NL[0, flat] = False
    assert not score_given(answers, {**given, "code": spoilt}, "math", ["control", "code"]).left_out


def torn_checkpoint(folder: Path) -> Path:
    save_checkpoint(MOVED["code"], TOKENIZER, folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# -- turns ----------------------------------------------------------------------------------------------------------------------


def test_one_engine_takes_all_members_and_is_closed(models: Path, engine) -> None:
    cast = {**paths(models), "controls": {"none": {"path": models / "control"}}}
    found, _ = attributed(cast, None, seed=3)
    assert found.answers["response"].str.len().gt(0).any()
    # Student and teacher are one file, which is asked once.
    assert engine.story == [
        ("new", "math"), ("reload", "base"), ("reload", "code"), ("reload", "control"), ("close", ""),
    ]  # fmt: skip
    longest = max(len(p["prompt"]) for p in PROMPTS)
    assert engine.made == [{"dtype": "float32", "context": longest + 8 + 2}]


def test_one_seed_is_one_set_of_answers(models: Path) -> None:
    one, again, other = (attributed(paths(models), None, seed=s)[0].answers["response"].tolist() for s in (0, 0, 1))
    assert one == again != other


def test_other_sizes_get_an_engine_of_their_own(models: Path, engine, tmp_path: Path) -> None:
    save_checkpoint(decoder(num_hidden_layers=3, seed=5), TOKENIZER, tmp_path / "deeper")
    attributed(paths(models, code=tmp_path / "deeper"))
    assert engine.story == [
        ("new", "base"), ("reload", "math"), ("close", ""), ("new", "deeper"), ("close", ""),
    ]  # fmt: skip


def test_a_checkpoint_that_lacks_a_weight_is_refused(models: Path, engine, tmp_path: Path) -> None:
    """vLLM takes it as it is, with another model's weight in the gap."""
    torn = torn_checkpoint(tmp_path / "torn")
    with pytest.raises(
        CheckpointError, match="torn lacks the weight model.layers.1.mlp.up_proj.weight and 1 more; save"
    ):
        attributed(paths(models, code=torn))
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged or half-written"):
        attributed(paths(models, code=torn))
    assert not engine.story, "nothing was loaded before all were looked at"


def test_an_index_names_what_must_be_there(tmp_path: Path) -> None:
    """Where the architecture is none that we know."""
    save_checkpoint(MOVED["code"], TOKENIZER, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    check_weights(tmp_path / "other")
    index = {"weight_map": {"model.norm.weight": "model.safetensors", "model.more": "model-2.safetensors"}}
    (tmp_path / "other" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="other lacks the weight model.more; save"):
        check_weights(tmp_path / "other")


def test_a_failure_midway_gives_the_memory_back(models: Path, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: TorchEngine, path: Path) -> None:
        raise BadInput(f"{path}: vLLM cannot put these weights where the old ones are")

    monkeypatch.setattr(TorchEngine, "reload", refuse)
    with pytest.raises(BadInput, match="cannot put these weights"):
        attributed(paths(models))
    assert engine.story[-1] == ("close", "")


def test_all_members_are_loaded_in_one_precision(models: Path, engine, tmp_path: Path) -> None:
    save_checkpoint(MOVED["code"], TOKENIZER, tmp_path / "half")
    table = json.loads((tmp_path / "half" / "config.json").read_text())
    (tmp_path / "half" / "config.json").write_text(json.dumps({**table, "dtype": "bfloat16"}))
    attributed(paths(models, code=tmp_path / "half"))
    assert [m["dtype"] for m in engine.made] == ["auto", "auto"]


def test_options_go_to_vllm(models: Path, engine) -> None:
    attributed(paths(models), vllm={"tensor_parallel_size": 2, "dtype": "bfloat16"})
    assert [story for story, _ in engine.story].count("reload") == 0, (
        "over several processes nothing is put into a running engine"
    )
    assert {(m["tensor_parallel_size"], m["dtype"]) for m in engine.made} == {(2, "bfloat16")}
    with pytest.raises(BadInput, match="options for vLLM were given, but no member is loaded by it"):
        attributed(paths(models), engine="torch", vllm={"tensor_parallel_size": 2})
    with pytest.raises(BadInput, match="no engine 'vlm'; did you mean 'vllm'"):
        attributed(paths(models), engine="vlm")


# -- what cannot be used, and what is left out ----------------------------------------------------------------------------------


def broken(folder: Path) -> Path:
    save_checkpoint(MOVED["code"], TOKENIZER, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_broken_teacher_is_left_out_and_a_broken_base_refused(models: Path, tmp_path: Path) -> None:
    found, said = attributed(paths(models, code=broken(tmp_path / "broken")))
    assert found.teachers == ("teacher-math",) and found.summary()["teacher:math"] == 1.0
    assert said[1].startswith("teacher-code gives NaN or infinite logits and is left out; repair")
    with pytest.raises(BadInput, match="'base'"):
        attributed(paths(models, base=tmp_path / "broken"))


@pytest.mark.parametrize("copied", [False, True])
def test_twins_are_said(copied: bool, models: Path, tmp_path: Path) -> None:
    twin = models / "math"
    if copied:
        save_checkpoint(MOVED["math"], TOKENIZER, tmp_path / "twin")
        twin = tmp_path / "twin"
    found, said = attributed(paths(models, "math", code=twin))
    assert "teacher-math and teacher-code are the same model: what one taught is given to both, as 'several'" in said
    assert found.summary()["several"] > 0.8


def test_the_context_leaves_room_for_what_vllm_wants(models: Path, engine) -> None:
    """One token less than torch takes in, twice: vLLM reads an answer's last token too, and must be able to add one."""
    room = 128 - len(PROMPTS[0]["prompt"])
    found, said = attributed(paths(models), ["1" * (room - 2), "1" * (room - 1), "12"])
    assert said[0] == "1 of 3 answers are left out (q1): longer than the context of 126 tokens"
    assert found.answers["item_id"].tolist() == ["q0", "q2"]
    assert engine.made[0]["context"] == 128


def test_empty_answers_are_kept_and_abstained_on(models: Path) -> None:
    found, said = attributed(paths(models), ["", "15,09=95"])
    assert said[0] == "1 of 2 answers are empty (q0): kept, and abstained on"
    assert found.answers["label"].tolist() == ["abstain", "teacher:math"]


def test_members_that_vllm_is_not_given(models: Path, tmp_path: Path) -> None:
    adapter, other, wide, empty = (tmp_path / n for n in ("adapter", "other", "wide", "empty"))
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_checkpoint(decoder(vocab_size=50), character_tokenizer("0123456789M+:=,;"), other)
    save_checkpoint(decoder(vocab_size=TOKENIZER.vocab_size + 5), TOKENIZER, wide)
    empty.mkdir()
    for path, line in {
        adapter: "teacher-code: .* is an adapter.*merge it into its base",
        tmp_path / "m.gguf": "teacher-code: .* is a GGUF file",
        other: "one tokenizer for the whole cast, but teacher-code and student differ .*leave --engine out",
    }.items():
        with pytest.raises(BadInput, match=line):
            attributed(paths(models, code=path))
    for path, line in {wide: "teacher-code has 104 logits, student 99", empty: "expected config.json"}.items():
        with pytest.raises(CheckpointError, match=line):
            attributed(paths(models, code=path))
    with pytest.raises(BadInput, match="top-k 99 is not between 1 and 98, one less than the vocabulary"):
        attributed(paths(models), top_k=99)


def test_a_served_teacher_beside(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOPD_DIAG_CACHE", str(tmp_path))
    cast = paths(models)
    with running(SmallServer(MOVED["math"])) as server:
        cast["teachers"]["math"] = {"url": server.url, "model": "math-rl", "domains": ["math"]}
        found, said = attributed(cast, ANSWERS[:4], top_k=20)
    assert found.summary()["teacher:math"] == 1.0
    assert said[0].startswith("3 members scored by vLLM 0 in float32, teacher-math served: all")


# -- the command line -----------------------------------------------------------------------------------------------------------


def cast_file(models: Path, folder: Path) -> Path:
    lines = [f"[{n}]\npath = '{models / at}'" for n, at in (("base", "base"), ("student", "math"))]
    lines += [f"[teachers.{n}]\npath = '{models / n}'\ndomains = ['{n}']" for n in ("math", "code")]
    (folder / "cast.toml").write_text("\n".join(lines))
    return folder / "cast.toml"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_writes_what_torch_writes(models: Path, tmp_path: Path, capsys) -> None:
    given = rollouts_file(tmp_path, ANSWERS)
    asked = ["attribute", str(cast_file(models, tmp_path)), "--rollouts", str(given), "--out", str(tmp_path / "out")]
    assert (
        run(
            *asked,
            "--engine",
            "vllm",
            "--top-k",
            "60",
            "--vllm",
            "enforce_eager=false",
            "--vllm",
            "dtype=half",
            "--json",
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["summary"]["teacher:math"] == 1.0
    assert (TorchEngine.made[0]["enforce_eager"], TorchEngine.made[0]["dtype"]) == (False, "half")
    assert (tmp_path / "out" / "traces" / "student.parquet").is_file()
    assert run(*asked, "--engine", "vllm", "--vllm", "fast") == 2
    assert "--vllm fast: expected NAME=VALUE" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_command_is_one_line(models: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from mopd_diag.engines.vllm import VLLMEngine

    monkeypatch.setattr("mopd_diag.study.vllm_members.VLLMEngine", VLLMEngine)
    given = rollouts_file(tmp_path, ANSWERS)
    asked = ["attribute", str(cast_file(models, tmp_path)), "--rollouts", str(given), "--out", str(tmp_path / "out")]
    assert run(*asked, "--engine", "vllm") == 2
    error = capsys.readouterr().err
    assert "vLLM is not installed: pip install 'mopd-diag[vllm]'" in error and "Traceback" not in error


def test_no_member_is_loaded_by_torch(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a member was loaded")

    monkeypatch.setattr("mopd_diag.study.cast.load", refuse)
    monkeypatch.setattr("mopd_diag.study.cast.adapters_on_one_base", refuse)
    assert attributed(paths(models), ANSWERS[:2])[0].summary()["teacher:math"] == 1.0
