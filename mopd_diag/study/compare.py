"""`mopd-diag compare`: from paths or data frames to a comparison, with the reason why items were lost where it can be found."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd

from mopd_diag.config import Cast, load_cast
from mopd_diag.diagnostics import regression
from mopd_diag.diagnostics.comparison import Comparison as Compared
from mopd_diag.diagnostics.gate import GateResult
from mopd_diag.diagnostics.trend import Trend
from mopd_diag.diagnostics.trend import trend as trend_of
from mopd_diag.errors import BadInput
from mopd_diag.estimators.bootstrap import REPLICATES
from mopd_diag.records.read import from_frame, read_records
from mopd_diag.records.recordset import RecordSet
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.study.lost import how_to_find_out, why_from_cast, why_in_run

Records = str | Path | pd.DataFrame | RecordSet
"""A path (`DIR:MODEL` picks a model of a run directory), a frame with `item_id` and `score`, or a record set."""
Told = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Comparison(Compared):
    """What `mopd_diag.compare` returns: see `diagnostics.comparison.Comparison` for what it holds."""

    def html(self, gate: GateResult | None = None) -> str:
        """One self-contained page."""
        from mopd_diag.reporting import comparison

        return comparison.html(self, gate)

    def markdown(self, gate: GateResult | None = None) -> str:
        """Markdown that fits a pull request comment."""
        from mopd_diag.reporting import comparison

        return comparison.markdown(self, gate)


@dataclass(frozen=True, slots=True)
class Source:
    """One side as given on the command line. `run` is the run directory that it lies in, if it lies in one."""

    text: str
    path: Path
    model: str
    run: Path | None

    @classmethod
    def parse(cls, given: str | Path) -> Source:
        """`DIR:MODEL` where DIR exists and the whole does not; otherwise a path, of the run's student if it is a run.

        Raises BadInput for a MODEL of something that holds no models.
        """
        text, model = str(given), "student"
        path = Path(text)
        if not path.exists() and ":" in text:
            folder, _, picked = text.rpartition(":")
            if Path(folder).exists() and picked:
                path, model = Path(folder), picked
                if path.suffix != ".parquet" and not _is_run(path):
                    raise BadInput(f"{path} is no run directory, so it has no model '{picked}'; give {path} alone")
        if path.is_dir() and path.name != "records":
            return cls(text, path, model, path if _is_run(path) else None)
        folder = path if path.is_dir() else path.parent
        run = folder.parent if folder.name == "records" and _is_run(folder.parent) else None
        return cls(text, path, path.stem if run and path.is_file() else model, run)

    def read(self, metric: str | None) -> RecordSet:
        records = read_records(self.path, model=self.model, metric=metric)
        picked = self.text.removeprefix(f"{self.path}:")
        return replace(records, name=f"{records.name}:{picked}", source=self.text) if picked != self.text else records


def compare(
    before: Records, after: Records, *, margin: float = regression.MARGIN, level: float = 0.95,
    replicates: int = REPLICATES, seed: int = 0, reruns: Sequence[Records] = (), cast: Cast | Path | str | None = None,
    metric: str | None = None, told: Told = lambda _: None, warn: Told = lambda _: None,
) -> Comparison:  # fmt: skip
    """Compare two record sets on the items they share; positive differences mean that `after` is better.

    `before` and `after`: paths of any supported format, or data frames with `item_id` and `score`, and optionally
    `domain`, `sample`, `prompt_hash`, `target_hash`, `prompt`, `response`, `cluster`. `margin`: differences within it
    count as none. `reruns`: other runs of the checkpoint of `before`, for the noise floor. `cast`: the models of `after`,
    to attribute lost items; a run directory needs none. `told` hears what is going on, `warn` what was left out.

    Raises BadInput, in one line, for records that cannot be read or joined.
    """
    sides = [_read(r, name, metric) for r, name in ((before, "before"), (after, "after"))]
    again = [_read(r, f"rerun {k}", metric) for k, r in enumerate(reruns, 1)]
    found = regression.compare(*sides, margin=margin, level=level, replicates=replicates, seed=seed, reruns=again)
    why, note = _why(before, after, found, cast, told, warn)
    flips = found.flips
    if not why.empty:
        texts = flips[["prompt", "response_before", "response_after"]]
        flips = regression.flips_of(found.joined.items, found.threshold, why).assign(**{c: texts[c] for c in texts})
    values = {f.name: getattr(found, f.name) for f in fields(found)}
    return Comparison(**values | {"flips": flips, "why_note": note})


def trend(
    checkpoints: Sequence[Records], *, margin: float = regression.MARGIN, level: float = 0.95,
    replicates: int = REPLICATES, seed: int = 0, metric: str | None = None,
) -> Trend:  # fmt: skip
    """Checkpoints of one training in order: trajectories, items lost for good, items that flicker. Raises BadInput."""
    sets = [_read(r, f"checkpoint {k}", metric) for k, r in enumerate(checkpoints)]
    return trend_of(sets, margin=margin, level=level, replicates=replicates, seed=seed)


def _read(given: Records, name: str, metric: str | None) -> RecordSet:
    if isinstance(given, RecordSet):
        return given
    if isinstance(given, pd.DataFrame):
        return from_frame(given, name, metric=metric)
    if isinstance(given, str | Path):
        return Source.parse(given).read(metric)
    raise BadInput(f"{name} is a {type(given).__name__}, expected a path or a data frame with item_id and score")


def _why(
    before: Records, after: Records, found: Compared, cast: Cast | Path | str | None, told: Told, warn: Told
) -> tuple[pd.DataFrame, str]:  # fmt: skip
    lost = found.lost_items
    if lost.empty:
        return pd.DataFrame(), "no item was lost"
    if cast is not None:
        members = cast if isinstance(cast, Cast) else load_cast(Path(cast))
        return why_from_cast(members, lost, told=told, warn=warn)
    source = Source.parse(after) if isinstance(after, str | Path) else None
    if source is not None and source.run is not None:
        return why_in_run(RunDirectory.open(source.run), source.model, lost)
    names = [shlex.quote(str(r)) if isinstance(r, str | Path) else f"{side.upper()}.jsonl"
             for r, side in ((before, "before"), (after, "after"))]  # fmt: skip
    answers = bool(((lost["prompt"] != "") & (lost["response_after"] != "")).any())
    return pd.DataFrame(), how_to_find_out(names, answers=answers)


def _is_run(path: Path) -> bool:
    return (path / "manifest.json").is_file()
