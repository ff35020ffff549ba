"""The gym world: reasoning-gym's questions and verdicts, the same in every process, and no answer evaluated as code."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mopd_diag.errors import BadInput
from mopd_diag.study.check import check_target
from mopd_diag.study.resolve import find_plan
from mopd_diag.worlds import load_world, split_of
from mopd_diag.worlds.gym import SUITE
from mopd_diag.worlds.verifiers.judge import judge

GYM = load_world("gym")
ALL = list(GYM.domains)
# Their generators iterate over sets, or their answers are evaluated by reasoning-gym itself.
DELICATE = [
    "polynomial_multiplication",
    "ransom_note",
    "countdown",
    "simple_integration",
    "string_insertion",
    "spiral_matrix",
]


def test_every_domain_of_the_suite_judges_its_own_answers() -> None:
    assert list(SUITE) == ALL and set(GYM.families()) == {"math", "language", "logic"}
    for item in GYM.draw_batch(ALL, 12 * len(ALL), ("test",)):
        assert GYM.score(item, item.target) == 1.0 and GYM.score(item, "") == GYM.score(item, "nothing like it") == 0.0
        assert len(item.target) < 2 * GYM.domain(item.domain).max_new_tokens and len(item.prompt) < 1200


@pytest.mark.parametrize("name", ALL)
def test_splits_are_disjoint_and_large_enough(name: str) -> None:
    domain = GYM.domain(name)
    train = {i.prompt for i in domain.distinct("train", 200, random.Random(0))}
    held_out = {i.prompt for i in domain.distinct("eval", 50, random.Random(0))}
    assert len(train) == 200 and len(held_out) == 50 and not train & held_out


def test_equal_seeds_give_equal_items_in_every_process() -> None:
    code = (
        "from mopd_diag.worlds import load_world\n"
        f"w = load_world('gym', {DELICATE})\n"
        "print([(i.item_id, i.target) for i in w.draw_batch(list(w.domains), 12, (5,))])"
    )
    world = load_world("gym", DELICATE)
    mine = [(i.item_id, i.target) for i in world.draw_batch(list(world.domains), 12, (5,))]
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(mine) and other.stderr == ""


def test_a_question_has_one_side_in_every_domain() -> None:
    alone = load_world("gym", ["gcd"]).domain("gcd")
    assert alone.family == "arithmetic"
    sides = {i.prompt: "train" for i in alone.distinct("train", 400, random.Random(0))}
    sides |= {i.prompt: "eval" for i in alone.distinct("eval", 400, random.Random(0))}
    small = load_world("gym", ["divisors"]).domain("divisors")
    for split in ("train", "eval"):
        for item in small.distinct(split, 300, random.Random(1)):
            source, question = item.item_id.split(":")[1].split("-")[0], item.prompt.removesuffix("\n")
            assert split_of(source, question) == split == sides.get(item.prompt, split)


def test_chat_template_tags_and_shaped_reward() -> None:
    world = load_world("gym", ["chain_sum"], template="chatml", tags=True, max_new_tokens=40)
    item = world.evaluation_items("chain_sum", 1, (0,))[0]
    assert item.prompt.endswith("<|im_start|>assistant\n") and item.target.startswith("<answer>")
    assert world.domain("chain_sum").max_new_tokens == 40
    assert [world.reward(item, r) for r in (item.target, "<answer>z</answer>", "z")] == [1.0, 0.1, 0.0]
    assert world.score(item, "I think <answer>1</answer>, no: " + item.target) == 1.0


@pytest.mark.parametrize(
    "name", ["countdown", "simple_integration", "string_insertion", "spiral_matrix", "n_queens", "binary_matrix"]
)
def test_an_answer_is_never_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """reasoning-gym evaluates these answers; here the text of a program does nothing, and the next answer is judged as before."""
    monkeypatch.setattr("mopd_diag.worlds.gym.domain.GRADE_SECONDS", 1.0)
    world = load_world("gym", [name])
    item = world.draw_batch([name], 1, (0,))[0]
    mark = tmp_path / "run"
    world.score(item, item.target)
    start = time.monotonic()  # the helper may write nothing anyway, so one program only sleeps
    for program in (f"open({str(mark)!r}, 'w')", "__import__('time').sleep(9)", "(lambda: ().__class__)()"):
        assert world.score(item, program) == 0.0
    assert time.monotonic() - start < 0.9 and not mark.exists()
    assert world.score(item, item.target) == 1.0


def test_an_answer_that_takes_all_time_scores_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mopd_diag.worlds.gym.domain.GRADE_SECONDS", 1.0)
    world = load_world("gym", ["countdown", "coin_flip"])
    for item in world.draw_batch(["countdown", "coin_flip"], 2, (0,)):
        assert world.score(item, "9**9**9**9") == world.score(item, "1e999999999") == 0.0
        assert world.score(item, item.target) == 1.0


def test_no_other_verifier_evaluates_answers() -> None:
    """The list in library.py was made by reading: a release with another `eval` must be read again."""
    spec = importlib.util.find_spec("reasoning_gym")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    calls = re.compile(r"\b(?:eval|exec|sympify|parse_expr)\(")
    found = {f"{p.parent.name}.{p.stem}" for p in root.glob("*/*.py") if calls.search(p.read_text(encoding="utf-8"))}
    evaluate = {
        "algorithmic.string_insertion",
        "algorithmic.spiral_matrix",
        "algorithmic.binary_matrix",
        "games.n_queens",
    }
    symbolic = {f"algebra.{n}" for n in ("polynomial_multiplication", "simple_integration", "intermediate_integration")}
    symbolic |= {"games.puzzle24", "games.countdown"}
    # These evaluate their own questions, or have a parser of their own of that name.
    own = {
        "code.codeio",
        "algorithmic.number_sorting",
        "arithmetic.bitwise_arithmetic",
        "arithmetic.basic_arithmetic",
        "logic.propositional_logic",
    }
    assert found == evaluate | symbolic | own


def test_names_that_do_not_exist() -> None:
    with pytest.raises(BadInput, match="no domain or data set 'chain_sums'; did you mean 'chain_sum'"):
        load_world("gym", ["arithmetic", "chain_sums"])
    with pytest.raises(BadInput, match="'composite'"):
        load_world("gym", ["composite"])
    with pytest.raises(BadInput, match="did not draw"):
        GYM.domain("arithmetic").score("What is 1 + 1?", "2", "2")


def test_a_set_without_right_answers_can_be_judged_and_not_shown() -> None:
    world = load_world("gym", ["propositional_logic"])
    item = world.draw_batch(["propositional_logic"], 1, (0,))[0]
    assert item.target == "" and 0.0 <= world.score(item, "P") <= 1.0
    with pytest.raises(BadInput, match="without a right answer"):
        world.demonstrations(["propositional_logic"], 2, (0,))


def test_without_the_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "reasoning_gym" else found(name, *a)
    )
    with pytest.raises(BadInput, match=r"reasoning-gym, which is not installed: pip install 'mopd-diag\[gym\]'"):
        load_world("gym")


def test_check_resolves_plans_and_draws(tmp_path: Path) -> None:
    study = find_plan("mopd", world="gym:chain_sum,leg_counting", budget="smoke")
    assert study.teachers() == {"teacher-arithmetic": ["chain_sum", "leg_counting"]}
    plan = tmp_path / "gym.toml"
    plan.write_text('name = "g"\nrecipe = "mopd"\nbudget = "smoke"\n[world]\nname = "gym"\ntemplate = "chatml"\n')
    assert {f.verdict for f in check_target(str(plan), None, 0) if f.id == "preflight-plan"} == {"ready"}


def test_importing_worlds_loads_no_library() -> None:
    heavy = ("reasoning_gym", "math_verify", "jsonschema", "sympy", "torch", "numpy")
    code = f"import sys, mopd_diag.worlds; assert not [m for m in {heavy} if m in sys.modules], [m for m in {heavy} if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dead_helper_is_started_again() -> None:
    item = GYM.draw_batch(["arithmetic"], 1, ("dead",))[0]
    process = judge("gym")._process
    assert process is not None
    process.kill()
    process.wait()
    assert GYM.score(item, item.target) == 1.0
