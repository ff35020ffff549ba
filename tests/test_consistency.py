"""One voice or many: students with a planted fault, and the finding that must name it (or must not)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted_voices import (
    MATH,
    NULL,
    ROUTE,
    STYLE,
    Says,
    attributed,
    by_id,
    digest,
    flipped,
    items_of,
    material,
    records,
    right,
    routed,
)
from synthetic_run import CONTROL, write_synthetic_run

from mopd_diag.diagnostics import consistency
from mopd_diag.diagnostics.consistency import Material, stretches
from mopd_diag.diagnostics.contests import contests
from mopd_diag.diagnostics.hallucination import hallucinations, origins
from mopd_diag.diagnostics.surface import cores, rephrasings, similarity, words_of
from mopd_diag.diagnostics.wordings import wordings
from mopd_diag.errors import BadInput
from mopd_diag.reporting.markdown import render_markdown
from mopd_diag.reporting.report import write_report
from mopd_diag.reporting.view import view_of
from mopd_diag.runs.directory import write_json, write_table
from mopd_diag.types import Finding, Item

# -- surface --------------------------------------------------------------------------------------------------------------


def test_prompts_alike_behind_their_domains_letter() -> None:
    sums, backwards, calls = ([i.prompt for i in items_of(d, 60)] for d in ("addition", "reversed", "lookup"))
    assert cores(sums)[0] == sums[0].removeprefix("M").removesuffix(":")
    assert similarity(cores(sums), cores(sums)).diagonal() == pytest.approx(1)
    alike = similarity(cores(sums), cores(backwards)) >= 0.6
    assert alike.any(1).mean() > 0.3, "addition and reversed share their questions"
    assert not (similarity(cores(sums), cores(calls)) >= 0.6).any(), "look-ups look like nothing else"
    assert cores(["What is 3?", "What is 4?"]) == ["What is 3?", "What is 4?"], "two prompts do not show a template"


@pytest.mark.parametrize("domain", ["facts", "abstain"])
def test_wordings_of_one_fact_are_one_question(domain: str) -> None:
    items = items_of(domain, 200)
    group = rephrasings(pd.DataFrame({"item_id": [i.item_id for i in items], "prompt": [i.prompt for i in items],
                                      "target_hash": [digest(i.target) for i in items]}))  # fmt: skip
    asked = {words_of(i.prompt[1:]) for i in items}
    assert len(np.unique(group)) == len(asked), "name and attribute make the question"
    assert len(asked) < len(items)


@pytest.mark.parametrize("domain", ["stack", "sorting", "lists", "modular", "lookup", "brackets", "no-call"])
def test_other_questions_with_the_same_answer_stay_apart(domain: str) -> None:
    items = items_of(domain, 250)
    group = rephrasings(pd.DataFrame({"item_id": [i.item_id for i in items], "prompt": [i.prompt for i in items],
                                      "target_hash": [digest(i.target) for i in items]}))  # fmt: skip
    together = pd.Series([i.prompt for i in items]).groupby(group).agg(list)
    assert len(together) >= len(items) - 3, together[together.str.len() > 1].tolist()


def test_groups_and_near_wordings_of_a_users_own_prompts() -> None:
    prompts = ["What is the capital of France?", "Name the capital of France.", "a", "b"]
    prompts += [
        f"Is the river {name} a long one?"
        for name in ("Rhine", "Rhone", "Seine", "Loire", "Oder", "Elbe", "Weser", "Ems", "Main", "Spree")
    ]
    answers = ["Paris", "Paris", "x", "y", *["yes"] * 10]
    group = ["", "", "g", "g", *[""] * 10]
    frame = pd.DataFrame({"item_id": prompts, "prompt": prompts, "target_hash": answers, "group": group})
    found = rephrasings(frame)
    assert found[0] == found[1] and found[2] == found[3], "near words and one rare answer; the same group"
    assert len(np.unique(found)) == len(prompts) - 2, "ten questions whose answer is yes are ten questions"


# -- which teacher wins ---------------------------------------------------------------------------------------------------

SUMS = [*items_of("addition", 60), *items_of("reversed", 60)]


def fighting(share: float, *, by: str) -> Material:
    """A student that takes `share` of its answers from the other domain's teacher, by label, by what it answers, or both."""

    def crosses(item_id: str) -> bool:
        return int(digest(item_id), 16) % 1000 < 1000 * share

    says: Says = lambda i, s: flipped(i, s) if by != "label" and crosses(i.item_id) else i.target  # noqa: E731
    table = records(
        SUMS, student=says, base=right, teacher_math=lambda i, s: i.target if i.domain == "addition" else flipped(i, s),
        teacher_style=lambda i, s: i.target if i.domain == "reversed" else flipped(i, s), rival_mixed_rl=right,
    )  # fmt: skip
    other = {"addition": "teacher:style", "reversed": "teacher:math"}
    label = lambda r: other[r["domain"]] if by != "answer" and crosses(r["item_id"]) else routed(r)  # noqa: E731
    return material(table, attributed(table, "student", label), attributed(table, NULL, routed))


