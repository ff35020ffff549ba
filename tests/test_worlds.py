"""The micro world: prompts, verdicts, splits, the world's replies, and what a seed determines."""

from __future__ import annotations

import functools
import hashlib
import random
import string
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd_diag.errors import BadInput, nearest
from mopd_diag.types import Item
from mopd_diag.worlds import TURN, World, load_world, split_of
from mopd_diag.worlds.micro import DOMAINS
from mopd_diag.worlds.micro.knowledge import VALUES, knowledge, questions

MICRO = load_world("micro")
ALL = list(MICRO.domains)
SEPARATOR = {
    "addition": "=",
    "reversed": "=",
    "modular": ";",
    "stack": ";",
}  # where a scratchpad ends and the answer begins
every_domain = pytest.mark.parametrize("name", ALL)
hostile = st.text(max_size=40) | st.text(alphabet='0123456789=;,{}~":()[]<>?+*_kz\n\0', max_size=40)

# Frozen on purpose: a change here changes every published run. Two training items and one held-out item a domain.
GOLDEN = {
    "addition": [("M21+72:", "03,09=93"), ("M23+62:", "05,08=85"), ("M77+86:", "13,16=163")],
    "modular": [("D620%3:", "0,2;2"), ("D779%3:", "1,2;2"), ("D467%3:", "1,1;2")],
    "sorting": [("S4602:", "0246"), ("S8274:", "2478"), ("S8064:", "0468")],
    "stack": [("C35-4*:", "8;2"), ("C90+2+:", "9;1"), ("C13-1*:", "8;8")],
    "lists": [("L4347l:", "7"), ("L1993f:", "1"), ("L6408f:", "6")],
    "brackets": [("B([][((:", "))])"), ("B<{<:", ">}>"), ("B<[<((:", "))>]>")],
    "lookup": [("Av6n2o3?1:", '{"v":6}'), ("Aq7r1c6?2:", '{"r":1}'), ("Ay2t1a7?3:", '{"a":7}')],
    "two-turn": [("Thl+9:", "{hl}~7;6"), ("Tbc+2:", "{bc}~1;3"), ("Tiq+4:", "{iq}~1;5")],
    "no-call": [("N46+4:", "50"), ("N88+5:", "93"), ("N34+4:", "38")],
    "facts": [("Fc(vev):", "ash"), ("Fber'h:", "9"), ("Fc(niz):", "dun")],
    "abstain": [("Ubez,h?:", "1"), ("U?h/rir:", "?"), ("Uber'h:", "9")],
    "reversed": [("R68+80:", "08,14=841"), ("R46+22:", "08,06=86"), ("R42+14:", "06,05=65")],
}


