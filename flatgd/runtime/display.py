"""The output of a run: the progress of each long part, and one line when it is done."""

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

from flatgd.runtime.progress_lines import Amounts, Bytes, Items, ProgressLines, clock


class Display:
    """Writes to one console. On a terminal, progress is a bar that disappears when the part is
    done; elsewhere, such as in a log file or a notebook, it is a line every 30 seconds. `now` gives
    seconds."""

    def __init__(
        self,
        console: Console | None = None,
        quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
    ):
        self.console = console or Console(highlight=False, quiet=quiet, force_jupyter=False)
        self._now = now
        self._begun = now()
        self._watch: Callable[[str, int, int], None] = lambda unit, done, total: None

    @contextmanager
    def watched(self, watch: Callable[[str, int, int], None]) -> Iterator[None]:
        """Inside, `watch(unit, done, total)` is told of the progress of every bar."""
        before, self._watch = self._watch, watch
        try:
            yield
        finally:
            self._watch = before

    def line(self, stage: str, text: str) -> None:
        """One entry. A long one is wrapped on a terminal, and stays one line elsewhere."""
        elapsed = clock(int(self._now() - self._begun))
        self.console.print(f"[dim]{elapsed:>6}[/dim]  [bold]{stage:<26}[/bold] ", end="")
        self.console.print(text, markup=False, soft_wrap=not self._draws_bars())

    @contextmanager
    def bar(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Yields `advance(count)`. `unit` names what is counted, in the plural."""
        done = 0

        def counted(show: Callable[[int], None]) -> Callable[[int], None]:
            def advance(count: int) -> None:
                nonlocal done
                done += count
                show(count)
                self._watch(unit, done, total)

            return advance

        if self._draws_bars():
            with self._progress(MofNCompleteColumn()) as progress:
                task = progress.add_task(label, total=total)
                yield counted(lambda count: progress.update(task, advance=count))
            return
        lines = self._lines(label, Items(unit))
        yield counted(lambda _: lines.update(done, total))

    @contextmanager
    def download(self, label: str) -> Iterator[Callable[[int, int | None], None]]:
        """Yields `progress(bytes so far, total bytes or None)`."""
        if self._draws_bars():
            with self._progress(DownloadColumn()) as progress:
                task = progress.add_task(label, total=None)
                yield lambda done, total: progress.update(task, completed=done, total=total)
            return
        yield self._lines(label, Bytes()).update

    def _draws_bars(self) -> bool:
        """Whether lines can be drawn again. FORCE_COLOR makes rich take a log file for a
        terminal, so the file is asked too."""
        is_terminal = self.console.is_terminal and self.console.is_interactive
        return is_terminal and self.console.file.isatty()

    def _lines(self, label: str, amounts: Amounts) -> ProgressLines:
        return ProgressLines(amounts, lambda text: self.line(label, text), self._now)

    def _progress(self, count: ProgressColumn) -> Progress:
        return Progress(
            TextColumn("        {task.description:<26}"),
            BarColumn(bar_width=30),
            count,
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
