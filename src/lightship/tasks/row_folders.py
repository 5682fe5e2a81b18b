"""Rows in a folder: ``.npz`` files of one row or several each; for a model of images, images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lightship.data.sources import IMAGE_SUFFIXES, read_images, read_source
from lightship.errors import InvalidData, InvalidInput
from lightship.tasks.row_arrays import BROKEN_NPZ, ArrayRows, arrays_in, unpacked_bytes
from lightship.tasks.row_reader import GivenLabels, ImageRows, RowReader, require_few_enough, require_plausible
from lightship.tasks.task import Task, Tensors
from lightship.tasks.tensors import is_batched
from lightship.types import Interface

__all__ = ["folder_rows"]

_MOST_FILES = 200_000


def folder_rows(path: Path, task: Task, interface: Interface, label: str) -> RowReader:
    """Open a folder.

    Raises:
        InvalidData: it holds nothing that the model could take.
    """
    entries = _entries(path)
    files = [entry for entry in entries if entry.suffix.lower() == ".npz"]
    if files:
        return _Files(path, entries, interface, label)
    if task.labels:
        if any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries):
            return ImageRows(read_images(path), task, labeled=False)
        return ImageRows(read_source(f"folder:{path.resolve()}", base=Path.cwd()), task, labeled=True)
    raise InvalidData(
        f"The folder {str(path)!r} must hold .npz files, with arrays by the name of the input. "
        f"It has {', '.join(repr(entry.name[:40]) for entry in entries[:5]) or 'nothing'}."
    )


def _entries(path: Path) -> list[Path]:
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as exc:
        raise InvalidData(f"The folder {str(path)!r} cannot be read: {exc.strerror}.") from exc
    if len(entries) > _MOST_FILES:
        raise InvalidData(f"The folder {str(path)!r} may hold at most {_MOST_FILES:,} files. It has {len(entries):,}.")
    return entries


class _Files:
    """``.npz`` files of one row or several each; one file is in memory at a time."""

    def __init__(self, folder: Path, entries: Sequence[Path], interface: Interface, label: str) -> None:
        self._interface, self._label = interface, label
        self._held: tuple[Path, ArrayRows] | None = None
        self._places: list[tuple[Path, int]] = []
        self.broken: dict[int, str] = {}
        ids: list[str] = []
        labels: list[object] = []
        labeled = unpacked = on_disk = 0
        for entry in entries:
            require_few_enough(len(ids), f"The folder {str(folder)!r}")
            size = _sizes_of(entry)
            unpacked, on_disk = unpacked + size[0], on_disk + size[1]
            require_plausible(unpacked, on_disk, f"The folder {str(folder)!r}")
            for name, at, found, reason in self._rows_of(entry, folder):
                if reason:
                    self.broken[len(ids)] = reason
                labeled += found is not None
                ids.append(name)
                labels.append(found)
                self._places.append((entry, at))
        self.ids: Sequence[str] = ids
        if labeled not in (0, len(ids) - len(self.broken)):
            raise InvalidData(
                f"{labeled} of the {len(ids)} rows in {str(folder)!r} have the array {label!r}. "
                "Give labels for all of them, or for none."
            )
        self.labels: GivenLabels = labels if labeled else None

    def row(self, index: int) -> Tensors:
        path, at = self._places[index]
        return self._open(path).row(at)

    def _rows_of(self, entry: Path, folder: Path) -> Iterator[tuple[str, int, object, str]]:
        name = entry.relative_to(folder).as_posix()
        if entry.suffix.lower() != ".npz" or not entry.is_file():
            yield name, 0, None, "is no .npz file"
            return
        try:
            arrays = self._open(entry)
        except InvalidInput as exc:
            yield name, 0, None, str(exc)
            return
        count = len(arrays.ids)
        for at in range(count):
            label = None if arrays.labels is None else arrays.labels[at]
            yield name if count == 1 else f"{name}#{at + 1}", at, label, ""

    def _open(self, path: Path) -> ArrayRows:
        if self._held is None or self._held[0] != path:
            self._held = (path, self._read(path))
        return self._held[1]

    def _read(self, path: Path) -> ArrayRows:
        arrays = arrays_in(path, "it")
        read = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
        if len(read) == len(arrays):
            arrays = self._with_rows(read)
        return ArrayRows(arrays, self._interface, label=self._label, what="it", prefix=path.name)

    def _with_rows(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays of one row with an axis of rows, its label too; those of several as they are."""
        batched = is_batched(self._interface.inputs, self._interface.outputs)
        ranks = {spec.name: len(spec.shape) - batched for spec in self._interface.inputs}
        if all(name in arrays and arrays[name].ndim == rank for name, rank in ranks.items()):
            if batched:
                arrays = {name: array[np.newaxis] if name in ranks else array for name, array in arrays.items()}
            label = arrays.get(self._label)
            if label is not None and label.shape[:1] != (1,):
                arrays = {**arrays, self._label: label[np.newaxis]}
        return arrays


def _sizes_of(entry: Path) -> tuple[int, int]:
    """Return the bytes that a file unpacks to, and those that it has; none of one that is no zip file."""
    try:
        return unpacked_bytes(entry), entry.stat().st_size
    except (*BROKEN_NPZ, OSError):
        return 0, 0
