"""inspect_ai logs, `.eval` and `.json`, through inspect_ai's own API. Epochs are samples, the group is the task."""

from __future__ import annotations

import math
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mopd_diag.errors import BadInput, nearest
from mopd_diag.records.build import Rows
from mopd_diag.records.recordset import digest, text_of

FORMAT = "inspect"
MISSING = "pip install 'mopd-diag[inspect]'"
SKIPPED = {"messages", "events", "store", "timelines", "events_data"}  # the bulk of a log, and nothing that is compared
WORDS = {"C", "I", "P", "N", "yes", "no", "true", "false"}  # what inspect_ai itself takes for numbers


def read_log(path: Path, metric: str | None = None) -> Rows:
    """One log. `metric` is a scorer, or "scorer.key" where a scorer gives several values; the first is the default.

    Raises BadInput without inspect_ai, for a log that it cannot read, and for one without scores.
    """
    header, samples = _read(path)
    to_float = _to_float()
    values = [_values(s.scores or {}) for s in samples]
    names = list(dict.fromkeys(n for v in values for n in v))
    if not names:
        raise BadInput(f"{path} has no scored samples (status '{header.status}'); score the log with `inspect score`")
    if metric is not None and metric not in names:
        raise BadInput(f"{path} has no score '{metric}'; {nearest(metric, names)}")
    name = metric or names[0]
    told = (
        [f"{header.eval.task}: scored by '{name}' of {', '.join(names)}"] if metric is None and len(names) > 1 else []
    )
    kept = [
        (i, s, to_float(v.get(name), f"{path}: sample {s.id}"))
        for i, (s, v) in enumerate(zip(samples, values, strict=True), 1)
    ]
    scored = [(i, s, score) for i, s, score in kept if not math.isnan(score)]
    total = (header.eval.dataset.samples or 0) * (header.eval.config.epochs or 1)
    if header.status != "success":
        told.append(
            f"{header.eval.task}: the run ended with status '{header.status}'; {len(scored)} scored answers of {total or '?'}"
        )
    if len(scored) < len(kept):
        told.append(
            f"{header.eval.task}: {len(kept) - len(scored)} of {len(kept)} answers have no score and are left out"
        )
    rows: dict[str, list[Any]] = defaultdict(list)
    for line, sample, score in scored:
        prompt, target = _prompt(sample), _target(sample)
        for column, value in (
            ("item_id", str(sample.id)), ("sample", sample.epoch - 1), ("score", score), ("prompt", prompt),
            ("prompt_hash", digest(prompt)), ("target_hash", digest(target)), ("line", line),
            ("response", sample.output.completion if sample.output else ""),
        ):  # fmt: skip
            rows[column].append(value)
    lines = rows.pop("line", [])
    if not lines:
        raise BadInput(f"{path} has no answer with a number for '{name}'; choose another score: {', '.join(names)}")
    return Rows(str(path), FORMAT, dict(rows), lines, header.eval.task, tuple(told), named=True)


def _read(path: Path) -> tuple[Any, list[Any]]:
    form = _form(path)
    try:
        from inspect_ai.log import read_eval_log, read_eval_log_samples
    except ImportError:
        raise BadInput(f"{path} is an inspect_ai log, and inspect_ai is not installed; {MISSING}") from None
    try:
        header = read_eval_log(path, header_only=True, format=form)
        # Long texts are kept once as attachments and stand in the sample as a reference.
        samples = read_eval_log_samples(
            path, all_samples_required=False, resolve_attachments="core", format=form, exclude_fields=SKIPPED
        )
        return header, list(samples)
    except Exception as error:
        # The boundary to another package, which raises whatever zip files, JSON and its schema raise.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} is not a log that inspect_ai can read ({reason}); was the run cut off?") from None


def _form(path: Path) -> Literal["eval", "json"]:
    """Which of the two forms; an `.eval` log is a zip archive with a journal."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return "json"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise BadInput(f"{path} is not a log that inspect_ai can read ({error}); was the run cut off?") from None
    if not any(name == "header.json" or name.startswith("_journal/") for name in names):
        raise BadInput(f"{path} is a zip archive but not a log of inspect_ai; unpack it and give what is inside")
    return "eval"


def _to_float() -> Callable[[Any, str], float]:
    from inspect_ai.scorer import value_to_float

    known = value_to_float()

    def number(value: Any, at: str) -> float:
        """NaN for an answer that was not scored; inspect_ai's own 0 for an unknown text would be a silent failure."""
        if value is None:
            return math.nan
        if isinstance(value, str) and value not in WORDS and value.lower() not in WORDS:
            raise BadInput(
                f"{at}: score is {value!r:.60}, expected a number or one of C, I, P, N; choose another score"
            )
        return float(known(value))

    return number


def _values(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores by name; the values of a scorer with several are called scorer.key."""
    values: dict[str, Any] = {}
    for name, score in scores.items():
        if isinstance(score.value, dict):
            values |= {f"{name}.{key}": value for key, value in score.value.items()}
        elif not isinstance(score.value, list):
            values[name] = score.value
    return values


def _prompt(sample: Any) -> str:
    text = sample.input if isinstance(sample.input, str) else "\n\n".join(m.text for m in sample.input)
    return "\n".join([text, *(f"({chr(65 + i)}) {c}" for i, c in enumerate(sample.choices or []))])


def _target(sample: Any) -> str:
    return text_of(sample.target)
