"""The command line as a user meets it: verbs, JSON on standard output only, one line and exit code 2 for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mopd_diag.cli import main


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_no_arguments_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys)
    assert code == 0
    assert "mopd-diag run quickstart" in out


@pytest.mark.parametrize(
    "verb", ["plans", "run", "check", "attribute", "caps", "interference", "report", "bench", "explain", "compare"]
)
def test_every_verb_has_help_with_an_example_and_json(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0
    assert f"Example: mopd-diag {verb}" in out
    assert "--json" in out


def test_plans_as_json_is_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "plans", "--json")
    assert code == 0
    assert not err
    rows = {row["name"]: row for row in json.loads(out)["plans"]}
    assert rows["quickstart"] | {"summary": ""} == {
        "name": "quickstart",
        "kind": "plan",
        "teachers": 4,
        "domains": 4,
        "summary": "",
    }
    assert rows["mopd"]["kind"] == "recipe"
    assert rows["micro12"]["domains"] == 12


def test_check_of_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "check", "quickstart", "--json")
    assert code == 0
    found = {f["id"]: f for f in json.loads(out)["findings"]}
    assert found["preflight-plan"]["verdict"] == "ready"
    shares = [f["estimate"]["value"] for i, f in found.items() if i.startswith("preflight-tokens-student")]
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rum"], "No such command 'rum'. Did you mean 'run'?"),
        (["run"], "Missing argument 'PLAN'"),
        (["run", "quickstrat"], "did you mean 'quickstart'"),
        (["run", "quickstart", "--budget", "huge"], "'huge' is not one of 'smoke', 'small', 'full'"),
        (["run", "quickstart", "--seed", "-1"], "greater than or equal to 0"),
        (["run", "quickstart", "--world", "micor"], "did you mean 'micro'"),
        (["run", "quickstart", "--ray-address", "auto"], "without --scheduler ray"),
        (["run", "quickstart", "--scheduler", "ray", "--ray-address", "ray://head:10001"], "expected HOST:PORT"),
        (["run", "missing.toml"], "no file missing.toml"),
        (["caps", "missing"], "no manifest.json"),
        (["interference", "missing"], "no manifest.json"),
        (["report", "missing"], "no manifest.json"),
        (["attribute", "cast.toml", "--out", "o"], "either --prompts"),
        (["attribute", "cast.toml", "--out", "o", "--prompts", "p.jsonl"], "no file cast.toml"),
        (["check", "quickstrat"], "did you mean 'quickstart'"),
        (["bench", "samplin"], "did you mean 'sampling'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert not out
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mopd_diag.errors import RunDirectoryError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirectoryError):
        main(["caps", "missing", "--debug"])
