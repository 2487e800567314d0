"""What is said while the demo prepares: a spinner with a clock on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from distribcache.clock import now_ns

__all__ = ["Stage", "Stages"]


class Stage:
    """One of them, under way: what it is doing, and what will be said when it is done."""

    def __init__(self, title: str, console: Console | None, progress: Progress | None) -> None:
        self.done = title
        self._console = console
        self._progress = progress
        self._task: TaskID | None = progress.add_task(title, total=None) if progress is not None else None
        self._say(title)

    def doing(self, title: str) -> None:
        """It goes on with something else."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=title)
        self._say(title)

    def _say(self, title: str) -> None:
        if self._console is not None:
            self._console.print(f"{title} ...", style="dim", soft_wrap=True)


class Stages:
    """One after the other, on this console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lively = console.is_terminal and not console.is_dumb_terminal

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """Shown as under way until the block ends, then as done with the seconds it took."""
        began_ns = now_ns()
        if self._lively:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            with Progress(*columns, console=self._console, transient=True) as progress:
                stage = Stage(title, None, progress)
                yield stage
        else:
            stage = Stage(title, self._console, None)
            yield stage
        took = f"{(now_ns() - began_ns) / 1e9:.1f} s"
        self._console.print(Text.assemble(("✓ ", "green"), stage.done, (f"  {took}", "dim")), soft_wrap=True)
