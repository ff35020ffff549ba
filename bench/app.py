"""The app on a generated run of 1,000,000 trace tokens and 12 teachers: each page cold and warm, and the server's memory.

Cold: the first visit of that page on a server just started, by a browser just started. Warm: the page loaded again. Both
end when the page's script has finished and nothing is left to draw. `nothing` is a page without a run: what Streamlit's
frontend takes by itself. The numbers of the run are drawn, not measured: only its size matters.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pandas as pd
import psutil
from rich.console import Console

from bench.timing import machine, table
from mopd_diag.runs.directory import RunDirectory, write_json, write_table
from mopd_diag.study.app import FOLDER, command
from mopd_diag.types import Estimate, Finding

LENGTH, SAMPLES, SHARE_OF_CONTESTED = 100, 4, 0.2
RIVALS = ("rival-mixed-rl", "rival-average", "rival-sequential-rl")
CONTROL = RIVALS[0]
PAGES = {
    "nothing": "",
    "overview": "", "failures": "", "attribution": "", "caps": "&domain=domain-00&part=lost", "interference": "",
    "regression": "&before=run:base&after=run:student", "cost": "",
}  # fmt: skip
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
SETTLED = (
    "document.querySelector('h1, .empty') && document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
    " && ![...document.querySelectorAll('[data-testid=stSkeleton]')].some(e => e.offsetWidth)"
)


def run(
    tokens: int = 1_000_000, teachers: int = 12, port: int = 8799, chromium: str = "/usr/bin/chromium"
) -> dict[str, Any]:
    """Seconds of every page at the whole size, of the overview at a quarter and half of it, and the most memory."""
    result: dict[str, Any] = {
        "bench": "app",
        "tokens": tokens,
        "teachers": teachers,
        "machine": machine(),
        "cores": os.cpu_count(),
    }
    with tempfile.TemporaryDirectory(prefix="mopd-diag-bench-") as folder:
        sizes = [tokens // 4, tokens // 2, tokens]
        for size in sizes:
            generate(Path(folder) / str(size) / "run", size, teachers)
        whole = Path(folder) / str(tokens)
        result["bytes"] = sum(p.stat().st_size for p in whole.rglob("*.parquet"))
        result["pages"] = {page: visit(whole, page, query, port, chromium) for page, query in PAGES.items()}
        grown = {str(n): visit(Path(folder) / str(n), "overview", "", port, chromium) for n in sizes[:-1]}
        result["overview"] = grown | {str(tokens): result["pages"]["overview"]}
        result["all_pages_memory_bytes"] = tour(whole, port, chromium)
    return result


# -- the run --------------------------------------------------------------------------------------------------------------------


def generate(path: Path, tokens: int, teachers: int, seed: int = 0) -> RunDirectory:
    """A run directory in the shape of a real one, with so many trace tokens of the student."""
    rng, made = np.random.default_rng(seed), RunDirectory(path)
    names = [f"teacher-{t:02d}" for t in range(teachers)]
    domains = [f"domain-{t:02d}" for t in range(teachers)]
    models = ["base", *names, "student", *RIVALS]
    answers = tokens // LENGTH
    item_I = np.arange(answers // SAMPLES)
    frame = pd.DataFrame({
        "domain": np.array(domains)[item_I % teachers], "item_id": np.char.add("item-", item_I.astype(str)),
        "prompt_hash": item_I.astype(str), "target_hash": item_I.astype(str), "prompt": np.char.add("Work this out: ", item_I.astype(str)),
    })  # fmt: skip
    frame = (
        frame.loc[frame.index.repeat(SAMPLES)]
        .assign(sample=np.tile(np.arange(SAMPLES), len(item_I)))
        .reset_index(drop=True)
    )
    for k, model in enumerate(models):
        right = rng.random(len(frame)) < (0.4 if model == "base" else 0.5 + 0.02 * (k % 10))
        text = np.char.add("a" * (LENGTH - 2), right.astype(int).astype(str))
        own = frame.assign(model=model, response=text, score=right * 1.0, n_tokens=LENGTH, truncated=False)
        write_table(made.record_path(model), own)
        if model in ("student", CONTROL):
            write_table(made.trace_path(model), _trace(own, names, rng))
            write_table(made.attribution_path(model), _attribution(own, names, model, rng))
    write_table(path / "ledger.parquet", _ledger(names))
    made.write_findings(_findings(domains, names))
    roles = {
        m: {"role": m.partition("-")[0], "domains": [domains[names.index(m)]] if m in names else domains}
        for m in models
    }
    write_json(path / "manifest.json", {
        "schema": 1, "models": roles, "route": dict(zip(domains, names, strict=True)), "control": CONTROL, "stages": [],
        "plan": {"name": "generated", "summary": "", "world": {"name": "generated", "domains": domains}, "seed": 0},
        "versions": {}, "git": "", "hardware": {}, "created": "2026-11-22T00:00:00+00:00",
    })  # fmt: skip
    return made


def _labels(teachers: list[str]) -> np.ndarray:
    return np.array(
        [f"teacher:{t.removeprefix('teacher-')}" for t in teachers] + ["own", "several", "pre-existing", "abstain"]
    )


def _trace(records: pd.DataFrame, teachers: list[str], rng: np.random.Generator) -> pd.DataFrame:
    n = len(records) * LENGTH
    labels = _labels(teachers)
    answer = np.repeat(rng.integers(0, len(labels), len(records)), LENGTH)
    contested = rng.random(n) < SHARE_OF_CONTESTED
    columns: dict[str, Any] = {c: np.repeat(records[c].to_numpy(), LENGTH) for c in ("item_id", "sample", "domain")}
    columns |= {
        "position": np.tile(np.arange(LENGTH), len(records)), "token_id": rng.integers(3, 100, n),
        "token": rng.choice(list("abcdefgh "), n),
        "label": np.where(contested, labels[answer], "pre-existing"), "confidence": rng.random(n), "set": "",
        "answer_label": labels[answer], "answer_confidence": np.repeat(rng.random(len(records)), LENGTH),
        "contested": contested, "sampled": True,
    }  # fmt: skip
    for member in ("student", "base", *teachers):
        columns[f"logp_{member}"] = -rng.exponential(0.5, n).astype(np.float32)
    for member in ("base", *teachers):
        columns[f"kl_{member}"] = rng.exponential(0.1, n).astype(np.float32)
    for member in ("own", *teachers):
        columns[f"share_{member}"] = np.where(contested, rng.random(n) / (len(teachers) + 1), np.nan)
    return pd.DataFrame(columns)


def _attribution(records: pd.DataFrame, teachers: list[str], model: str, rng: np.random.Generator) -> pd.DataFrame:
    n = len(records)
    labels = _labels(teachers)
    shares = rng.dirichlet(np.ones(len(teachers) + 1), n)
    told = {f"share_{m}": shares[:, k] for k, m in enumerate(("own", *teachers))}
    told |= {f"kl_{m}": rng.exponential(0.1, n) for m in ("base", *teachers)}
    told |= {f"likelihood_{m}": rng.random(n) for m in ("base", *teachers)} | {
        f"cosine_{t}": rng.random(n) for t in teachers
    }
    told |= {f"baseline_{b}": rng.choice(teachers, n) for b in ("routed", "closest", "likelihood")}
    return records[["item_id", "sample", "domain", "prompt", "response", "score"]].assign(
        label=labels[rng.integers(0, len(labels), n)], set="", confidence=rng.random(n), reason="", n_tokens=LENGTH,
        n_contested=int(LENGTH * SHARE_OF_CONTESTED), residual=rng.random(n), unexplained_nats=rng.random(n), decoy_margin=rng.random(n),
        subject=model, vocabulary="full", calibration="generated", drawn=True, **told,
    )  # fmt: skip


def _ledger(teachers: list[str]) -> pd.DataFrame:
    stages = [
        ("base", "sft", ""),
        *((t, "grpo", "base") for t in teachers),
        ("student", "mopd", ",".join(["base", *teachers])),
    ]
    stages += [(r, "grpo", "base") for r in RIVALS]
    return pd.DataFrame([
        {"stage": s, "algorithm": a, "parents": p, "rollouts": 1e4,
         **dict.fromkeys(("tokens_sampled", "tokens_trained", "tokens_scored"), 1e6),
         "flops": 1e12 * (1 + k), "seconds": 60.0, "seconds_model": 50.0, "started": 40.0 * k, "device": "cpu",
         "matched_to": "", "matched_on": ""}
        for k, (s, a, p) in enumerate(stages)
    ])  # fmt: skip


def _findings(domains: list[str], teachers: list[str]) -> list[Finding]:
    def near(value: float, unit: str = "share") -> Estimate:
        return Estimate(value, value - 0.05, value + 0.05, unit=unit, n_items=200, n_clusters=200, method="generated")

    share = near(0.6).to_dict()
    found = []
    for domain, teacher in zip(domains, teachers, strict=True):
        passes = {m: {str(k): near(1 - 0.5**k).to_dict() for k in (1, 2, 4)} for m in ("student", "base", teacher)}
        evidence = {"base": share, "student": share, "best_teacher": share, "gap": near(-0.01, "difference").to_dict(), "teacher": teacher,
                    "partition": {"both": 100, "surpassing": 10, "lost": 40, "inherited": 58}, "pass_at_k": passes}  # fmt: skip
        found.append(
            Finding(f"cap-student-{domain}", "cap", f"student/{domain}", "at", "info", near(0.9, "ratio"), evidence)
        )
        for model in ("student", CONTROL):
            told = {"shares": {teacher: 0.6, "own": 0.2, "several": 0.2}, "baseline_routed": 1.0}
            found.append(
                Finding(
                    f"attribution-{model}-{domain}",
                    "attribution",
                    f"{model}/{domain}",
                    "inherited",
                    "info",
                    near(0.6),
                    told,
                )
            )
        for other in domains:
            told = {
                "trained_on": domain,
                "evaluated_on": other,
                "model": teacher,
                "own_domain": domain == other,
                "n_lost_items": 0,
            }
            found.append(
                Finding(
                    f"transfer-{domain}-{other}",
                    "interference",
                    f"{domain}->{other}",
                    "none",
                    "info",
                    near(0.0, "difference"),
                    told,
                )
            )
    return [
        *found,
        Finding(
            "cap-student-overall", "cap", "student/overall", "at", "info", near(0.9, "ratio"), {"domains": len(domains)}
        ),
    ]


# -- visits -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def serving(folder: Path, port: int) -> Iterator[psutil.Process]:
    """The app over a folder, in a process of its own."""
    with subprocess.Popen(command(port), env={**os.environ, FOLDER: str(folder)}, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                try:
                    urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
                    break
                except (URLError, OSError):
                    time.sleep(0.1)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def visit(folder: Path, page: str, query: str, port: int, chromium: str) -> dict[str, float]:
    """Seconds of the first and of the second visit of a page, and the server's memory after them."""
    from playwright.sync_api import sync_playwright

    with serving(folder, port) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        address = _address(port, page, query)
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        cold, warm = (_seconds(context, address) for _ in range(2))
        browser.close()
        return {"cold": cold, "warm": warm, "memory_bytes": _memory(server)}