def digest(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


@functools.cache
def some(name: str, n: int = 200) -> list[Item]:
    """Items of both splits."""
    return MICRO.draw_batch([name], n, ("test",)) + MICRO.evaluation_items(name, n, ("test",))


# ---- what is frozen


@every_domain
def test_golden_prompts(name: str) -> None:
    items = MICRO.draw_batch([name], 2, ("golden",)) + MICRO.evaluation_items(name, 1, ("golden",))
    assert [(item.prompt, item.target) for item in items] == GOLDEN[name]


def test_golden_demonstrations_and_knowledge() -> None:
    shown = [(item.prompt, answer) for item, answer in MICRO.demonstrations(ALL, 240, ("golden",))]
    assert digest(shown) == "0f74eebc79544e6c"
    assert digest(sorted(knowledge().facts.items())) == "a794030443f7efa1"


# ---- every domain


def test_names_tags_and_families() -> None:
    assert [domain.name for domain in DOMAINS.values()] == ALL
    assert len({GOLDEN[name][0][0][0] for name in ALL}) == len(ALL) >= 12
    families = MICRO.families()
    assert set(families) == {"math", "code", "agent", "knowledge"}
    assert sorted(name for names in families.values() for name in names) == sorted(ALL)
    assert all(len(names) == 3 for names in families.values())


@every_domain
def test_shape_of_items(name: str) -> None:
    tag = GOLDEN[name][0][0][0]
    ascii_ = set(string.printable[:95])
    for item in some(name):
        assert item.item_id == f"{name}:{item.prompt}" and item.domain == name
        assert item.prompt[0] == tag and item.prompt.endswith(":") and len(item.prompt) <= 14
        assert len(item.target) + 1 <= MICRO.domains[name].max_new_tokens <= 12
        assert set(item.prompt + item.target) <= ascii_ and TURN not in item.prompt


@every_domain
def test_one_prompt_has_one_target(name: str) -> None:
    domain, rng = MICRO.domains[name], random.Random(1)
    target_of: dict[str, str] = {}
    for _ in range(3000):
        prompt, target = domain.draw(rng)
        assert target_of.setdefault(prompt, target) == target


@every_domain
def test_splits_are_disjoint_and_large_enough(name: str) -> None:
    domain = MICRO.domains[name]
    train = {item.prompt for item in domain.distinct("train", 1500, random.Random(0))}
    held_out = {item.prompt for item in domain.distinct("eval", 1500, random.Random(0))}
    assert not train & held_out
    assert len(train) >= 300 and len(held_out) >= 100
    assert all(split_of(name, prompt) == "train" for prompt in train)
    assert all(split_of(name, prompt) == "eval" for prompt in held_out)


@every_domain
def test_demonstrations_leave_headroom_and_support(name: str) -> None:
    shown = MICRO.demonstrations([name], 1500, ("headroom",))
    accuracy = sum(MICRO.score(item, answer) for item, answer in shown) / len(shown)
    assert 0.2 < accuracy < 0.75
    assert shown == MICRO.demonstrations([name], 1500, ("headroom",))
    assert all(0 < len(answer) < MICRO.domains[name].max_new_tokens for _, answer in shown)


# ---- verdicts


@every_domain
def test_target_is_right_and_every_neighbour_of_the_answer_is_wrong(name: str) -> None:
    for item in some(name, 40):
        right = item.target
        assert MICRO.score(item, right) == 1.0
        start = right.index(SEPARATOR[name]) + 1 if name in SEPARATOR else 0
        mutants = {right[:at] + right[at + 1 :] for at in range(start, len(right))}
        mutants |= {right[:at] + extra + right[at:] for at in range(start, len(right) + 1) for extra in "0a ~=;\n"}
        mutants |= {right[:at] + extra + right[at + 1 :] for at in range(start, len(right)) for extra in "0a ?}\u0663"}
        assert not any(MICRO.score(item, mutant) for mutant in mutants - {right})


@every_domain
def test_answers_without_working_or_with_two_answers_are_wrong(name: str) -> None:
    if name in SEPARATOR:
        for item in some(name, 40):
            answer = item.target.partition(SEPARATOR[name])[2]
            for response in (answer, SEPARATOR[name] + answer, item.target + SEPARATOR[name] + answer):
                assert MICRO.score(item, response) == 0.0


@given(st.sampled_from(ALL), st.integers(0, 50), hostile, hostile)
@settings(max_examples=300, deadline=None)
def test_hostile_strings_are_only_wrong(name: str, which: int, before: str, after: str) -> None:
    item = some(name, 60)[which]
    for response in (before, before + item.target, item.target + after, item.target[:3] + after):
        score = MICRO.score(item, response)
        assert score in (0.0, 1.0)
        if score and name not in SEPARATOR:
            assert response == item.target
        if score:
            assert response.endswith(
                item.target.partition(SEPARATOR.get(name, ""))[2] if name in SEPARATOR else item.target
            )
        MICRO.reply(item, response)
        spans = MICRO.world_spans(item, response)
        flat = [edge for span in spans for edge in span]
        assert flat == sorted(set(flat)) and all(0 < edge <= len(response) for edge in flat)


def test_worked_examples() -> None:
    def right(name: str, prompt: str, target: str, *responses: str) -> list[float]:
        return [DOMAINS[name].score(prompt, target, response) for response in responses]

    assert right("addition", "M37+58:", "15,09=95", "15,09=95", "x=95", "15,09=59", "95") == [1, 1, 0, 0]
    assert right("reversed", "R37+58:", "15,09=59", "15,09=59", "15,09=95") == [1, 0]
    assert right("lookup", "Aa4k7z2?2:", '{"k":7}', '{"k":7}', '"k":7', '{"k": 7}') == [1, 0, 0]
    assert right("no-call", "N37+k:", "{k}", "{k}", "41", "{k}~") == [1, 0, 0]


@every_domain
def test_targets_agree_with_an_independent_solution(name: str) -> None:
    """Each target from the prompt's text alone, by other means than the domain's own."""
    for item in some(name):
        body, target = item.prompt[1:-1], item.target
        if name in ("addition", "reversed"):
            total = str(sum(map(int, body.split("+"))))
            assert target.partition("=")[2] == (total if name == "addition" else total[::-1])
        elif name == "modular":
            number, modulus = map(int, body.split("%"))
            assert target.partition(";")[2] == str(number % modulus)
        elif name == "sorting":
            assert sorted(body) == list(target)
        elif name == "stack":
            stack: list[int] = []
            for mark in body:
                if mark.isdigit():
                    stack.append(int(mark))
                else:
                    b, a = stack.pop(), stack.pop()
                    stack.append((a + b if mark == "+" else a - b if mark == "-" else a * b) % 10)
            assert [int(target.partition(";")[2])] == stack
        elif name == "brackets":
            text = body + target
            for _ in range(len(text)):
                for pair in ("()", "[]", "{}", "<>"):
                    text = text.replace(pair, "")
            assert text == ""
        elif name == "lookup":
            at = 2 * (int(body[-1]) - 1)
            assert target == f'{{"{body[at]}":{body[at + 1]}}}'
        elif name == "no-call":
            missing = [mark for mark in body if mark.isalpha()]
            assert target == (missing[0].join("{}") if missing else str(sum(map(int, body.split("+")))))
        elif name == "lists":
            digits, operation = body[:4], body[4]
            solved = {
                "f": digits[0],
                "l": digits[3],
                "m": sorted(digits)[3],
                "r": "".join(reversed(digits)),
                "t": digits[1:],
                "u": digits.translate(str.maketrans("0123456789", "1234567890")),
            }
            assert target == solved[operation]


# ---- the world's replies


def test_two_turn_is_replayed() -> None:
    for item in some("two-turn"):
        call = item.prompt[1:3].join("{}") + TURN
        reply = MICRO.reply(item, call)
        assert reply is not None and len(reply) == 2
        answer = str((int(reply[0]) + int(item.prompt[4])) % 10)
        assert item.target == call + reply + answer
        assert MICRO.world_spans(item, item.target) == [(5, 7)]
        invented = call + str((int(reply[0]) + 1) % 10) + reply[1:] + answer
        assert MICRO.world_spans(item, invented) == [] and MICRO.score(item, invented) == 0.0
        assert MICRO.score(item, call + answer) == 0.0


def test_two_turn_cut_short_or_called_wrongly() -> None:
    item = Item("", "two-turn", "Thl+9:", "{hl}~7;6")
    spans = {
        text: MICRO.world_spans(item, text) for text in ("{hl}~", "{hl}~7", "{hl}~7;", "{hl}~7;~7;", "~7;", "{ab}~7;6")
    }
    assert list(spans.values()) == [[], [(5, 6)], [(5, 7)], [(5, 7)], [], []]
    for transcript in ("", TURN, "{hl}", "{ab}~", "{hl}~7;~", " {hl}~", "{hl}~~"):
        assert MICRO.reply(item, transcript) is None


def test_two_turn_demonstrations_hold_true_replies() -> None:
    for item, shown in MICRO.demonstrations(["two-turn"], 400, ("replies",)):
        assert MICRO.world_spans(item, shown) == ([(5, 7)] if TURN in shown else [])


def test_two_turn_values_give_nothing_away() -> None:
    values = Counter(item.target[5] for item in MICRO.draw_batch(["two-turn"], 2000, (0,)))
    assert len(values) == 10 and max(values.values()) < 260  # 200 expected
    per_key: dict[str, set[str]] = {}
    for item in MICRO.draw_batch(["two-turn"], 2000, (1,)):
        per_key.setdefault(item.prompt[1:3], set()).add(item.target[5])
    assert sum(len(values) > 1 for values in per_key.values()) > 0.8 * len(per_key)


def test_other_domains_have_no_replies() -> None:
    for name in ALL:
        if name != "two-turn":
            assert MICRO.reply(some(name, 1)[0], "{k}~") is None
            assert MICRO.world_spans(some(name, 1)[0], "{k}~7;") == []


# ---- knowledge


@pytest.mark.parametrize("name", ["facts", "abstain"])
def test_every_fact_is_trained_and_examined_in_other_words(name: str) -> None:
    facts = knowledge().facts
    assert len(facts) == 120
    train = {item.prompt: item.target for item in MICRO.domains[name].distinct("train", 10_000, random.Random(0))}
    held_out = {item.prompt: item.target for item in MICRO.domains[name].distinct("eval", 10_000, random.Random(0))}
    for (entity, attribute), value in facts.items():
        assert value in VALUES[attribute]
        asked = questions(name, entity, attribute)
        assert any(train.get(prompt) == value for prompt in asked)
        assert any(held_out.get(prompt) == value for prompt in asked)


def test_unknown_entities_are_unknown() -> None:
    known = {entity for entity, _ in knowledge().facts}
    assert len(known) == 60 and not known & set(knowledge().unknown)
    for item in some("abstain", 300):
        assert (item.target == "?") == (not any(entity in item.prompt for entity in known))


def test_reversed_disagrees_with_addition_on_every_item() -> None:
    addition = DOMAINS["addition"]
    for item in some("reversed"):
        mathematical = item.target.partition("=")[0] + "=" + item.target.partition("=")[2][::-1]
        assert addition.score("M" + item.prompt[1:], mathematical, mathematical) == 1.0
        assert MICRO.score(item, mathematical) == 0.0


# ---- draws


def test_draws_are_pure_functions_of_their_seed() -> None:
    assert MICRO.draw_batch(ALL, 96, ("rl", 3)) == load_world("micro").draw_batch(ALL, 96, ("rl", 3))
    assert MICRO.draw_batch(ALL, 96, ("rl", 3)) != MICRO.draw_batch(ALL, 96, ("rl", 4))
    assert MICRO.demonstrations(ALL, 96, (1,)) == MICRO.demonstrations(ALL, 96, (1,))
    assert MICRO.evaluation_items("stack", 96, (1,)) == MICRO.evaluation_items("stack", 96, (1,))


def test_a_batch_is_balanced_and_without_repeats() -> None:
    totals: Counter[str] = Counter()
    for step in range(120):
        batch = MICRO.draw_batch(ALL, 32, ("balance", step))
        counts = Counter(item.domain for item in batch)
        assert (
            len(batch) == 32 == len({item.item_id for item in batch})
            and max(counts.values()) - min(counts.values()) == 1
        )
        assert all(split_of(item.domain, item.prompt) == "train" for item in batch)
        totals.update(counts)
    assert min(totals.values()) > 280 and max(totals.values()) < 360  # 320 each expected: the remainder wanders


def test_a_domain_draws_the_same_in_any_company() -> None:
    alone = MICRO.draw_batch(["stack"], 16, (5,))
    together = [item for item in MICRO.draw_batch(["addition", "stack"], 32, (5,)) if item.domain == "stack"]
    assert together == alone


def test_more_items_than_a_domain_has() -> None:
    batch = MICRO.draw_batch(["facts"], 800, (0,))
    assert len(batch) == 800 and 300 < len({item.item_id for item in batch}) < 800
    assert len(MICRO.evaluation_items("facts", 800, (0,))) < 400
    assert MICRO.evaluation_items("facts", 50, (0,)) == MICRO.evaluation_items("facts", 80, (0,))[:50]
    assert MICRO.draw_batch(ALL, 0, (0,)) == MICRO.evaluation_items("facts", 0, (0,)) == []


def test_draw_batch_is_fast() -> None:
    """About 1 ms on an idle machine; the best of several, with room for a busy one."""
    seconds = []
    for step in range(10):
        start = time.perf_counter()
        MICRO.draw_batch(ALL, 256, ("speed", step))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01


# ---- worlds


def test_load_world_selects_in_its_own_order() -> None:
    world = load_world("micro", ["stack", "addition", "stack"])
    assert isinstance(world, World) and list(world.domains) == ["addition", "stack"]
    assert world.families() == {"math": ["addition"], "code": ["stack"]}


def test_of_very_many_valid_names_one_line_says_the_first():
    assert nearest("zzz", (f"name-{i:03}" for i in range(100))).endswith("name-038, name-039 and 60 more")


def test_bad_input_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="no world is called 'mirco'; did you mean 'micro'"):
        load_world("mirco")
    with pytest.raises(BadInput, match="no domain 'additon'; did you mean 'addition'"):
        load_world("micro", ["additon"])
    with pytest.raises(BadInput, match="empty list"):
        load_world("micro", [])
    for draw in (MICRO.draw_batch, MICRO.demonstrations):
        with pytest.raises(BadInput, match="did you mean 'two-turn'"):
            draw(["two_turn"], 4, (0,))
        with pytest.raises(BadInput, match="no domains"):
            draw([], 4, (0,))
    with pytest.raises(BadInput, match="did you mean 'lookup'"):
        MICRO.evaluation_items("look-up", 4, (0,))
    with pytest.raises(BadInput):
        MICRO.score(Item("x", "nowhere", "X:", "y"), "y")
