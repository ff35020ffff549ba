"""What a path costs with 2, 4, … 12 teachers, and what each more teacher brings: recipe `deepseek-v4`, one specialist a domain.

The worlds are nested: K teachers teach the first K domains of a seed's own random order, so that long and short answers do not
stand in the same place in every seed. The cold start stands for pretraining and counts for nobody, as in a study.
Every run is evaluated, traced and diagnosed, so that the cost of looking is measured too.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from bench.timing import machine, table
from mopd_diag.diagnostics.accuracy import OVERALL, accuracy
from mopd_diag.diagnostics.study import caps_of
from mopd_diag.reporting.paths import critical_path, path_cost
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.study.resolve import find_plan
from mopd_diag.study.run import ledger, run_study

RECIPE, BUDGET = "deepseek-v4", "smoke"
TEACHERS = (2, 4, 6, 8, 12)
SCALED = ("flops", "tokens_sampled", "tokens_trained", "seconds", "tracing_seconds")
"""What must not grow faster than the number of teachers."""
LEVEL = 0.95


def run(seeds: Sequence[int] = (0,), out: Path | None = None, teachers: Sequence[int] = TEACHERS) -> dict[str, Any]:
    """The bench's document. Runs are kept in `out`/sSEED/K (default runs/teachers) and found there by the next call."""
    console, folder = Console(stderr=True), out or Path("runs") / "teachers"
    domains = list(find_plan(RECIPE, budget=BUDGET, world="micro").world.domains)
    points = []
    for seed in seeds:
        order = random.Random(seed).sample(domains, len(domains))
        for k in teachers:
            study = find_plan(RECIPE, seed=seed, budget=BUDGET, world=f"micro:{','.join(order[:k])}")
            console.print(f"[dim]seed {seed}, {k} teachers[/]")
            points.append(
                {
                    "seed": seed,
                    "teachers": k,
                    **_point(run_study(study, folder / f"s{seed}" / f"k{k}", console=console)),
                }
            )
    figures = {
        "bench": "teachers", "recipe": RECIPE, "budget": BUDGET, "seeds": list(seeds), "machine": machine(), "points": points,
        "exponents": {name: exponent((p["teachers"], p[name]) for p in points) for name in (*SCALED, "critical_seconds")},
    }  # fmt: skip
    console.print(f"plot in {draw(figures, folder / 'teachers.png')}")
    return figures


def _point(directory: RunDirectory) -> dict[str, float]:
    """What one run cost and brought."""
    rows = ledger(directory)
    student = path_cost(rows, "student").counts
    own = rows[rows["stage"] == "student"].iloc[0]
    trained = rows[~rows["stage"].str.contains(":") & (rows["stage"] != "base")]
    traced = rows[rows["stage"].str.startswith("trace:student")]
    chain, seconds = critical_path(trained, "student")
    answers = accuracy(directory.records("base", "student"))
    return {
        **{name: float(student[name]) for name in ("flops", "tokens_sampled", "tokens_trained", "seconds")},
        "student_share": float(own["flops"]) / student["flops"],
        "tracing_seconds": float(traced["seconds"].sum()),
        "critical_seconds": seconds,
        "critical_stages": len(chain),
        "base": answers["base"][OVERALL].value,
        "student": answers["student"][OVERALL].value,
        "recovery": caps_of(directory).mean_recovery.value,
    }


def exponent(points: Iterable[tuple[float, float]]) -> dict[str, float]:
    """The slope of log cost over log teachers by least squares, with its 95 % interval (t, all seeds' points alike)."""
    x, y = np.log(np.array(list(points), dtype=float)).T
    fit = stats.linregress(x, y)
    reach = stats.t.ppf(0.5 + LEVEL / 2, len(x) - 2) * fit.stderr if len(x) > 2 else float("nan")
    return {"value": float(fit.slope), "low": float(fit.slope - reach), "high": float(fit.slope + reach)}


def show(figures: dict[str, Any]) -> None:
    """Print a row for each number of teachers, means over seeds, and the exponents."""
    shown = table(
        f"{figures['recipe']} at {figures['budget']}, seeds {', '.join(map(str, figures['seeds']))}",
        "teachers", "TFLOP", "a teacher", "M tokens", "seconds", "of it student", "unlimited", "tracing", "base", "student", "recovery",
    )  # fmt: skip
    for k in dict.fromkeys(p["teachers"] for p in figures["points"]):
        mean = {
            name: float(np.mean([p[name] for p in figures["points"] if p["teachers"] == k]))
            for name in figures["points"][0]
        }
        shown.add_row(
            str(k), f"{mean['flops'] / 1e12:.2f}", f"{mean['flops'] / 1e12 / k:.3f}",
            f"{(mean['tokens_sampled'] + mean['tokens_trained']) / 1e6:.2f}", f"{mean['seconds']:.0f}",
            f"{mean['student_share']:.0%}", f"{mean['critical_seconds']:.0f} s", f"{mean['tracing_seconds']:.1f} s",
            f"{mean['base']:.0%}", f"{mean['student']:.0%}", f"{mean['recovery']:.2f}",
        )  # fmt: skip
    console = Console(width=140)
    console.print(shown)
    for name, e in figures["exponents"].items():
        console.print(f"{name}: grows as teachers^{e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}]")


def draw(figures: dict[str, Any], path: Path) -> Path:
    """A picture of cost against teachers on two logarithmic axes, with the line of exponent one (PNG or SVG by its ending)."""
    import altair as alt
    import pandas as pd

    frame = pd.DataFrame(figures["points"])
    lowest = frame["teachers"].min()
    panels = []
    for name, title in (
        ("flops", "FLOPs of the path"),
        ("seconds", "seconds of work"),
        ("tracing_seconds", "seconds of tracing"),
    ):
        start = float(frame.loc[frame["teachers"] == lowest, name].mean())
        line = pd.DataFrame({"teachers": sorted(set(frame["teachers"]))})
        line[name] = start * line["teachers"] / lowest
        span = [0.8 * min(frame[name].min(), line[name].min()), 1.25 * max(frame[name].max(), line[name].max())]
        across = alt.Scale(type="log", nice=False, domain=[0.85 * lowest, 1.18 * frame["teachers"].max()])
        axes = {
            "x": alt.X("teachers:Q", scale=across, axis=alt.Axis(values=line["teachers"].tolist(), format="d")),
            "y": alt.Y(
                f"{name}:Q", title=title, axis=alt.Axis(format="~s", tickCount=5),
                scale=alt.Scale(type="log", nice=False, domain=[float(v) for v in span]),
            ),
        }  # fmt: skip
        e = figures["exponents"][name]
        told = f"exponent {e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}]"
        panels.append(
            (
                alt.Chart(line).mark_line(strokeDash=[4, 3], color="#777").encode(**axes)
                + alt.Chart(frame).mark_point(filled=True, size=45, color="#1f5fa8").encode(**axes, shape=alt.Shape("seed:N", title="seed"))
            ).properties(width=220, height=220, title=told)
        )  # fmt: skip
    alt.hconcat(*panels).properties(background="white").save(path)
    return path
