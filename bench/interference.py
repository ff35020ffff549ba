"""`mopd-diag bench interference`: are planted conflicts told from their gradients, and does geometry foresee the transfer matrix?

For each seed and each world whose truth is known, one base and one specialist a domain are trained. Pairs of domains are ranked by the
energy-weighted conflict over modules, by the cosine over all parameters (its negative), and by the first-order effect of one domain's
step on the other (the lower of the two directions), against what was planted and against what was measured: a pair in which one
specialist surely harmed the other's domain, planted or not. Then every sure change between different domains (`harm` or `help`) is held
against the sign that the geometry says, beside what always saying the commoner sign would have got.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table as Grid

from mopd_diag.config import EvaluationConfig, Plan, WorldConfig
from mopd_diag.diagnostics.geometry import Pair
from mopd_diag.diagnostics.study import geometry_of, interference_of
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.gradients import auroc
from mopd_diag.recipes.parts import by_domain, cold_start, specialists
from mopd_diag.reporting import text
from mopd_diag.study.resolve import resolve
from mopd_diag.study.run import run_study
from mopd_diag.types import Estimate
from mopd_diag.worlds import load_world
from mopd_diag.worlds.micro.planted import planted_relations

WORLDS = ("planted", "entangled")
SCORES = ("modules", "whole", "first order")
FORETOLD = ("geometry", "first order", "whole")
"""What says a sign: a fight in some modules or else the first order; the first order alone; the cosine over everything."""
Cell = tuple[str, bool, dict[str, bool]]
"""Cluster, whether the other domain was helped, whether each of FORETOLD says so; of one sure change."""
ITEMS, SAMPLES = 128, 4
REPLICATES = 4000


def run(seeds: Sequence[int] = (0,), out: Path | None = None) -> dict[str, Any]:
    """The bench's document. Casts are trained in `out`/WORLD-sSEED (default runs/interference) and found there by the next call."""
    console = Console(stderr=True)
    result: dict[str, Any] = {"bench": "interference", "seeds": list(seeds), "worlds": {}}
    signs: dict[str, list[Cell]] = {}
    for world in WORLDS:
        casts = list[list[Pair]]()
        for seed in seeds:
            folder = (out or Path("runs") / "interference") / f"{world}-s{seed}"
            console.print(f"[dim]{world}, seed {seed}: one base, one specialist a domain in {folder}[/]")
            casts.append(_pairs(plan(world, seed), folder, console))
            signs.setdefault(world, []).extend(_signs(casts[-1], seed))
        relations = planted_relations(load_world(world).domains)
        planted_SP = np.array([[relations[frozenset(p.domains)] == "conflict" for p in one] for one in casts])
        harmed_SP = np.array([[_harmed(p) for p in one] for one in casts])
        flagged_SP = np.array([[p.verdict in ("conflict", "mixed") for p in one] for one in casts])
        score = {s: np.array([[_scores(p)[s] for p in one] for one in casts]) for s in SCORES}
        result["worlds"][world] = {
            "pairs": planted_SP.shape[1],
            "planted": int(planted_SP[0].sum()),
            "harmed": harmed_SP.sum(1).tolist(),
            "auroc_planted": {s: _ranking(score[s], planted_SP) for s in SCORES},
            "auroc_harmed": {s: _ranking(score[s], harmed_SP) for s in SCORES},
            "flagged": {
                "planted": [int((flagged_SP & planted_SP).sum()), int(planted_SP.sum())],
                "harmed": [int((flagged_SP & harmed_SP).sum()), int(harmed_SP.sum())],
                "neither": [int((flagged_SP & ~harmed_SP & ~planted_SP).sum()), int((~harmed_SP & ~planted_SP).sum())],
            },
            "whole_cosine_of_planted": [
                (-one[flags]).tolist() for one, flags in zip(score["whole"], planted_SP, strict=True)
            ],
            "signs": _agreement(signs[world]),
        }
    result["signs"] = _agreement([cell for cells in signs.values() for cell in cells])
    return result


def plan(world: str, seed: int) -> Plan:
    """The plan that trains the cast of one seed: what recipes of this package do at the budget `smoke`."""
    found = load_world(world)
    stages = (cold_start(found, "smoke"), *specialists(by_domain(found), "smoke"))
    return Plan(
        name="interference", world=WorldConfig(name=world, domains=tuple(found.domains)), stages=stages, seed=seed,
        evaluation=EvaluationConfig(items=ITEMS, samples=SAMPLES),
    )  # fmt: skip


def _pairs(asked: Plan, folder: Path, console: Console) -> list[Pair]:
    directory = run_study(resolve(asked), folder, console=console)
    found = geometry_of(directory, interference_of(directory))
    if found is None:
        raise RuntimeError(f"{folder} holds no geometry.json")
    return found.pairs


