"""The end of a study, and again whenever its page is asked for: `results.json`, `report.html` and `report.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mopd_diag.config import parse
from mopd_diag.errors import RunDirectoryError
from mopd_diag.runs.directory import RunDirectory, write_json
from mopd_diag.study.resolve import Study, resolve_identity
from mopd_diag.study.results import results
from mopd_diag.study_plan import StudyPlan

SCHEMA = 2
"""Of results.json; 1 had only the table of the terminal."""


def folder(out: Path, seed: int) -> Path:
    """The run directory of one seed."""
    return out / f"seed-{seed}"


def is_study(out: Path) -> bool:
    """Is it the directory of a study, and not of a run?"""
    return (out / "study.json").is_file() and not (out / "manifest.json").is_file()


def conclude(
    out: Path, plan: StudyPlan, studies: Mapping[int, Study], runs: Mapping[int, RunDirectory], page: Path | None = None
) -> tuple[dict[str, Any], tuple[Path, Path]]:
    """Results and pages of runs that are finished: the document, and the paths of HTML and Markdown."""
    from mopd_diag.reporting.study_page import write_study_report

    document = {"schema": SCHEMA, **results(plan, studies, runs)}
    write_json(out / "results.json", document)
    return document, write_study_report(out, document, page)


def reported(out: Path, page: Path | None = None) -> tuple[dict[str, Any], tuple[Path, Path]]:
    """The pages written again from the results; the results too, from the seeds' runs, where an older version made them.

    Raises RunDirectoryError when a seed is not finished or a file is broken.
    """
    from mopd_diag.reporting.study_page import write_study_report

    document = read_json(out / "results.json") if (out / "results.json").is_file() else None
    if isinstance(document, dict) and document.get("schema") == SCHEMA:
        return document, write_study_report(out, document, page)
    plan = parse(StudyPlan, read_json(out / "study.json"), str(out / "study.json"))
    runs = {seed: RunDirectory.open(folder(out, seed)) for seed in plan.study.seeds}
    for seed, run in runs.items():
        if not (run.path / "findings.json").is_file():
            raise RunDirectoryError(f"{out} is not finished: seed {seed} has no findings; repeat `mopd-diag run`")
    studies = {seed: resolve_identity(run.manifest()["identity"]) for seed, run in runs.items()}
    return conclude(out, plan, studies, runs, page)


def read_json(path: Path) -> Any:
    """A file of the study's directory. Raises RunDirectoryError when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirectoryError(f"{path} is not JSON ({error}); restore it or choose another --out") from error
