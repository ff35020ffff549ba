"""The planted world: its conflicts and its help hold on every item, by construction, before any model is trained."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd_diag.study.resolve import find_plan
from mopd_diag.types import Item
from mopd_diag.worlds import load_world
from mopd_diag.worlds.micro.planted import ENTANGLED, PLANTED, planted_relations

WORLD = load_world("planted")
PAIRS = {
    r: [tuple(sorted(p)) for p, planted in planted_relations().items() if planted == r] for r in ("conflict", "help")
}
CONFLICTS = [("rising", "falling"), ("larger", "smaller"), ("forwards", "backwards")]
HIDDEN = [("ordered-first", "ordered-last"), ("larger-tens", "larger-ones"), ("mirrored-second", "mirrored-third")]
HELP = [("sum", "ones"), ("machine", "middle"), ("division", "remainders")]
"""(whole, part)"""


def items(name: str, n: int = 150) -> list[Item]:
    return WORLD.draw_batch([name], n, ("test",)) + WORLD.evaluation_items(name, n, ("test",))


def sides(a: str, b: str, n: int = 150) -> dict[str, tuple[str, str]]:
    """Prompt → the right answers of both domains, for the same prompts."""
    right = {i.prompt: i.target for i in items(b, 3 * n)}
    return {i.prompt: (i.target, right[i.prompt]) for i in items(a, 3 * n) if i.prompt in right}


def test_three_pairs_of_each_kind_and_nothing_planted_between_the_others() -> None:
    assert {frozenset(p) for p in PAIRS["conflict"]} == set(map(frozenset, CONFLICTS))
    assert {frozenset(p) for p in PAIRS["help"]} == set(map(frozenset, HELP))
    assert Counter(planted_relations().values()) == {"conflict": 3, "help": 3, None: 60}


@pytest.mark.parametrize(("a", "b"), CONFLICTS)
def test_in_a_conflict_no_answer_is_right_on_both_sides_of_the_same_prompt(a: str, b: str) -> None:
    both = sides(a, b)
    assert len(both) > 20
    for prompt, (right_a, right_b) in both.items():
        assert right_a != right_b
        assert PLANTED[a].score(prompt, right_a, right_a) == PLANTED[b].score(prompt, right_b, right_b) == 1
        assert PLANTED[a].score(prompt, right_a, right_b) == PLANTED[b].score(prompt, right_b, right_a) == 0


@pytest.mark.parametrize(("a", "b"), HIDDEN)
def test_entangled_sides_share_the_working_and_differ_in_the_end(a: str, b: str) -> None:
    world = load_world("entangled", [a, b])
    right = {i.prompt: i.target for i in world.draw_batch([b], 600, ("test",))}
    both = [(i.target, right[i.prompt]) for i in world.draw_batch([a], 600, ("test",)) if i.prompt in right]
    assert len(both) > 20
    for mine, theirs in both:
        assert mine[:-1] == theirs[:-1] and mine != theirs
        assert ENTANGLED[a].score("", mine, theirs) == 0 == ENTANGLED[b].score("", theirs, mine)
    shown = world.demonstrations([a, b], 1000, ("test",))
    assert 0.55 < sum(world.score(i, said) for i, said in shown) / len(shown) < 0.65
    assert all(said[-2:] == i.target[-2:] and len(said) < ENTANGLED[a].max_new_tokens for i, said in shown)
    held_out = {i.prompt for name in (a, b) for i in world.evaluation_items(name, 100, ("test",))}
    assert not held_out & {i.prompt for name in (a, b) for i in world.draw_batch([name], 400, ("test",))}


@pytest.mark.parametrize(("a", "b"), HIDDEN)
def test_entangled_sides_want_the_same_tokens_on_average(a: str, b: str) -> None:
    """So that no head bias tells them apart: the fight is about the prompt at hand."""
    world = load_world("entangled", [a, b])
    ends = [Counter(i.target[-1] for i in world.draw_batch([name], 800, ("ends",))) for name in (a, b)]
    apart = sum(abs(ends[0][d] - ends[1][d]) for d in "0123456789") / 800
    assert apart < (0.25 if a != "larger-tens" else 0.8)


def test_entangled_relations() -> None:
    relations = planted_relations(ENTANGLED)
    assert {frozenset(p) for p in HIDDEN} == {p for p, r in relations.items() if r == "conflict"}
    assert Counter(relations.values()) == {"conflict": 3, "help": 3, None: 60}


@pytest.mark.parametrize(("whole", "part"), HELP)
def test_where_domains_help_the_prompts_and_answers_are_the_same(whole: str, part: str) -> None:
    both = sides(whole, part)
    assert len(both) > 20
    assert all(a == b for a, b in both.values())


@pytest.mark.parametrize(("whole", "part"), HELP)
@given(data=st.data())
def test_who_is_right_in_the_whole_is_right_in_the_part(whole: str, part: str, data: st.DataObject) -> None:
    prompt, target = PLANTED[whole].draw(data.draw(st.randoms(use_true_random=False)))
    response = data.draw(
        st.just(target) | st.text(max_size=12) | st.text(max_size=4).map(lambda tail: target[:4] + tail)
    )
    assert PLANTED[whole].score(prompt, target, response) <= PLANTED[part].score(prompt, target, response)


@pytest.mark.parametrize(("whole", "part"), HELP)
def test_the_part_is_easier_and_a_wrong_part_spoils_the_whole(whole: str, part: str) -> None:
    stop = {"ones": ",", "middle": ";", "remainders": ";"}[part]
    for item in items(whole, 40):
        assert PLANTED[part].score(item.prompt, item.target, item.target.partition(stop)[0] + stop) == 1
        assert PLANTED[whole].score(item.prompt, item.target, item.target.partition(stop)[0] + stop) == 0
        assert PLANTED[part].score(item.prompt, item.target, item.target.partition(stop)[0]) == 0  # no answer yet


@pytest.mark.parametrize("name", PLANTED)
def test_demonstrations_leave_something_to_learn_and_within_reach(name: str) -> None:
    shown = WORLD.demonstrations([name], 1000, ("test",))
    right = sum(WORLD.score(item, answer) for item, answer in shown) / len(shown)
    assert 0.55 < right < 0.65
    assert all(len(i.prompt) <= 14 and len(a) < WORLD.domains[name].max_new_tokens for i, a in shown)
    if PLANTED[name].relation == "help":  # the error is in the part, so both sides of the pair have the same to learn
        other = next(o for pair in HELP if name in pair for o in pair if o != name)
        assert all(
            PLANTED[name].score(i.prompt, i.target, a) == PLANTED[other].score(i.prompt, i.target, a) for i, a in shown
        )


@pytest.mark.parametrize(("a", "b"), [*CONFLICTS, *HELP])
def test_both_sides_hold_out_the_same_prompts(a: str, b: str) -> None:
    trained = {i.prompt for name in (a, b) for i in WORLD.draw_batch([name], 400, ("test",))}
    held_out = {i.prompt for name in (a, b) for i in WORLD.evaluation_items(name, 200, ("test",))}
    assert held_out and not trained & held_out


def test_domains_of_different_pairs_share_no_prompt() -> None:
    first = {name: {i.prompt[0] for i in items(name, 20)} for name in PLANTED}
    for pair, relation in planted_relations().items():
        a, b = pair
        assert (first[a] == first[b]) == (relation is not None)


def test_no_teacher_of_a_family_learns_both_sides() -> None:
    study = find_plan("mopd", world="planted", budget="smoke")
    assert sorted(study.teachers()) == ["teacher-one", "teacher-other"]
    for domains in study.teachers().values():
        assert not any(planted_relations()[frozenset((a, b))] for a in domains for b in domains if a != b)
    assert len(find_plan("deepseek-v4", world="planted:rising,falling,sum,ones", budget="smoke").teachers()) == 4
