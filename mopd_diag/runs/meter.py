"""What continuing answers will cost, said before it starts, and what it has cost so far, on standard error."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUARTERS = 4


class Meter:
    """States the cost when entered; then a bar on a terminal, and a line each quarter elsewhere."""

    def __init__(self, console: Console, continuations: int, tokens: int) -> None:
        self.console, self.total, self.most = console, continuations, tokens
        self.done = self.tokens = 0
        self.bar = Progress(
            TextColumn("continuations"), BarColumn(24), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            TextColumn("{task.fields[tokens]:,.0f} tokens"), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=continuations, tokens=0)

    def __enter__(self) -> Meter:
        if self.total:
            self.console.print(
                f"about to sample {self.total:,} continuations, at most {self.most:,} tokens", highlight=False
            )
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.total and kind is None:
            self.console.print(f"sampled {self.done:,} continuations, {self.tokens:,} tokens", highlight=False)

    def spent(self, continuations: int, tokens: int) -> None:
        """Count what was just done."""
        before = self.done * QUARTERS // max(self.total, 1)
        self.done, self.tokens = self.done + continuations, self.tokens + tokens
        self.bar.update(self.task, completed=self.done, tokens=self.tokens)
        now = self.done * QUARTERS // max(self.total, 1)
        if now > before and now < QUARTERS and not self.console.is_terminal:
            self.console.print(f"  {now * 100 // QUARTERS} %: {self.tokens:,} tokens so far", highlight=False)
