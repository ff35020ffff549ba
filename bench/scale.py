"""How the time of scoring and attribution grows with teachers and with tokens, and what a second Ray worker is worth.

Planted casts of micro models: teachers a little away from their base, each in its own direction, a student that took on part of
every teacher's, and a control without teachers, so that the calibrated method is what is timed. One thread, sizes in turn. The
slope of log time over log size is fitted to all rounds; 1 is linear.

Two workers against one: teachers of one small study, trained as Ray tasks on a cluster of two cores, which is started before.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from bench.teachers import exponent
from bench.timing import Rounds, alone, machine, table
from mopd_diag.config import Plan, parse
from mopd_diag.diagnostics.attribution import attribute
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.engines.scoring import score
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.tokenizer import character_tokenizer
from mopd_diag.runs.ray_scheduler import RayScheduler, connected
from mopd_diag.runs.scheduler import Job
from mopd_diag.study.resolve import resolve
from mopd_diag.study.run import claim, make_jobs

TEACHERS, TIMES = (2, 4, 8, 16), (1, 4, 16)
ANSWERS, PROMPT, ANSWER = 128, 12, 24
"""Answers of the smallest size, and their tokens."""
FIXED_TEACHERS = 4
"""Teachers where tokens grow; where teachers grow, there are the smallest size's tokens."""
OPERATIONS = ("scoring", "attribution", "both")
EXPONENT_GOAL, SPEEDUP_GOAL = 1.1, 1.6
DOMAINS = ("addition", "stack", "brackets", "lookup")
MISSING = "Ray is not installed: pip install 'mopd-diag[ray]'"


@dataclass(frozen=True, slots=True)
class Size:
    """What is timed: so many teachers, so many times the smallest number of answers."""

    teachers: int
    times: int

    @property
    def members(self) -> int:
        """Models that read every token: student, base, control and teachers."""
        return self.teachers + 3


def run(rounds: int = 5, seed: int = 0, ray_rounds: int = 3) -> dict[str, Any]:
    """Seconds of each operation at each size, the exponents with their intervals, and the speed-up of two workers."""
    by_teachers = [Size(k, TIMES[0]) for k in TEACHERS]
    by_tokens = [Size(FIXED_TEACHERS, t) for t in TIMES]
    with alone():
        timed = _timed(list(dict.fromkeys([*by_teachers, *by_tokens])), rounds, seed)
        about = machine()
    fits = {
        "teachers": {o: _fit(timed, by_teachers, o, [float(s.teachers) for s in by_teachers]) for o in OPERATIONS},
        "tokens": {o: _fit(timed, by_tokens, o, [float(s.times) for s in by_tokens]) for o in OPERATIONS},
    }
    found = {
        "bench": "scale",
        "goals": {"exponent": EXPONENT_GOAL, "speedup": SPEEDUP_GOAL},
        "machine": about,
        "rounds": rounds,
        "points": [_point(size, timed[size]) for size in timed],
        "exponents": fits,
    }
    if importlib.util.find_spec("ray") is None:
        return {**found, "missing": MISSING}
    return {**found, "ray": _ray(ray_rounds, seed)}


# -- scoring and attribution --------------------------------------------------------------------------------------------------


def _timed(sizes: Sequence[Size], rounds: int, seed: int) -> dict[Size, dict[str, list[float]]]:
    """Seconds of each operation, one entry a round, sizes in an order that turns."""
    generator = torch.Generator().manual_seed(seed)
    cast = planted(max(s.teachers for s in sizes), generator)
    answers = {t: _answers(ANSWERS * t, cast["student"], generator) for t in {s.times for s in sizes}}
    found: dict[Size, dict[str, list[float]]] = {s: {o: [] for o in OPERATIONS} for s in sizes}
    _once(cast, answers[min(answers)], sizes[0])  # warm
    for r in range(rounds):
        for size in [*sizes[r % len(sizes) :], *sizes[: r % len(sizes)]]:
            scoring, attribution = _once(cast, answers[size.times], size)
            for name, seconds in zip(OPERATIONS, (scoring, attribution, scoring + attribution), strict=True):
                found[size][name].append(seconds)
    return found


def planted(teachers: int, generator: torch.Generator) -> dict[str, Decoder]:
    """Micro models around one base: each teacher and the control in its own direction, the student towards all teachers."""
    base = Decoder.fresh(DecoderConfig(character_tokenizer().vocab_size), generator)
    cast = {"student": copy.deepcopy(base), "base": base}
    for name in (*(f"teacher-{i}" for i in range(teachers)), "control"):
        cast[name] = copy.deepcopy(base)
        share = 0.0 if name == "control" else 0.7 / teachers**0.5
        with torch.no_grad():
            for own, students in zip(cast[name].parameters(), cast["student"].parameters(), strict=True):
                shift = 0.02 * torch.randn(own.shape, generator=generator)
                own.add_(shift)
                students.add_(shift, alpha=share)
    return cast


def _answers(answers: int, model: Decoder, generator: torch.Generator) -> Rollouts:
    rows = torch.randint(model.config.vocab_size, (answers, PROMPT + ANSWER), generator=generator).tolist()
    return pack([row[:PROMPT] for row in rows], [row[PROMPT:] for row in rows], 0)


