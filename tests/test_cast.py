"""`attribute` and `check` on cast files: any checkpoints, given or sampled answers, and everything that can be wrong with them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from cast_models import PROMPTS, save_models
from safetensors.torch import load_file, save_file
from tiny import TOKENIZER, decoder, shifted

from mopd_diag.cli import main
from mopd_diag.config import load_cast
from mopd_diag.errors import BadInput
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.prompts import Prompt
from mopd_diag.study.cast import attribute_cast


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


def cast_file(folder: Path, models: Path, student: str = "math", *, controls: bool = False, **paths: Path) -> Path:
    at = {name: models / name for name in ("base", "math", "code", "control")} | paths
    text = f'[base]\npath = "{at["base"]}"\n[student]\npath = "{paths.get("student", models / student)}"\n'
    text += f'[teachers.math]\npath = "{at["math"]}"\ndomains = ["math"]\n[teachers.code]\npath = "{at["code"]}"\ndomains = ["code"]\n'
    text += f'[controls.free]\npath = "{at["control"]}"\n' if controls else ""
    (folder / "cast.toml").write_text(text)
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(p) for p in PROMPTS))
    return folder / "cast.toml"


def attribute(capsys: pytest.CaptureFixture[str], cast: Path, *more: str) -> tuple[int, str, str]:
    prompts = () if "--rollouts" in more else ("--prompts", str(cast.parent / "prompts.jsonl"))
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "attribute",
                str(cast),
                *prompts,
                "--out",
                str(cast.parent / "out"),
                "--max-new-tokens",
                "8",
                "--json",
                *more,
            ]
        )
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_a_copy_of_a_teacher_is_given_to_it_and_to_no_other(capsys, models: Path, tmp_path: Path) -> None:
    code, out, _ = attribute(capsys, cast_file(tmp_path, models, "math"))
    assert code == 0
    document = json.loads(out)
    assert document["summary"]["teacher:math"] > 0.9
    assert document["summary"]["teacher:code"] == 0.0
    assert document["calibration"] == "uncalibrated"
    item = document["items"][0]
    assert {"id", "label", "confidence", "shares", "spans"} <= item.keys()
    assert set(item["shares"]) == {"math", "code", "own"}
    assert sum(item["shares"].values()) == pytest.approx(1.0)
    assert {"start", "end", "text", "label", "confidence"} <= item["spans"][0].keys()
    trace = pd.read_parquet(tmp_path / "out" / "traces" / "student.parquet")
    assert {"logp_student", "logp_base", "logp_teacher-math", "kl_teacher-code", "share_own", "label"} <= set(
        trace.columns
    )
    assert trace["kl_teacher-math"].max() < 1e-5 < trace["kl_teacher-code"].max()


def test_a_copy_of_the_base_is_pre_existing(capsys, models: Path, tmp_path: Path) -> None:
    _, out, _ = attribute(capsys, cast_file(tmp_path, models, "base"))
    assert json.loads(out)["summary"]["pre-existing"] == 1.0


def test_a_model_that_no_teacher_explains_is_nobodys(capsys, models: Path, tmp_path: Path) -> None:
    _, out, _ = attribute(capsys, cast_file(tmp_path, models, "control"))
    summary = json.loads(out)["summary"]
    assert summary["teacher:math"] + summary["teacher:code"] < 0.1
    assert summary["own"] > 0.5


def test_controls_are_the_null(capsys, models: Path, tmp_path: Path) -> None:
    _, out, _ = attribute(capsys, cast_file(tmp_path, models, "math", controls=True))
    document = json.loads(out)
    assert document["calibration"] == "calibrated"
    assert document["summary"]["teacher:math"] > 0.9


def test_given_answers_are_scored_as_they_are(capsys, models: Path, tmp_path: Path) -> None:
    cast = cast_file(tmp_path, models)
    rollouts = tmp_path / "rollouts.jsonl"
    rollouts.write_text(
        "\n".join(json.dumps({**p, "response": "15,09=95" if i else ""}) for i, p in enumerate(PROMPTS))
    )
    code, out, _ = attribute(capsys, cast, "--rollouts", str(rollouts))
    assert code == 0
    items = json.loads(out)["items"]
    assert "".join(s["text"] for s in items[1]["spans"]) == "15,09=95<eos>"
    assert items[0]["spans"] == [], "an answer of nothing but an end has no behaviour to attribute"
    assert (items[0]["label"], items[0]["confidence"]) == ("abstain", 0.0)


def test_same_seed_same_answers(models: Path, tmp_path: Path) -> None:
    cast = load_cast(cast_file(tmp_path, models))
    prompts = [Prompt(**p) for p in PROMPTS]
    once, again, other = (
        attribute_cast(cast, prompts, max_new_tokens=8, seed=s).answers["response"] for s in (0, 0, 1)
    )
    assert list(once) == list(again) != list(other)


def broken(folder: Path, value: float) -> Path:
    """A checkpoint whose logits are not numbers."""
    save_checkpoint(shifted(decoder(), 2, 0.1), TOKENIZER, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_broken_teacher_is_named_and_left_out(capsys, models: Path, tmp_path: Path) -> None:
    code, out, err = attribute(capsys, cast_file(tmp_path, models, "math", code=broken(tmp_path / "broken", math.nan)))
    assert code == 0
    assert "teacher-code gives NaN or infinite logits and is left out" in " ".join(err.split())
    assert "teacher:code" not in json.loads(out)["summary"]


def test_a_broken_student_is_refused(capsys, models: Path, tmp_path: Path) -> None:
    rollouts = tmp_path / "rollouts.jsonl"
    rollouts.write_text(json.dumps({**PROMPTS[0], "response": "7"}))
    cast = cast_file(tmp_path, models, student=broken(tmp_path / "broken", math.inf))
    code, _, err = attribute(capsys, cast, "--rollouts", str(rollouts))
    assert code == 2
    assert "'student'" in err
    assert err.count("\n") == 1


def test_a_text_that_its_tokenizer_cannot_hold_is_refused(models: Path, tmp_path: Path) -> None:
    cast = load_cast(cast_file(tmp_path, models))
    with pytest.raises(BadInput, match="rollout 'x': its text does not survive this tokenizer"):
        attribute_cast(cast, [Prompt("x", "M1+1:", response="naïve ☃")])


def test_check_measures_what_is_there(capsys, models: Path, tmp_path: Path) -> None:
    cast = cast_file(tmp_path, models)
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(cast), "--prompts", str(tmp_path / "prompts.jsonl"), "--json"])
    assert not stopped.value.code
    found = {f["id"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert found["preflight-members"]["verdict"] == "ready"
    for teacher in ("teacher-math", "teacher-code"):
        estimate = found[f"preflight-kl-{teacher}"]["estimate"]
        assert 0 < estimate["low"] < estimate["value"] < estimate["high"]
    shares = [found[f"preflight-share-{d}"]["evidence"] for d in ("math", "code")]
    for key in ("prompt_share", "token_share", "gradient_share"):
        assert sum(s[key] for s in shares) == pytest.approx(1.0)


def test_check_says_what_blocks(capsys, models: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(cast_file(tmp_path, models, math=tmp_path / "nowhere")), "--json"])
    assert stopped.value.code == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["severity"] == "blocking"
    assert "no checkpoint at" in finding["evidence"]["note"]


def test_the_fixture_moves(models: Path) -> None:
    """Teachers differ from the base and from each other, or the tests above would prove nothing."""
    base, math_, code = (load_file(models / n / "model.safetensors") for n in ("base", "math", "code"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(base[name], math_[name])
    assert not torch.equal(math_[name], code[name])
