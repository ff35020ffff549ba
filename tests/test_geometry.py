"""From gradients to findings: the job on untrained models, shares and disagreement against closed forms, verdicts of known pairs."""

from __future__ import annotations

import json
import math
import shutil
import tomllib

import numpy as np
import pytest
import torch
from app_pages import open_page, words
from synthetic_run import write_synthetic_run
from tiny import TOKENIZER, decoder, shifted

from mopd_diag.config import MOPDStage, Plan, parse
from mopd_diag.diagnostics.geometry import geometry_report
from mopd_diag.diagnostics.study import geometry_of
from mopd_diag.engines.rollouts import pack
from mopd_diag.estimators.interference import Judged
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.reporting.geometry import geometry_sentence, shares_of
from mopd_diag.reporting.report import write_report
from mopd_diag.reporting.view import view_of
from mopd_diag.runs.directory import RunDirectory, write_json
from mopd_diag.study.gradients import flat_gradient, pieces
from mopd_diag.study.jobs import run_job
from mopd_diag.study.resolve import Study, resolve
from mopd_diag.study.run import claim, is_done, make_jobs
from mopd_diag.study.shares import disagreement, step_shares
from mopd_diag.training.algorithm import Work, token_losses
from mopd_diag.training.distill import MOPD
from mopd_diag.types import Estimate
from mopd_diag.worlds import load_world

TOML = """
name = "tiny"
[world]
domains = ["stack", "brackets"]
[evaluation]
items = 12
samples = 1
[[stages]]
name = "base"
algorithm = "sft"
[[stages]]
name = "teacher-stack"
algorithm = "grpo"
start = "base"
domains = ["stack"]
[[stages]]
name = "teacher-brackets"
algorithm = "grpo"
start = "base"
domains = ["brackets"]
[[stages]]
name = "student"
algorithm = "mopd"
start = "base"
prompts = 16
[stages.teachers]
stack = "teacher-stack"
brackets = "teacher-brackets"
"""


def tiny() -> Study:
    return resolve(parse(Plan, tomllib.loads(TOML), "tiny"))


# -- the job ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of untrained models: the base, and teachers that are somewhere near it."""
    study = tiny()
    made = claim(tmp_path_factory.mktemp("runs") / "tiny", study, study.identity())
    base = Decoder.fresh(DecoderConfig(TOKENIZER.vocab_size), torch.Generator().manual_seed(0), 0.08)
    models = {"base": base, "teacher-stack": shifted(base, 1, 0.02), "teacher-brackets": shifted(base, 2, 0.02)}
    for name, model in models.items():
        save_checkpoint(model, TOKENIZER, made.path / "models" / name)
    for kind in ("evaluate", "geometry"):
        run_job(made.path, study.identity(), kind, "base", 0.0, lambda *_: None)
    return made


def test_the_job_waits_for_what_it_reads_and_is_done_when_its_file_is_there(run: RunDirectory) -> None:
    job = next(j for j in make_jobs(run.path, tiny(), tiny().identity()) if j.name == "geometry-base")
    assert set(job.needs) == {"evaluate-base", "train-base", "train-teacher-stack", "train-teacher-brackets"}
    assert is_done(run.path, "geometry-base")
    row = json.loads((run.path / "done" / "geometry-base.json").read_text())["ledger"]
    assert row["stage"] == "geometry:base" and row["flops"] > 0 and row["tokens_scored"] > 0


def test_the_file_holds_every_part_in_matching_shapes(run: RunDirectory) -> None:
    found = run.geometry()
    part = found["gradients"]
    shape = (len(part["modules"]), 2, 2)
    assert found["domains"] == part["domains"] == ["stack", "brackets"] and part["parameters_kept"] == 1
    assert np.shape(part["cosine"]) == shape and np.shape(part["energy"]) == shape[:2]
    np.testing.assert_allclose(np.sum(part["energy"], 0), 1, atol=0.01)
    np.testing.assert_allclose(np.diag(part["effect"]), 1)
    whole, conflict, synergy = (np.array(part[k])[0, 1] for k in ("whole", "conflict", "synergy"))
    assert synergy - conflict == pytest.approx(whole, abs=1e-3)
    # Teachers that were moved at random: as many signs differ as agree, whatever is trimmed.
    for kind in ("all", "trimmed"):
        assert found["task_vectors"][kind]["conflict"][0][1] == pytest.approx(0.5, abs=0.03)
    apart = found["disagreement"]
    assert all(0 < d["divergence"]["value"] < apart["most"] == math.log(2) for d in apart["domains"].values())
    shares = found["shares"]["domains"]
    for kind in ("prompts", "tokens", "gradient"):
        assert sum(d[kind] for d in shares.values()) == pytest.approx(1, abs=1e-3)
    assert shares["stack"]["prompts"] == 0.5