def tour(folder: Path, port: int, chromium: str) -> int:
    """The server's memory after all pages."""
    from playwright.sync_api import sync_playwright

    with serving(folder, port) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        context, most = browser.new_context(viewport={"width": 1440, "height": 900}), 0
        for page, query in PAGES.items():
            _seconds(context, _address(port, page, query))
            most = max(most, _memory(server))
        browser.close()
        return most


def _address(port: int, page: str, query: str) -> str:
    """The first page is the root; a link to no run is the emptiest page there is."""
    root = f"http://127.0.0.1:{port}/"
    return f"{root}cost?run=none" if page == "nothing" else f"{root}{'' if page == 'overview' else page}?run=run{query}"


def _seconds(context: Any, address: str) -> float:
    page = context.new_page()
    started = time.perf_counter()
    page.goto(address)
    page.wait_for_function(SETTLED, timeout=180_000, polling=50)
    seconds = time.perf_counter() - started
    page.close()
    return seconds


def _memory(process: psutil.Process) -> int:
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as tables."""
    console = console or Console()
    title = f"The app, {result['tokens']:,} trace tokens, {result['teachers']} teachers, {result['cores']} cores"
    made = table(title, "page", "cold, s", "warm, s", "server, MB")
    for page, seen in result["pages"].items():
        made.add_row(page, f"{seen['cold']:.1f}", f"{seen['warm']:.1f}", f"{seen['memory_bytes'] / 1e6:.0f}")
    console.print(made)
    made = table("Overview by size", "trace tokens", "cold, s", "warm, s")
    for n, seen in result["overview"].items():
        made.add_row(f"{int(n):,}", f"{seen['cold']:.1f}", f"{seen['warm']:.1f}")
    console.print(made)
    console.print(
        f"memory after all pages {result['all_pages_memory_bytes'] / 1e6:.0f} MB; tables on disk {result['bytes'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    figures = run()
    show(figures)
    print(json.dumps(figures))
