"""The calibration file: what casts of known provenance taught about evidence, with its own provenance."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
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
    from which casts and seeds it was learned, and `held_out` what it reached on seeds left out of the fit."""

    model: Model
    sure: Mapping[str, float]
    made: Mapping[str, Any]
    held_out: Mapping[str, Any]

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
        )


@functools.cache
def packaged() -> Calibration:
    """The calibration that comes with the package."""
    return Calibration.of(
        json.loads(resources.files("mopd_diag.diagnostics").joinpath(FILE).read_text(encoding="utf-8"))
    )