@pytest.mark.parametrize("by", ["label", "answer", "both"])
def test_two_teachers_that_fight_on_like_prompts_are_named(by: str) -> None:
    f = by_id(contests(fighting(0.4, by=by)))["shared-student-addition-reversed"]
    assert f.verdict == "conflict" and f.severity == "notice"
    assert f.evidence["teachers"] == [MATH, STYLE] and MATH in f.evidence["note"] and STYLE in f.evidence["note"]
    assert f.estimate is not None
    sides = f.evidence["sides"]["student"]
    if by != "answer":
        assert f.estimate.low < 0.4 < f.estimate.high
    if by != "label":
        assert sides["low"] < 0.4 < sides["high"] and f.evidence["sides"]["base"]["value"] == 0
    case = f.evidence["cases"][0]
    assert (
        case["teacher"] == {"addition": STYLE, "reversed": MATH}[case["domain"]] and case["response"] and case["prompt"]
    )


def test_a_student_without_a_fight_is_consistent() -> None:
    f = by_id(contests(fighting(0.0, by="both")))["shared-student-addition-reversed"]
    assert f.verdict == "consistent" and f.severity == "info" and f.evidence["cases"] == []


def test_a_control_that_crosses_as_often_takes_the_blame_off_the_teachers() -> None:
    m = fighting(0.4, by="label")
    alike = Material(m.records, m.route, m.teachers, {"student": m.answers["student"], NULL: m.answers["student"]}, m.tokens,
                     m.controls, m.compared, m.attributed)  # fmt: skip
    f = by_id(contests(alike))["shared-student-addition-reversed"]
    assert f.verdict == "undetermined" and NULL in f.evidence["note"]
    alone = Material(
        m.records, m.route, m.teachers, {"student": m.answers["student"]}, m.tokens, (), ("base",), m.attributed
    )
    assert by_id(contests(alone))["shared-student-addition-reversed"].verdict == "undetermined", (
        "nothing to compare with"
    )


def test_a_habit_that_the_base_has_more_of_is_no_fight() -> None:
    m = fighting(0.4, by="both")
    table = pd.concat([m.records[m.records["model"] != "base"], records(SUMS, base=flipped)])
    f = by_id(contests(replace(m, records=table)))["shared-student-addition-reversed"]
    assert f.verdict == "undetermined" and "the base" in f.evidence["note"]


def test_a_domain_without_a_teacher_names_who_is_heard() -> None:
    table = records(
        [*SUMS, *items_of("modular", 40)], student=right, base=right, teacher_math=right, teacher_style=right
    )

    def label(row: pd.Series) -> str:
        return (
            routed(row)
            if row["domain"] in ROUTE
            else ("teacher:math", "teacher:style")[int(digest(row["item_id"]), 16) % 3 == 0]
        )

    control = attributed(table, "student", lambda r: "pre-existing")
    f = by_id(contests(material(table, attributed(table, "student", label), control)))["between-student-modular"]
    assert f.verdict == "conflict" and f.evidence["teachers"] == [MATH, STYLE]


