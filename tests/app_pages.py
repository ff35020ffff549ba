"""A folder to serve with a synthetic run in it, attributed and with one failure explained; and a page of the app as a test sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash
from synthetic_run import write_synthetic_run

from mopd_diag.diagnostics.explained import explanation_path
from mopd_diag.runs.directory import RunDirectory, write_json, write_table
from mopd_diag.types import Estimate

MAIN = Path(__file__).parents[1] / "app" / "main.py"
FOLDER = "MOPD_DIAG_APP_FOLDER"


def serve_run(root: Path, name: str = "quickstart", *, items: int = 16) -> RunDirectory:
    """A run below `root`."""
    run = write_synthetic_run(root / name, items=items)
    write_attribution(run)
    explain_one(run)
    return run


def write_attribution(run: RunDirectory) -> None:
    """Attributed answers in the shape of a real run's, one row a traced answer."""
    for model in run.trace_names():
        trace = run.trace(model)
        first = trace.groupby(["item_id", "sample"], sort=False).first().reset_index()
        frame = first[["item_id", "sample", "domain", "response", "score", "set"]].assign(
            label=first["answer_label"], confidence=first["answer_confidence"], reason="", calibration="uncalibrated", drawn=True,
            share_own=np.where(first["answer_label"] == "own", 0.8, 0.1), subject=model, prompt=first["item_id"],
        )  # fmt: skip
        frame.loc[frame.index % 5 == 0, ["label", "reason"]] = ["abstain", "too little evidence"]
        write_table(run.attribution_path(model), frame)


def failed_traced(run: RunDirectory) -> pd.Series:
    """The first failed answer of the student that has a trace."""
    trace = run.trace("student")
    return trace[trace["score"] < 1].iloc[0]


def explain_one(run: RunDirectory) -> dict[str, Any]:
    """An explanation, as `mopd-diag explain` keeps it, of `failed_traced`; its pivot is the second token."""
    row = failed_traced(run)
    trace = run.trace("student").query("item_id == @row.item_id and sample == @row['sample']")
    record = run.records("student").query("item_id == @row.item_id and sample == @row['sample']").iloc[0]
    tokens = [
        {
            "position": int(r["position"]), "token_id": 5, "token": r["token"], "sampled": True, "label": r["label"], "set": "",
            "confidence": float(r["confidence"]), "contested": bool(r["contested"]), "logp": {"student": -0.5, "base": -1.0},
            "shares": {"teacher-math": 0.5, "own": 0.5},
        }
        for r in trace.to_dict("records")
    ]  # fmt: skip
    estimate = Estimate(0.5, 0.4, 0.6).to_dict()
    curve = [
        {
            "position": t["position"],
            "successes": 32,
            "value": 0.9 if t["position"] < 2 else 0.1,
            "low": 0.05,
            "high": 0.95,
        }
        for t in tokens
    ]
    top = [{"token_id": 5, "token": "<b>likely</b>", "p": 0.7}, {"token_id": 6, "token": "7", "p": 0.2}]
    member = {"p_own": 0.25, "top": top}
    document = {
        "schema": 1, "item_id": row["item_id"], "sample": int(row["sample"]), "domain": row["domain"], "prompt": record["prompt"],
        "response": record["response"], "failure": "lost", "teacher": "teacher-math", "routed": "teacher-math", "reason": "",
        "share_own": 0.3,
        "target": "the right one", "truncated": False, "seed": 0, "rollouts": 64, "temperature": 1.0, "tokens": tokens,
        "everywhere": {str(t["position"]): {"student": member, "teacher-math": member} for t in tokens},
        "values": {"student": curve, "teacher-math": curve},
        "pivot": {"position": 1, "likeliest": 1, "by": "student", "probability": 1.0, "fall": estimate | {"unit": "difference"},
                  "candidates": [1], "reason": ""},
        "alternatives": {
            "position": 1, "how": "pivot", "token": tokens[1]["token"], "members": dict.fromkeys(("student", "teacher-math"), member),
        },
        "conflict": None,
        "counterfactual": {
            "position": 1, "arms": dict.fromkeys(("own", "teacher", "redraw", "random"), estimate), "own_token": "a", "teacher_token": "b",
            "teacher_p": 0.9, "teacher_agrees": False, "random_tokens": ["x"], "gain_over_own": estimate, "gain_over_random": estimate,
        },
        "cost": {"continuations": 1, "tokens": 1, "seconds": 0.1},
    }  # fmt: skip
    write_json(explanation_path(run, str(row["item_id"]), int(row["sample"])), document)
    return document


def open_page(root: Path, name: str, monkeypatch: Any, **query: object) -> AppTest:
    """A page of the app over `root`, run once with these values in its URL."""
    monkeypatch.setenv(FOLDER, str(root))
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    app._page_hash = "" if name == "overview" else calc_hash(name)  # `switch_page` knows pages that are files only
    for key, value in query.items():
        app.query_params[key] = str(value)
    return app.run()


def words(app: AppTest) -> str:
    """All HTML of a page."""
    return "\n".join(str(e.proto.body) for e in app.get("html"))


def value(app: AppTest, name: str) -> str | None:
    """One value of the URL."""
    found = app.query_params.get(name)
    return found[0] if isinstance(found, list) else found
