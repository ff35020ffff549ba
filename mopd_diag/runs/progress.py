"""Progress on standard error: a bar a running job with step, reward, KL, tokens/s, and time left for the whole run."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mopd_diag.runs.scheduler import Job

SHOWN = (
    ("reward", "reward", ".2f"),
    ("kl", "KL", ".3f"),
    ("loss", "loss", ".3f"),
    ("tokens_per_second", "tok/s", ",.0f"),
)


class RunProgress:
    """A `Watcher` that draws bars on a terminal and prints one line a finished job elsewhere."""

    def __init__(self, console: Console, total: float) -> None:
        self.console = console
        self.total, self.done, self.began = total, 0.0, time.monotonic()
        self.at: dict[str, tuple[Job, float, float]] = {}
        self.bars = Progress(
            TextColumn("[bold]{task.description:<30}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.tasks: dict[str, TaskID] = {}
        self.whole = self.bars.add_task("whole run", total=100, note="")

    def __enter__(self) -> RunProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def started(self, job: Job) -> None:
        self.at[job.name] = (job, time.monotonic(), 0.0)
        self.tasks[job.name] = self.bars.add_task(job.name, total=None, note="")

    def moved(self, name: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        if name not in self.at:
            return
        job, since, _ = self.at[name]
        self.at[name] = (job, since, step / max(steps, 1))
        note = "  ".join(f"{label} {metrics[key]:{form}}" for key, label, form in SHOWN if key in metrics)
        self.bars.update(self.tasks[name], total=steps, completed=step, note=note)
        self._whole()

    def finished(self, job: Job) -> None:
        _, since, _ = self.at.pop(job.name)
        self.done += job.weight
        self.bars.remove_task(self.tasks.pop(job.name))
        self.console.print(f"[green]done[/] {job.name}  {time.monotonic() - since:.1f} s", highlight=False)
        self._whole()

    def _whole(self) -> None:
        done = self.done + sum(job.weight * share for job, _, share in self.at.values())
        share = min(1.0, done / self.total) if self.total else 1.0
        elapsed = time.monotonic() - self.began
        left = f"about {elapsed / share - elapsed:,.0f} s left" if share > 0.03 else "estimating time left"
        self.bars.update(self.whole, completed=100 * share, note=left)