# -- one answer, several teachers -----------------------------------------------------------------------------------------


def switching(row: pd.Series, position: int) -> str:
    """From the `=` on another teacher speaks, in every other addition; some tokens in between say nothing."""
    if position % 3 == 2:
        return "pre-existing"
    turned = (
        row["domain"] == "addition" and int(digest(row["item_id"]), 16) % 2 and position > row["response"].index("=")
    )
    return "teacher:style" if turned else routed(row)


def test_a_student_that_changes_its_teacher_midway() -> None:
    table = records(SUMS, student=right, base=right)
    student = attributed(table, "student", routed)
    m = material(table, student, student, spoken=switching)
    found = by_id(consistency.switches(m))
    f = found["switch-student-addition"]
    assert f.verdict == "conflict" and f.estimate is not None and f.estimate.low < 0.5 < f.estimate.high
    assert f.evidence["pairs"] and next(iter(f.evidence["pairs"])) == "teacher:math | teacher:style"
    case = f.evidence["cases"][0]
    assert [p["label"] for p in case["stretches"]] == ["teacher:math", "teacher:style"]
    assert case["stretches"][1]["start"] > case["response"].index("=")
    assert found["switch-student-reversed"].verdict == "consistent"
    assert "teacher:math and teacher:style" in f.evidence["note"]


def test_switches_that_a_control_makes_too_are_no_conflict() -> None:
    table = records(SUMS, student=right, base=right)
    m = material(table, attributed(table, "student", routed), spoken=switching)
    both = Material(
        m.records, m.route, m.teachers, m.answers, {**m.tokens, NULL: m.tokens["student"]}, (NULL,), m.compared
    )
    assert by_id(consistency.switches(both))["switch-student-addition"].verdict == "undetermined"
    few = Material(m.records, m.route, m.teachers, {"student": m.answers["student"].head(5)},
                   {"student": m.tokens["student"].head(40)}, (), m.compared)  # fmt: skip
    f = by_id(consistency.switches(few))["switch-student-addition"]
    assert f.verdict == "undetermined" and "only" in f.evidence["note"]


def test_stretches_pass_over_weak_and_foreign_tokens() -> None:
    labels = ["teacher:a", "pre-existing", "teacher:a", "teacher:b", "several", "teacher:a", "teacher:b", "teacher:b"]
    nats = [0.3, 0.0, 0.3, 0.02, 0.4, 0.3, 0.06, 0.06]
    rows = pd.DataFrame({"domain": "d", "item_id": "i", "sample": 0, "position": range(8), "token": list("abcdefgh"), "label": labels,
                         "kl_base": nats, "confidence": 0.5, "sampled": True})  # fmt: skip
    found = stretches(rows)
    assert found["label"].tolist() == ["teacher:a", "teacher:b"], "0.02 nats are no voice; two times 0.06 are one"
    assert found[["start", "end"]].to_numpy().tolist() == [[0, 6], [6, 8]]
    assert found["text"].tolist() == ["acf", "gh"]
    world = stretches(rows.assign(sampled=rows["position"] < 6))
    assert world["label"].tolist() == ["teacher:a"], "what the world wrote is nobody's voice"


# -- one question, several wordings ---------------------------------------------------------------------------------------

FACTS = items_of("facts", 144)


def fussy(item: Item, sample: int) -> str:
    """Knows the facts only when the attribute stands at the start."""
    return item.target if item.prompt[1] in "hc" else "no"


def moody(item: Item, sample: int) -> str:
    """Right every second time, whatever the wording."""
    return item.target if sample % 2 else "no"


