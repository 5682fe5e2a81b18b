"""The rows that a person gives for a released model, shared out: what calibrates, what chooses and what judges.

Every row is read once to be checked and hashed; those that lie in a part are kept as far as they go into memory, and
read again beyond that. A row that the reference itself cannot answer is no fault of a variant: it is bad, and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lightship.bundle.statement import Evidence, summary_of
from lightship.data.parts import PARTS, Parts, row_digest, share_rows
from lightship.data.rows import BadRow
from lightship.engine.runner import Runner
from lightship.errors import InvalidData, InvalidInput, LightshipError
from lightship.optimize.candidate import Rows
from lightship.pipeline.row_labels import RowLabels, output_of, row_labels
from lightship.tasks.row_files import RowFile
from lightship.tasks.task import Tensors
from lightship.tasks.tensors import BATCH, is_batched
from lightship.types import Interface, Json, Progress, Verdict
from lightship.validate.meters import Kind

__all__ = ["GivenRows"]

_CALIBRATION_ROWS = 256
_CALIBRATION_BATCH = 32
_LEAST_SELECTION = 8
_SELECTION_BYTES = 1 << 30
_SHOWN_BAD = 20
_PROBED = 50


@dataclass(frozen=True, slots=True)
class _Known:
    """A row that can be used: its digest, and the shape of each input."""

    digest: bytes
    shape: tuple[tuple[int, ...], ...]


class GivenRows:
    """Checked rows in their parts.

    Args:
        file: the rows.
        interface: of the model.
        reference: answers them.
        names: of the classes, if the task has some.
        output: the output to judge by, if a person said so.
        kind: of the labels, likewise.
        progress: hears what is done.

    Attributes:
        parts: which rows lie in which.
        labels: what they are labeled with; None without.
        output: the output that is judged by labels, or holds the answer.
        bad: rows that cannot be used, and why.
        words: what people should know, one line each.

    Raises:
        InvalidData: too many rows cannot be used.
        InvalidInput: labels and outputs do not go together.
    """

    def __init__(
        self,
        file: RowFile,
        interface: Interface,
        reference: Runner,
        *,
        names: Sequence[str] = (),
        output: str | None = None,
        kind: Kind | None = None,
        progress: Progress,
    ) -> None:
        self._file, self._interface, self._reference = file, interface, reference
        self._batched = is_batched(interface.inputs, interface.outputs)
        # A graph that was exported for one row has its answers in rows, one at a time; else each answer is one row.
        tensors = (*interface.inputs, *interface.outputs)
        self._in_rows = self._batched or all(spec.shape[:1] == (1,) for spec in tensors)
        self.words: list[str] = []
        self.bad: list[BadRow] = []
        self._silent: set[int] = set()
        progress.start("Read the rows", len(file))
        self._known = self._read(progress)
        file.require_usable(self.bad, of=len(file))
        self.labels = self._labels(names, output, kind)
        self.output = (
            self.labels.output if self.labels else output_of(self._probe_answers, interface.outputs, wanted=output)
        )
        digests = [known.digest if known else None for known in self._known]
        labels = None if self.labels is None else [self.labels.identity(index) for index in range(len(file))]
        self.parts: Parts = share_rows(digests, labels)
        file.hold([index for name in PARTS for index in self.parts.part(name)])
        self._usable = {name: self._answered(self.parts.part(name)) for name in ("calibration", "selection")}
        file.require_usable(self.bad, of=len(file))
        sizes = ", ".join(f"{len(self.parts.part(name)):,} {name}" for name in PARTS)
        progress.done(f"{sizes}" + (f", {len(self.bad)} bad" if self.bad else ""))

    @property
    def source(self) -> str:
        """Where they come from, as it was given."""
        return self._file.source

    def fingerprint(self, part: str) -> str:
        """Return the SHA-256 over the rows of a part and their labels."""
        return self.parts.fingerprints[part]

    def calibration(self) -> list[Tensors]:
        """Return batches of calibration rows; rows of one batch have one shape."""
        rows = self._usable["calibration"][:_CALIBRATION_ROWS]
        return [self._file.stacked(batch) for batch in self._batches(rows, _CALIBRATION_BATCH)]

    def selection(self) -> Rows:
        """Return the selection rows as one array for each input, with their labels.

        Rows of several sizes are padded with zeros if the model has a mask among its inputs; else those of the size
        that most of them have are taken. The gate sees all rows as they are.

        Raises:
            InvalidData: there are too few.
        """
        indices = self._usable["selection"]
        shapes: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index in indices:
            shapes.setdefault(self._shape(index), []).append(index)
        masked = any("mask" in spec.name.lower() for spec in self._interface.inputs)
        padded = len(shapes) > 1 and masked and self._batched
        if len(shapes) > 1 and not padded:
            indices = max(shapes.values(), key=len)
            self.words.append(
                f"{len(indices)} of {len(self._usable['selection'])} selection rows have one size and were searched on"
            )
        if len(indices) < _LEAST_SELECTION:
            raise InvalidData(
                f"A search needs at least {_LEAST_SELECTION} different rows of one size to choose on. "
                f"{self.source} has {len(indices)} among its {self.parts.given} rows. Give more rows, or none: "
                "then variants are tried that lose nothing."
            )
        rows = [self._file.row(index) for index in self._affordable(indices)]
        if padded:
            self.words.append(
                "rows of several sizes are padded with zeros to search on; the gate runs them as they are"
            )
        inputs = {spec.name: _stacked([row[spec.name] for row in rows]) for spec in self._interface.inputs}
        if self.labels is None:
            return Rows(inputs, None, self.output, batched=self._batched)
        labels = self.labels.values[list(indices[: len(rows)])]
        return Rows(inputs, labels, self.output, batched=self._batched, kind=self.labels.kind)

    @property
    def batched(self) -> bool:
        """Whether rows are stacked into batches."""
        return self._batched

    def few(self) -> Tensors:
        """Return some selection rows of one shape, first axis rows; none of a graph that takes no rows."""
        return self._joined(self.some(8)) if self._in_rows else {}

    def _joined(self, rows: Sequence[Tensors]) -> Tensors:
        join = np.concatenate if self._in_rows and not self._batched else np.stack
        return {name: join([row[name] for row in rows]) for name in rows[0]}

    def some(self, count: int) -> list[Tensors]:
        """Return a few selection rows of one shape, to try sizes with; no row that judges."""
        indices = self._usable["selection"] or self._usable["calibration"]
        like = [index for index in indices if self._shape(index) == self._shape(indices[0])]
        return [self._file.row(index) for index in like[:count]]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return the least and the greatest size of each free dimension of a row, over all rows."""
        found: dict[str, tuple[int, int]] = {}
        for shapes in {known.shape for known in self._known if known}:
            for spec, shape in zip(self._interface.inputs, shapes, strict=True):
                for dim, size in zip(spec.shape[1:] if self._batched else spec.shape, shape, strict=True):
                    if isinstance(dim, str):
                        least, greatest = found.get(dim, (size, size))
                        found[dim] = (min(least, size), max(greatest, size))
        return found

    def answered(self, part: str, size: int) -> Iterator[tuple[Sequence[int], Tensors, Tensors]]:
        """Yield (rows, inputs, the reference's answers) of batches of rows of one shape.

        Rows that the reference cannot answer are left out; ``require_usable`` tells whether they are too many.
        """
        for batch in self._batches(self.usable(part), size):
            for indices, inputs, answers in self._answers(batch):
                yield indices, inputs, self.as_rows(answers)

    def inputs(self, part: str, size: int) -> Iterator[tuple[Sequence[int], Tensors]]:
        """Yield (rows, inputs) of batches of those that the reference was seen to answer."""
        for batch in self._batches(self.usable(part), size):
            yield batch, self._file.stacked(batch)

    def tables(self, part: str, size: int) -> Iterator[tuple[Sequence[int], Tensors]]:
        """Yield (rows, inputs) with a first axis of rows, also of a graph that takes them one at a time."""
        for batch in self._grouped(self.usable(part), size):
            yield batch, self._joined([self._file.row(index) for index in batch])

    def usable(self, part: str) -> Sequence[int]:
        """Return the rows of a part; of the gate without those that the reference was seen not to answer."""
        known = self._usable.get(part)
        return [index for index in self.parts.part(part) if index not in self._silent] if known is None else known

    def truth(self, rows: Sequence[int]) -> np.ndarray:
        """Return the labels of some rows; of rows without labels nothing that could be one."""
        return np.full(len(rows), -1) if self.labels is None else self.labels.values[list(rows)]

    def name(self, row: int) -> str:
        """Return what people call a row."""
        return self._file.ids[row]

    def as_rows(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return outputs with a first axis of rows."""
        return dict(outputs) if self._in_rows else {name: array[np.newaxis] for name, array in outputs.items()}

    def require_usable(self) -> None:
        """Refuse the source if too many rows turned out bad.

        Raises:
            InvalidData: names the first of them.
        """
        self._file.require_usable(self.bad, of=len(self._file))

    def evidence(self, *, subjects: Mapping[str, str], looks: int) -> Evidence:
        """Return what the rows are, and how often the gate part was looked at."""
        parts = self.parts
        counted = ", ".join(f"{len(parts.part(name)):,} {name}" for name in PARTS)
        said = [f"{parts.given:,} rows: {counted}", f"gate rows looked at {looks} time{'' if looks == 1 else 's'}"]
        if self.labels:
            said.append(self.labels.words)
        if parts.duplicates:
            said.append(f"{parts.duplicates:,} copies of rows count once")
        if parts.conflicts:
            said.append(f"{parts.conflicts:,} inputs have unequal labels")
        if self.bad:
            said.append(f"{len(self.bad)} bad, the first: {self.bad[0].id}: {self.bad[0].reason}")
        measured: dict[str, Json] = {
            **parts.to_json(),
            "source": Path(self.source).name,  # a path would tell about a person's disk
            "labels": {"kind": self.labels.kind, "output": self.labels.output} if self.labels else None,
            "gate_looks": looks,
            "bad": [{"row": row.id, "reason": summary_of(row.reason, most=300)} for row in self.bad[:_SHOWN_BAD]],
            "bad_rows": len(self.bad),
        }
        method: dict[str, Json] = {"split": "hash of the encoded row", "copies": "count once"}
        return Evidence("data", Verdict.PASSED, subjects, summary_of("; ".join(said)), measured, method)

    # -- reading ------------------------------------------------------------------------------------------------

    def _read(self, progress: Progress) -> list[_Known | None]:
        known: list[_Known | None] = []
        for index, name in enumerate(self._file.ids):
            try:
                row = self._file.row(index)
                known.append(_Known(row_digest(row), tuple(row[spec.name].shape for spec in self._interface.inputs)))
            except InvalidInput as exc:
                known.append(None)
                self.bad.append(BadRow(name, str(exc)))
            progress.advance()
        return known

    def _labels(self, names: Sequence[str], output: str | None, kind: Kind | None) -> RowLabels | None:
        """Tell what the labels are, and count rows without a good one as bad."""
        if self._file.labels is None:
            if kind is not None:
                raise InvalidInput(f"`--label-kind` says what labels are, and {self.source} has none.")
            return None
        found = row_labels(
            self._file.labels, self._probe_answers, self._interface.outputs, names=names, wanted=output, kind=kind
        )
        for index, reason in found.bad.items():
            if self._known[index] is not None:
                self._known[index] = None
                self.bad.append(BadRow(self._file.ids[index], reason))
        self._file.require_usable(self.bad, of=len(self._file))
        return found

    @cached_property
    def _probe_answers(self) -> Tensors:
        """What the reference answers to the first row that it answers at all; first axis rows."""
        last: LightshipError | None = None
        for index in [index for index, known in enumerate(self._known) if known is not None][:_PROBED]:
            try:
                return self.as_rows(self._reference.run(self._file.stacked([index])))
            except LightshipError as exc:
                last = exc
        raise InvalidData(f"The reference answers none of the first rows of {self.source}. {last}") from last

    def _answered(self, indices: Sequence[int]) -> list[int]:
        """Return those of the rows that the reference answers."""
        kept = {
            index
            for batch in self._batches(indices, _CALIBRATION_BATCH)
            for part, *_ in self._answers(batch)
            for index in part
        }
        return [index for index in indices if index in kept]

    def _answers(self, batch: Sequence[int]) -> Iterator[tuple[Sequence[int], Tensors, Tensors]]:
        """Yield (rows, inputs, the reference's answers): of the batch, else of its rows that can be run, singly."""
        try:
            inputs = self._file.stacked(batch)
            answers = self._reference.run(inputs)
            self._require_numbers(answers)
            yield batch, inputs, answers
        except LightshipError as exc:
            if len(batch) > 1:
                for index in batch:
                    yield from self._answers([index])
                return
            why = str(exc).partition(". ")[0]
            self._silent.add(batch[0])
            self.bad.append(BadRow(self._file.ids[batch[0]], f"the reference cannot answer it: {why}"))

    def _require_numbers(self, answers: Tensors) -> None:
        """Refuse answers that nothing can be compared with: NaN, and where labels judge infinity."""
        for name, array in answers.items():
            if array.dtype.kind == "f" and (~np.isfinite(array) if self.labels else np.isnan(array)).any():
                raise InvalidInput(f"{name!r} is no number. There is nothing to compare a variant with")

    def _batches(self, indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
        """Yield batches of rows of one shape that the graph takes."""
        return self._grouped(indices, min(size, self._interface.proven.get(BATCH, (1, 1))[1]) if self._batched else 1)

    def _grouped(self, indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
        """Yield rows of one shape, in the order of their first rows."""
        waiting: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index in indices:
            batch = waiting.setdefault(self._shape(index), [])
            batch.append(index)
            if len(batch) == size:
                yield waiting.pop(self._shape(index))
        yield from waiting.values()

    def _shape(self, index: int) -> tuple[tuple[int, ...], ...]:
        known = self._known[index]
        assert known is not None  # noqa: S101 - bad rows are in no part
        return known.shape

    def _affordable(self, indices: Sequence[int]) -> Sequence[int]:
        """Return as many rows as go into memory at once."""
        row_bytes = sum(array.nbytes for array in self._file.row(indices[0]).values())
        return indices[: max(_LEAST_SELECTION, _SELECTION_BYTES // max(1, row_bytes))]


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays; those of other sizes are padded with zeros at their ends."""
    shape = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
    if all(array.shape == shape for array in arrays):
        return np.stack(arrays)
    whole = np.zeros((len(arrays), *shape), dtype=arrays[0].dtype)
    for place, array in zip(whole, arrays, strict=True):
        place[tuple(slice(0, size) for size in array.shape)] = array
    return whole
