"""A SYNTHETIC run directory for the report's tests: invented numbers in the shape of a real quickstart run.

Nothing here was trained or measured. The accuracies follow the throw-away prototype of an early experiment, so that charts and tables
meet the situations of a real run: a domain without headroom, a rival that forgets, an answer that nobody explains.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
from synthetic_findings import ACCURACY, CONTROL, NAMES, ROUTE, TAUGHT, synthetic_failures, synthetic_findings

from mopd_diag.runs.directory import RunDirectory, write_json, write_table
from mopd_diag.types import Item, Record
from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro import DOMAINS

STAGES = {
    # stage: algorithm, parents, tokens sampled, trained, scored, FLOPs, seconds, started, matched to
    "base": ("sft", [], 0, 640_000, 0, 4.1e11, 24, 0, ""),
    "teacher-math": ("grpo", ["base"], 820_000, 610_000, 0, 9.2e11, 62, 26, ""),
    "teacher-code": ("grpo", ["base"], 512_000, 380_000, 0, 6.1e11, 48, 26, ""),
    "teacher-agent": ("grpo", ["base"], 700_000, 520_000, 0, 8.0e11, 55, 76, ""),
    "teacher-style": ("grpo", ["base"], 830_000, 600_000, 0, 9.3e11, 63, 90, ""),
    "student": (
        "mopd", ["base", "teacher-math", "teacher-code", "teacher-agent", "teacher-style"],
        390_000, 390_000, 390_000, 8.8e11, 58, 156, "",
    ),
    "rival-mixed-rl": ("grpo", ["base"], 3_252_000, 2_500_000, 0, 3.9e12, 166, 160, "student"),
    "rival-sequential-rl": ("grpo", ["base"], 3_252_000, 2_480_000, 0, 3.9e12, 170, 216, "student"),
    "rival-seqkd": (
        "sft", ["base", "teacher-math", "teacher-code", "teacher-agent", "teacher-style"],
        390_000, 780_000, 0, 6.0e11, 40, 330, "student",
    ),
    "rival-average": ("average", ["teacher-math", "teacher-code", "teacher-agent", "teacher-style"], 0, 0, 0, 1e5, 1, 371, ""),
}  # fmt: skip


def write_synthetic_run(path: Path, *, items: int = 60, samples: int = 4, seed: int = 0) -> RunDirectory:
    """Write a whole synthetic run directory under `path` and open it."""
    run = RunDirectory(path)
    rng = random.Random(seed)
    drawn = {name: DOMAINS[name].distinct("eval", items, rng) for name in NAMES}
    checkpoint = "rival-sequential-rl.1-addition"
    run.write_records(checkpoint, _records(checkpoint, drawn, samples, random.Random(seed)))
    for model in ACCURACY:
        run.write_records(model, _records(model, drawn, samples, random.Random(f"{seed} {model}")))
    _write_traces(run, drawn, rng)
    _write_metrics(path, np.random.default_rng(seed))
    write_table(path / "ledger.parquet", synthetic_ledger())
    run.write_findings([*synthetic_findings(), *synthetic_failures(run)])
    write_json(path / "manifest.json", synthetic_manifest(seed))
    return run


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _records(model: str, drawn: dict[str, list[Item]], samples: int, rng: random.Random) -> list[Record]:
    records = []
    for column, (name, items) in enumerate(drawn.items()):
        for item in items:
            difficulty = random.Random(item.item_id).gauss(0, 1.2)
            chance = 1 / (1 + math.exp(-(_logit(ACCURACY.get(model, ACCURACY["base"])[column]) * 1.25 + difficulty)))
            for sample in range(samples):
                right = rng.random() < chance
                response = item.target if right else wrong_answer(DOMAINS[name], item, rng)
                records.append(
                    Record(model, name, item.item_id, _digest(item.prompt), _digest(item.target), sample, item.prompt,
                           response, float(right), len(response) + 1, False)
                )  # fmt: skip
    return records


def wrong_answer(domain: Domain, item: Item, rng: random.Random) -> str:
    """An imperfect demonstration that the verifier refuses."""
    while True:
        response = domain.demonstrate(item.prompt, item.target, rng)
        if not domain.score(item.prompt, item.target, response):
            return response


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _write_traces(run: RunDirectory, drawn: dict[str, list[Item]], rng: random.Random) -> None:
    for model in ("student", CONTROL):
        records = run.records(model).query("sample == 0").set_index("item_id")
        rows = []
        for name, items in drawn.items():
            for item in items[:40]:
                record = records.loc[item.item_id]
                rows += _trace(item.item_id, name, record["response"], record["score"], rng)
        write_table(run.trace_path(model), pd.DataFrame(rows))


def _trace(item_id: str, domain: str, response: str, score: float, rng: random.Random) -> list[dict[str, object]]:
    routed = ROUTE[domain]
    culprit = routed if score or rng.random() < 0.5 else rng.choice([*TAUGHT, "own"])
    label = "own" if culprit == "own" else f"teacher:{culprit}"
    pivot = rng.randrange(max(1, len(response)))
    rows: list[dict[str, object]] = []
    for position, token in enumerate([*response, "<eos>"]):
        contested = position == pivot or rng.random() < 0.2
        row: dict[str, object] = {
            "item_id": item_id, "sample": 0, "position": position, "token_id": 3 + ord(token[0]) % 90, "token": token,
            "domain": domain, "response": response, "score": score,
            "logp_student": -rng.expovariate(4), "logp_base": -rng.expovariate(1.2),
        }  # fmt: skip
        weights = {t: rng.random() * 0.25 for t in TAUGHT}
        if culprit in weights and contested:
            weights[culprit] += 1.5
        for teacher in TAUGHT:
            row[f"logp_teacher-{teacher}"] = -rng.expovariate(2 if teacher == culprit else 0.8)
            row[f"kl_teacher-{teacher}"] = rng.expovariate(30 if teacher == culprit or not contested else 2)
        own = 0.8 if culprit == "own" and contested else 0.05
        total = sum(weights.values()) + own
        row |= {f"share_{t}": w / total if contested else math.nan for t, w in weights.items()}
        row["share_own"] = own / total if contested else math.nan
        row |= {"set": "", "sampled": True, "contested": contested, "kl_base": rng.expovariate(3)}
        row["label"] = label if contested else rng.choice(["several", "pre-existing", "pre-existing", "abstain"])
        row["confidence"] = 0.6 + 0.39 * rng.random() if contested else 0.3 * rng.random()
        row["answer_label"] = label
        row["answer_confidence"] = 0.5 + 0.49 * rng.random()
        rows.append(row)
    return rows


def _write_metrics(path: Path, rng: np.random.Generator) -> None:
    for stage, (algorithm, *_) in STAGES.items():
        if algorithm == "average":
            continue
        steps = np.arange(0, 300, 5)
        progress = 1 - np.exp(-steps / 70)
        noise = rng.normal(0, 0.015, len(steps))
        frame = pd.DataFrame({"step": steps})
        if algorithm == "sft":
            frame["loss"] = 2.6 - 1.9 * progress + noise
        else:
            frame["reward"] = 0.45 + 0.5 * progress + noise
            frame["entropy"] = 0.6 - 0.5 * progress + noise
            frame["kl"] = 0.4 * (1 - progress) + abs(noise) if algorithm == "mopd" else 0.3 * progress + abs(noise)
        write_table(path / "metrics" / f"{stage}.parquet", frame)


def synthetic_ledger() -> pd.DataFrame:
    rows = []
    for stage, (algorithm, parents, sampled, trained, scored, flops, seconds, started, matched) in STAGES.items():
        rows.append({
            "stage": stage, "algorithm": algorithm, "parents": ",".join(parents), "tokens_sampled": sampled,
            "tokens_trained": trained, "tokens_scored": scored, "rollouts": sampled // 10, "flops": flops, "seconds": float(seconds),
            "seconds_model": 0.82 * seconds, "started": float(started), "device": "cpu", "matched_to": matched,
            "matched_on": "tokens sampled" if matched else "",
        })  # fmt: skip
    service = {
        "algorithm": "evaluate",
        "tokens_sampled": 9_000,
        "tokens_trained": 0,
        "tokens_scored": 0,
        "rollouts": 960,
        "flops": 4e9,
    }
    for number, model in enumerate(ACCURACY):
        rows.append({**rows[0], **service, "stage": f"evaluate:{model}", "parents": model, "seconds": 2.0, "seconds_model": 1.5,
                     "started": 25.0 + 39 * number})  # fmt: skip
    rows.append(
        {
            **rows[-1],
            "stage": "trace:student",
            "algorithm": "trace",
            "parents": "student,base",
            "tokens_scored": 60_000,
            "started": 390.0,
        }
    )
    return pd.DataFrame(rows)


def synthetic_manifest(seed: int) -> dict[str, object]:
    models = {m: {"role": m.partition("-")[0], "domains": [TAUGHT[m[8:]]] if m.startswith("teacher-") else
                  (NAMES if m not in ("base", "rival-average") else [])} for m in ACCURACY}  # fmt: skip
    return {
        "schema": 1,
        "plan": {"name": "quickstart", "summary": "SYNTHETIC: four RL specialists, one MOPD student, four rivals at a matched budget",
                 "world": {"name": "micro", "domains": NAMES}, "budget": "small", "seed": seed},
        "stages": [{"name": s, "algorithm": v[0], "start": "base", "domains": NAMES} for s, v in STAGES.items()],
        "models": models | {"rival-sequential-rl.1-addition": {"role": "checkpoint", "domains": ["addition"]}},
        "route": {domain: f"teacher-{teacher}" for domain, teacher in ROUTE.items()}, "control": CONTROL,
        "versions": {"mopd-diag": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.6"},
        "git": "0123abcd", "hardware": {"machine": "x86_64", "processor": "AMD EPYC 9B45", "cores": 2, "memory_bytes": 8_000_000_000},
        "created": "2026-11-22T16:58:00+00:00",
    }  # fmt: skip


def replace_findings(run: RunDirectory, change: dict[str, dict[str, object]]) -> None:
    """Overwrite fields of single findings by id."""
    path = run.path / "findings.json"
    document = json.loads(path.read_text())
    for finding in document["findings"]:
        finding.update(change.get(finding["id"], {}))
    path.write_text(json.dumps(document))
