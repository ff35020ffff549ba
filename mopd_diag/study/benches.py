"""The measurements of `bench/`, for the command line; they live beside the package and are run from a source checkout."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mopd_diag.errors import BadInput, nearest

NAMES = (
    "app",
    "caps",
    "compare",
    "costs",
    "gpu",
    "interference",
    "loglikelihood",
    "provenance",
    "sampling",
    "scale",
    "scoring",
    "teachers",
    "training",
)
MODULES = {"caps": "caps_coverage"}
"""Where the file has another name than the bench."""
SEEDED = ("interference", "provenance", "teachers")
"""Benches that train something from seeds, into a folder."""


def run_bench(
    name: str, emit: Callable[[Any], None] | None, *, seeds: Sequence[int] = (), out: Path | None = None
) -> None:
    """Run a bench and print or emit its figures. Raises BadInput for an unknown name, without a source checkout, or for seeds or a
    folder where the bench takes none."""
    if name not in NAMES:
        raise BadInput(f"no bench '{name}'; {nearest(name, NAMES)}")
    try:
        module = importlib.import_module(f"bench.{MODULES.get(name, name)}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "bench":
            raise BadInput("benches are not part of the installed package; run this in a source checkout") from None
        raise BadInput(
            f"bench {name} compares with {error.name}, which is not installed; pip install 'mopd-diag[test]'"
        ) from None
    if name in SEEDED:
        figures = module.run(tuple(seeds) or (0,), out)
    elif seeds or out:
        raise BadInput(f"bench {name} takes neither --seed nor --out; only {', '.join(SEEDED)} do")
    else:
        figures = module.run()
    if emit is not None:
        emit(figures)
    else:
        module.show(figures)
