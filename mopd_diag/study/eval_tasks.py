"""lm-eval's tasks by name: ours, the user's own, and what comes with lm-eval. Without the network unless it is allowed."""

from __future__ import annotations

import difflib
import fnmatch
import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mopd_diag.errors import BadInput, MopdDiagError

OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE")
NEEDED = ("lm_eval", "datasets")
PREFIX = "mopd_"
"""Of the names of our tasks; lm-eval's own are not searched for them."""


def tasks_folder() -> Path:
    """Where the worlds' tasks are: `evals/tasks` of a source checkout, or the copy inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_evals" / "tasks", package.parent / "evals" / "tasks"):
        if (folder / "_default").is_file():
            return folder
    raise BadInput(
        f"the evaluation tasks are not beside {package}; install mopd-diag anew: pip install 'mopd-diag[eval]'"
    )


def check_installed() -> None:
    """Raise BadInput when lm-eval is not there."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"evaluation needs {' and '.join(missing)}, not installed here; install it: pip install 'mopd-diag[eval]'"
        )


def stay_offline() -> None:
    """No data set and no file of a hub is asked for from here on, in this process."""
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    # Libraries read the variables once: those that are here already are told.
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            vars(sys.modules[module]).update(dict.fromkeys(set(OFFLINE) & vars(sys.modules[module]).keys(), True))


class Tasks:
    """Opened tasks by name, and the manager that lm-eval wants to see beside them."""

    def __init__(self, names: Sequence[str], include: Sequence[Path] = (), *, network: bool = False) -> None:
        """Open tasks, groups or patterns such as `mopd_micro_*`; data are loaded, no model is needed.

        Raises BadInput for a name that nobody has, and for a task whose data are not on this machine.
        """
        for folder in include:
            if not folder.is_dir():
                raise BadInput(f"{folder} is no folder; --include-path names one with the YAML files of tasks")
        if not network:
            stay_offline()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.manager = _manager(names, [tasks_folder(), *include])
        self.opened: dict[str, Any] = {}
        for name in names:
            for found in _matching(name, self.manager.all_tasks):
                self.opened |= _opened(self.manager, found, network)
        _refuse_twins(self.opened)


def _manager(names: Sequence[str], folders: Sequence[Path]) -> Any:
    """Ours and the user's tasks alone where they suffice: reading lm-eval's own fourteen thousand takes half a minute."""
    from lm_eval.tasks import TaskManager

    few = TaskManager(include_path=[str(f) for f in folders], include_defaults=False)
    if all(fnmatch.filter(few.all_tasks, name) or name.startswith(PREFIX) for name in names):
        return few
    return TaskManager(include_path=[str(f) for f in folders])


def _matching(name: str, known: Sequence[str]) -> list[str]:
    found = fnmatch.filter(known, name)
    if found:
        return found
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "`lm_eval ls tasks` lists those that it knows"
    raise BadInput(f"no task, group or tag is called '{name}'; {hint}")


def _opened(manager: Any, name: str, network: bool) -> dict[str, Any]:
    try:
        return manager.load([name])["tasks"]
    except MopdDiagError:
        raise
    except Exception as error:  # a task is code of its own, and may fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if isinstance(error, ImportError):
            raise BadInput(f"task '{name}' needs a package that is not installed ({reason}); install it") from error
        if network:
            raise BadInput(f"task '{name}' cannot be opened: {type(error).__name__}: {reason}") from error
        raise BadInput(
            f"task '{name}' cannot be opened without the network ({type(error).__name__}: {reason}); repeat with --allow-network to "
            "let it download its data, or leave it out"
        ) from error


def _refuse_twins(tasks: dict[str, Any]) -> None:
    """Two worlds may have a domain of the same name, and records know a domain by its name alone."""
    seen: dict[str, str] = {}
    for name, task in tasks.items():
        domain = (task.config.dataset_kwargs or {}).get("domain") if is_ours(task) else None
        if domain is not None and seen.setdefault(domain, name) != name:
            raise BadInput(
                f"'{seen[domain]}' and '{name}' are both about a domain '{domain}'; evaluate them into two folders"
            )


def is_ours(task: Any) -> bool:
    """Whether a task asks items of one of our worlds."""
    from mopd_diag.worlds.documents import is_document

    return is_document(next(iter(task.eval_docs), None))


def is_generation(task: Any) -> bool:
    return task.OUTPUT_TYPE == "generate_until"
