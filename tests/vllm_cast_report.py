"""Run under a Python that has vLLM: attributes a cast by vLLM and prints one line of JSON.

`vllm_cast_report.py CAST ROLLOUTS PROMPTS K [PACKAGES]`; PACKAGES: a folder of packages for what that Python lacks; its own come first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path += sys.argv[5:]

import torch

import mopd_diag


def main(cast: str, rollouts: str, prompts: str, k: int) -> None:
    notes: list[str] = []
    how = {"engine": "vllm", "top_k": k, "warn": notes.append}
    found = mopd_diag.attribute(cast, rollouts=rollouts, **how)
    drawn = [mopd_diag.attribute(cast, prompts=prompts, max_new_tokens=12, seed=seed, **how) for seed in (0, 0, 1)]
    columns = [c for c in found.tokens if c.startswith(("logp_", "kl_"))]
    report = {
        "labels": found.answers["label"].tolist(),
        "tokens": {c: found.tokens[c].tolist() for c in columns},
        "notes": notes,
        "drawn": [d.answers["response"].tolist() for d in drawn],
        "drawn_labels": [d.summary() for d in drawn],
    }
    print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
