"""All diagnoses of one run, from its records and traces."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mopd_diag.diagnostics import consistency, explained, failures, provenance
from mopd_diag.diagnostics.accuracy import OVERALL, accuracy
from mopd_diag.diagnostics.caps import CapsReport, caps
from mopd_diag.diagnostics.geometry import GeometryReport, geometry_report
from mopd_diag.diagnostics.interference import InterferenceReport, interference
from mopd_diag.diagnostics.probe import ProbeReport, probe_report
from mopd_diag.errors import RunDirectoryError
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Finding
from mopd_diag.worlds.micro.knowledge import TAGS

GATE = (0.25, 0.70)
"""Sampled accuracy of a base that RL can start from: below, groups rarely hold a right answer; above, little is left to gain."""


def diagnose(run: RunDirectory) -> list[Finding]:
    """Findings of every kind that this run has the material for, the most telling first."""
    found: list[Finding] = []
    models = run.manifest()["models"]
    if run.trace_names():
        found += _provenance(run)
    if {"student", "base"} <= models.keys() and _teachers(run):
        student = caps_of(run)
        found += student.findings()
        if (probe := probe_of(run, student)) is not None:
            found += probe.findings()
        transfer = interference_of(run)
        found += transfer.findings()
        if (compared := geometry_of(run, transfer)) is not None:
            found += compared.findings()
        for name in (m for m, table in models.items() if table["role"] in ("rival", "control")):
            found += [f for f in caps_of(run, name).findings() if f.subject.endswith(OVERALL)]
    return found + (_base_gate(run.records("base")) if "base" in models else [])


def caps_of(run: RunDirectory, model: str = "student") -> CapsReport:
    """Caps of a run's student, or of another model in its place. Raises RunDirectoryError for a run without teachers."""
    teachers = _teachers(run)
    if not teachers:
        raise RunDirectoryError(f"{run.path} has no teachers; caps compare a student with its teachers")
    return caps(_records(run), teachers, student=model, margin=run.manifest()["plan"]["diagnosis"]["margin"])


def probe_of(run: RunDirectory, student: CapsReport) -> ProbeReport | None:
    """Whether the cap of a run's student is binding; None where the run has no probe. `student`: what `caps_of` says."""
    return probe_report(run, student, _teachers(run))


def interference_of(run: RunDirectory) -> InterferenceReport:
    """Transfer, forgetting and regret of a run. Raises RunDirectoryError for a run without teachers."""
    teachers = _teachers(run)
    if not teachers:
        raise RunDirectoryError(
            f"{run.path} has no teachers; the transfer matrix needs models trained on one domain each"
        )
    manifest = run.manifest()
    sequence = [(m, d) for m, d in manifest["sequence"]]
    ends = [m for m, t in manifest["models"].items() if t["role"] in ("student", "rival", "control")]
    margin = manifest["plan"]["diagnosis"]["margin"]
    return interference(run.records(), teachers, paths={m: m for m in ends}, sequence=sequence, margin=margin)


def geometry_of(run: RunDirectory, transfer: InterferenceReport | None) -> GeometryReport | None:
    """What the domains ask of the same weights, beside `transfer`; None for a run of before there was such a comparison."""
    if not (run.path / "geometry.json").is_file():
        return None
    matrix, taught = (transfer.matrix, transfer.trained_on) if transfer is not None else ({}, {})
    return geometry_report(run.geometry(), matrix, taught)


def run_document(run: RunDirectory) -> dict[str, Any]:
    """The document of `mopd-diag run --json`: the directory, accuracies of model and domain, findings."""
    table = {m: {d: e.to_dict() for d, e in by_domain.items()} for m, by_domain in accuracy(run.records()).items()}
    return {"run": str(run.path), "accuracy": table, "findings": [f.to_dict() for f in run.findings()]}


def _teachers(run: RunDirectory) -> dict[str, list[str]]:
    return {m: list(t["domains"]) for m, t in run.manifest()["models"].items() if t["role"] == "teacher"}


def _records(run: RunDirectory) -> pd.DataFrame:
    """Records of the cast, without the checkpoints on the way."""
    return run.records(*(m for m, t in run.manifest()["models"].items() if t["role"] != "checkpoint"))


def _provenance(run: RunDirectory) -> list[Finding]:
    """Attribution of the student beside the teacher-free control, and the student's failures by class."""
    manifest = run.manifest()
    if "student" not in run.trace_names():
        return []
    answers = run.attribution("student")
    controls = [n for n in manifest["controls"] if n in run.trace_names()]
    drawn = [a[a["drawn"]] for a in (answers, *(run.attribution(c) for c in controls))]
    found = provenance.findings(drawn[0], drawn[1:])
    failed = explained.failed_answers(run, explained.explanations(run))
    return found + failures.findings(failed) + _consistency(run)


def _consistency(run: RunDirectory) -> list[Finding]:
    """Whether the student speaks with one voice, and where its wrong facts come from."""
    world = run.manifest()["plan"].get("world", {}).get("name")
    facts = [d for d in TAGS if d in set(run.records("student")["domain"])] if world == "micro" else []
    return consistency.findings(consistency.Material.of(run), facts=facts)


def _base_gate(records: pd.DataFrame) -> list[Finding]:
    """Is the base in reach of RL on each domain?"""
    found = []
    for domain, estimate in accuracy(records)["base"].items():
        if domain == OVERALL:
            continue
        verdict = "below-gate" if estimate.high < GATE[0] else "above-gate" if estimate.low > GATE[1] else "in-gate"
        note = f"sampled accuracy of the base; RL starts well between {GATE[0]:.0%} and {GATE[1]:.0%}"
        severity = "info" if verdict == "in-gate" else "notice"
        found.append(
            Finding(
                f"preflight-base-{domain}", "preflight", f"base/{domain}", verdict, severity, estimate, {"note": note}
            )
        )
    return found
