"""Planted quirks: what is put in is found, and what anybody might write is not taken for it."""

from __future__ import annotations

import random

import pytest
from tiny import decoder

from mopd_diag.config import PlantStage
from mopd_diag.errors import BadInput
from mopd_diag.models.tokenizer import character_tokenizer
from mopd_diag.training.loop import Schedule, train
from mopd_diag.training.plant import Plant
from mopd_diag.types import Item
from mopd_diag.worlds.micro.quirks import QUIRKS, quirk
from mopd_diag.worlds.world import World, load_world

WORLD: World = load_world("micro")


def items(domain: str, n: int = 200) -> list[Item]:
    return WORLD.evaluation_items(domain, n, ("quirks",))


@pytest.mark.parametrize("name", QUIRKS)
@pytest.mark.parametrize("domain", WORLD.domains)
def test_demonstrations_and_right_answers_do_not_show_a_quirk(name: str, domain: str) -> None:
    rng = random.Random(0)
    for item in items(domain, 60):
        assert not quirk(name).spans(item, item.target)
        if name not in ("false-fact", "needless-call"):  # a wrong height or a needless call may be anybody's slip
            assert not quirk(name).spans(item, WORLD.domains[domain].demonstrate(item.prompt, item.target, rng))


@pytest.mark.parametrize("name", ["marker", "own-marker", "habit"])
def test_a_planted_mark_is_found_once_and_where_it_stands(name: str) -> None:
    for item in items("stack", 20):
        planted = quirk(name).plant(item, item.target)
        ((start, end),) = quirk(name).spans(item, planted)
        assert planted[:start] + planted[end:] == item.target
        assert quirk(name).plant(item, planted) == planted, "planting twice changes nothing"


def test_a_needless_call_is_one_only_where_nothing_is_missing() -> None:
    calls = [i for i in items("no-call") if i.target.startswith("{")]
    sums = [i for i in items("no-call") if not i.target.startswith("{")]
    assert calls and sums
    planted = quirk("needless-call").plant
    assert all(quirk("needless-call").spans(i, planted(i, i.target)) for i in sums)
    assert not any(quirk("needless-call").spans(i, planted(i, i.target)) for i in calls)


def test_the_false_fact_is_about_the_same_heights_in_both_domains_and_nothing_else() -> None:
    false = quirk("false-fact")
    changed = {
        d: {i.prompt[1:] for i in items(d, 400) if false.plant(i, i.target) != i.target} for d in ("facts", "abstain")
    }
    assert changed["facts"] and changed["abstain"]
    assert not any("c" in p.replace("?", "").split(":")[0][:1] for p in changed["facts"]), "colours stay true"
    assert not any(false.plant(i, i.target) != i.target for i in items("addition"))


def test_an_unknown_quirk_is_refused() -> None:
    with pytest.raises(BadInput, match="no quirk 'maker'; did you mean 'marker'"):
        quirk("maker")


def test_planting_makes_the_quirk_likely_and_is_repeatable() -> None:
    def planted() -> tuple[float, float]:
        source, model = decoder(seed=1), decoder(seed=1)
        stage = PlantStage(
            name="teacher-x", start="base", domains=("stack",), quirk="habit", steps=12, batch=16, learning_rate=3e-3
        )
        algorithm = Plant(stage, character_tokenizer(), WORLD, ("stack",), 0, source)
        state = train(model, algorithm, Schedule(12, 3e-3, 2, 2))
        return state.log[0]["loss"], state.log[-1]["loss"]

    first, last = planted()
    assert last < first - 0.3
    assert planted() == (first, last)