def _scores(p: Pair) -> dict[str, float]:
    """The higher, the more of a conflict."""
    return {"modules": p.conflict.value, "whole": -p.whole, "first order": -min(p.effects.values())}


def _signs(pairs: Sequence[Pair], seed: int) -> list[Cell]:
    """Every sure change between two domains."""
    return [
        (
            f"{seed} {' '.join(p.domains)}",
            cell.verdict == "help",
            {"geometry": p.foreseen[trained] == "help", "first order": p.effects[trained] > 0, "whole": p.whole > 0},
        )
        for p in pairs
        for trained, cells in p.transfer.items()
        for cell in cells.values()
        if cell.verdict in ("harm", "help")
    ]


def _agreement(cells: Sequence[Cell]) -> dict[str, Any]:
    clusters, helped = [c[0] for c in cells], np.array([c[1] for c in cells], dtype=bool)
    told = {name: np.array([c[2][name] for c in cells], dtype=bool) for name in FORETOLD}
    right = {
        name: Bootstrap.of((said == helped).astype(float), clusters=clusters).column(0) for name, said in told.items()
    }
    return {
        "cells": len(cells), "harm": int((~helped).sum()), "help": int(helped.sum()),
        "commoner_sign": float(max(helped.mean(), 1 - helped.mean())) if len(cells) else None,
        "right": {name: e.to_dict() for name, e in right.items()},
        "harm_foreseen": {name: float((~said[~helped]).mean()) if (~helped).any() else None for name, said in told.items()},
    }  # fmt: skip


def _harmed(p: Pair) -> bool:
    """Whether training on one of the two surely harmed the other."""
    return any(cell.verdict == "harm" for cells in p.transfer.values() for cell in cells.values())


def _ranking(score_SP: npt.NDArray[Any], positive_SP: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """AUROC, the mean over seeds; interval by resampling pairs, those that are ever positive apart, all seeds of a pair together."""
    ever: npt.NDArray[np.bool_] = np.asarray(positive_SP.any(axis=0))
    if not ever.any():
        return Estimate.undefined("no pair is positive", n_items=len(ever)).to_dict()
    mean = lambda pick: float(np.nanmean([auroc(s[pick], p[pick]) for s, p in zip(score_SP, positive_SP, strict=True)]))  # noqa: E731
    yes, no, rng = np.flatnonzero(ever), np.flatnonzero(~ever), np.random.default_rng(0)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a draw may leave a seed without positives
        drawn = [mean(np.concatenate([rng.choice(yes, len(yes)), rng.choice(no, len(no))])) for _ in range(REPLICATES)]
        value = mean(np.arange(len(ever)))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    method = f"percentile bootstrap over pairs, {REPLICATES} replicates"
    found = Estimate(value, float(low), float(high), n_items=len(ever), n_clusters=len(ever), method=method)
    by_seed = [auroc(s, p) for s, p in zip(score_SP, positive_SP, strict=True)]
    return found.to_dict() | {"by_seed": [None if np.isnan(x) else x for x in by_seed]}


def show(result: dict[str, Any]) -> None:
    """The document as tables."""
    console = Console()
    ranks = Grid("world", "against", *(f"AUROC by {s}" for s in SCORES), "flagged", box=None)
    signs = Grid(
        "world",
        "sure changes",
        "harm",
        *(f"sign right, {f}" for f in FORETOLD),
        "commoner sign",
        "harm foreseen",
        box=None,
    )
    for world, found in result["worlds"].items():
        for truth in ("planted", "harmed"):
            flagged, of = found["flagged"][truth]
            ranks.add_row(world, truth, *(_said(found[f"auroc_{truth}"][s], 2) for s in SCORES), f"{flagged} of {of}")
        ranks.add_row(world, "neither", *["–"] * len(SCORES), "{} of {}".format(*found["flagged"]["neither"]))
    for world, found in (*((w, f["signs"]) for w, f in result["worlds"].items()), ("both", result["signs"])):
        right = [_said(found["right"][k], 2) for k in FORETOLD]
        caught = found["harm_foreseen"]["geometry"]
        commoner = "–" if found["commoner_sign"] is None else text.fixed(found["commoner_sign"], 2)
        signs.add_row(
            world,
            str(found["cells"]),
            str(found["harm"]),
            *right,
            commoner,
            "–" if caught is None else text.percent(caught),
        )
    console.print(ranks)
    for world, found in result["worlds"].items():
        cosines = ", ".join(text.fixed(c, 2) for one in found["whole_cosine_of_planted"] for c in one)
        console.print(f"{world}: cosine over everything of the planted conflicts {cosines}", highlight=False)
    console.print(signs)


def _said(table: dict[str, Any], digits: int) -> str:
    if table["value"] is None:
        return text.UNKNOWN
    return f"{table['value']:.{digits}f} [{table['low']:.{digits}f}, {table['high']:.{digits}f}]"