def test_what_cannot_be_measured_is_null_with_its_reason(tmp_path, run: RunDirectory) -> None:
    document = {**run.geometry()}
    for part in ("task_vectors", "disagreement", "shares"):
        document[part] = {"reason": f"no {part}"}
    write_json(tmp_path / "geometry.json", document)
    report = geometry_report(RunDirectory(tmp_path).geometry(), {}, {})
    assert report.to_dict()["shares"] is None and report.reasons["shares"] == "no shares"
    assert len(report.pairs) == 1 and "no specialist of one was evaluated" in report.pairs[0].sentence
    document["gradients"] = {"reason": "one domain only"}
    none = geometry_report(document, {}, {})
    assert not none.pairs and "one domain only" in geometry_sentence(none)


# -- shares and disagreement --------------------------------------------------------------------------------------------------


def test_disagreement_is_the_jensen_shannon_divergence() -> None:
    models = {f"t{k}": decoder(seed=k) for k in range(3)}
    prompts, answers = [[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]]
    kl_TK, row_T = disagreement(pack(prompts, answers, TOKENIZER.pad_id), models, Work())
    assert sorted(row_T) == [0, 0, 1, 1, 1]
    with torch.no_grad():
        p_KLV = torch.stack(
            [torch.softmax(m(torch.tensor([[*prompts[0], *answers[0]]]))[0], -1) for m in models.values()]
        )
    p = p_KLV[:, 2:4].double()
    entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
    expected = entropy(p.mean(0)) - entropy(p).mean(0)
    np.testing.assert_allclose(sorted(kl_TK[row_T == 0].mean(1)), sorted(expected.numpy()), rtol=1e-3)
    same = disagreement(pack(prompts, answers, TOKENIZER.pad_id), dict.fromkeys("ab", models["t0"]), Work())[0]
    assert np.abs(same).max() < 1e-6


def test_the_domains_pulls_add_up_to_the_step_and_a_silent_teacher_pulls_nothing() -> None:
    world, base = load_world("micro", ["stack", "brackets"]), decoder(std=0.1)
    stage = MOPDStage(name="student", start="base", teachers={"stack": "a", "brackets": "b"}, prompts=8)
    algorithm = MOPD(stage, TOKENIZER, world, list(world.domains), 0, {"a": base, "b": shifted(base, 1, 0.1)})
    found = step_shares(algorithm, base, Work(), steps=1)
    assert found.domains == ("stack", "brackets")
    assert found.gradient_D == pytest.approx([0, 1], abs=1e-3)  # the base itself has nothing to teach the base
    assert found.along_D[1] == pytest.approx(1, abs=1e-3)
    for part in algorithm.batch(base, 0).parts:
        token_losses(base, base.hidden_at(part.ids_NL, part.at_M), part, algorithm.token_loss)[0].backward()
    assert np.linalg.norm(flat_gradient(base, pieces(base, 1))) > 0


# -- verdicts -----------------------------------------------------------------------------------------------------------------


def document() -> dict:
    """Three domains in three modules: a and b fight in one and agree in another, b and c agree, a and c have nothing in common."""
    same, fight, none = 1.0, -0.9, 0.05
    cosine = np.ones((3, 3, 3))
    for (i, j), values in {(0, 1): (fight, 0.9, none), (1, 2): (none, 0.95, none), (0, 2): (none, none, none)}.items():
        cosine[:, i, j] = cosine[:, j, i] = values
    flat = lambda x: np.full((3, 3), float(x)).tolist()  # noqa: E731
    gradients = {
        "domains": ["a", "b", "c"], "batches": 4, "items": 64, "parameters_kept": 1.0, "modules": ["qkv", "down", "idle"],
        "cosine": cosine.tolist(), "energy": [[0.5] * 3, [0.499] * 3, [0.001] * 3], "control": [0.6, 0.6, None], "rank": [4.0] * 3,
        "whole": flat(0), "conflict": flat(0.45), "synergy": flat(0.45), "conflict_error": flat(0.01), "synergy_error": flat(0.01),
        "effect": [[same, -0.4, 0.1], [-0.2, same, 0.3], [0.1, 0.2, same]],
    }  # fmt: skip
    reason = {"reason": "not asked"}
    return {
        "schema": 1,
        "at": "base",
        "domains": ["a", "b", "c"],
        "gradients": gradients,
        "task_vectors": reason,
        "disagreement": reason,
        "shares": reason,
    }


