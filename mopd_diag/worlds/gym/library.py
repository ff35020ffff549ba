"""reasoning-gym inside the helper process (`judging.py`): questions by number, and its own verifiers.

Facts about reasoning-gym 0.1.25, found by reading it; a test compares them with what is installed:
- four verifiers call `eval` on the answer, to give partial credit for a Python list: here only literals are read;
- five hand the answer to sympy's `parse_expr`, which evaluates Python: here it must be an expression in a small language;
- some generators use the global `random`, and some iterate over sets: the first is seeded here, the helper's hash seed is fixed.
"""

from __future__ import annotations

import ast
import functools
import importlib
import random
import re
import types
from typing import Any

LITERALS = ("algorithmic.string_insertion", "algorithmic.spiral_matrix", "algorithmic.binary_matrix", "games.n_queens")
"""Modules of verifiers that evaluate an answer that should be a list."""
ARITHMETIC = re.compile(r"(?:\d+(?:\.\d+)?|[-+*/() ])+")
SYMBOLIC = re.compile(r"(?:[A-Za-z]+|\d+(?:\.\d+)?|[-+*/^() ])+")
WORDS = {"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "asin", "acos", "atan", "sinh", "cosh", "tanh", "pi"}
"""What may be spelt in an expression, besides single letters."""
LANGUAGE = {
    "countdown": ARITHMETIC,
    "puzzle24": ARITHMETIC,
    "polynomial_multiplication": SYMBOLIC,
    "simple_integration": SYMBOLIC,
    "intermediate_integration": SYMBOLIC,
}
REFUSED = {"composite": "it mixes other data sets; name those"}


def _load() -> types.ModuleType:
    library = importlib.import_module("reasoning_gym")
    for name in LITERALS:  # a module's own name hides the built-in one
        vars(importlib.import_module(f"reasoning_gym.{name}"))["eval"] = ast.literal_eval
    return library


LIBRARY = _load()
DATASETS: dict[str, Any] = importlib.import_module("reasoning_gym.factory").DATASETS


def answer(request: dict[str, Any]) -> Any:
    """One request: the names of all data sets with their categories, a question by its number, or the grade of an answer."""
    if request["ask"] == "names":
        return {name: kind.__module__.split(".")[1] for name, (kind, _) in DATASETS.items() if name not in REFUSED}
    name, settings, number = request["dataset"], tuple(sorted(request["settings"].items())), request["number"]
    entry = _entry(name, settings, number)
    if request["ask"] == "question":
        return {"question": entry["question"], "answer": entry["answer"]}
    if not _in_language(name, request["answer"]):
        return 0.0
    return min(1.0, max(0.0, float(_dataset(name, settings).score_answer(request["answer"], entry))))


@functools.lru_cache(maxsize=256)
def _dataset(name: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    return LIBRARY.create_dataset(name, seed=0, **dict(settings))


@functools.lru_cache(maxsize=4096)
def _entry(name: str, settings: tuple[tuple[str, Any], ...], number: int) -> dict[str, Any]:
    """Question `number`; data sets that are generated whole have as many as their size, counted round."""
    dataset = _dataset(name, settings)
    random.seed(number)
    try:
        return dataset[number]
    except IndexError:
        return dataset[number % len(dataset)]


def _in_language(name: str, answer: str) -> bool:
    """Whether the verifier of a data set may see an answer: short, and nothing but arithmetic where it would be evaluated."""
    if name not in LANGUAGE:
        return len(answer) <= 20_000
    words = re.findall(r"[A-Za-z]+", answer)
    spelt = all(len(w) == 1 or w in WORDS for w in words)
    return len(answer) <= 400 and spelt and LANGUAGE[name].fullmatch(answer.replace("\n", " ")) is not None
