"""The light import stays light: what `import mopd_diag` and `mopd-diag --help` load, and that the lazy API is whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mopd_diag

HEAVY = {
    "altair", "datasets", "lm_eval", "pandas", "pyarrow", "ray", "scipy", "streamlit", "torch", "transformers", "vllm",
}  # fmt: skip
HELP = """
import sys
from mopd_diag.cli import main
sys.argv = ["mopd-diag", *{arguments!r}]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
assert not code, code
"""


def loaded(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport sys\nprint('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_the_probe_sees_what_is_loaded() -> None:
    assert "scipy" in loaded("import scipy")


def test_import_is_light() -> None:
    assert not loaded("import mopd_diag") & HEAVY


def test_nouns_and_settings_are_light() -> None:
    """What every verb needs before it knows what it will do."""
    assert not loaded("import mopd_diag.types, mopd_diag.errors, mopd_diag.seeds, mopd_diag.config") & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_is_light(arguments: list[str]) -> None:
    assert not loaded(HELP.format(arguments=arguments)) & HEAVY


@pytest.mark.parametrize("name", mopd_diag.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(mopd_diag, name) is not None
    assert name in dir(mopd_diag)


def test_lazy_names_are_the_public_ones() -> None:
    assert {*mopd_diag._HOME, "__version__"} == set(mopd_diag.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mopd_diag.no_such_name
