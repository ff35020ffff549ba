"""The calibration file: what casts of known provenance taught about evidence, with its own provenance."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mopd_diag.errors import BadInput
from mopd_diag.estimators.origin import Model

SCHEMA = 1
FILE = "calibration.json"


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """`model` turns evidence into probabilities, `sure` holds those from which on a `teacher` is named or `own` is said. `made` says
    from which casts and seeds it was learned, `held_out` what it reached on seeds left out of the fit, and `reliability` how often it
    was right there by stated confidence: rows of `low`, `high`, mean `confidence`, `right` with its interval, and `n` items."""

    model: Model
    sure: Mapping[str, float]
    made: Mapping[str, Any]
    held_out: Mapping[str, Any]
    reliability: Sequence[Mapping[str, float]] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Calibration:
        """From the file's document. Raises BadInput when its schema is another one."""
        if document.get("schema") != SCHEMA:
            raise BadInput(
                f"calibration has schema {document.get('schema')!r}, this version reads {SCHEMA}; make it anew"
            )
        return cls(
            Model.of(document),
            {k: float(document["sure"][k]) for k in ("teacher", "own")},
            document["made"],
            document["held_out"],
            tuple(document.get("reliability", ())),
        )


@functools.cache
def packaged() -> Calibration:
    """The calibration that comes with the package."""
    return Calibration.of(
        json.loads(resources.files("mopd_diag.diagnostics").joinpath(FILE).read_text(encoding="utf-8"))
    )
