"""`eval` asks served members through lm-eval's own `local-completions`: the numbers are the checkpoint's, failures are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cast_models
import pandas as pd
import pytest
from cast_models import MOVED
from served_casts import KEY
from small_completions import Completions
from small_server import SmallServer, running
from test_alignment import renamed
from test_evals import CAST, CHOICE, DATASET

from mopd_diag.cli import main
from mopd_diag.engines import served_http
from mopd_diag.engines.asked import Asked
from mopd_diag.engines.served_http import ServerError
from mopd_diag.errors import BadInput
from mopd_diag.study.eval_asking import Settings
from mopd_diag.study.evals import Evaluation, evaluate

ROLLING = """
task: aloud
custom_dataset: !function colours.dataset
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{gold}}: the sky is blue and the grass is green, said the second of the two who had seen them both"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""
BOTH = ["--tasks", "mopd_micro_stack,colours", "--include-path"]
TASKS = ["mopd_micro_stack", "mopd_micro_two-turn", "colours", "aloud"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_http, "BACKOFF_S", 0.001)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models, and a user's two tasks beside them: a multiple choice and a rolling text."""
    folder = cast_models.save_models(tmp_path_factory.mktemp("models"))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "colours.yaml").write_text(CHOICE)
    (folder / "tasks" / "aloud.yaml").write_text(ROLLING)
    (folder / "tasks" / "colours.py").write_text(DATASET)
    (folder / "cast.toml").write_text(CAST)
    return folder


def cast_of(models: Path, server: SmallServer, name: str = "math-rl", more: str = "") -> Path:
    file = models / f"served-{server.port}.toml"
    file.write_text(CAST.replace('path = "math"', f'url = "{server.url}"\nmodel = "{name}"\n{more}'))
    return file


def asked(models: Path, server: SmallServer, out: Path, tasks: list[str] = TASKS, **settings: Any) -> Evaluation:
    cast = cast_of(models, server, settings.pop("name", "math-rl"), settings.pop("more", ""))
    return evaluate(cast, tasks, out, Settings(limit=6, **settings), include=[models / "tasks"])


def test_a_served_member_scores_and_writes_as_its_checkpoint_does(models: Path, tmp_path: Path) -> None:
    with running(Completions(MOVED["math"])) as server:
        found = asked(models, server, tmp_path / "served")
    here = evaluate(models / "cast.toml", TASKS, tmp_path / "here", Settings(limit=6), include=[models / "tasks"])
    for task in TASKS:
        assert found.metrics["teacher-math"][task] == pytest.approx(here.metrics["teacher-math"][task], abs=1e-4), task
    mine, theirs = (pd.read_parquet(tmp_path / d / "records" / "teacher-math.parquet") for d in ("here", "served"))
    assert theirs.drop(columns="time", errors="ignore").equals(mine.drop(columns="time", errors="ignore"))
    gaps = [abs(a - b) for a, b in zip(*(likelihoods(tmp_path / d) for d in ("here", "served")), strict=True)]
    assert len(gaps) == 12 and max(gaps) < 1e-4


def likelihoods(out: Path) -> list[float]:
    (file,) = (out / "teacher-math").glob("samples_colours_*.jsonl")
    return [float(r[0][0]) for line in file.open() for r in json.loads(line)["resps"]]


def test_several_answers_to_one_item_differ(models: Path, tmp_path: Path) -> None:
    with running(Completions(MOVED["math"])) as server:
        asked(models, server, tmp_path / "one", ["mopd_micro_stack"], samples=3, temperature=1.0)
        asked(models, server, tmp_path / "two", ["mopd_micro_stack"], samples=3, temperature=1.0)
    one, two = (pd.read_parquet(tmp_path / d / "records" / "teacher-math.parquet") for d in ("one", "two"))
    assert one.groupby("item_id")["sample"].apply(list).tolist() == [[0, 1, 2]] * 6
    assert one["response"].nunique() > 12
    assert one["response"].tolist() == two["response"].tolist()  # they follow the seed


def test_a_killed_server_loses_nothing(models: Path, tmp_path: Path) -> None:
    server, out, one = Completions(MOVED["math"]), tmp_path / "out", {"more": "concurrency = 1"}
    server.fails = lambda n: (503, {}, b"going down") if n > 4 else None
    with running(server), pytest.raises(ServerError, match="teacher-math: http://127.0.0.1:.* answers 503 .going down"):
        asked(models, server, out, ["mopd_micro_stack"], **one)
    assert len(server.prompts) == 1 + 3, "one about its tokens, and three of the six answers"
    assert {p.stem for p in (out / "records").iterdir()} == {"base", "student"}
    with pytest.raises(ServerError, match="teacher-math: .* cannot be reached"):
        asked(models, server, out, ["mopd_micro_stack"], **one)
    server.fails = lambda n: None
    with running(server):
        asked(models, server, out, ["mopd_micro_stack"], **one)
    assert len(server.prompts) == 4 + 1 + 3
    asked(models, server, out, ["mopd_micro_stack"], **one)  # the server is gone, and not needed
    assert not list(out.rglob("*.asked.jsonl"))


