"""`mopd_diag.attribute`: every form of its arguments, the same answer; top-k evidence; copies; what the output says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cast_models import MOVED, PROMPTS, part_of_the_way, paths, save_models
from tiny import TOKENIZER

import mopd_diag
from mopd_diag.cli import main
from mopd_diag.config import Cast
from mopd_diag.engines.rollouts import pack
from mopd_diag.engines.topk_evidence import score_topk
from mopd_diag.errors import BadInput
from mopd_diag.estimators.divergences import evidence_from_logp
from mopd_diag.models.checkpoint import save_checkpoint

QUIET = {"max_new_tokens": 8, "warn": lambda _: None}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


def toml(folder: Path, table: dict) -> Path:
    text = "".join(f'[{role}]\npath = "{table[role]}"\n' for role in ("base", "student"))
    text += "".join(
        f'[teachers.{n}]\npath = "{t["path"]}"\ndomains = {json.dumps(t["domains"])}\n'
        for n, t in table["teachers"].items()
    )
    (folder / "cast.toml").write_text(text)
    return folder / "cast.toml"


def test_all_forms_of_cast_and_prompts_give_the_same(models: Path, tmp_path: Path) -> None:
    table = paths(models)
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(p) for p in PROMPTS))
    forms = [
        (toml(tmp_path, table), tmp_path / "prompts.jsonl"),
        (str(tmp_path / "cast.toml"), PROMPTS),
        (mopd_diag.load_cast(tmp_path / "cast.toml"), pd.DataFrame(PROMPTS)),
        (table, pd.DataFrame([*PROMPTS, {**PROMPTS[0], "id": 7, "domain": None}]).iloc[:-1]),
    ]
    documents = [mopd_diag.attribute(cast, prompts=prompts, **QUIET).to_dict() for cast, prompts in forms]
    assert all(d == documents[0] for d in documents)
    assert isinstance(forms[2][0], Cast)
    found = mopd_diag.attribute(table, prompts=PROMPTS, **QUIET)
    assert isinstance(found, mopd_diag.Attribution)
    assert found.answers["item_id"].tolist() == [p["id"] for p in PROMPTS]
    assert set(found.answers["baseline_routed"]) == {"teacher-math", "teacher-code"}
    rollouts = [{"id": r.item_id, "prompt": r.prompt, "response": r.response} for r in found.answers.itertuples()]
    again = mopd_diag.attribute(table, rollouts=rollouts, **QUIET)
    pd.testing.assert_series_equal(again.answers["label"], found.answers["label"])


def test_arguments_that_do_not_fit_are_one_line(models: Path) -> None:
    table = paths(models)
    for wrong, message in [
        ({}, "give either prompts"),
        ({"prompts": PROMPTS, "rollouts": PROMPTS}, "give either prompts"),
        ({"rollouts": PROMPTS}, r"rollouts\[0\]: no 'response'"),
        ({"rollouts": [{**PROMPTS[0], "response": None}]}, r"rollouts\[0\]: no 'response'"),
        ({"prompts": [PROMPTS[0], PROMPTS[1], PROMPTS[0]]}, r"prompts\[2\]: id 'q0' came before; ids must differ"),
        ({"prompts": []}, "prompts are empty"),
        ({"prompts": ["2+2="]}, r"prompts\[0\]: got a str"),
        ({"prompts": PROMPTS, "top_k": 0}, "got top_k 0"),
        ({"prompts": PROMPTS, "top_k": 99}, "top-k 99 is not between 1 and 98"),
        ({"prompts": PROMPTS, "temperature": -1.0}, "temperature -1.0"),
    ]:
        with pytest.raises(BadInput, match=message) as raised:
            mopd_diag.attribute(table, **{**QUIET, **wrong})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("role", ["student", "base"])
def test_a_cast_without_student_or_base_is_refused(role: str, models: Path, tmp_path: Path) -> None:
    table = paths(models)
    del table[role]
    with pytest.raises(BadInput, match=f"cast: {role}: Field required"):
        mopd_diag.attribute(table, prompts=PROMPTS)
    with pytest.raises(BadInput, match=rf"no checkpoint at {tmp_path / 'nowhere'}"):
        mopd_diag.attribute({**table, role: tmp_path / "nowhere"}, prompts=PROMPTS)
    with pytest.raises(BadInput, match="unknown key 'studnet'; did you mean 'student'?"):
        mopd_diag.attribute({**paths(models), "studnet": models / "math"}, prompts=PROMPTS)


# -- copies -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [None, 8])
@pytest.mark.parametrize("teacher", ["math", "code"])
def test_a_copy_or_part_copy_of_a_teacher_is_never_given_to_another(
    teacher: str, top_k: int | None, models: Path, tmp_path: Path
) -> None:
    other = {"math": "code", "code": "math"}[teacher]
    for share, least in ((0.6, 0.0), (1.0, 0.8)):
        save_checkpoint(part_of_the_way(MOVED[teacher], share), TOKENIZER, tmp_path / "student")
        found = mopd_diag.attribute(paths(models, tmp_path / "student"), prompts=PROMPTS, top_k=top_k, **QUIET)
        assert found.summary()[f"teacher:{teacher}"] >= least
        for frame in (found.answers, *([found.spans] if share == 1 else [])):
            assert f"teacher:{other}" not in set(frame["label"])


@pytest.mark.parametrize("top_k", [None, 8])
def test_a_copy_of_the_base_is_pre_existing(top_k: int | None, models: Path) -> None:
    found = mopd_diag.attribute(paths(models, "base"), prompts=PROMPTS, top_k=top_k, **QUIET)
    assert set(found.answers["label"]) <= {"pre-existing", "abstain"}
    assert set(found.answers["label"][found.answers["response"] != ""]) == {"pre-existing"}


# -- what the output says of itself -------------------------------------------------------------------------------------------------


def test_without_decoys_the_confidence_is_said_to_be_uncalibrated(models: Path) -> None:
    found = mopd_diag.attribute(paths(models), prompts=PROMPTS, **QUIET)
    assert found.calibration == "uncalibrated"
    assert any(note.startswith("confidence is not calibrated: without decoys") for note in found.to_dict()["notes"])
    free = mopd_diag.attribute({**paths(models), "controls": {"free": models / "control"}}, prompts=PROMPTS, **QUIET)
    assert free.calibration == "calibrated"
    assert not any("calibrated" in note for note in free.notes)


def test_top_k_says_so_on_the_command_line(capsys, models: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(p) for p in PROMPTS))
    arguments = ["attribute", str(toml(tmp_path, paths(models))), "--prompts", str(tmp_path / "prompts.jsonl")]
    arguments += ["--out", str(tmp_path / "out"), "--max-new-tokens", "6", "--top-k", "5"]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *more])
        assert not stopped.value.code
        out, _ = capsys.readouterr()
        assert "top-k" in out
        assert more or "not calibrated: probabilities were learned on whole vocabularies" in out
    document = json.loads(out)
    assert (document["vocabulary"], document["evidence"]) == ("top-k", "token distributions")
    assert set(pd.read_parquet(tmp_path / "out" / "attribution" / "student.parquet")["vocabulary"]) == {"top-k"}


@pytest.mark.parametrize("k", [1, 5, 98])
def test_top_k_scores_equal_their_definition(k: int) -> None:
    """Against `evidence_from_logp(top_k=k)` on whole arrays."""
    members = {
        "student": part_of_the_way(MOVED["math"], 0.7),
        **{n: MOVED[n] for n in ("base", "math", "code", "control")},
    }
    prompts, answers = [[5, 6, 7], [8, 9], [10]], [[20, 21, 1], [], [30, 31, 32, 33]]
    scored = score_topk(pack(prompts, answers, 0), members, "student", ["math", "code"], k)
    logp = {}
    for name, model in members.items():
        rows = [
            torch.log_softmax(model(torch.tensor([[*p, *a]]))[0, len(p) - 1 : -1], -1)
            for p, a in zip(prompts, answers, strict=True)
        ]
        logp[name] = torch.cat(rows).detach().double().numpy()
    tokens = np.array([t for a in answers for t in a])
    expected = evidence_from_logp(logp, tokens, ["math", "code"], [0, 0, 0, 2, 2, 2, 2], top_k=k)
    found = scored.evidence
    assert found.members == expected.members
    assert not found.full_vocabulary
    for name in ("logp_TM", "kl_TM", "gram_TJJ"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=5e-4, rtol=1e-3)
    for name in ("answer_T", "position_T"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    assert scored.token_T.tolist() == tokens.tolist()
    full = evidence_from_logp(logp, tokens, ["math", "code"], [0, 0, 0, 2, 2, 2, 2])
    assert (found.kl_TM <= full.kl_TM + 1e-4).all()
