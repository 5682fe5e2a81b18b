"""Progress for people: bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["Bar", "Lines", "make_progress"]


def make_progress(*, quiet: bool = False) -> Bar | Lines:
    """Return bars when stderr is a terminal, else lines; ``quiet`` says only what is unusual."""
    return Bar() if sys.stderr.isatty() and not quiet else Lines(quiet=quiet)


class Lines:
    """A line when a piece of work ends: for logs and pipes."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._what = ""
        self._began = 0.0

    def start(self, what: str, total: int | None = None) -> None:  # noqa: ARG002 - a line needs no total
        """Begin a piece of work."""
        self._what, self._began = what, time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say nothing: lines are for what is finished."""

    def done(self, note: str = "") -> None:
        """Print one line for the piece of work."""
        if not self._quiet:
            spent = time.monotonic() - self._began
            click.echo(
                f"  {self._what:<34} {note}  ({spent:.1f} s)" if note else f"  {self._what} ({spent:.1f} s)", err=True
            )

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""


class Bar:
    """Rich's bars, one a piece of work."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars: Bars = Progress(
            TextColumn("  {task.description:<34}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def start(self, what: str, total: int | None = None) -> None:
        """Draw a new bar."""
        self._task = self._bars.add_task(what, total=total, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, advance=steps, note=note)

    def done(self, note: str = "") -> None:
        """Fill the bar and stop it."""
        if self._task is not None:
            task = self._bars.tasks[self._task]
            finished = task.completed or 1
            self._bars.update(self._task, total=finished, completed=finished, note=note)
            self._bars.stop_task(self._task)
            self._task = None

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
