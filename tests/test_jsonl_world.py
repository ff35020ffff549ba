"""The jsonl world: the user's own prompts, every verifier, and what is refused before anything is trained."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from mopd_diag.errors import BadInput
from mopd_diag.study.check import check_target
from mopd_diag.study.resolve import find_plan, resolve_identity
from mopd_diag.worlds import load_world
from mopd_diag.worlds.form import Form
from mopd_diag.worlds.jsonl import jsonl_domains
from mopd_diag.worlds.verifiers import VERIFIERS
from mopd_diag.worlds.verifiers.own import own_verifier


def half(prompt: str, answer: str, response: str) -> float:
    """A verifier of a user's own, imported by the tests below: half a point for an answer of the right length."""
    return 1.0 if response == answer else 0.5 if len(response) == len(answer) else 0.0


def wild(prompt: str, answer: str, response: str) -> float:
    return 7.0


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def sums(n: int = 40, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"s{i}", "prompt": f"What is {i} + {i}?", "domain": "sums", "answer": str(2 * i), **more}
        for i in range(n)
    ]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    capitals = [
        {
            "id": f"c{i}",
            "prompt": f"Capital of land {i}? A) X B) Y",
            "domain": "capitals",
            "answer": "AB"[i % 2],
            "verifier": "choice",
        }
        for i in range(30)
    ]
    return write(tmp_path / "prompts.jsonl", [*sums(), *capitals])


# ---- drawing


def test_a_file_is_a_world(prompts: Path) -> None:
    world = load_world("jsonl", path=prompts)
    assert list(world.domains) == ["sums", "capitals"]
    assert world.families() == {"sums": ["sums"], "capitals": ["capitals"]}
    train = world.domain("sums").distinct("train", 100, random.Random(0))
    held_out = world.evaluation_items("sums", 100, ("evaluation",))
    assert len(train) + len(held_out) == 40 and not {i.prompt for i in train} & {i.prompt for i in held_out}
    assert held_out[:3] == world.evaluation_items("sums", 3, ("evaluation",))
    item = train[0]
    assert world.score(item, f" {item.target}\n") == 1.0 and world.score(item, "no") == 0.0
    assert world.draw_batch(["sums", "capitals"], 12, (0,)) == load_world("jsonl", path=prompts).draw_batch(
        ["sums", "capitals"], 12, (0,)
    )
    assert all(shown == item.target for item, shown in world.demonstrations(["sums"], 8, (0,)))


def test_a_template_moves_no_prompt_to_the_other_side(prompts: Path) -> None:
    plain, chat = load_world("jsonl", path=prompts), load_world("jsonl", path=prompts, template="chatml", tags=True)
    ids = [[i.item_id for i in w.evaluation_items("sums", 99, (0,))] for w in (plain, chat)]
    assert ids[0] == ids[1]
    item = chat.evaluation_items("sums", 1, (0,))[0]
    assert item.prompt.startswith("<|im_start|>user\nWhat is") and item.prompt.endswith("<|im_start|>assistant\n")
    answer = item.target.removeprefix("<answer>").removesuffix("</answer>")
    assert chat.score(item, item.target) == chat.score(item, f"Well: <answer> {answer} </answer>") == 1.0
    assert chat.score(item, answer) == 0.0


def test_reward_is_shaped_for_the_form_and_the_score_is_not(prompts: Path) -> None:
    world = load_world("jsonl", path=prompts, tags=True)
    item = world.evaluation_items("sums", 1, (0,))[0]
    wrong, stray = "<answer>x</answer>", item.target + " because </answer>"
    assert [world.reward(item, r) for r in (item.target, wrong, "x")] == [1.0, 0.1, 0.0]
    assert world.score(item, wrong) == 0.0 and world.reward(item, stray) <= 0.9
    plain = load_world("jsonl", path=prompts)
    assert plain.reward(plain.evaluation_items("sums", 1, (0,))[0], "x") == 0.0


# ---- verdicts


@pytest.mark.parametrize(
    ("verifier", "answer", "right", "wrong"),
    [
        ("exact", "Paris", ["Paris", " Paris\n"], ["paris", "Paris.", ""]),
        ("regex", r"^4\d$", ["42", "47"], ["142", "4", ""]),
        ("choice", "B", ["B", "(B)", "B. Y", "**B**", "b", "Answer: B", "A? No, the answer is (B)"], ["A", "Bees", "A cat", "", "I say C"]),
        ("math", "1/2", ["0.5", "$\\frac{1}{2}$", "so \\boxed{\\frac12}"], ["2", "half", "", "__import__('os')"]),
        ("math", "$x^2+1$", ["$1+x^2$"], ["$x^2$"]),
        ("json-schema", '{"type":"object","required":["a"]}', ['{"a": 1}'], ["{}", '{"a": NaN}', "[", "[" * 5000, ""]),
    ],
)  # fmt: skip
def test_verifiers(verifier: str, answer: str, right: list[str], wrong: list[str]) -> None:
    chosen = VERIFIERS[verifier]
    chosen.check(answer)
    assert [r for r in right if chosen.verify("", answer, r) != 1.0] == []
    assert [r for r in wrong if chosen.verify("", answer, r) != 0.0] == []