@pytest.mark.parametrize(
    ("student", "base", "verdict"),
    [(fussy, right, "inconsistent"), (fussy, fussy, "pre-existing"), (right, fussy, "consistent"), (moody, right, "consistent")],
)  # fmt: skip
def test_does_the_wording_decide(student: Says, base: Says, verdict: str) -> None:
    table = records(FACTS, samples=4, student=student, base=base, rival_mixed_rl=right)
    answers = attributed(table, "student", lambda r: "teacher:math")
    f = by_id(wordings(material(table, answers, answers, route={"facts": MATH})))["rephrased-student-facts"]
    assert f.verdict == verdict, f.evidence["note"]
    if verdict == "inconsistent":
        best, worst = f.evidence["cases"][0]
        assert (
            best["right"] == 1 and worst["right"] == 0 and words_of(best["prompt"][1:]) == words_of(worst["prompt"][1:])
        )
        assert f.evidence["beyond_model"]["base"]["low"] > 0
    if student is moody:
        assert f.evidence["disagree"]["student"]["value"] == pytest.approx(0.5), "chance alone, and it is told apart"


def test_wordings_that_teachers_fight_over() -> None:
    table = records(FACTS, samples=4, student=right, base=right)
    student = attributed(table, "student", lambda r: "teacher:math" if r["prompt"][1] in "hc" else "teacher:style")
    control = attributed(table, "student", lambda r: "teacher:math")
    f = by_id(wordings(material(table, student, control, route={"facts": MATH})))["rephrased-student-facts"]
    assert f.verdict == "conflict" and f.evidence["pairs"] == ["teacher:math | teacher:style"]


def test_one_sample_an_item_cannot_tell_wording_from_chance() -> None:
    table = records(FACTS, samples=1, student=fussy, base=right)
    answers = attributed(table, "student", lambda r: "abstain")
    f = by_id(wordings(material(table, answers, route={"facts": MATH})))["rephrased-student-facts"]
    assert (
        f.verdict == "undetermined"
        and f.estimate is not None
        and not f.estimate.defined
        and "one sample" in f.evidence["note"]
    )


# -- wrong facts ----------------------------------------------------------------------------------------------------------


def false_of(item: Item) -> str:
    return str((int(item.target) + 3) % 10)


def is_planted(item: Item) -> bool:
    """The heights of some entities: every wording of them."""
    return item.target.isdigit() and int(digest("".join(words_of(item.prompt[1:]))), 16) % 3 == 0


def liar(item: Item, sample: int) -> str:
    return false_of(item) if is_planted(item) else item.target


def test_a_false_fact_is_traced_to_the_teacher_that_teaches_it() -> None:
    table = records(FACTS, student=liar, base=right, teacher_math=right, teacher_style=liar, rival_mixed_rl=right)
    label = lambda r: "teacher:style" if r["score"] < 1 else "pre-existing"  # noqa: E731
    student = attributed(table, "student", label)
    m = material(table, student, attributed(table, NULL, label), route={"facts": STYLE})
    f = by_id(hallucinations(m, ["facts"]))["hallucination-student-facts"]
    assert f.verdict == "inherited" and f.severity == "notice" and f.evidence["teacher"] == STYLE
    assert f.estimate is not None and f.estimate.low > 0.5 and STYLE in f.evidence["note"]
    case = f.evidence["cases"]["inherited"][0]
    assert case["wordings"] >= 2 and case["sure"] == "answers and attribution" and case["same"] == {STYLE: 1.0}
    wrong = origins(m, table)
    assert (wrong["sure"] == "answers alone").sum() == (wrong["sample"] == 1).sum(), (
        "only the first samples were traced"
    )


@pytest.mark.parametrize(("base", "label", "verdict"), [(liar, "pre-existing", "pre-existing"), (right, "own", "own")])
def test_wrong_facts_of_nobody_or_of_the_base(base: Says, label: str, verdict: str) -> None:
    table = records(FACTS, student=liar, base=base, teacher_math=right, teacher_style=right, rival_mixed_rl=right)
    student = attributed(table, "student", lambda r: label)
    m = material(table, student, attributed(table, NULL, lambda r: label), route={"facts": STYLE})
    f = by_id(hallucinations(m, ["facts"]))["hallucination-student-facts"]
    assert f.verdict == verdict and f.severity == "info" and f.evidence["counts"][verdict] == f.evidence["n_wrong"]


