"""Directories of `mopd-diag eval`: answers of lm-eval's tasks, without the traces, costs and gradients that a run keeps."""

from __future__ import annotations

from app import parts
from mopd_diag.errors import RunDirectoryError
from mopd_diag.runs.directory import RunDirectory


def is_evaluation(run: RunDirectory) -> bool:
    """Was it written by `mopd-diag eval`? What cannot be read is no evaluation."""
    try:
        return run.manifest().get("kind") == "evaluation"
    except RunDirectoryError:
        return False


def lacking(run: RunDirectory, lacks: str) -> None:
    """The empty state of a page that needs more than answers."""
    name = run.path.name
    parts.empty(
        "An evaluation, not a run",
        f"It holds what lm-eval's tasks asked and every model answered. {lacks} Accuracy is on the overview, the gap to the teachers under "
        "Caps, and flips between two of its models under Regression; in the terminal:",
        f"mopd-diag compare {name}:base {name}:student",
    )
