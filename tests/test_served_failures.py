"""What a server can do wrong, and what a key may never do: every failure is one line, none of them holds the key."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cast_models import MOVED, PROMPTS, paths, save_models
from served_casts import ANSWERS, KEY, LINES, asked, attributed, cast_of, rollouts
from small_server import SmallServer, running
from test_alignment import renamed
from tiny import TOKENIZER, decoder

from mopd_diag.cli import main
from mopd_diag.config import Cast, parse
from mopd_diag.engines import served_http
from mopd_diag.engines.scoring import score
from mopd_diag.engines.served_cache import Cache
from mopd_diag.engines.served_http import Address, ServerError
from mopd_diag.errors import BadInput
from mopd_diag.models.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own for each test, and pauses that do not slow it down."""
    monkeypatch.setenv("MOPD_DIAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(served_http, "BACKOFF_S", 0.001)


# -- failures ---------------------------------------------------------------------------------------------------------------------

PASSING = {
    "500": (500, {}, b'{"error": {"message": "out of\\nmemory"}}'),
    "429": (429, {"retry-after": "0"}, b"{}"),
    "garbage": (200, {}, b"<html>hello"),
    "bytes": (200, {}, b"\xff\xfe\x00"),
    "a list": (200, {}, b"[1, 2]"),
    "half a body": (200, {"content-length": "1000"}, b'{"choices": ['),
    "nothing": (200, {}, b""),
}


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_failures_that_pass_are_tried_again(failure: tuple, tmp_path: Path) -> None:
    given = rollouts()
    server = SmallServer(MOVED["math"], fails=lambda n: failure if n in (1, 2, 4) else None)
    with running(server), Cache(tmp_path / "c") as cache:
        found = asked(server, given, cache, concurrency=1)
    assert len(server.documents) == len(ANSWERS) + 3
    np.testing.assert_allclose(
        found.logp_TK[:, 0],
        score(given, {"base": MOVED["math"], "m": MOVED["math"]}, "base", ["m"]).evidence.logp_TM[:, 0],
        atol=1e-4,
    )


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_failures_that_stay_are_one_line(failure: tuple, tmp_path: Path) -> None:
    with (
        running(SmallServer(MOVED["math"], fails=lambda n: failure)) as server,
        Cache(tmp_path / "c") as cache,
        pytest.raises(ServerError, match="teacher-math: http://.* tried 6 times; see that the server runs") as raised,
    ):
        asked(server, rollouts(), cache, concurrency=1)
    assert "\n" not in str(raised.value)


def test_a_server_that_hangs(tmp_path: Path) -> None:
    server = SmallServer(MOVED["math"], fails=lambda n: time.sleep(0.4))
    with (
        running(server),
        Cache(tmp_path / "c") as cache,
        pytest.raises(ServerError, match="no answer within 0.05 s, tried 6 times"),
    ):
        asked(server, rollouts(["1"]), cache, timeout_s=0.05)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_that_asks_to_wait_is_waited_for(form: str, tmp_path: Path) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    failure = (429, {"retry-after": "1" if form == "seconds" else until}, b"{}")
    server = SmallServer(MOVED["math"], fails=lambda n: failure if n == 1 else None)
    start = time.monotonic()
    with running(server), Cache(tmp_path / "c") as cache:
        asked(server, rollouts(["1"]), cache)
    assert 0.8 <= time.monotonic() - start < 3.5
    hours = SmallServer(MOVED["math"], fails=lambda n: (429, {"retry-after": "7200"}, b"{}"))
    with running(hours), Cache(tmp_path / "d") as cache, pytest.raises(ServerError, match="asks to wait 7,200 s"):
        asked(hours, rollouts(["1"]), cache)
    assert len(hours.documents) == 1


def without_logprobs(found: dict[str, Any]) -> dict[str, Any]:
    del found["choices"][0]["prompt_logprobs"]
    return found


def edited(edit: Any) -> Any:
    """The response with every given position changed."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        choice = found["choices"][0]
        choice["prompt_logprobs"] = [None if e is None else edit(e) for e in choice["prompt_logprobs"]]
        return found

    return change


WRONG = {
    "returns no prompt log-probabilities": without_logprobs,
    "returns no prompt log-probabilities.": lambda found: {"choices": []},
    "read 3 tokens where": lambda found: {"choices": [{"prompt_logprobs": [None, {}, {}]}]},
    "it read other tokens": edited(lambda e: {"2": {"logprob": -1.0, "decoded_token": "<unk>"}}),
    "not in vLLM's form": edited(lambda e: {"tokens": ["a"], "top_logprobs": [-1.0]}),
    "log-probabilities that are none": edited(lambda e: {t: {**x, "logprob": float("nan")} for t, x in e.items()}),
    "above 0": edited(lambda e: {t: {**x, "logprob": 0.5} for t, x in e.items()}),
    "knows a token 4711": edited(lambda e: {**e, "4711": {"logprob": -9.0, "decoded_token": " cat"}}),
    "for its server and '.' for the student": edited(lambda e: {t: {**x, "decoded_token": "~~"} for t, x in e.items()}),
}


def _assert_refused(server: SmallServer, cache: Cache, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        asked(server, rollouts(), cache, concurrency=1)


@pytest.mark.parametrize("said", WRONG)
def test_a_server_that_is_of_no_use_is_refused_at_once(said: str, tmp_path: Path) -> None:
    with running(SmallServer(MOVED["math"], change=WRONG[said])) as server, Cache(tmp_path / "c") as cache:
        _assert_refused(server, cache, said)
    assert len(server.documents) == 1


def test_one_special_token_of_another_name(tmp_path: Path) -> None:
    with running(SmallServer(MOVED["math"], tokenizer=renamed("<end>"))) as server, Cache(tmp_path / "c") as cache:
        _assert_refused(server, cache, "token 1 is '<end>' for its server and '<eos>' for the student")


def test_another_vocabulary_is_refused_and_padding_is_not(tmp_path: Path) -> None:
    larger = decoder(vocab_size=TOKENIZER.vocab_size + 29)
    with running(SmallServer(larger)) as server, Cache(tmp_path / "c") as cache:
        # Logits beyond the tokenizer, as models are padded: such a token has no text.
        found = asked(server, rollouts(), cache, k=20)
    assert found.ids_TK.max() >= TOKENIZER.vocab_size


def test_what_a_server_refuses_is_said_in_its_words(models: Path) -> None:
    with running(SmallServer(MOVED["math"], most=5)) as server:
        with pytest.raises(BadInput, match=r"refuses the request \(400: prompt logprobs of 20 > 5\)"):
            attributed(cast_of(models, server, concurrency=1))
        with pytest.raises(BadInput, match="serves no model 'maht-rl'; did you mean 'math-rl'"):
            attributed(cast_of(models, server) | {"teachers": {"math": {"url": server.url, "model": "maht-rl"}}})
        server.fails = lambda n: (404, {}, b'{"detail": "Not\x1b[31m Found"}')
        with pytest.raises(BadInput, match="no such address or model .* check url and model") as raised:
            attributed(cast_of(models, server, concurrency=1), top_k=3)
        assert "\x1b" not in str(raised.value)
        server.fails = lambda n: (307, {"location": "http://example.org"}, b"")
        with pytest.raises(BadInput, match="redirects .307., which is not followed"):
            attributed(cast_of(models, server, concurrency=1), top_k=4)
    assert len(server.documents) == 3


def test_too_long_answers_are_left_out(models: Path) -> None:
    lines = [*LINES, {**PROMPTS[6], "response": "1" * 40}]
    with running(SmallServer(MOVED["math"], context=32)) as server:
        found, said = attributed(cast_of(models, server), lines)
    assert f"1 of 7 answers are left out ({PROMPTS[6]['id']}): longer than the context of 30 tokens" in said
    assert len(found.answers) == 6


def test_check_asks_a_server_for_one_token(capsys, models: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(p) for p in PROMPTS))

    def findings(url: str) -> dict[str, dict[str, Any]]:
        (tmp_path / "cast.toml").write_text(
            f'[base]\npath = "{models / "base"}"\n[student]\npath = "{models / "math"}"\n[teachers.math]\nurl = "{url}"\n'
            f'model = "math-rl"\ndomains = ["math"]\n[teachers.code]\npath = "{models / "code"}"\ndomains = ["code"]\n'
        )
        with pytest.raises(SystemExit):
            main(["check", str(tmp_path / "cast.toml"), "--prompts", str(tmp_path / "prompts.jsonl"), "--json"])
        return {f["id"]: f for f in json.loads(capsys.readouterr().out)["findings"]}

    with running(SmallServer(MOVED["math"])) as server:
        found = findings(server.url)
        assert len(server.documents) == 1
    assert found["preflight-served-teacher-math"]["verdict"] == "ready"
    assert "up to 128 tokens" in found["preflight-served-teacher-math"]["evidence"]["note"]
    assert {"preflight-kl-teacher-code", "preflight-share-code"} < found.keys()
    assert "preflight-kl-teacher-math" not in found
    blocked = findings(server.url)["preflight-served-teacher-math"]
    assert (blocked["verdict"], blocked["severity"]) == ("blocked", "blocking")
    assert "cannot be reached" in blocked["evidence"]["note"]


# -- keys -------------------------------------------------------------------------------------------------------------------------


def test_a_key_comes_from_the_environment_and_is_never_said(models: Path, monkeypatch, caplog, capsys) -> None:
    caplog.set_level(logging.DEBUG)
    messages = []
    with running(SmallServer(MOVED["math"], key=KEY)) as server:
        cast = cast_of(models, server, key_env="TEACHER_KEY")
        for value, said in (
            (None, "key_env names is not set"),
            ("bad\x07key", "characters that no header"),
            ("sk-other", "refuses the key .401."),
        ):
            monkeypatch.delenv("TEACHER_KEY", raising=False)
            if value:
                monkeypatch.setenv("TEACHER_KEY", value)
            with pytest.raises(BadInput, match=said) as raised:
                attributed(cast)
            messages.append(f"{raised.value} {raised.value.__cause__}")
            assert not value or value not in str(raised.value)
        with pytest.raises(BadInput, match="refuses to answer without a key .401.; name the environment variable"):
            attributed(cast_of(models, server))
        monkeypatch.setenv("TEACHER_KEY", KEY)
        assert not server.documents
        found, said = attributed(cast)
        server.fails = lambda n: (400, {}, json.dumps({"error": {"message": f"key {KEY} has no quota"}}).encode())
        with pytest.raises(BadInput, match="key … has no quota") as raised:
            attributed(cast, top_k=3)
    assert server.keys[-1] == f"Bearer {KEY}"
    address = Address("teacher-math", server.url, "math-rl", KEY)
    everything = [
        *messages,
        *said,
        str(found.to_dict()),
        str(raised.value),
        repr(address),
        caplog.text,
        *capsys.readouterr(),
    ]
    assert not [text for text in everything if KEY in text or "sk-other" in text]


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ({"url": f"http://user:{KEY}@host/v1", "model": "m"}, "holds a user, a password or a query"),
        ({"url": f"http://host/v1?api_key={KEY}", "model": "m"}, "holds a user, a password or a query"),
        ({"url": "http://host/v1", "model": "m", "key_env": KEY}, "not a key"),
        ({"url": "http://host/v1", "model": "m", "key": KEY}, "unknown key 'teachers.m.key'; did you mean 'key_env'"),
        ({"url": "http://host/v1"}, "needs `model`"),
        ({"url": "host:8000", "model": "m"}, "http or https address"),
        ({"path": "x", "model": "m"}, "`model` belongs to a server's `url`"),
        ({"path": "x", "url": "http://host/v1"}, "not both"),
    ],
)
def test_casts_that_are_refused_before_anything_is_asked(member: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput, match=said) as raised:
        parse(Cast, {"base": {"path": "b"}, "student": {"path": "s"}, "teachers": {"m": member}}, "cast")
    assert KEY not in str(raised.value)


def test_only_teachers_and_controls_can_be_served(models: Path, tmp_path: Path) -> None:
    server = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    for role in ("base", "student"):
        with pytest.raises(BadInput, match=f"{role}: got a served model .`url`., expected a `path`"):
            attributed({**paths(models), role: server})
    other = tmp_path / "other"
    save_checkpoint(MOVED["code"], renamed("<end>"), other)
    with pytest.raises(BadInput, match="teacher-math is served, which needs one tokenizer"):
        attributed(paths(models, code=other) | {"teachers": {"math": server, "code": other}})


def test_two_teachers_behind_one_name_are_several(models: Path) -> None:
    with running(SmallServer(MOVED["math"])) as server:
        cast = cast_of(models, server)
        cast["teachers"]["code"] = {**cast["teachers"]["math"], "domains": []}
        found, said = attributed(cast)
    assert "teacher-math and teacher-code are the same model" in said[0]
    assert found.summary()["several"] > 0.5
    assert len(server.prompts) == len(ANSWERS), "both are in one cache"