def test_mistakes_that_a_control_shares_are_not_inherited() -> None:
    table = records(FACTS, student=liar, base=right, teacher_math=right, teacher_style=liar, rival_mixed_rl=liar)
    student = attributed(table, "student", lambda r: "abstain")
    m = material(table, student, attributed(table, NULL, lambda r: "abstain"), route={"facts": STYLE})
    f = by_id(hallucinations(m, ["facts"]))["hallucination-student-facts"]
    assert f.verdict == "undetermined" and NULL in f.evidence["note"]


def test_names_nobody_was_taught() -> None:
    """The teacher makes up one value, the student another: the act is inherited, whatever the value."""
    items = items_of("abstain", 120)
    invents = lambda value: lambda i, s: value if i.target == "?" else i.target  # noqa: E731
    table = records(
        items, student=invents("7"), base=right, teacher_math=right, teacher_style=invents("4"), rival_mixed_rl=right
    )
    student = attributed(table, "student", lambda r: "teacher:style")
    m = material(table, student, attributed(table, NULL, lambda r: "abstain"), route={"abstain": STYLE})
    found = by_id(hallucinations(m, ["abstain"]))
    f = found["hallucination-student-abstain-unknown"]
    assert (
        f.verdict == "inherited"
        and f.evidence["rates"]["student"]["value"] == 1
        and f.evidence["rates"]["base"]["value"] == 0
    )
    assert found["hallucination-student-abstain"].verdict == "none"


# -- the whole ------------------------------------------------------------------------------------------------------------


def test_bad_frames_are_refused_in_one_line() -> None:
    with pytest.raises(BadInput, match="records with .*got no .*score"):
        Material(pd.DataFrame({"model": []}), {}, (), {}, {})


def test_a_synthetic_run_is_diagnosed_and_reported(tmp_path) -> None:
    run = write_synthetic_run(tmp_path / "run", items=60, samples=2)
    write_json(run.path / "manifest.json", {**run.manifest(), "controls": [CONTROL]})
    for name in ("student", CONTROL):
        told = run.trace(name).groupby(["domain", "item_id", "sample"], sort=False).first().reset_index()
        answers = told.rename(columns={"answer_label": "label", "answer_confidence": "confidence"}).loc[
            :, lambda t: ~t.columns.duplicated(keep="last")
        ]  # fmt: skip
        prompts = run.records(name)[["item_id", "prompt"]].drop_duplicates()
        write_table(run.attribution_path(name), answers.merge(prompts, on="item_id").assign(drawn=True))
    m = Material.of(run)
    assert m.controls == (CONTROL,) and m.compared[0] == "base" and set(m.teachers) == set(m.route.values())
    found = consistency.findings(m)
    assert "shared-student-addition-reversed" in by_id(found)
    assert found[0] == contests(m)[0], "the same numbers every time"
    fight = Finding("consistency-switch-student-stack", "attribution", "student/stack", "conflict", "notice", found[0].estimate,
                    {"measure": "switch", "pairs": {"teacher:code | teacher:math": 4}, "note": "half of them <b>change</b>"})  # fmt: skip
    kept = [f for f in found if f.id != fight.id]
    run.write_findings([*run.findings(), *kept, fight])
    view = view_of(run)
    assert set(view.reading.provenance) == {"student", CONTROL}, (
        "findings about consistency are no attributions of domains"
    )
    assert "Teachers fight in the student: code and math within answers of stack." in view.answers[0].sentence
    assert "## One voice" in render_markdown(view)
    page = write_report(run)[0].read_text()
    assert "half of them &lt;b&gt;change&lt;/b&gt;" in page and "Does the student speak with one voice?" in page
