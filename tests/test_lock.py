"""requirements.lock pins what pyproject.toml asks for, and holds nothing that ties it to one machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}
EXTRAS = PROJECT["optional-dependencies"]
ASKED = [
    Requirement(text)
    for text in [
        *PROJECT["dependencies"],
        *EXTRAS["app"],
        *EXTRAS["eval"],
        *EXTRAS["gym"],
        *EXTRAS["inspect"],
        *EXTRAS["metrics"],
        *EXTRAS["ray"],
        *EXTRAS["test"],
        *EXTRAS["dev"],
    ]
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_one_exact_public_pin(line: str) -> None:
    """No address, no path, no hash, no local build such as +cpu, no CUDA package: both builds of torch satisfy it."""
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)
    assert not line.startswith(("nvidia", "triton"))


@pytest.mark.parametrize("asked", [r for r in ASKED if r.name != PROJECT["name"]], ids=str)
def test_what_is_asked_for_is_pinned_within_its_range(asked: Requirement) -> None:
    assert asked.specifier.contains(PINS[canonicalize_name(asked.name)])


def test_torch_is_the_release_that_cpu_and_cuda_builds_share() -> None:
    assert PINS["torch"] == "2.13.0"
