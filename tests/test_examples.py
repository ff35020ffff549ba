"""The example plans of the documentation resolve, and their teacher-free control got as many rollouts as the MOPD path."""

from __future__ import annotations

from pathlib import Path

import pytest

from mopd_diag.config import GRPOStage, MOPDStage
from mopd_diag.study.resolve import find_plan, resolve_identity

EXAMPLES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.toml"))


def test_there_are_examples() -> None:
    assert {p.stem for p in EXAMPLES} >= {"sampled-mopd", "topk"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_resolves(path: Path) -> None:
    study = find_plan(str(path))
    assert study.plan.name == path.stem
    assert set(study.route()) == set(study.world.domains)
    assert study.controls() == ["rival-mixed-rl"]
    assert resolve_identity(study.identity()).identity() == study.identity()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_control_is_matched_in_rollouts(path: Path) -> None:
    study = find_plan(str(path))
    rollouts = {s.name: s.steps * s.prompts * s.group for s in study.stages if isinstance(s, GRPOStage | MOPDStage)}
    control = study.stage("rival-mixed-rl")
    assert control.matched_on == "rollouts" and control.matched_to
    assert rollouts["rival-mixed-rl"] == sum(rollouts[name] for name in (*study.teachers(), "student"))


def test_the_sampled_example_shows_what_it_says() -> None:
    student = find_plan(str(next(p for p in EXAMPLES if p.stem == "sampled-mopd"))).stage("student")
    assert isinstance(student, MOPDStage)
    assert (student.form, student.alpha, student.group, student.weighting) == ("sampled", 0.5, 8, "domain-normalized")
