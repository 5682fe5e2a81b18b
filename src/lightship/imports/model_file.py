"""A file of a model, read safely; and which importer reads it, chosen by its bytes and never by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lightship.bundle.folder import open_regular
from lightship.data.files import sha256_hex
from lightship.errors import InvalidInput, NotFound, TooLarge, UnsupportedMedia
from lightship.extensions import extension_names, load_extension
from lightship.types import Json

__all__ = ["Importer", "SourceGraph", "read_bytes", "read_graph"]

MAX_MODEL_BYTES = (1 << 31) - 1
"""What protobuf, and so an ONNX file, can hold."""

# What people give by mistake: how such a file begins, and what to do about it.
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself. Fetch it: `git lfs pull`"),
    (
        0,
        b"PK\x03\x04",
        "a zip archive, as PyTorch, Keras and numpy write. Export the model to ONNX (torch.onnx.export)",
    ),
    (0, b"\x80", "a Python pickle, which could run any program. Export the model to ONNX where you trust it"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes. Export the model to ONNX (tf2onnx)"),
    (4, b"TFL3", "a TensorFlow Lite model. Export the original to ONNX (tf2onnx)"),
    (4, b"ORTM", "a model in ONNX Runtime's own format. Give the ONNX file that it was made from"),
    (0, b"GGUF", "a GGUF file of a language model, which is not read yet"),
    (8, b'{"', "a safetensors file: weights without their graph. Export the model to ONNX"),
    (0, b"\x1f\x8b", "gzip. Unpack it first"),
    (0, b"<", "a page of HTML or XML; a download that went wrong, perhaps"),
)


@dataclass(frozen=True, slots=True)
class SourceGraph:
    """A reference graph and where it comes from.

    Attributes:
        format: name of the importer, e.g. ``onnx``.
        graph: ONNX bytes that have passed the audit.
        digest: SHA-256 of the file, in hex.
        facts: what the file says of itself and what was counted; JSON without floats.
        audit: one line for people: what was looked for.
    """

    format: str
    graph: bytes
    digest: str
    facts: Mapping[str, Json]
    audit: str


class Importer(Protocol):
    """What an entry point of ``lightship.imports`` must be: a class without arguments."""

    def recognizes(self, data: bytes) -> bool:
        """Return whether the bytes are a file of this format. It must be quick and must not raise."""

    def to_graph(self, data: bytes, *, folder: Path) -> tuple[bytes, Mapping[str, Json], str]:
        """Return (ONNX bytes, facts, one line about the audit). Nothing of the file may be run.

        ``folder`` is where the file stands; a format may keep its weights beside it.

        Raises:
            InvalidInput, Refused: the file is damaged, or could do what a model must not.
        """


def read_graph(path: Path) -> SourceGraph:
    """Read, recognize and audit a model file.

    Raises:
        NotFound: there is no file.
        InvalidInput, TooLarge, UnsupportedMedia: it cannot be read or is of no known format.
        Refused: the audit said no.
    """
    data = read_bytes(path, what="The model file", max_bytes=MAX_MODEL_BYTES)
    for name in extension_names("imports"):
        importer: Importer = load_extension("imports", name)()
        if importer.recognizes(data):
            graph, facts, audit = importer.to_graph(data, folder=path.parent)
            return SourceGraph(name, graph, sha256_hex(data), facts, audit)
    known = ", ".join(extension_names("imports"))
    for at, magic, what in _OTHERS:
        if data[at : at + len(magic)] == magic:
            raise UnsupportedMedia(f"The file {str(path)!r} is {what}. Models are read as: {known}.")
    raise UnsupportedMedia(
        f"The file {str(path)!r} is of no format that is read here ({known}), or is cut short. "
        f"It begins with {data[:8]!r}."
    )


def read_bytes(path: Path, *, what: str, max_bytes: int) -> bytes:
    """Return the bytes of a regular file that the caller chose; it may be reached through links.

    Raises:
        NotFound: there is none.
        InvalidInput: it is empty, no regular file, or may not be read.
        TooLarge: it has more than ``max_bytes``.
    """
    try:
        with open_regular(path.resolve(strict=True)) as file:  # a pipe or device would wait, or never end
            data = file.read(max_bytes + 1)
    except FileNotFoundError as exc:
        raise NotFound(f"There is no file {str(path)!r}.") from exc
    except (OSError, ValueError, RuntimeError) as exc:
        raise InvalidInput(
            f"{what} {str(path)!r} cannot be read: {getattr(exc, 'strerror', None) or exc}. Give a regular file."
        ) from exc
    if len(data) > max_bytes:
        raise TooLarge(f"{what} {str(path)!r} may have at most {max_bytes:,} bytes. It has more.")
    if not data:
        raise InvalidInput(f"{what} {str(path)!r} is empty. Was its download or export cut short?")
    return data
