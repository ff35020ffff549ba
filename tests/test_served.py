"""Teachers behind a server: what they give is the model's, the evidence is a lower bound, and nothing is asked twice."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cast_models import MOVED, PROMPTS, part_of_the_way, paths, save_models
from served_casts import ANSWERS, KEY, LINES, asked, attributed, cast_of, rollouts
from small_server import SmallServer, running

from mopd_diag.cli import main
from mopd_diag.engines import served_http
from mopd_diag.engines.rollouts import Rollouts
from mopd_diag.engines.scoring import score
from mopd_diag.engines.served_cache import Cache
from mopd_diag.engines.served_http import ServerError
from mopd_diag.engines.top_tokens import UNUSED, TopTokens, shared
from mopd_diag.engines.topk_evidence import score_topk
from mopd_diag.errors import BadInput, ResourceError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own for each test, and pauses that do not slow it down."""
    monkeypatch.setenv("MOPD_DIAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(served_http, "BACKOFF_S", 0.001)


# -- the numbers ----------------------------------------------------------------------------------------------------------------


def whole(model: Any, given: Rollouts) -> np.ndarray:
    """log p over the vocabulary at every answer token, [T, V]."""
    rows = []
    with torch.inference_mode():
        for ids, p, n in zip(given.ids_NL, given.prompt_N.tolist(), given.length_N.tolist(), strict=True):
            rows.append(torch.log_softmax(model(ids[None, :n])[0, p - 1 : n - 1].double(), -1))
    return torch.cat(rows).numpy()


def test_what_a_server_gives_is_the_models_own(tmp_path: Path) -> None:
    given = rollouts()
    with running(SmallServer(MOVED["math"])) as server, Cache(tmp_path / "c") as cache:
        found = asked(server, given, cache)
    logp_TV = whole(MOVED["math"], given)
    written = [t for a in given.responses() for t in a]
    assert found.ids_TK[:, 0].tolist() == written
    for t, (ids, logp) in enumerate(zip(found.ids_TK, found.logp_TK, strict=True)):
        used = ids != UNUSED
        np.testing.assert_allclose(logp[used], logp_TV[t, ids[used]], atol=1e-4)
        assert set(np.argsort(-logp_TV[t])[:5]) <= set(ids[used].tolist())
        assert used.sum() in (5, 6) and len(set(ids[used].tolist())) == used.sum()
    (document,) = {json.dumps({k: v for k, v in d.items() if k != "prompt"}) for d in server.documents}
    assert json.loads(document) == {"model": "math-rl", "max_tokens": 1, "temperature": 0, "prompt_logprobs": 5}


def test_tokens_known_to_all_servers() -> None:
    one = TopTokens.of([7, 8], [{7: -1.0, 3: -0.5, 4: -2.0}, {8: -1.0, 3: -0.1, 2: -3.0}], 2)
    two = TopTokens.of([7, 8], [{7: -0.2, 4: -1.5, 9: -3.0}, {8: -0.1, 5: -3.0}], 2)
    assert shared([one, two]).tolist() == [[7, 4], [8, UNUSED]]
    np.testing.assert_allclose(two.at(np.array([[4, 9, 3], [5, 8, UNUSED]])), [[-1.5, -3, np.nan], [-3, -0.1, np.nan]])


@pytest.mark.parametrize("k", [1, 5, 40])
def test_evidence_of_served_members_is_that_of_the_partition_and_never_above_the_whole(k: int) -> None:
    """Two served members and two local ones, against the definition on whole distributions, and against the full vocabulary."""
    student = part_of_the_way(MOVED["math"], 0.7)
    local = {"student": student, "base": MOVED["base"], "control": MOVED["control"]}
    remote = {"math": MOVED["math"], "code": MOVED["code"]}
    given = rollouts()
    logp = {n: whole(m, given) for n, m in {**local, **remote}.items()}
    tokens = [t for a in given.responses() for t in a]
    served = {
        n: TopTokens.of(
            tokens,
            [{int(i): x[i] for i in {t, *np.argsort(-x)[:k].tolist()}} for t, x in zip(tokens, logp[n], strict=True)],
            k,
        )
        for n in remote
    }
    found = score_topk(given, local, "student", ["math", "code"], k, served=served).evidence
    full = score(given, {**local, **remote}, "student", ["math", "code"]).evidence
    assert found.members == full.members == ("student", "base", "math", "code", "control")
    assert not found.full_vocabulary
    np.testing.assert_allclose(found.logp_TM, full.logp_TM, atol=1e-4)
    assert (found.kl_TM <= full.kl_TM + 1e-5).all()
    for t, token in enumerate(tokens):
        known = set.intersection(*({token, *np.argsort(-logp[n][t])[:k].tolist()} for n in remote))
        rest = [v for v in range(99) if v not in known]
        bucket = {
            n: np.array([*(x[t, sorted(known)]), max(np.log(np.exp(x[t, rest]).sum()), np.log(1e-6))])
            for n, x in logp.items()
        }
        s, b = bucket["student"], bucket["base"]
        expected = [(np.exp(s) * (s - bucket[m])).sum() for m in found.members]
        np.testing.assert_allclose(found.kl_TM[t], np.maximum(expected, 0), atol=2e-5, rtol=1e-3)
        d = bucket["code"] - b
        w = (np.exp(s) + np.exp(b)) / 2
        variance = (w * d * d).sum() - (w * d).sum() ** 2
        np.testing.assert_allclose(found.gram_TJJ[t, 2, 2], variance, atol=2e-3, rtol=5e-3)


def test_a_mixed_cast_names_the_served_teacher(models: Path) -> None:
    with running(SmallServer(MOVED["math"])) as server:
        found, said = attributed(cast_of(models, server))
    assert found.summary()["teacher:math"] > 0.8
    assert (found.vocabulary, found.calibration) == ("top-k", "uncalibrated")
    assert said[0].startswith(
        "teacher-math served: all members are compared over the tokens that the servers gave, 20."
    )
    local, _ = attributed(paths(models))
    np.testing.assert_allclose(found.tokens["logp_teacher-math"], local.tokens["logp_teacher-math"], atol=1e-4)
    assert (found.tokens["kl_teacher-code"] <= local.tokens["kl_teacher-code"] + 1e-4).all()
    assert found.answers["label"].tolist() == local.answers["label"].tolist()


def test_from_prompts_on_the_command_line(capsys, models: Path, tmp_path: Path, monkeypatch) -> None:
    """The student's answers end where the server's context ends, and the key is nowhere."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(p) for p in PROMPTS))
    with running(SmallServer(MOVED["math"], key=KEY, context=16)) as server:
        (tmp_path / "cast.toml").write_text(
            f'[base]\npath = "{models / "base"}"\n[student]\npath = "{models / "math"}"\n[teachers.math]\nurl = "{server.url}/"\n'
            f'model = "math-rl"\nkey_env = "TEACHER_KEY"\n[teachers.code]\npath = "{models / "code"}"\n'
        )
        arguments = ["attribute", str(tmp_path / "cast.toml"), "--prompts", str(tmp_path / "prompts.jsonl")]
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--out", str(tmp_path / "out"), "--top-k", "7", "--json"])
        assert not stopped.value.code
    out, err = capsys.readouterr()
    assert json.loads(out)["vocabulary"] == "top-k"
    assert "cut where the context of 14 tokens ends" in err
    assert {d["prompt_logprobs"] for d in server.documents} == {7}
    assert max(map(len, server.prompts)) == 14
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert any(p.suffix == ".sqlite" for p in written)
    assert KEY not in out + err and not any(KEY.encode() in p.read_bytes() for p in written)


# -- the cache, and going on ------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    given, path = rollouts([*ANSWERS, ANSWERS[0]]), tmp_path / "c"
    with running(SmallServer(MOVED["math"])) as server:
        with Cache(path) as cache:
            first = asked(server, given, cache)
        assert len(server.prompts) == len(ANSWERS), "two answers that are the same are one request"
        with Cache(path) as cache:
            again = asked(server, given, cache)
            assert len(server.prompts) == len(ANSWERS)
            asked(server, given, cache, k=6)
            assert len(server.prompts) == 2 * len(ANSWERS), "another k is another request"
            asked(server, rollouts([*ANSWERS, "new"]), cache)
            assert len(server.prompts) == 2 * len(ANSWERS) + 2, "the new one, and an old one as a check"
    for name in ("ids_TK", "logp_TK"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert len(first) == sum(len(a) + 1 for a in [*ANSWERS, ANSWERS[0]])


def test_a_killed_server_loses_nothing(models: Path, tmp_path: Path) -> None:
    broken = lambda n: (503, {}, b"going down") if n > 3 else None  # noqa: E731
    server = SmallServer(MOVED["math"], fails=broken)
    with (
        running(server),
        pytest.raises(ServerError, match="teacher-math: http://127.0.0.1:.* answers 503 .going down., tried 6 times"),
    ):
        attributed(cast_of(models, server, concurrency=1))
    assert len(server.prompts) == 3
    with pytest.raises(ServerError, match="cannot be reached.* it answered is in the cache"):
        attributed(cast_of(models, server, concurrency=1))
    server.fails = lambda n: None
    with running(server):
        whole_cast, _ = attributed(cast_of(models, server))
    assert len(server.prompts) == 3 + 1 + 3, "what was there, one of it as a check, and the rest"
    offline, said = attributed(cast_of(models, server))
    assert "going on with the cache" in said[0]
    assert offline.answers.equals(whole_cast.answers)


def test_another_model_under_the_same_name_is_noticed(models: Path) -> None:
    server = SmallServer(MOVED["math"])
    with running(server):
        attributed(cast_of(models, server), LINES[:3])
        server.model = MOVED["code"]
        with pytest.raises(BadInput, match="other numbers than those in .*served.sqlite.*delete the cache"):
            attributed(cast_of(models, server))


def test_a_broken_cache_is_one_line(models: Path, tmp_path: Path) -> None:
    server, path = SmallServer(MOVED["math"]), tmp_path / "cache" / "served.sqlite"
    with running(server):
        attributed(cast_of(models, server))
        with sqlite3.connect(path) as database:
            database.execute("UPDATE answer SET body = x'00ff'")
        with pytest.raises(BadInput, match="holds a broken answer .* delete it"):
            attributed(cast_of(models, server))
        path.write_bytes(b"not a data base at all, but long enough to be looked at" * 20)
        with pytest.raises(BadInput, match="cannot be used as cache"):
            attributed(cast_of(models, server))


def test_nobody_waits_for_what_is_under_way_when_it_is_of_no_use(tmp_path: Path, monkeypatch) -> None:
    """A full disk: the first answer cannot be kept, and the server is slow with the others."""
    server = SmallServer(MOVED["math"], fails=lambda n: time.sleep(2) if n > 1 else None)

    def full(*_: Any) -> None:
        raise ResourceError("cannot write")

    with running(server), Cache(tmp_path / "c") as cache:
        monkeypatch.setattr(cache, "put", full)
        start = time.monotonic()
        with pytest.raises(ResourceError, match="cannot write"):
            asked(server, rollouts(), cache, concurrency=3)
        assert time.monotonic() - start < 1


def test_requests_under_way_are_bounded(tmp_path: Path) -> None:
    slow = lambda n: time.sleep(0.02)  # noqa: E731
    for bound in (1, 3):
        server = SmallServer(MOVED["math"], fails=slow)
        with running(server), Cache(tmp_path / f"c{bound}") as cache:
            asked(server, rollouts([str(i) for i in range(12)]), cache, concurrency=bound)
        assert server.most_at_once == bound
