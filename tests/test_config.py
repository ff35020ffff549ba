"""Plans and casts: every committed plan resolves; every mistake is one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from mopd_diag.config import Cast, MOPDStage, Plan, load_cast, parse, read_toml
from mopd_diag.errors import BadInput
from mopd_diag.recipes import RECIPES
from mopd_diag.study.resolve import builtin_names, find_plan, resolve, resolve_identity

BASE = {"name": "base", "algorithm": "sft", "steps": 3}
TEACHER = {"name": "teacher-math", "algorithm": "grpo", "start": "base", "domains": ["addition"]}


def plan(*stages: dict, **settings: object) -> Plan:
    return parse(Plan, {"name": "mine", "stages": list(stages), **settings}, "mine.toml")


@pytest.mark.parametrize("name", [*builtin_names(), *RECIPES])
@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
def test_every_committed_plan_resolves(name: str, budget: str) -> None:
    study = find_plan(name, budget=budget, seed=3)  # type: ignore[arg-type]
    done: set[str] = set()
    for stage in study.stages:
        assert set(stage.parents) <= done
        done.add(stage.name)
    assert study.plan.seed == 3
    assert resolve_identity(study.identity()).identity() == study.identity()


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
def test_rivals_are_matched_to_the_mopd_path(budget: str) -> None:
    """Rollouts of mixed and of sequential RL equal those of all teachers and the student, to one step's rounding."""
    stages = find_plan("quickstart", budget=budget).stages  # type: ignore[arg-type]
    rollouts = {s.name: s.steps * s.prompts * s.group for s in stages if s.algorithm in ("grpo", "mopd")}
    path = sum(n for name, n in rollouts.items() if name.startswith(("teacher-", "student")))
    step = 32 * 8
    assert abs(rollouts["rival-mixed-rl"] - path) < step
    sequential = sum(n for name, n in rollouts.items() if name.startswith("rival-sequential-rl"))
    assert abs(sequential - path) <= 4 * step
    assert all(s.matched_to for s in stages if s.name.startswith("rival-"))


def test_the_quickstart_routes_each_domain_to_its_family() -> None:
    study = find_plan("quickstart")
    assert study.route() == {
        "addition": "teacher-math",
        "stack": "teacher-code",
        "lookup": "teacher-agent",
        "reversed": "teacher-knowledge",
    }
    assert study.controls() == ["rival-mixed-rl", "rival-sequential-rl"]
    assert [d for _, d in study.sequence()] == list(study.world.domains)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": "x", "recipe": "mopd", "budgte": "smoke"}, "unknown key 'budgte'; did you mean 'budget'"),
        (
            {"name": "x", "recipe": "mopd", "world": {"domain": []}},
            "unknown key 'world.domain'; did you mean 'domains'",
        ),
        ({"name": "x", "stages": [{**BASE, "stps": 3}]}, "did you mean 'steps'"),
        ({"name": "x", "stages": [{**BASE, "steps": 0}]}, "greater than or equal to 1 (got 0)"),
        ({"name": "x", "stages": [{"name": "base", "algorithm": "sfd"}]}, "'sft'"),
        ({"name": "x"}, "either `recipe` or `stages`"),
        ({"name": "X!", "recipe": "mopd"}, "name"),
        ({"name": "x", "recipe": "mopd", "model": {"heads": 3, "key_value_heads": 2}}, "not a multiple"),
    ],
)
def test_a_wrong_plan_is_one_line(table: dict, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(Plan, table, "mine.toml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([BASE, BASE], "two stages are called 'base'"),
        ([BASE, {**TEACHER, "start": "bse"}], "which no stage makes; did you mean 'base'"),
        ([BASE, {**TEACHER, "domains": ["adition"]}], "did you mean 'addition'"),
        ([BASE, {**TEACHER, "start": None}], "needs `start`"),
        ([BASE, {**TEACHER, "name": "expert"}], "names start with a role"),
        (
            [
                {**TEACHER, "name": "teacher-a", "start": "teacher-b"},
                {**TEACHER, "name": "teacher-b", "start": "teacher-a"},
            ],
            "wait for one another in a circle",
        ),
        (
            [
                BASE,
                TEACHER,
                {"name": "student", "algorithm": "mopd", "start": "base", "teachers": {"addition": "teacher-math"}},
            ],
            "no teacher for domain",
        ),
    ],
)
def test_stages_that_cannot_run_are_refused_before_anything_trains(stages: list[dict], said: str) -> None:
    with pytest.raises(BadInput, match=said.replace("(", r"\(")):
        resolve(plan(*stages))


def test_stages_are_put_in_an_order_in_which_parents_come_first() -> None:
    assert [s.name for s in resolve(plan(TEACHER, BASE)).stages] == ["base", "teacher-math"]


def test_unknown_plan_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'quickstart'"):
        find_plan("quickstrat")


def test_outcome_term_needs_groups() -> None:
    with pytest.raises(ValueError, match="group >= 2"):
        MOPDStage(name="student", teachers={}, alpha=0.5)


def test_world_on_the_command_line_may_name_domains() -> None:
    assert list(find_plan("quickstart", world="micro:stack,addition").world.domains) == ["addition", "stack"]


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('name = "x"\nrecipe = "mopd\n')
    with pytest.raises(BadInput, match="line 2"):
        read_toml(path)


def test_cast_paths_start_at_the_cast_file(tmp_path: Path) -> None:
    path = tmp_path / "cast.toml"
    path.write_text(
        '[base]\npath="b"\n[student]\npath="s"\n[teachers.math]\npath="t"\ndomains=["math"]\n[rivals.rl]\npath="r"\n'
    )
    members = load_cast(path).members()
    assert list(members) == ["base", "student", "teacher-math", "rival-rl"]
    assert members["teacher-math"].path == tmp_path.resolve() / "t"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[base]\npath="b"\n[student]\npath="s"\n', "teachers"),
        ('[base]\n[student]\npath="s"\n[teachers.a]\npath="t"\n', "either `path`"),
        ('[base]\npath="b"\n[student]\npath="s"\n[teachers.teacher-a]\npath="t"\n', "leave the role out"),
        ('[base]\npath="b"\n[studnet]\npath="s"\n[teachers.a]\npath="t"\n', "student"),
    ],
)
def test_a_wrong_cast_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "cast.toml").write_text(text)
    with pytest.raises(BadInput, match=said):
        load_cast(tmp_path / "cast.toml")


def test_cast_is_frozen() -> None:
    cast = parse(Cast, {"base": {"path": "b"}, "student": {"path": "s"}, "teachers": {"a": {"path": "t"}}}, "cast")
    with pytest.raises(ValueError, match="frozen"):
        cast.base = cast.student  # type: ignore[misc]
