"""``lightship predict``: answers for files, in this process or from a server."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json
from lightship.cli.server import key_in, trusted_by
from lightship.cli.table import say_table

if TYPE_CHECKING:
    import numpy as np

    from lightship.apply.answers import Answer

__all__ = ["predict"]

_ZIP = b"PK\x03\x04"  # how a .npz file begins, and no image does
_SHOWN = 6  # values of an output in a table


@click.command(
    epilog=examples(
        "lightship predict digits photo.png",
        "lightship predict digits *.png --top 3 --json",
        "lightship predict leaves rows.npz --out answers.npz",
        "lightship predict digits photo.png --url https://models.example:8000 --key-file key",
    )
)
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
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Certificates (PEM) to trust with --url, instead of the usual ones.")  # fmt: skip
@click.option("--allow-plain-http", is_flag=True, help="Send the key to another machine without https.")
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="How many classes to show a file."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.npz",
              help="Keep the outputs for a .npz file of tensors here.")  # fmt: skip
@json_option("Print one JSON object a file, one a line, instead of text.")
def predict(
    reference: str,
    files: tuple[str, ...],
    url: str | None,
    key_file: Path | None,
    timeout_s: float,
    ca_file: Path | None,
    allow_plain_http: bool,
    top: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Answer for each FILE: an image, or a .npz file with the graph's own inputs; - is standard input.

    Without --url the model is loaded into this process from the registry of this home, verified and self-tested; that
    it is unproven is said on standard error.
    A file that cannot be used is named on standard error and the others are answered; the exit code tells of the first.
    In a .npz file arrays have the names of the graph's inputs; their first axis are rows where the graph has batches.
    """
    from lightship.errors import LightshipError, status_of

    if out is not None and len(files) > 1:
        raise click.UsageError(f"--out keeps the outputs of one file. Got {len(files)} files.")
    said: list[tuple[tuple[str, ...], ...]] = []
    columns: tuple[str, ...] = ()
    first: LightshipError | None = None
    trust = trusted_by(ca_file)
    with _opened(reference, url, key_file, timeout_s=timeout_s, allow_plain_http=allow_plain_http, verify=trust) as ask:
        for file in files:
            try:
                answer = _answered(ask, file, out)
            except LightshipError as exc:
                if len(files) == 1:
                    raise
                click.echo(f"Error: {file}: {exc}", err=True)
                if as_json:
                    say_json({"file": file, "error": str(exc), "exit_code": status_of(exc).exit_code})
                first = first or exc
                continue
            if as_json:
                say_json({"file": file, **answer.to_json()})
                continue
            if answer.columns != columns and said:
                _say(columns, said)
            columns = answer.columns
            said.append(tuple((file, *row) for row in answer.rows(top)))
    _say(columns, said)
    if first is not None:
        raise SystemExit(status_of(first).exit_code)


def _say(columns: tuple[str, ...], said: list[tuple[tuple[str, ...], ...]]) -> None:
    if said:
        say_table(columns, [row for rows in said for row in rows])
        said.clear()


@dataclass(frozen=True, slots=True)
class _Label:
    """The answer to an image."""

    answer: Answer
    columns: ClassVar[tuple[str, ...]] = ("FILE", "LABEL", "PROBABILITY")

    def rows(self, top: int) -> list[tuple[str, ...]]:
        return [(label, f"{probability:.4f}") for label, probability in self.answer.top(top)]

    def to_json(self) -> dict[str, Any]:
        return dict(self.answer.to_json())


@dataclass(frozen=True, slots=True)
class _Outputs:
    """What a graph gave for tensors."""

    outputs: Mapping[str, np.ndarray]
    columns: ClassVar[tuple[str, ...]] = ("FILE", "OUTPUT", "DTYPE", "SHAPE", "VALUES")

    def rows(self, top: int) -> list[tuple[str, ...]]:  # noqa: ARG002 - of classes, and there are none
        return [(name, *_described(array)) for name, array in self.outputs.items()]

    def to_json(self) -> dict[str, Any]:
        from lightship.tasks.tensors import listed

        return {
            "outputs": {
                name: {"dtype": _dtype(array), "shape": list(array.shape), "data": listed(array)}
                for name, array in self.outputs.items()
            }
        }


def _described(array: np.ndarray) -> tuple[str, str, str]:
    from lightship.tasks.tensors import listed

    flat = listed(array.ravel()[:_SHOWN])
    values = " ".join(f"{value:.6g}" if isinstance(value, float) else str(value)[:40] for value in flat)
    more = " …" if array.size > _SHOWN else ""
    return _dtype(array), "x".join(map(str, array.shape)) or "scalar", values + more


def _dtype(array: np.ndarray) -> str:
    from lightship.types import DTYPES

    return next((name for name, numpy in DTYPES.items() if array.dtype == numpy), "BYTES")


def _answered(ask: _Ask, file: str, out: Path | None) -> _Label | _Outputs:
    data = _read(file)
    if not data.startswith(_ZIP):
        if out is not None:
            raise click.UsageError(
                "--out keeps the outputs for a .npz file of tensors. The answer to an image is text."
            )
        return _Label(ask.image(data))
    from lightship.data.files import write_atomic
    from lightship.tasks.npz import read_npz, write_npz

    outputs = ask.tensors(read_npz(data, what=f"The file {file!r}"))
    if out is not None:
        write_atomic(out, write_npz(outputs))
    return _Outputs(outputs)


def _read(file: str) -> bytes:
    """Return the bytes of a file or of standard input."""
    from lightship.apply.images import raw_of, read_bounded

    if file == "-":
        return read_bounded(sys.stdin.buffer, what="Standard input")
    return bytes(raw_of(Path(file)))


@dataclass(frozen=True, slots=True)
class _Ask:
    """What answers: a model in this process, or a server."""

    image: Callable[[bytes], Answer]
    tensors: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@contextmanager
def _opened(
    reference: str,
    url: str | None,
    key_file: Path | None,
    *,
    timeout_s: float,
    allow_plain_http: bool,
    verify: ssl.SSLContext | bool,
) -> Iterator[_Ask]:
    """Give a model in this process, or a client of the server at ``url``."""
    if url is None:
        from lightship.apply.model import load
        from lightship.cli.unproven import say_unproven

        with load(reference) as model:
            if model.unproven:
                say_unproven(model.name, model.version)
            yield _Ask(model.predict, model.predict)
        return
    from lightship.apply.client import Client

    with Client(
        url, key=key_in(key_file), timeout_s=timeout_s, allow_plain_http=allow_plain_http, verify=verify
    ) as client:
        yield _Ask(lambda image: client.predict(reference, image), lambda arrays: client.infer(reference, arrays))
