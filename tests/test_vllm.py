"""vLLM itself: the engine in a process of its own, and a real server as a teacher. Slow: needs vLLM here or in another environment."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from cast_models import PROMPTS
from tiny import TOKENIZER, decoder, shifted

import mopd_diag
from mopd_diag.engines.vllm import VLLMEngine
from mopd_diag.errors import BadInput
from mopd_diag.models.checkpoint import save_checkpoint

AGREE = 5e-4
"""Nats between vLLM's fp32 log-probabilities of a token and ours."""
QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
# vLLM's CPU attention takes heads that are multiples of 32 wide.
SIZES: dict[str, Any] = {"head_dim": 32, "num_attention_heads": 2, "hidden_size": 32, "max_position_embeddings": 256}


@pytest.fixture(scope="session")
def python() -> str:
    """A Python that has vLLM."""
    if importlib.util.find_spec("vllm"):
        return sys.executable
    found = os.environ.get("MOPD_DIAG_VLLM_PYTHON")
    if not found:
        pytest.skip(
            "no vLLM here: set MOPD_DIAG_VLLM_PYTHON to the python of an environment that has it (docs/install.md)"
        )
    return found


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_names_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"vLLM is not installed: pip install 'mopd-diag\[vllm\]'"):
        VLLMEngine(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["llama", "qwen3", "llama-grouped-untied"])
def test_the_engine_agrees_with_ours(shape: str, python: str, tmp_path: Path) -> None:
    heads = 1 if "grouped" in shape else 2
    one = decoder(shape, **SIZES, num_key_value_heads=heads)
    for name, model in (("one", one), ("two", shifted(one, 1, 0.1))):
        save_checkpoint(model, TOKENIZER, tmp_path / name)
    script = Path(__file__).with_name("vllm_report.py")
    done = subprocess.run(
        [python, str(script), str(tmp_path)], capture_output=True, text=True, timeout=400, env={**os.environ, **QUIET}
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert lines, done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("REPORT "))
    print(shape, found)
    assert found["repeats"], "one seed is one set of answers, another seed another"
    assert found["finished"] == found["ends"] and not found["inner_end"]
    assert all(ended or n == 30 for n, ended in zip(found["lengths"][:-1], found["ends"][:-1], strict=True))
    for name in ("scored", "in_answers", "few", "cooler", "reloaded", "reloaded_sampled"):
        assert found[name] < AGREE, name
    assert found["hits"][1] > 0, "the second of two equal prompts comes from the cache"
    assert (found["mean"], found["effective"]) == pytest.approx((1, 1), abs=1e-3)
    assert found["outside"] == 0 and found["largest"] < 1.01
    assert found["wrong"] < 0.9, "other weights than those that sampled are noticed"
    assert "top-k 50 is not between 1 and this engine's max_logprobs, 20" in found["k"]
    assert "256 tokens do not fit into this engine's context of 256" in found["long"]


@pytest.fixture(scope="module")
def served(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, list]]:
    """Models on disk, the url of a vLLM server of one of them, and its process, which a test may kill and start again."""
    folder = tmp_path_factory.mktemp("served")
    base = decoder(**SIZES, num_key_value_heads=2)
    for name, model in {"base": base, "math": shifted(base, 1, 0.1), "code": shifted(base, 2, 0.1)}.items():
        save_checkpoint(model, TOKENIZER, folder / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder / "math"),
        "--served-model-name",
        "math-rl",
    ]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-logprobs",
        "20",
    ]
    processes: list[subprocess.Popen] = []

    def start() -> None:
        # The key goes by the environment: a command line is for everybody to read.
        environment = {**os.environ, **QUIET, "VLLM_API_KEY": "sk-real"}
        log = (folder / f"server-{len(processes)}.log").open("w")
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))
        for _ in range(240):
            time.sleep(1)
            assert processes[-1].poll() is None, Path(log.name).read_text()[-3000:]
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    return
            except httpx2.TransportError:
                continue
        pytest.fail("the server did not start within four minutes")

    start()
    yield folder, f"http://127.0.0.1:{port}/v1", [processes, start]
    kill(processes[-1])


def kill(server: subprocess.Popen) -> None:
    """At once, with the processes it started."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(60)


@pytest.mark.slow
def test_a_real_server_as_a_teacher(served, monkeypatch, tmp_path: Path) -> None:
    """The same numbers as the checkpoint gives here; killed and started again it goes on; what it cannot do is one line."""
    folder, url, (processes, start) = served
    monkeypatch.setenv("MOPD_DIAG_CACHE", str(tmp_path))
    monkeypatch.setenv("REAL_KEY", "sk-real")
    lines = [
        {**p, "response": r}
        for p, r in zip(PROMPTS, ["15,09=95;M:77", "(3*4)-2 is 10", "stop", "no", "12=12", "7"], strict=False)
    ]
    code = {"path": folder / "code"}
    local = {
        "base": folder / "base",
        "student": folder / "math",
        "teachers": {"math": {"path": folder / "math"}, "code": code},
    }
    teacher = {"url": url, "model": "math-rl", "key_env": "REAL_KEY", "concurrency": 4}
    mixed = {**local, "teachers": {"math": teacher, "code": code}}
    said: list[str] = []
    ask = lambda cast, some=lines, **how: mopd_diag.attribute(cast, rollouts=some, warn=said.append, **how)  # noqa: E731
    found, here = ask(mixed, lines[:4]), ask(local, lines[:4])
    assert found.summary()["teacher:math"] == here.summary()["teacher:math"] == 1.0
    gap = np.abs(found.tokens["logp_teacher-math"] - here.tokens["logp_teacher-math"]).max()
    print("largest gap to the checkpoint, nats:", gap)
    assert gap < AGREE
    assert (found.tokens["kl_teacher-code"] <= here.tokens["kl_teacher-code"] + 1e-4).all()

    with pytest.raises(BadInput, match="greater than max allowed: 20"):
        ask(mixed, top_k=30)
    with pytest.raises(BadInput, match="serves no model 'other'"):
        ask({**mixed, "teachers": {"math": {**teacher, "model": "other"}}})
    with pytest.raises(BadInput, match="refuses to answer without a key"):
        ask({**mixed, "teachers": {"math": {k: v for k, v in teacher.items() if k != "key_env"}}})
    monkeypatch.setenv("REAL_KEY", "sk-wrong")
    with pytest.raises(BadInput, match="refuses the key .401.") as raised:
        ask(mixed)
    assert "sk-wrong" not in str(raised.value)
    monkeypatch.setenv("REAL_KEY", "sk-real")

    kill(processes[-1])
    monkeypatch.setattr("mopd_diag.engines.served_http.BACKOFF_S", 0.01)
    offline = ask(mixed, lines[:4])
    assert offline.answers.equals(found.answers) and "going on with the cache" in said[-3] + said[-2] + said[-1]
    with pytest.raises(mopd_diag.MopdDiagError, match="cannot be reached.* what it answered is in the cache"):
        ask(mixed)
    start()
    more = ask(mixed)
    assert len(more.answers) == 6
    assert more.answers["label"].tolist()[:4] == found.answers["label"].tolist()
