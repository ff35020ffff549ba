"""One exception root: everything a user can cause derives from `MopdDiagError`.

The command line turns these into one line and an exit code; a programme may catch the root.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

NAMED = 40
"""Valid words that one line names."""


class MopdDiagError(Exception):
    """Root of every error this package raises on purpose. `exit_code` is what the CLI returns."""

    exit_code = 2


class BadInput(MopdDiagError):
    """What the user gave cannot be used; the message says what was got, what was expected, what to do."""


class CheckpointError(BadInput):
    """A checkpoint is missing, half-written or of a kind that cannot be loaded."""


class RunDirectoryError(BadInput):
    """A run directory is missing, belongs to another plan, or lacks what a verb needs."""


class ResourceError(MopdDiagError):
    """The machine lacks something (disk, memory, a lost worker process); nothing that was done is lost."""


@contextmanager
def writing(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turn a failed write below `path` (an OSError, or one of `more`) into a ResourceError that says what to do."""
    try:
        yield
    except (OSError, *more) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ResourceError(f"cannot write {path} ({reason}); free some space and repeat the command") from error


def nearest(word: str, options: Iterable[str]) -> str:
    """A hint naming the closest valid word, or the valid words when none is close; of very many, the first.

    >>> nearest("mth", ["math", "code"])
    "did you mean 'math'?"
    """
    options = sorted(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    more = f" and {len(options) - NAMED} more" if len(options) > NAMED else ""
    return "valid: " + ", ".join(options[:NAMED]) + more
