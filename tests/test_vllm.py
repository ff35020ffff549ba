"""vLLM itself: the engine in a process of its own, and a real server as a teacher. Slow: needs vLLM here or in another environment."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from cast_models import PROMPTS, rollouts_file
from safetensors.torch import load_file, save_file
from tiny import TOKENIZER, decoder, shifted

import mopd_diag
from mopd_diag.engines.vllm import VLLMEngine
from mopd_diag.errors import BadInput
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder

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


def torn(model: Decoder, folder: Path) -> None:
    """A checkpoint that lacks a weight: vLLM alone takes it."""
    save_checkpoint(model, TOKENIZER, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_names_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"vLLM is not installed: pip install 'mopd-diag\[vllm\]'"):
        VLLMEngine(tmp_path)


def reported(python: str, script: str, *arguments: object) -> dict[str, Any]:
    """What a script says under the Python that has vLLM."""
    command = [python, str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, **QUIET})
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert lines, done.stderr[-3000:]
    assert done.stdout.splitlines() == lines, "vLLM writes into what `--json` prints"
    return json.loads(lines[0].removeprefix("REPORT "))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["llama", "qwen3", "llama-grouped-untied"])
def test_the_engine_agrees_with_ours(shape: str, python: str, tmp_path: Path) -> None:
    heads = 1 if "grouped" in shape else 2
    one = decoder(shape, **SIZES, num_key_value_heads=heads)
    for name, model in (("one", one), ("two", shifted(one, 1, 0.1))):
        save_checkpoint(model, TOKENIZER, tmp_path / name)
    torn(one, tmp_path / "torn")
    found = reported(python, "vllm_report.py", tmp_path)
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
    assert found["moved"] > 0.01 and found["moved_sampled"]
    assert found["stale"] < 1e-4 and not found["stale_sampled"], "after a reload nothing comes from the old weights"
    assert found["closed"]
    assert "vLLM does not take this checkpoint: " in found["refused"] and "max_model_len (100000)" in found["refused"]
    assert "no checkpoint at" in found["none"]
    assert all("torn lacks the weight model.norm.weight" in line for line in found["torn"])
    assert "top-k 50 is not between 1 and this engine's max_logprobs, 20" in found["k"]
    assert "256 tokens do not fit into this engine's context of 256" in found["long"]


@pytest.mark.slow
def test_vllm_samples_in_training_from_the_weights_of_each_step(python: str, tmp_path: Path) -> None:
    student = decoder(**SIZES, num_key_value_heads=2)
    for name, model in (("student", student), ("teacher", shifted(student, 1, 0.1))):
        save_checkpoint(model, TOKENIZER, tmp_path / name)
    found = reported(python, "vllm_training.py", tmp_path)
    print(found)
    assert len(found["gaps"]) == 4 and max(found["gaps"]) < AGREE, "μ of every step is that of the weights then"
    assert found["weights"] == [[pytest.approx(1, abs=1e-3), 0.0]] * 4, "the training's log says how far μ is from π"
    assert found["moved"] > 0.01 and all(np.isfinite(found["losses"])) and found["tokens"] > 4 * 16


@pytest.mark.slow
def test_attribution_by_vllm_is_that_of_torch(python: str, tmp_path: Path) -> None:
    """Sampled and scored by vLLM alone, one of the members of other sizes than the rest."""
    base = decoder(**SIZES, num_key_value_heads=2)
    deep = decoder(**SIZES, num_key_value_heads=2, num_hidden_layers=3, seed=7)
    moved = {"base": base, "math": shifted(base, 1, 0.1), "code": shifted(base, 2, 0.1), "deep": deep}
    for name, model in moved.items():
        save_checkpoint(model, TOKENIZER, tmp_path / name)
    roles = {
        "base": "base",
        "student": "math",
        "teachers.math": "math",
        "teachers.code": "code",
        "controls.deep": "deep",
    }
    cast = tmp_path / "cast.toml"
    cast.write_text("\n".join(f"[{role}]\npath = '{name}'" for role, name in roles.items()))
    given = rollouts_file(tmp_path, ["15,09=95;M:77", "(3*4)-2 is 10", "stop", "no no", "12=12"])
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    packages = sysconfig.get_path("purelib")
    found = reported(python, "vllm_cast_report.py", cast, given, tmp_path / "prompts.jsonl", 60, packages)
    here = mopd_diag.attribute(cast, rollouts=given, top_k=60, warn=lambda _: None)
    assert found["labels"] == here.answers["label"].tolist()
    gaps = {
        c: np.abs(np.array(found["tokens"][c]) - here.tokens[c]).max() for c in here.tokens if c.startswith("logp_")
    }
    print("largest gap to torch, nats:", gaps)
    assert len(gaps) == 5 and max(gaps.values()) < AGREE
    whole = mopd_diag.attribute(cast, rollouts=given, warn=lambda _: None)
    for column in (c for c in whole.tokens if c.startswith("kl_")):
        assert (np.array(found["tokens"][column]) <= whole.tokens[column] + 1e-4).all()
    assert "scored by vLLM" in found["notes"][0] and "in float32" in found["notes"][0]
    one, again, other = found["drawn"]
    assert one == again != other and all(len(a) for a in one)
    assert found["drawn_labels"][0]["teacher:math"] > 0.8


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
