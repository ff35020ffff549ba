"""The command line: thin verbs, lazy imports, one line for every mistake."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

# isort: off
from mopd_diag.cli import train, diagnose, measure, regress, evaluate, export, show, benches  # noqa: F401 (the order of the help)

# isort: on
from mopd_diag.cli.shared import app
from mopd_diag.errors import MopdDiagError

STOPPED = 130
"""Exit code of a process that was stopped from the keyboard."""
GO_ON = "stopped; what was done is kept, repeat the command to go on"


def _version(wanted: bool) -> None:
    if wanted:
        from mopd_diag import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Which teacher taught what, what did the teachers cap, what did the domains do to one another."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; mistakes become one line on standard error and exit code 2."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments
    # Accepted anywhere, because people add it to a command that just failed.
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = app(args=arguments, prog_name="mopd-diag", standalone_mode=False)
    except MopdDiagError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        if debug:
            raise
        context = getattr(error, "ctx", None)
        message = getattr(
            error, "format_message", None
        )  # typer's usage errors have one; their class has no public name
        said = (message() if message else str(error)).replace("Value error, ", "")
        _fail(f"{said} (see: {context.command_path if context else 'mopd-diag'} --help)", 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail(GO_ON, STOPPED)
    except BrokenPipeError:
        sys.exit(0)  # the reader of our output has had enough
    except OSError as error:
        if debug:
            raise
        _fail(
            f"{error.filename or 'file'}: {error.strerror or error}; check the path, its permissions and the free space",
            2,
        )
    except Exception as error:
        if debug:
            raise
        _fail(
            f"unexpected {type(error).__name__}: {error}; this is a bug: repeat with --debug and report what it shows",
            1,
        )
    else:
        if code == STOPPED:  # typer turns Ctrl-C into this
            _fail(GO_ON, STOPPED)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    sys.stderr.write(f"mopd-diag: {line}\n")
    sys.exit(code)
