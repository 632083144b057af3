"""The output of a run: a progress bar for each long stage, and one line when it is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


class Display:
    """Writes to one console. Bars appear on a terminal only, and disappear when done."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self.console = console or Console(highlight=False, quiet=quiet)
        self._begun = time.monotonic()

    def line(self, stage: str, text: str) -> None:
        elapsed = int(time.monotonic() - self._begun)
        clock = f"{elapsed // 60:d}:{elapsed % 60:02d}"
        self.console.print(f"[dim]{clock:>6}[/dim]  [bold]{stage:<26}[/bold] ", end="")
        self.console.print(text, markup=False)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yields `advance(count)`."""
        with self._progress(MofNCompleteColumn()) as progress:
            task = progress.add_task(label, total=total)
            yield lambda count: progress.update(task, advance=count)

    @contextmanager
    def download(self, label: str) -> Iterator[Callable[[int, int | None], None]]:
        """Yields `progress(bytes so far, total bytes or None)`."""
        with self._progress(DownloadColumn()) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    def _progress(self, count: ProgressColumn) -> Progress:
        return Progress(
            TextColumn("        {task.description:<26}"),
            BarColumn(bar_width=30),
            count,
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
