"""Tables and long lines: fitted to a terminal for people, whole and tab-separated for everything else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence

import click

__all__ = ["say_line", "say_table"]


def say_line(text: str) -> None:
    """Print a line; on a terminal it is cut where it would wrap, so that a list stays a list."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = text if len(text) <= width else f"{text[: width - 1]}…"
    click.echo(text)


def say_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print rows to stdout: as a table on a terminal, else as lines of tab-separated fields, the columns' names first.

    Args:
        columns: their names.
        rows: one text a column; tabs and line breaks in them become spaces, so that a line stays a row.
        title: above the table, on a terminal only.
    """
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(" ".join(field.split()) for field in row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(field) for field in row))  # Text, so that "[red]" in a note is no markup
    Console().print(table)