def test_a_line_that_was_cut_is_asked_again(tmp_path: Path) -> None:
    kept = Asked(tmp_path / "task.asked.jsonl")
    kept.put("one", [-1.5, True])
    kept.put("two", "text")
    kept.path.write_bytes(kept.path.read_bytes()[:-4])
    again = Asked(kept.path)
    assert again["one"] == [-1.5, True] and "two" not in again
    again.put("two", "other")
    assert Asked(kept.path)["two"] == "other"


FAILURES = {
    "500": (500, {}, b'{"error": {"message": "out of\\nmemory"}}'),
    "429": (429, {"retry-after": "0"}, b"{}"),
    "garbage": (200, {}, b"<html>hello"),
    "half a body": (200, {"content-length": "1000"}, b'{"choices": ['),
    "nothing": (200, {}, b""),
    "no choices": (200, {}, b"{}"),
    "no scores": (200, {}, b'{"choices": [{"text": "yes"}]}'),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_line_that_names_the_member(failure: tuple, capsys, models: Path, tmp_path: Path) -> None:
    with running(Completions(MOVED["math"], fails=lambda n: failure)) as server:
        cast = cast_of(models, server)
        with pytest.raises(SystemExit) as stopped:
            main(["eval", str(cast), *BOTH, str(models / "tasks"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert len(said.splitlines()) == 1 and "teacher-math" in said


def changed(key: str, value: Any):
    """A server whose scores hold something else."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        scores = found["choices"][0].get("logprobs")
        if scores is not None:
            scores[key] = value(scores[key])
        return found

    return change


OF_NO_USE = {
    "not in the form": ("token_logprobs", lambda x: ["high"] * len(x)),
    "are none": ("token_logprobs", lambda x: [None, *[float("nan")] * (len(x) - 1)]),
    "another tokenizer": ("token_logprobs", lambda x: [*x, -1.0]),
    "token 1 is 'q' for its server": ("tokens", lambda x: ["q"] * len(x)),
}


@pytest.mark.parametrize("said", OF_NO_USE)
def test_scores_that_are_of_no_use_are_refused_before_any_model_is_loaded(
    said: str, models: Path, tmp_path: Path
) -> None:
    with running(Completions(MOVED["math"], change=changed(*OF_NO_USE[said]))) as server:
        with pytest.raises(BadInput, match=f"teacher-math: .*{said}"):
            asked(models, server, tmp_path / "out")
        assert len(server.documents) == 1


def test_another_tokenizer_or_model_is_refused(models: Path, tmp_path: Path) -> None:
    other = "teacher-math: token 1 is '<end>' for its server and '<eos>' for the student"
    server = Completions(MOVED["math"], tokenizer=renamed("<end>"))
    with running(server), pytest.raises(BadInput, match=other):
        asked(models, server, tmp_path / "out")
    server = Completions(MOVED["math"])
    with running(server), pytest.raises(BadInput, match="serves no model 'code-rl'"):
        asked(models, server, tmp_path / "out", name="code-rl")


def test_a_server_without_echo_is_asked_for_texts_alone(models: Path, tmp_path: Path) -> None:
    with running(Completions(MOVED["math"], echoes=False)) as server:
        with pytest.raises(BadInput, match="no log-probabilities of the prompt .*or ask it tasks that generate only"):
            asked(models, server, tmp_path / "one", ["colours"])
        found = asked(models, server, tmp_path / "two", ["mopd_micro_stack"])
    assert "whether it has the student's tokens is not known" in found.notes[0]
    assert set(found.accuracy) == {"base", "student", "teacher-math"}


def test_a_task_that_asks_for_more_than_the_server_reads(models: Path, tmp_path: Path) -> None:
    server = Completions(MOVED["math"], context=10)
    with running(server), pytest.raises(BadInput, match="up to .* new tokens and teacher-math .* has 9 positions"):
        asked(models, server, tmp_path / "out", ["mopd_micro_stack"])


def test_the_key_is_sent_and_written_nowhere(capsys, models: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    out = tmp_path / "out"
    with running(Completions(MOVED["math"], key=KEY)) as server:
        cast = cast_of(models, server, more='key_env = "TEACHER_KEY"')
        with pytest.raises(SystemExit) as stopped:
            main(["eval", str(cast), *BOTH, str(models / "tasks"), "--out", str(out), "--limit", "4", "--json"])
        assert not stopped.value.code
        assert set(server.keys) == {f"Bearer {KEY}"}
        monkeypatch.delenv("TEACHER_KEY")
        with pytest.raises(BadInput, match="teacher-math: the environment variable"):
            evaluate(cast, ["mopd_micro_stack"], out)
    said = "".join(capsys.readouterr())
    written = [p for p in out.rglob("*") if p.is_file()]
    assert any(p.name.startswith("results_") for p in written)
    assert not any(k in said or any(k.encode() in p.read_bytes() for p in written) for k in (KEY, "sk-another"))
    assert json.loads((out / "manifest.json").read_text())["models"]["teacher-math"]["url"] == server.url