def judged(delta: float, verdict: str) -> Judged:
    return Judged(Estimate(delta, delta - 0.02, delta + 0.02, unit="difference"), 0.01, 0.01, verdict)  # type: ignore[arg-type]


MATRIX = {
    "teacher-a": {"a": judged(0.3, "help"), "b": judged(-0.2, "harm"), "c": judged(0.01, "none")},
    "teacher-b": {"a": judged(0.1, "help"), "c": judged(0.2, "help")},
}


def test_pairs_are_flagged_with_the_modules_that_carry_it_and_what_was_measured() -> None:
    report = geometry_report(document(), MATRIX, {"teacher-a": ["a"], "teacher-b": ["b"]})
    verdicts = {p.domains: p.verdict for p in report.pairs}
    assert verdicts == {("a", "b"): "mixed", ("a", "c"): "none", ("b", "c"): "synergy"}
    ab = report.pairs[0]
    assert (
        list(ab.fighting) == ["qkv"]
        and ab.fighting["qkv"] == pytest.approx((-0.9, 0.5))
        and list(ab.agreeing) == ["down"]
    )
    assert ab.conflict.low == pytest.approx(0.45 - 3.182 * 0.01, abs=1e-4)  # Student's t of three degrees of freedom
    assert "b after training on a −20 points (harm, teacher-a)" in ab.sentence and "no accuracy" in ab.sentence
    found = {f.id: f for f in report.findings()}
    assert set(found) == {"geometry-a-b", "geometry-b-c"} and found["geometry-a-b"].severity == "notice"
    assert all(f.kind == "interference" and f.evidence["measure"] == "geometry" for f in found.values())
    json.dumps(report.to_dict(), allow_nan=False)


def test_signs_are_held_against_sure_changes_only_and_beside_the_commoner_sign() -> None:
    report = geometry_report(document(), MATRIX, {"teacher-a": ["a"], "teacher-b": ["b"]})
    # Modules of a and b fight, so harm is foreseen both ways: right for a on b, wrong for b on a. Help of b on c is; none is not counted.
    assert report.agreement() == {"cells": 3, "right": 2, "commoner_sign": 2}
    calm = document()
    calm["gradients"]["control"] = [1.0] * 3  # nothing is beyond chance: signs come from the first order
    said = lambda taught: geometry_report(calm, MATRIX, {"teacher-a": taught}).cells[0][0]  # noqa: E731
    assert said(["a"]) == "harm" and said(["c"]) == "help" and said(["a", "c"]) == "harm"  # the mean of −0.4 and 0.2
    assert geometry_report(document(), MATRIX, {"teacher-a": ["a", "c"]}).cells[0][0] == "harm"


# -- the page -----------------------------------------------------------------------------------------------------------------


def test_report_and_markdown_show_pairs_and_shares(tmp_path) -> None:
    made = write_synthetic_run(tmp_path / "r", items=12)
    assert geometry_of(made, None) is None
    assert "not compared" in view_of(made, tokens=False).geometry_sentence
    names = list(dict.fromkeys(made.records("base")["domain"]))[:3]
    for part in ("records", "traces", "metrics"):  # the rest of the page has its own tests
        shutil.rmtree(made.path / part)
    hostile = [names[0], names[1], "<script>alert(1)</script>"]
    found = document()
    found["domains"] = found["gradients"]["domains"] = hostile
    found["shares"] = {"stage": "student", "at": "base", "domains": {
        d: {"prompts": 0.3, "tokens": 0.2, "gradient": 0.5, "along": None} for d in hostile
    }}  # fmt: skip
    write_json(made.path / "geometry.json", found)
    html, markdown = (p.read_text() for p in write_report(made))
    assert "Do their gradients fight?" in html and "Conflict and synergy of the domains" in html
    assert "<script>alert(1)" not in html and "mixed" in html and "qkv" in html
    assert "## Do their gradients fight?" in markdown and "fight beyond chance in 1" in markdown
    view = view_of(made, tokens=False)
    assert shares_of(view.geometry)[names[0]] == {"prompts": 0.3, "tokens": 0.2, "gradient": 0.5}


def test_the_app_shows_the_same_sentence_and_says_when_nothing_was_compared(tmp_path, monkeypatch) -> None:
    made = write_synthetic_run(tmp_path / "r", items=12)
    page = open_page(tmp_path, "interference", monkeypatch, run="r")
    assert not page.exception and "not compared module by module" in words(page)
    write_json(made.path / "geometry.json", document())
    page = open_page(tmp_path, "interference", monkeypatch, run="r")
    assert not page.exception and "fight beyond chance in 1 (a with b)" in words(page) and "a ~ b (qkv)" in words(page)
