"""Make the calibration file: `python -m bench.provenance.learn SEED … [--out runs/provenance]`.

Weights are fitted on all seeds; the operating points and the scores in the file come from leaving one seed out after the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.provenance import cast as c
from bench.provenance.cases import Cast, cases, one_thread
from bench.provenance.fit import fit
from bench.provenance.judged import Judged, judged
from bench.provenance.methods import ours
from bench.provenance.run import ITEMS
from bench.provenance.scores import Table, reliability, scores, tabulate
from mopd_diag import diagnostics
from mopd_diag.diagnostics.calibration import FILE, SCHEMA
from mopd_diag.estimators.origin import Model
from mopd_diag.study.resolve import resolve
from mopd_diag.study.run import train_study

FALSE = 0.02
"""Share of false accusations, and of false acquittals, allowed on held-out seeds in every kind of case."""
SURE = np.round(np.arange(0.5, 0.991, 0.01), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs") / "provenance")
    asked = parser.parse_args()
    one_thread()
    console = Console(stderr=True)
    known: dict[int, list[Judged]] = {}
    for seed in asked.seeds:
        run = train_study(resolve(c.plan(seed)), asked.out / f"s{seed}", console=console)
        known[seed] = judged(cases(Cast(run.path / "models", seed, ITEMS)))
    held = Table.join(
        [
            tabulate(
                [(seed, j) for j in known[seed]], ours(Model.of(fit([j for s in known if s != seed for j in known[s]])))
            )
            for seed in known
        ]
    )
    sure = {"teacher": accusing(held), "own": acquitting(held)}
    found = scores(held, sure)
    document = {
        "schema": SCHEMA,
        "sure": sure,
        **fit([j for each in known.values() for j in each]),
        "made": {
            "command": "python -m bench.provenance.learn " + " ".join(map(str, asked.seeds)),
            "seeds": asked.seeds,
            "items_a_domain": ITEMS,
            "groups": len(held.kind),
            "made": datetime.now(UTC).date().isoformat(),
            "casts": "micro world, six domains, five teachers; see bench/provenance/cast.py",
        },
        "held_out": {
            k: round(found[k].value, 4)
            for k in (
                "top1",
                "auroc_own",
                "auroc_control",
                "ece",
                "accuracy_at_70",
                "coverage",
                "false_accusation",
                "false_acquittal",
            )
        },
        "reliability": reliability(held),
    }
    path = Path(str(resources.files(diagnostics).joinpath(FILE)))
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.print_json(data=document)


def accusing(table: Table) -> float:
    """The least confidence at which no kind of case without a listed teacher has more than `FALSE` of its items given to one."""
    return _least(table, table.accuses, ("control", "unlisted", "own", "base", "marked"))


def acquitting(table: Table) -> float:
    """The least confidence at which no kind of taught case has more than `FALSE` of its items said to be nobody's."""
    return _least(table, ~table.accuses & ~table.right, ("single", "swapped", "routed", "quirk", "twin"))


def _least(table: Table, wrong: np.ndarray, kinds: Sequence[str]) -> float:
    for sure in SURE:
        told = (table.confidence >= sure) & wrong
        if all(told[table.kind == kind].mean() <= FALSE for kind in kinds):
            return float(sure)
    return float(SURE[-1])


if __name__ == "__main__":
    main()
