"""Diagnoses models trained by multi-teacher on-policy distillation (MOPD).

Which teacher does a behaviour come from, what did the teachers cap, and what did the domains do to one another?
The names below are the public API; each is imported when it is first used, so that `import mopd_diag` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mopd_diag.config import Cast, Plan, load_cast
    from mopd_diag.diagnostics.attribution import Attribution
    from mopd_diag.errors import BadInput, CheckpointError, MopdDiagError, ResourceError, RunDirectoryError
    from mopd_diag.runs.directory import RunDirectory
    from mopd_diag.study.attribute import attribute
    from mopd_diag.study.compare import Comparison, compare
    from mopd_diag.types import Estimate, Finding, Item, Record
    from mopd_diag.worlds import Domain, World, load_world

_HOME = {
    "Comparison": "study.compare",
    "compare": "study.compare",
    "Attribution": "diagnostics.attribution",
    "attribute": "study.attribute",
    "Cast": "config",
    "Plan": "config",
    "load_cast": "config",
    "BadInput": "errors",
    "CheckpointError": "errors",
    "MopdDiagError": "errors",
    "ResourceError": "errors",
    "RunDirectoryError": "errors",
    "RunDirectory": "runs.directory",
    "Estimate": "types",
    "Finding": "types",
    "Item": "types",
    "Record": "types",
    "Domain": "worlds",
    "World": "worlds",
    "load_world": "worlds",
}

__all__ = [  # written out, because type checkers read it
    "Attribution",
    "BadInput",
    "Cast",
    "CheckpointError",
    "Comparison",
    "Domain",
    "Estimate",
    "Finding",
    "Item",
    "MopdDiagError",
    "Plan",
    "Record",
    "ResourceError",
    "RunDirectory",
    "RunDirectoryError",
    "World",
    "__version__",
    "attribute",
    "compare",
    "load_cast",
    "load_world",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