def _once(cast: Mapping[str, Decoder], rollouts: Rollouts, size: Size) -> tuple[float, float]:
    """Seconds of scoring and of attribution."""
    teachers = [f"teacher-{i}" for i in range(size.teachers)]
    members = {name: cast[name] for name in ("student", "base", *teachers, "control")}
    rows = range(len(rollouts))
    frame = pd.DataFrame({"item_id": list(map(str, rows)), "domain": [DOMAINS[i % len(DOMAINS)] for i in rows]})
    started = time.perf_counter()
    scored = score(rollouts, members, "student", teachers)
    between = time.perf_counter()
    attribute(scored.evidence, frame, (scored.token_T.tolist(), ["x"] * len(scored.token_T)))
    return between - started, time.perf_counter() - between


def _fit(
    timed: Mapping[Size, Mapping[str, Sequence[float]]], sizes: Sequence[Size], operation: str, at: Sequence[float]
) -> dict[str, float]:
    return exponent((x, y) for size, x in zip(sizes, at, strict=True) for y in timed[size][operation])


def _point(size: Size, timed: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    tokens = ANSWERS * size.times * ANSWER
    median = {name: float(torch.tensor(values).median()) for name, values in timed.items()}
    return {
        "teachers": size.teachers,
        "tokens": tokens,
        "members": size.members,
        "seconds": median,
        "microseconds_per_token": {name: 1e6 * s / tokens for name, s in median.items()},
        "microseconds_per_token_and_member": {name: 1e6 * s / tokens / size.members for name, s in median.items()},
    }


# -- two workers --------------------------------------------------------------------------------------------------------------


def _ray(rounds: int, seed: int) -> dict[str, Any]:
    """Teachers a second with two workers over one, round by round."""
    measured = Rounds()
    with tempfile.TemporaryDirectory() as folder, connected(workers=2):
        begun = Path(folder) / "base"
        _train(begun, seed, "train-base", 2)
        _teachers(begun, Path(folder) / "warm", seed, 2)  # starts processes, which load torch
        for r in range(rounds):
            for workers in (1, 2) if r % 2 else (2, 1):
                seconds = _teachers(begun, Path(folder) / f"{r}-{workers}", seed, workers)
                measured.add(str(workers), len(DOMAINS), seconds)
    rates = {f"{workers}_workers": len(DOMAINS) / measured.median(str(workers)) for workers in (1, 2)}
    return {"teachers": len(DOMAINS), "seconds": rates, "speedup": measured.ratio("2", "1")}


def _teachers(begun: Path, out: Path, seed: int, workers: int) -> float:
    """Seconds until all teachers are trained from a base that is there."""
    shutil.copytree(begun, out)
    started = time.perf_counter()
    _train(out, seed, "train-teacher", workers)
    return time.perf_counter() - started


def _train(out: Path, seed: int, jobs: str, workers: int) -> None:
    study = resolve(parse(Plan, _plan(seed), "scale"))
    identity = study.identity()
    chosen = [j for j in make_jobs(claim(out, study, identity).path, study, identity) if j.name.startswith(jobs)]
    RayScheduler(out)(chosen, workers, _Silent())


def _plan(seed: int) -> dict[str, Any]:
    base = {"name": "base", "algorithm": "sft", "steps": 150, "decay": 30}
    grpo = {"algorithm": "grpo", "start": "base", "steps": 80, "prompts": 16}
    teachers = [{**grpo, "name": f"teacher-{domain}", "domains": [domain]} for domain in DOMAINS]
    return {"name": "scale", "seed": seed, "world": {"domains": list(DOMAINS)}, "stages": [base, *teachers]}


class _Silent:
    """A watcher that says nothing."""

    def started(self, job: Job) -> None: ...
    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None: ...
    def finished(self, job: Job) -> None: ...


# -- the result ---------------------------------------------------------------------------------------------------------------


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """A row for each size, the exponents, the speed-up."""
    console = console or Console()
    made = table(
        "Scoring and attribution of a planted cast of micro models, one thread",
        "teachers", "tokens", "scoring", "attribution", "both", "µs a token", "µs a token and model",
    )  # fmt: skip
    for p in figures["points"]:
        made.add_row(
            str(p["teachers"]), f"{p['tokens']:,}", *(f"{p['seconds'][o]:.2f} s" for o in OPERATIONS),
            f"{p['microseconds_per_token']['both']:.1f}", f"{p['microseconds_per_token_and_member']['both']:.2f}",
        )  # fmt: skip
    console.print(made)
    for by, fits in figures["exponents"].items():
        told = ", ".join(f"{o} {f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}]" for o, f in fits.items())
        console.print(f"grows with {by} to the power of: {told} (goal: both at most {figures['goals']['exponent']})")
    console.print(figures["missing"] if "missing" in figures else _speedup_line(figures))


def _speedup_line(figures: dict[str, Any]) -> str:
    ray = figures["ray"]
    s, seconds = ray["speedup"], ray["seconds"]
    return (
        f"{ray['teachers']} independent teachers on Ray: {seconds['1_workers']:.1f} s with one worker, {seconds['2_workers']:.1f} s "
        f"with two: {s['median']:.2f} × ({s['low']:.2f} to {s['high']:.2f}; goal {figures['goals']['speedup']})"
    )


if __name__ == "__main__":
    show(run())
