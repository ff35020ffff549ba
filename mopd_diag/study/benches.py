"""The measurements of `bench/`, for the command line; they live beside the package and are run from a source checkout."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from mopd_diag.errors import BadInput, nearest

NAMES = ("sampling", "training")


def run_bench(name: str, emit: Callable[[Any], None] | None) -> None:
    """Run a bench and print or emit its figures. Raises BadInput for an unknown name, or without a source checkout."""
    if name not in NAMES:
        raise BadInput(f"no bench '{name}'; {nearest(name, NAMES)}")
    try:
        module = importlib.import_module(f"bench.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "bench":
            raise BadInput("benches are not part of the installed package; run this in a source checkout") from None
        raise BadInput(
            f"bench {name} compares with {error.name}, which is not installed; pip install 'mopd-diag[test]'"
        ) from None
    figures = module.run()
    if emit is not None:
        emit(figures)
    else:
        module.show(figures)
