"""`mopd-diag explain` on a run whose models are planted chains: every value, pivot and counterfactual is known by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bigram import CHAINS, DOMAINS, LEFT_A, LEFT_START, chain, write_planted_run
from rich.console import Console
from synthetic_run import write_synthetic_run
from tiny import TOKENIZER

from mopd_diag.cli import main
from mopd_diag.diagnostics import explained
from mopd_diag.errors import BadInput, RunDirectoryError
from mopd_diag.reporting import explanation
from mopd_diag.reporting.look import Cast
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.study.explain import explain_all
from mopd_diag.study.prefixes import Continuer, Prefix
from mopd_diag.types import Item
from mopd_diag.worlds.world import BUILT_IN, World

WORLD = World("planted", DOMAINS)
N = 256


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUILT_IN, "planted", DOMAINS)
        yield write_planted_run(tmp_path_factory.mktemp("planted") / "run")


@pytest.fixture(scope="module")
def failed(run: RunDirectory) -> pd.DataFrame:
    return explained.failed_answers(run)


def first(failed: pd.DataFrame, response: str, kind: str = "") -> dict[str, Any]:
    rows = failed[failed["response"] == response]
    return rows[rows["failure"] == (kind or rows["failure"])].iloc[0].to_dict()


def made(run: RunDirectory, row: dict[str, Any], rollouts: int = N, seed: int = 0) -> dict[str, Any]:
    (document,) = explain_all(run, [row], rollouts=rollouts, seed=seed, console=Console(quiet=True))
    return document


def near(successes: int, p: float, n: int = N) -> bool:
    return abs(successes - n * p) <= 4 * math.sqrt(n * p * (1 - p)) + 1e-9


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


# -- the planted models and the continuer ---------------------------------------------------------------------------------


def test_the_planted_chain_is_exact() -> None:
    ids = torch.tensor([TOKENIZER.encode("123+")])
    with torch.no_grad():
        p = torch.softmax(chain("student")(ids)[0, -1], -1)
    for token, wanted in CHAINS["student"]["+"].items():
        assert float(p[TOKENIZER.encode(token)[0]]) == pytest.approx(wanted, rel=1e-4)


def prefix(domain: str, answer: str, prompt: str = "123") -> Prefix:
    mark = DOMAINS[domain].mark  # type: ignore[attr-defined]
    item = Item("x", domain, prompt + mark, DOMAINS[domain].target)  # type: ignore[attr-defined]
    return Prefix(item, tuple(TOKENIZER.encode(item.prompt)), tuple(TOKENIZER.encode(answer)))


def test_values_of_prefixes_are_the_chains() -> None:
    continuer = Continuer(TOKENIZER, WORLD, 1.0)
    truth = {"": LEFT_START, "a": LEFT_A, "ab": LEFT_A, "abc": 1.0, "q": 0.0, "abz": 0.0}
    done = continuer.run(chain("student"), [prefix("left", a) for a in truth], 4000, 3)
    for successes, p in zip(done.successes, truth.values(), strict=True):
        assert near(successes, p, 4000)
    assert done.tokens > 4000 * 4


def test_the_world_replies_within_a_continuation_and_after_a_token_put_in() -> None:
    continuer, student = Continuer(TOKENIZER, WORLD, 1.0), chain("student")
    done = continuer.run(student, [prefix("call", ""), prefix("call", "m"), prefix("call", "m~5;")], 2000, 0)
    assert [near(k, p, 2000) for k, p in zip(done.successes, (0.48, 0.6, 0.6), strict=True)] == [True] * 3
    longer = continuer.put_in(prefix("call", "m"), TOKENIZER.encode("~")[0])
    assert TOKENIZER.decode(longer.answer) == "m~5;"
    not_a_call = continuer.put_in(prefix("call", "z"), TOKENIZER.encode("~")[0])
    assert TOKENIZER.decode(not_a_call.answer) == "z~"


def test_ended_and_full_prefixes_cost_nothing() -> None:
    continuer = Continuer(TOKENIZER, WORLD, 1.0)
    right, wrong = (continuer.put_in(prefix("left", a), TOKENIZER.eos_id) for a in ("abc", "ab"))
    done = continuer.run(chain("student"), [right, wrong, prefix("left", "abcabcab")], 10, 0)
    assert (done.successes, done.tokens) == ([10, 0, 0], 0)


# -- one failure ----------------------------------------------------------------------------------------------------------


def test_pivot_and_counterfactual_where_they_were_planted(run: RunDirectory, failed: pd.DataFrame) -> None:
    d = made(run, first(failed, "abz"))
    values = {m: [c["successes"] for c in curve] for m, curve in d["values"].items()}
    assert [near(k, p) for k, p in zip(values["student"], (LEFT_START, 0.9, 0.9, 0.0), strict=True)] == [True] * 4
    assert [near(k, p) for k, p in zip(values["teacher-left"], (0.98 * 0.99, 0.99, 0.99, 0), strict=True)] == [True] * 4
    assert (d["pivot"]["position"], d["pivot"]["by"]) == (2, "student")
    assert d["pivot"]["fall"]["low"] < 0.9 < d["pivot"]["fall"]["high"]
    arms = {a: e["value"] for a, e in d["counterfactual"]["arms"].items()}
    assert arms == {"own": 0.0, "teacher": 1.0, "redraw": 1.0, "random": 0.0}
    assert d["counterfactual"]["teacher_token"] == "c"
    assert d["counterfactual"]["gain_over_own"]["low"] > 0.9
    assert d["alternatives"]["how"] == "pivot"
    members = d["alternatives"]["members"]
    assert set(members) == {"student", "base", "teacher-left", "teacher-right", "rival-mixed-rl"}
    assert members["student"]["p_own"] == pytest.approx(0.1, rel=1e-3)
    assert [(t["token"], round(t["p"], 3)) for t in members["teacher-left"]["top"][:2]] == [("c", 0.99), ("z", 0.01)]
    assert d["cost"]["continuations"] == N * (2 * 4 + 4)


def test_the_first_token_of_a_fight_between_teachers(run: RunDirectory, failed: pd.DataFrame) -> None:
    row = first(failed, "qr", "lost")
    d = made(run, row)
    assert d["pivot"]["position"] == 0
    assert d["conflict"]["teacher"] == "teacher-right"
    assert d["conflict"]["won"]
    assert d["conflict"]["moved"] == pytest.approx(3, rel=1e-3)
    assert d["conflict"]["controls"] == [], "the control is the base again, and was not moved"
    arms = {a: e["value"] for a, e in d["counterfactual"]["arms"].items()}
    assert arms["own"] == 0
    assert near(round(arms["teacher"] * N), 0.9)
    again = explained.failed_answers(run, explained.explanations(run))
    found = again[(again["item_id"] == row["item_id"]) & (again["sample"] == row["sample"])].iloc[0]
    assert (found["failure"], found["teacher"]) == ("conflict", "teacher-right"), "lost, until the pivot told"


def test_what_the_base_always_did_is_no_fight(run: RunDirectory, failed: pd.DataFrame) -> None:
    d = made(run, first(failed, "k", "pre-existing"))
    assert d["conflict"] is None
    assert d["pivot"]["position"] == 0


def test_the_worlds_reply_is_no_token_to_blame(run: RunDirectory, failed: pd.DataFrame) -> None:
    d = made(run, first(failed, "m~5;6"))
    assert [t["sampled"] for t in d["tokens"]] == [True, True, False, False, True, True]
    assert [c["position"] for c in d["values"]["student"]] == [0, 1, 4, 5]
    assert d["pivot"]["position"] == 4
    assert d["counterfactual"]["teacher_token"] == "5"
    assert d["counterfactual"]["arms"]["teacher"]["value"] == 1


def test_an_explanation_is_kept_and_repeats_itself(run: RunDirectory, failed: pd.DataFrame) -> None:
    row = first(failed, "abz")
    d = made(run, row, rollouts=32, seed=5)
    path = explained.explanation_path(run, row["item_id"], row["sample"])
    assert json.loads(path.read_text()) == d
    before = path.stat().st_mtime_ns
    assert made(run, row, rollouts=32, seed=5) == d
    assert path.stat().st_mtime_ns == before, "nothing was done again"
    path.unlink()
    again = made(run, row, rollouts=32, seed=5)
    assert {k: v for k, v in again.items() if k != "cost"} == {k: v for k, v in d.items() if k != "cost"}
    other = made(run, row, rollouts=32, seed=6)
    assert other["values"] != d["values"]
    path.write_text('{"schema"')
    assert made(run, row, rollouts=32, seed=6)["values"] == other["values"]


def test_without_rollouts_nothing_is_measured_or_kept(run: RunDirectory, failed: pd.DataFrame) -> None:
    row = failed[(failed["response"] == "z") & (failed["domain"] == "call")].iloc[0].to_dict()
    path = explained.explanation_path(run, row["item_id"], row["sample"])
    d = made(run, row, rollouts=0)
    assert (d["values"], d["pivot"], d["counterfactual"], d["cost"]["continuations"]) == (None, None, None, 0)
    assert d["alternatives"]["how"] == "suspect"
    assert d["alternatives"]["position"] == 0, "where the routed teacher would least have said it"
    assert not path.exists()


def test_an_explanation_of_another_training_does_not_count(run: RunDirectory, failed: pd.DataFrame) -> None:
    documents = [{**made(run, first(failed, "qr")), "response": "something else"}]
    assert "conflict" not in set(explained.failed_answers(run, documents)["failure"])


# -- all failures ---------------------------------------------------------------------------------------------------------


def test_shares_by_domain_and_teacher_add_up(run: RunDirectory) -> None:
    report = explained.report(run)
    records = run.records("student")
    assert len(report.failed) == int((records["score"] < 1).sum())
    for cells in report.by_domain.values():
        assert sum(c["share"].value for c in cells.values()) == pytest.approx(1)
    every = [c for cells in report.by_teacher.values() for c in cells.values()]
    assert sum(c["share"].value for c in every) == pytest.approx(1)
    assert sum(c["count"] for c in every) == len(report.failed)
    lost = report.by_domain["left"]["lost"]["share"]
    assert lost.n_clusters == report.failed.query("domain == 'left'")["item_id"].nunique()
    assert lost.low <= lost.value <= lost.high


def test_listing_by_domain_class_and_teacher(run: RunDirectory, failed: pd.DataFrame) -> None:
    assert set(explained.select(run, failed, domain="right")["domain"]) == {"right"}
    assert set(explained.select(run, failed, kind="lost", teacher="left")["teacher"]) == {"teacher-left"}
    for wrong in ({"domain": "lefd"}, {"teacher": "teacher-rigth"}, {"kind": "lots"}):
        with pytest.raises(BadInput, match="did you mean"):
            explained.select(run, failed, **wrong)
    with pytest.raises(BadInput, match="--pivots"):
        explained.select(run, failed, kind="conflict")


def test_pivots_of_a_sample_of_failures(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("explain", str(run.path), "--pivots", "--items", "4", "--rollouts", "64", "--seed", "9", "--json")
    code, out, err = call(capsys, *arguments)
    assert code == 0
    document = json.loads(out)
    assert "conflict" in document["classes"]
    left, overall = document["pivots"]["left"], document["pivots"]["overall"]
    assert left["looked"] >= 4
    assert left["located"] == left["looked"]
    assert left["gain_over_own"]["low"] > 0
    assert overall["looked"] >= 12
    assert "about to sample" in err
    assert "continuations" in err
    assert f"sampled {_stated(err):,} continuations" in err, "what was stated is what was done"
    assert call(capsys, *arguments)[1] == out, "kept, and the same again"


def _stated(err: str) -> int:
    return int(err.partition("about to sample ")[2].partition(" ")[0].replace(",", ""))


def test_tables_and_sentences_name_what_they_count(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "explain", str(run.path))
    assert code == 0
    for word in ("all domains", "teacher-left", "no teacher", "most often lost", "failed of answered", "pre-existing:"):
        assert word in out
    code, out, _ = call(capsys, "explain", str(run.path), "--domain", "right")
    assert code == 0
    assert "right:" in out
    assert "left:" not in out


# -- rendering ------------------------------------------------------------------------------------------------------------


def shown(document: dict[str, Any], run: RunDirectory, width: int = 100, colour: bool = False) -> str:
    console = Console(width=width, record=True, force_terminal=colour, color_system="truecolor" if colour else None)
    with console.capture() as captured:
        console.print(explanation.explanation(document, Cast.of(run.manifest()), width))
    return captured.get()


def test_colour_is_never_alone(run: RunDirectory, failed: pd.DataFrame) -> None:
    d = made(run, first(failed, "abz"))
    plain, coloured = shown(d, run), shown(d, run, colour=True)
    assert "\x1b[" in coloured
    assert "\x1b[" not in plain
    cast = Cast.of(run.manifest())
    for token in d["tokens"]:
        assert cast.mark(token["label"]) in plain
        assert f"{cast.mark(token['label'])} = " in plain, "and the legend says what it means"
    assert "▲" in plain
    for word in (
        "V student",
        "V teacher-left",
        "95%",
        "likeliest",
        "its own token “z”",
        "teacher-left's “c”",
        "cost: ",
    ):
        assert word in plain


def test_a_narrow_terminal_breaks_the_answer_into_lines(run: RunDirectory, failed: pd.DataFrame) -> None:
    d = made(run, first(failed, "m~5;6"))
    blocks = explanation.token_blocks(d, Cast.of(run.manifest()), 44)
    assert len(blocks) > 1
    assert sum(len(b.columns) - 1 for b in blocks) == len(d["tokens"]) + 1
    assert max(len(line) for line in shown(d, run, 44).splitlines()) <= 44


def test_untrusted_text_is_shown_as_text(run: RunDirectory, failed: pd.DataFrame) -> None:
    d = json.loads(json.dumps(made(run, first(failed, "abz"))))
    d["response"] = "[bold red]x[/] \x1b[31m\u202e"
    d["tokens"][0]["token"] = "[blink]\x1b[2J"
    text = shown(d, run, 160)
    assert "[bold red]x[/]" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_sentences_say_when_no_pivot_is_named(run: RunDirectory, failed: pd.DataFrame) -> None:
    d = json.loads(json.dumps(made(run, first(failed, "abz"))))
    d["pivot"] |= {"position": None, "reason": "several tokens compete for the largest fall", "candidates": [0, 2]}
    said = " ".join(explanation.sentences(d))
    assert "No pivot is named: several tokens compete" in said
    assert "Possible: 1 and 3" in said
    assert shown(d, run).count("?") >= 2


def test_json_of_one_item_is_the_kept_document(
    run: RunDirectory, failed: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    row = first(failed, "abz")
    code, out, err = call(capsys, "explain", str(run.path), f"{row['item_id']}#{row['sample']}", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["response"] == "abz"
    assert document["said"][0].startswith(row["item_id"])
    assert "continuations" in err
    code, out, _ = call(capsys, "explain", str(run.path), row["item_id"], "--sample", str(row["sample"]), "--json")
    assert json.loads(out) == document


# -- bad input ------------------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], said: str, *arguments: str) -> None:
    code, out, err = call(capsys, "explain", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err
    assert len(err) < 400


def test_mistakes_are_one_line(
    run: RunDirectory, failed: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = run.records("student")
    right = records.groupby("item_id")["score"].min().pipe(lambda s: s[s == 1].index[0])
    row = failed.iloc[0]
    samples = records[(records["item_id"] == row["item_id"]) & (records["score"] == 1)]["sample"]
    path = str(run.path)
    refused(capsys, f"failed items near it: {row['domain']}", path, row["item_id"][:-1] + "_")
    refused(capsys, "did not fail", path, right)
    refused(capsys, "is not there", path, f"{row['item_id']}#99")
    refused(capsys, "two different samples", path, f"{row['item_id']}#1", "--sample", "2")
    refused(capsys, "did you mean 'right'", path, "--domain", "rihgt")
    refused(capsys, "--pivots needs rollouts", path, "--pivots", "--no-rollouts")
    refused(capsys, "name the item", path, "--sample", "1")
    refused(capsys, "ITEM is one failure", path, row["item_id"], "--pivots")
    refused(capsys, "no manifest.json", str(tmp_path))
    if len(samples):
        refused(capsys, "is right; failed:", path, f"{row['item_id']}#{samples.iloc[0]}")


def test_a_run_without_what_is_needed_says_so(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run", items=8)
    with pytest.raises(RunDirectoryError, match="no attribution"):
        explained.report(run)
    manifest = json.loads((run.path / "manifest.json").read_text())
    del manifest["models"]["student"]
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunDirectoryError, match="no student"):
        explained.report(run)


def test_a_missing_model_is_named(run: RunDirectory, failed: pd.DataFrame) -> None:
    folder = run.path / "models" / "teacher-right"
    folder.rename(folder.with_name("gone"))
    try:
        with pytest.raises(BadInput, match="teacher-right"):
            made(run, first(failed, "k"), seed=77)
    finally:
        folder.with_name("gone").rename(folder)


def test_paths_of_explanations_are_safe_and_different(run: RunDirectory) -> None:
    ids = ["a/../b", "a/./b", "C:\\x", "ü" * 300, "stack:C1+2:", "stack:C1 2:"]
    paths = [explained.explanation_path(run, i, 0) for i in ids]
    assert len(set(paths)) == len(ids)
    assert all(p.parent == run.path / "explain" and len(p.name) < 80 and p.name.isascii() for p in paths)
    assert np.all([".." not in p.name for p in paths])