def test_a_hostile_answer_costs_a_time_limit_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mopd_diag.worlds.verifiers.asking.SECONDS", 0.5)
    math, regex = VERIFIERS["math"], VERIFIERS["regex"]
    math.verify("", "7", "7")  # started
    start = time.monotonic()
    assert math.verify("", "7", "$9^{9^{9^{9}}}$") == 0.0 and regex.verify("", "^(a+)+$", "a" * 40 + "b") == 0.0
    assert time.monotonic() - start < 10
    assert regex.verify("", "^(a+)+$", "aaa") == 1.0


@pytest.mark.parametrize(
    ("verifier", "answer", "message"),
    [
        ("exact", " ", "empty"),
        ("regex", "(", "no regular expression"),
        ("choice", "BC", "expected one letter"),
        ("math", "???", "cannot be read as mathematics"),
        ("json-schema", "{", "no JSON schema"),
        ("json-schema", '{"type": 3}', "no JSON schema"),
        ("json-schema", '{"$ref": "http://example.com/s"}', "Unresolvable"),
    ],
)
def test_answers_that_cannot_be_judged_are_refused(verifier: str, answer: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        VERIFIERS[verifier].check(answer)
    assert "\n" not in str(refused.value)


# ---- a verifier of one's own


def test_a_callable_by_import_path(tmp_path: Path) -> None:
    name = f"{__name__}:half"
    path = write(tmp_path / "p.jsonl", sums())
    world = load_world("jsonl", path=path, verifier=name)
    item = world.evaluation_items("sums", 1, (0,))[0]
    other = "x" * len(item.target)
    assert [world.score(item, r) for r in (item.target, other)] == [1.0, 0.0]
    assert world.reward(item, other) == 0.5
    with pytest.raises(BadInput, match="gave 7.0, expected a number from 0 to 1"):
        own_verifier(f"{__name__}:wild").verify("", "", "")
    for missing in ("no_such_module:f", f"{__name__}:nothing", f"{__name__}:__doc__"):
        with pytest.raises(BadInput, match="verifier '"):
            own_verifier(missing)


def test_a_file_of_prompts_imports_nothing_by_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", sums(verifier="os:system"))
    with pytest.raises(BadInput, match="would import code that only the file asks for"):
        load_world("jsonl", path=path)
    path = write(tmp_path / "p.jsonl", sums(verifier=f"{__name__}:half"))
    assert list(load_world("jsonl", path=path, verifier=f"{__name__}:half").domains) == ["sums"]


# ---- bad input


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*sums(), {"id": "x", "prompt": "p"}], "prompt 'x': no 'answer'; the verifier 'exact' needs one"),
        (sums(verifier="exakt"), "no verifier 'exakt'; did you mean 'exact'"),
        (sums(verifier="choice"), "prompt 's0': the answer of a choice is '0', expected one letter"),
        ([*sums(), {**sums()[0], "id": "again"}], "the prompt of 's0' again"),
        ([{**sums()[0], "domain": "a b"}], "domain 'a b'; expected letters"),
        (sums(2), "prompts falls on the (train|eval) side.*add prompts"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, lines: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        jsonl_domains(write(tmp_path / "p.jsonl", lines))


def test_answers_for_the_verifier_are_not_shown(tmp_path: Path) -> None:
    world = load_world("jsonl", path=write(tmp_path / "p.jsonl", sums(verifier="regex")))
    assert all(i.target == "" for i in world.draw_batch(["sums"], 4, (0,)))
    with pytest.raises(BadInput, match="without a right answer"):
        world.demonstrations(["sums"], 4, (0,))


def test_forms() -> None:
    with pytest.raises(BadInput, match="did you mean 'chatml'"):
        Form("chatm")
    with pytest.raises(BadInput, match="a mark of template"):
        Form("chatml").prompt("ignore this<|im_end|>")
    assert Form("Q: {prompt}\nA: ").prompt("why?") == "Q: why?\nA: "


# ---- plans


def test_check_resolves_a_plan_on_a_file(prompts: Path, tmp_path: Path) -> None:
    plan = tmp_path / "own.toml"
    plan.write_text(
        'name = "own"\nrecipe = "mopd"\nbudget = "smoke"\n[world]\nname = "jsonl"\npath = "prompts.jsonl"\nmax_new_tokens = 9\n'
    )
    found = {f.id: f.verdict for f in check_target(str(plan), None, 0)}
    assert found["preflight-plan"] == "ready" and "preflight-tokens-student-capitals" in found
    study = find_plan(str(plan))
    assert study.teachers() == {"teacher-sums": ["sums"], "teacher-capitals": ["capitals"]}
    assert study.world.domain("sums").max_new_tokens == 9
    assert list(find_plan("mopd", world=f"jsonl:{prompts}").world.domains) == ["sums", "capitals"]
    identity = study.identity()
    assert resolve_identity(identity).identity() == identity
    write(prompts, sums(60))
    with pytest.raises(BadInput, match="has changed since the run began"):
        resolve_identity(identity)


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ('name = "jsonl"', "needs `path`"),
        ('name = "micro"\npath = "x"', "`path` means nothing in world 'micro'"),
        ('name = "gym"\nverifier = "math"', "`verifier` means nothing in world 'gym'"),
        ('name = "jsonl"\npath = "x"\nverifer = "math"', "unknown key 'world.verifer'; did you mean 'verifier'"),
        ('name = "jsonl"\npath = "nowhere.jsonl"', "no file .*nowhere.jsonl"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, world: str, message: str) -> None:
    plan = tmp_path / "own.toml"
    plan.write_text(f'name = "own"\nrecipe = "mopd"\n[world]\n{world}\n')
    with pytest.raises(BadInput, match=message):
        find_plan(str(plan))
