"""``lightship predict``: answers for files, in this process or from a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightship.cli.table import say_table

if TYPE_CHECKING:
    from lightship.apply.answers import Answer

__all__ = ["predict"]


@click.command()
@click.argument("reference", metavar="NAME[@ALIAS|:VERSION]")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--url", metavar="URL", help="Ask the server at this address instead of answering in this process.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the server's key; by default the variable LIGHTSHIP_KEY.",
)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.001), default=30.0, show_default=True,
              help="Seconds for one file, with --url.")  # fmt: skip
@click.option("--allow-plain-http", is_flag=True, help="Send the key to another machine without https.")
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="How many classes to show a file."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a file, one a line, instead of text.")
def predict(
    reference: str,
    files: tuple[str, ...],
    url: str | None,
    key_file: Path | None,
    timeout_s: float,
    allow_plain_http: bool,
    top: int,
    as_json: bool,
) -> None:
    """Answer for each FILE (an image; - is standard input).

    Without --url the model is loaded into this process from the registry of this home, verified and self-tested.
    A file that cannot be used is named on standard error and the others are answered; the exit code tells of the first.
    """
    from lightship.errors import LightshipError, status_of

    rows: list[tuple[str, str, str]] = []
    first: LightshipError | None = None
    with _opened(reference, url, key_file, timeout_s=timeout_s, allow_plain_http=allow_plain_http) as ask:
        for file in files:
            try:
                answer = ask(_read(file))
            except LightshipError as exc:
                if len(files) == 1:
                    raise
                click.echo(f"Error: {file}: {exc}", err=True)
                first = first or exc
                continue
            if as_json:
                click.echo(json.dumps({"file": file, **answer.to_json()}))
            else:
                rows += [(file, label, f"{probability:.4f}") for label, probability in answer.top(top)]
    if rows:
        say_table(("FILE", "LABEL", "PROBABILITY"), rows)
    if first is not None:
        raise SystemExit(status_of(first).exit_code)


def _read(file: str) -> bytes:
    """Return the bytes of a file or of standard input."""
    from lightship.apply.images import raw_of, read_bounded

    if file == "-":
        return read_bounded(sys.stdin.buffer, what="Standard input")
    return bytes(raw_of(Path(file)))


@contextmanager
def _opened(
    reference: str, url: str | None, key_file: Path | None, *, timeout_s: float, allow_plain_http: bool
) -> Iterator[Callable[[bytes], Answer]]:
    """Give what answers one image: a model in this process, or a client of the server at ``url``."""
    if url is None:
        from lightship.apply.model import load

        with load(reference) as model:
            yield model.predict
        return
    from lightship.apply.client import Client

    # Bytes that are no text become characters that no key has; the client refuses those without showing them.
    key = key_file.read_text(encoding="utf-8", errors="replace").strip() if key_file is not None else None
    with Client(url, key=key, timeout_s=timeout_s, allow_plain_http=allow_plain_http) as client:
        yield lambda image: client.predict(reference, image)
