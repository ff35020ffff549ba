"""Everything the report says about a run, gathered once; HTML and Markdown only set it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd

from mopd_diag.diagnostics.accuracy import accuracy as accuracy_of
from mopd_diag.diagnostics.geometry import GeometryReport
from mopd_diag.errors import BadInput
from mopd_diag.reporting import tables, text, words
from mopd_diag.reporting.charts_cost import CostPoint, curve_of
from mopd_diag.reporting.evidence import Failure, failures
from mopd_diag.reporting.geometry import geometry_sentence, geometry_tables, read_geometry
from mopd_diag.reporting.glossary import GLOSSARY
from mopd_diag.reporting.look import Cast
from mopd_diag.reporting.paths import critical_path, line_of, model_share, path_cost, wall_seconds
from mopd_diag.reporting.probe import probe_sentence, probe_table
from mopd_diag.reporting.reading import OVERALL, STUDENT, Reading
from mopd_diag.reporting.teachers import TeacherCost, teacher_costs, teachers_table
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Estimate

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """A run as the report shows it. `missing` says in sentences what the run does not have; empty parts are left out."""

    title: str
    summary: str
    facts: list[tuple[str, str]]
    answers: list[words.Answer]
    cast: Cast
    reading: Reading
    accuracy: Mapping[str, Mapping[str, Estimate]]
    ledger: pd.DataFrame
    critical: list[str]
    cost_sentence: str
    matched_sentence: str
    probe_sentence: str
    curves: dict[str, pd.DataFrame]
    failures: list[Failure]
    tables: dict[str, tables.Table]
    method: list[tuple[str, str]]
    missing: list[str]
    geometry: GeometryReport | None
    geometry_sentence: str
    glossary: list[tuple[str, str]] = field(default_factory=lambda: GLOSSARY)

    def cost_points(self) -> list[CostPoint]:
        """Result against FLOPs of the whole path for base, student and rivals; none when the ledger counted no FLOPs."""
        if self.ledger.empty or "flops" not in self.ledger.columns or not float(self.ledger["flops"].sum()):
            return []
        stages = set(self.ledger["stage"].astype(str))
        models = [m for m in self.cast.with_role("base", "student", "rival", "control") if m in stages]
        told = [m for m in models if OVERALL in self.accuracy.get(m, {})]
        return [CostPoint(m, path_cost(self.ledger, m).counts["flops"], self.accuracy[m][OVERALL]) for m in told]


def view_of(run: RunDirectory, *, tokens: bool = True) -> View:
    """Read a run directory. Only the manifest is required; each other part that is missing becomes a sentence.

    Without `tokens` the trace is not read and no failure is shown token by token.
    """
    missing: list[str] = []

    def part(read: Callable[[], T], instead: T, lost: str) -> T:
        try:
            return read()
        except BadInput as error:
            missing.append(f"{lost}: {error}")
            return instead

    manifest = run.manifest()
    records = part(run.records, pd.DataFrame(), "No accuracies and no failures")
    found = part(run.findings, [], "No diagnosis")
    ledger = part(run.ledger, pd.DataFrame(), "No ledger and no costs")
    cast = Cast.of(manifest, _distinct(records, "model"), _distinct(records, "domain"))
    records = records[records["model"].isin(list(cast.roles))] if len(records) else records
    reading = Reading.of(found, cast.domains)
    accuracy = part(lambda: accuracy_of(records), {}, "No accuracies") if len(records) else {}
    critical, seconds = critical_path(ledger, STUDENT) if len(ledger) else ([], 0.0)
    costs = part(lambda: teacher_costs(records, ledger, cast), [], "No costs of single teachers")
    shown = _failures(run, records, cast, reading, missing) if tokens else []
    geometry = part(lambda: read_geometry(run, reading), None, "No comparison of the domains' gradients")
    return View(
        title=str(_plan(manifest).get("name") or run.path.name),
        summary=str(_plan(manifest).get("summary") or ""),
        facts=_facts(manifest, ledger, cast),
        answers=words.answers(reading, cast),
        cast=cast,
        reading=reading,
        accuracy=accuracy,
        ledger=ledger,
        critical=critical,
        cost_sentence=_cost_sentence(manifest, ledger, critical, seconds),
        matched_sentence=_matched_sentence(ledger),
        probe_sentence=probe_sentence(reading),
        curves=_curves(run, manifest, cast),
        failures=shown,
        tables=_tables(accuracy, ledger, costs, reading, cast, critical)
        | {name: table for name, table in geometry_tables(geometry).items() if table.rows},
        method=_method(manifest, records, reading, accuracy),
        missing=missing,
        geometry=geometry,
        geometry_sentence=geometry_sentence(geometry),
    )


def _distinct(frame: pd.DataFrame, column: str) -> list[str]:
    return [str(v) for v in frame[column].unique()] if column in frame.columns else []


def _plan(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    plan = manifest.get("plan")
    return plan if isinstance(plan, Mapping) else {}


def _facts(manifest: Mapping[str, Any], ledger: pd.DataFrame, cast: Cast) -> list[tuple[str, str]]:
    """What was trained, where and when: the line under the title."""
    plan = _plan(manifest)
    world = plan.get("world")
    name = world.get("name") if isinstance(world, Mapping) else world
    roles = [(cast.with_role(r), r) for r in ("teacher", "student", "rival", "control")]
    hardware = manifest.get("hardware")
    machine = ", ".join(_hardware(hardware)) if isinstance(hardware, Mapping) else ""
    facts = [
        ("world", f"{name or '–'}: {', '.join(cast.domains)}"),
        ("cast", text.listed(["base", *(text.plural(len(m), r) for m, r in roles if m)])),
        ("budget", str(plan.get("budget", "–"))),
        ("seed", str(plan.get("seed", "–"))),
        ("wall time", _wall(manifest, ledger)),
        ("machine", machine or "–"),
        ("made", str(manifest.get("created", "–"))[:16].replace("T", " ")),
    ]
    return [(k, v) for k, v in facts if v != "–"]


def _wall(manifest: Mapping[str, Any], ledger: pd.DataFrame) -> str:
    wall = manifest.get("wall_seconds", wall_seconds(ledger))
    return text.duration(float(wall)) if isinstance(wall, int | float) and wall == wall else "–"


def _hardware(table: Mapping[str, Any]) -> list[str]:
    """`cores: 2` -> `2 cores`, `memory_bytes: 8e9` -> `8 GB memory`, names of things as they are, the architecture left out."""
    said = []
    for name, value in table.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            plain, unit = (name.removesuffix("_bytes"), 1e9) if name.endswith("_bytes") else (name, 1.0)
            said.append(f"{value / unit:.3g} {'GB ' if unit > 1 else ''}{plain.replace('_', ' ')}")
        elif value and name != "machine":
            said.append(str(value))
    return said


def _failures(
    run: RunDirectory, records: pd.DataFrame, cast: Cast, reading: Reading, missing: list[str]
) -> list[Failure]:
    name = next((n for n in run.trace_names() if n.split(".")[0] == STUDENT or n.startswith(f"{STUDENT}-")), None)
    if name is None:
        missing.append("No token-level evidence: the student's answers have no trace in this run.")
        return []
    trace = run.trace(name)
    needed = {"item_id", "sample", "position"} - set(trace.columns)
    if needed or records.empty:
        missing.append(
            f"No token-level evidence: the trace lacks {text.listed(sorted(needed)) if needed else 'its records'}."
        )
        return []
    return failures(trace, records, cast, reading.cases)


def _curves(run: RunDirectory, manifest: Mapping[str, Any], cast: Cast) -> dict[str, pd.DataFrame]:
    """Training curves by model; the phases of a path that was trained in several follow one another."""
    stages = [str(s.get("name")) for s in manifest.get("stages") or [] if isinstance(s, Mapping)]
    curves: dict[str, list[pd.DataFrame]] = {}
    for stage in dict.fromkeys([*stages, *cast.roles]):
        frame = run.metrics(stage)
        if curve_of(frame) is not None:
            before = curves.setdefault(line_of(stage), [])
            done = float(before[-1]["step"].max()) if before else 0.0
            before.append(frame.assign(step=frame["step"] + done))
    return {line: pd.concat(frames, ignore_index=True) for line, frames in curves.items()}


def _tables(
    accuracy: Mapping[str, Mapping[str, Estimate]],
    ledger: pd.DataFrame,
    costs: list[TeacherCost],
    reading: Reading,
    cast: Cast,
    critical: list[str],
) -> dict[str, tables.Table]:
    """Every table that has rows, by section."""
    made = {
        "accuracy": tables.accuracy_table(accuracy, cast),
        "provenance": tables.provenance_table(reading, cast),
        "consistency": tables.consistency_table(reading),
        "caps": tables.caps_table(reading),
        "probe": probe_table(reading),
        "transfer": tables.transfer_table(reading),
        "rivals": tables.rivals_table(accuracy, ledger, reading, cast),
        "measures": tables.measures_table(reading, cast),
        "failures": tables.failures_table(reading),
        "checks": tables.preflight_table(reading.findings),
        "unknown": tables.unknown_table(reading.unknown),
    }
    if len(ledger):
        made["teachers"] = teachers_table(costs)
        made["ledger"] = tables.ledger_table(ledger, critical)
    return {name: table for name, table in made.items() if table.rows}


def _cost_sentence(manifest: Mapping[str, Any], ledger: pd.DataFrame, critical: list[str], seconds: float) -> str:
    """Work, wall time, critical path and the share of time inside the model, in one breath."""
    if ledger.empty:
        return ""
    wall = _wall(manifest, ledger)
    took = f" in {wall} of wall time" if wall != "–" else ""
    said = [f"All stages together worked {text.duration(float(ledger['seconds'].sum()))}{took}."]
    if critical:
        said.append(
            f"With a machine for every teacher the student would need {text.duration(seconds)} ({' → '.join(critical)})."
        )
    inside = model_share(ledger)
    if inside == inside:
        said.append(f"{text.percent(inside)} of the stages' time was spent inside model forward and backward passes.")
    return " ".join(said)


def _matched_sentence(ledger: pd.DataFrame) -> str:
    """Which stages were given whose budget, by what count."""
    if ledger.empty or not {"matched_to", "matched_on"} <= set(ledger.columns):
        return ""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in ledger.to_dict("records"):
        if row["matched_to"] and isinstance(row["matched_to"], str):
            group = groups.setdefault((row["matched_to"], str(row["matched_on"] or "cost").replace("_", " ")), [])
            group += [line_of(str(row["stage"]))] if line_of(str(row["stage"])) not in group else []
    said = [f"{text.listed(stages)} to {to}, on {on}" for (to, on), stages in groups.items()]
    return f"Budgets were matched: {'; '.join(said)}." if said else ""


def _method(
    manifest: Mapping[str, Any], records: pd.DataFrame, reading: Reading, accuracy: Mapping[str, Mapping[str, Estimate]]
) -> list[tuple[str, str]]:
    """How the numbers were made, as pairs of a name and a sentence."""
    estimates = [f.estimate for f in reading.findings if f.estimate is not None] + [
        e for t in accuracy.values() for e in t.values()
    ]
    methods = list(dict.fromkeys(e.method for e in estimates if e.method))
    levels = sorted({e.level for e in estimates})
    how = f"{text.listed([text.percent(v) for v in levels])} intervals by {text.listed(methods, none='a method not recorded')}."
    never = "Items are the independent units, never tokens; what cannot be computed is unknown, with its reason."
    told = [("intervals", f"{how} {never}")] if estimates else []
    if len(records):
        items = records.groupby("domain")["item_id"].nunique()
        samples = records.groupby(["model", "item_id"]).size()
        per = str(samples.min()) if samples.min() == samples.max() else f"{samples.min()} to {samples.max()}"
        told.append(
            (
                "evaluation",
                f"{', '.join(f'{d} {n}' for d, n in items.items())} held-out items; {per} samples of each by every model.",
            )
        )
    told.append(("seed", str(_plan(manifest).get("seed", "not recorded"))))
    versions, hardware = manifest.get("versions"), manifest.get("hardware")
    if isinstance(versions, Mapping) and versions:
        told.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    if isinstance(hardware, Mapping) and hardware:
        told.append(("hardware", ", ".join(_hardware(hardware))))
    if manifest.get("git"):
        told.append(("code", str(manifest["git"])))
    return told
