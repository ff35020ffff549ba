"""`mopd-diag bench provenance`: train casts whose truth is known, ask who taught what, and count how often the answer is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from bench.provenance import cast as c
from bench.provenance.cases import Cast, cases, one_thread, probability
from bench.provenance.judged import Judged, judged
from bench.provenance.methods import BASELINES, Said, ours
from bench.provenance.scores import Table, calibration_error, estimate, rank_agreement, scores, tabulate, told_at
from mopd_diag.diagnostics.calibration import packaged
from mopd_diag.study.resolve import resolve
from mopd_diag.study.run import train_study
from mopd_diag.types import Estimate

ITEMS = 96
BASELINE_SURE = {"teacher": 0.5, "own": 0.5}
"""The operating points of the baselines: they say what they hold more likely than not."""
NO_EFFECT, NO_SHARE = 0.02, 0.1
KEYS = ("top1", "auroc_own", "auroc_control", "ece", "accuracy_at_70", "coverage", "false_accusation", "causal_rank")


def run(seeds: Sequence[int] = (0,), out: Path | None = None) -> dict[str, Any]:
    """The bench's document. Casts are trained in `out`/sSEED (default runs/provenance) and found there by the next call."""
    one_thread()
    console = Console(stderr=True)
    known: list[tuple[int, Judged]] = []
    effects: list[tuple[int, Judged, np.ndarray]] = []
    for seed in seeds:
        folder = (out or Path("runs") / "provenance") / f"s{seed}"
        console.print(f"[dim]seed {seed}: training the cast in {folder} (about four minutes on two idle cores)[/]")
        directory = train_study(resolve(c.plan(seed)), folder, console=console)
        with console.status(f"seed {seed}: asking who taught what"):
            trained = Cast(directory.path / "models", seed, ITEMS)
            found = judged(cases(trained))
            known += [(seed, j) for j in found]
            routed = next(j for j in found if j.case.kind == "routed")
            effects.append((seed, routed, _effects(trained)))
    calibration = packaged()
    methods = {"ours": ours(calibration.model), **BASELINES}
    told = {}
    for name, say in methods.items():
        table = tabulate(known, say)
        told[name] = scores(table, calibration.sure if name == "ours" else BASELINE_SURE)
        told[name]["causal_rank"] = _causal_rank(effects, say, ties=True)
        told[name]["causal_rank_untied"] = _causal_rank(effects, say, ties=False)
        if name == "ours":
            told[name]["kinds"] = _kinds(table, calibration.sure)
    mine = told.pop("ours")
    return {
        **{k: _plain(mine[k]) for k in KEYS},
        **{k: _plain(v) for k, v in mine.items() if k not in KEYS},
        "baselines": {name: {k: _plain(v) for k, v in d.items()} for name, d in told.items()},
        "seeds": list(seeds),
        "items_a_domain": ITEMS,
        "sure": dict(calibration.sure),
        "calibration": dict(calibration.made),
    }


def _effects(cast: Cast) -> np.ndarray:
    """P(answer | student) − P(answer | student trained without teacher k) of each answer of the routed student: (A, K)."""
    answers = cast.answers("student-routed")
    with_all = probability(cast, answers, "student-routed")
    return np.stack([with_all - probability(cast, answers, f"student-without-{k}") for k in c.TAUGHT], 1)


def _causal_rank(
    effects: Sequence[tuple[int, Judged, np.ndarray]], say: Callable[[Judged], Said], *, ties: bool
) -> Estimate:
    """Spearman between what each teacher is held to explain of a domain's answers and what leaving it out does to them.

    One pair for each domain (the untaught one too) and teacher: means over the domain's answers. With `ties`, effects that cannot be
    told from none (interval over prompts covers 0, or below `NO_EFFECT`) and shares below `NO_SHARE` count as none: without, most
    ranks are those of noise, because a teacher has no effect on most domains.
    """
    cell, cluster, share, effect = [], [], [], []
    for seed, j, effect_AK in effects:
        cell += [f"{seed}:{d}" for d in j.case.domain_A]
        cluster += [f"{seed}:{i}" for i in j.case.item_A]
        share.append(say(_everything(j)).share_NK)
        effect.append(effect_AK)
    cell_A = np.unique(cell, return_inverse=True)[1]
    share_AK, effect_AK = np.concatenate(share), np.concatenate(effect)

    def means(values_AK: np.ndarray, w: np.ndarray) -> np.ndarray:
        total = np.bincount(cell_A, w)
        sums = np.stack([np.bincount(cell_A, w * column) for column in values_AK.T], 1)
        return sums / np.maximum(total, 1e-12)[:, None]

    one = np.ones(len(cell_A))
    mean = means(effect_AK, one)
    error = np.sqrt((means(effect_AK**2, one) - mean**2) / np.bincount(cell_A)[:, None])
    is_none = ties & (np.abs(mean) < np.maximum(1.96 * error, NO_EFFECT))

    def statistic(w: np.ndarray) -> float:
        shares_, effects_ = means(share_AK, w), np.where(is_none, 0, means(effect_AK, w))
        if ties:
            shares_ = np.where(shares_ < NO_SHARE, 0, shares_)
        return rank_agreement(shares_.ravel(), effects_.ravel())

    return estimate(np.array(cluster), statistic)


def _everything(j: Judged) -> Judged:
    """The routed student's case with every answer asked, the untaught domain's too."""
    return judged([replace(j.case, asked_A=np.ones(len(j.case.domain_A), dtype=bool))])[0]


def _kinds(table: Table, sure: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What happens in each kind of case: so that a good mean does not hide a bad kind."""
    found = {}
    for kind in dict.fromkeys(table.kind):
        t = table.take(table.kind == kind)
        told, one = told_at(t, sure), np.ones(len(t.kind))
        found[str(kind)] = {
            "items": len(t.kind),
            "first_right": float(t.first_right.mean()),
            "told": float(told.mean()),
            "right_when_told": float(t.right[told].mean()) if told.any() else float("nan"),
            "given_to_a_teacher": float((told & t.accuses).mean()),
            "said_own": float((told & ~t.accuses & ~t.existing).mean()),
            "confidence": float(t.confidence.mean()),
            "accuracy": float(t.right.mean()),
            "ece": calibration_error(t.confidence, t.right.astype(float), one),
        }
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_dict()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def show(document: dict[str, Any]) -> None:
    """The document as tables."""
    console = Console(width=None)
    grid = Grid(
        "",
        "ours",
        *document["baselines"],
        title=f"seeds {document['seeds']}, {document['items_a_domain']} prompts a domain",
    )
    for key in KEYS:
        grid.add_row(key, *(_cell(d[key]) for d in (document, *document["baselines"].values())))
    console.print(grid)
    domains = Grid("auroc_control", *document["auroc_control_by_domain"])
    domains.add_row("ours", *(_cell(e) for e in document["auroc_control_by_domain"].values()))
    console.print(domains)
    kinds = Grid("kind of case", *next(iter(document["kinds"].values())))
    for kind, row in document["kinds"].items():
        kinds.add_row(
            kind, *("–" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        )
    console.print(kinds)


def _cell(e: dict[str, Any]) -> str:
    return "–" if e["value"] is None else f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"
