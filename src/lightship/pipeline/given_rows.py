"""The rows that a person gives for a released model, shared out: what calibrates, what chooses and what judges.

Every row is read once to be checked and hashed, then again when it is needed; of the gate rows only one batch is in
memory at a time. A row that the reference itself cannot answer is no fault of a variant: it is bad, and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.data.parts import PARTS, Parts, row_digest, share_rows
from lightship.data.rows import BadRow
from lightship.engine.runner import Runner
from lightship.errors import InvalidData, InvalidInput, LightshipError
from lightship.optimize.candidate import Rows
from lightship.tasks.row_files import RowFile
from lightship.tasks.task import Tensors
from lightship.tasks.tensors import BATCH, is_batched
from lightship.types import Interface, Json, Progress, TensorSpec, Verdict

__all__ = ["GivenRows", "pick_output"]

_CALIBRATION_ROWS = 256
_CALIBRATION_BATCH = 32
_LEAST_SELECTION = 8
_SELECTION_BYTES = 1 << 30
_SHOWN_BAD = 20
_SCORES = ("logits", "scores", "probabilities", "output_probability", "probs")
"""Names of outputs with class scores, as exporters give them; the first that is there."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A row that can be used: its digest, and the shape of each input."""

    digest: bytes
    shape: tuple[tuple[int, ...], ...]


class GivenRows:
    """Checked rows in their parts.

    Attributes:
        parts: which rows lie in which.
        bad: rows that cannot be used, and why.
        words: what people should know, one line each.
    """

    def __init__(self, file: RowFile, interface: Interface, reference: Runner, *, progress: Progress) -> None:
        self._file, self._interface, self._reference = file, interface, reference
        self._batched = is_batched(interface.inputs, interface.outputs)
        self.words: list[str] = []
        self.bad: list[BadRow] = []
        progress.start("Read the rows", len(file))
        self._known = self._read(progress)
        file.require_usable(self.bad, of=len(file))
        labels = None if file.labels is None else [int(label) for label in file.labels]
        self.parts: Parts = share_rows([known.digest if known else None for known in self._known], labels)
        self._usable = {name: self._answered(self.parts.part(name)) for name in ("calibration", "selection")}
        file.require_usable(self.bad, of=len(file))
        sizes = ", ".join(f"{len(self.parts.part(name)):,} {name}" for name in PARTS)
        progress.done(f"{sizes}" + (f", {len(self.bad)} bad" if self.bad else ""))

    @property
    def labeled(self) -> bool:
        """Whether the rows have labels."""
        return self._file.labels is not None

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

    def selection(self, output: str) -> Rows:
        """Return the selection rows as one array for each input.

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
        labels = None if self._file.labels is None else self._file.labels[list(indices[: len(rows)])]
        return Rows(inputs, labels, output, batched=self._batched)

    def some(self, count: int) -> list[Tensors]:
        """Return a few selection rows of one shape, to try sizes with; no row that judges."""
        indices = self._usable["selection"] or self._usable["calibration"]
        like = [index for index in indices if self._shape(index) == self._shape(indices[0])]
        return [self._file.row(index) for index in like[:count]]

    def gate_batches(self, size: int) -> Iterator[tuple[np.ndarray, Tensors, Tensors]]:
        """Yield (labels, inputs, the reference's answers) of batches of gate rows of one shape.

        Answers of a graph without a batch dimension get an axis of one row. Rows that the reference cannot answer are
        left out; ``require_usable`` tells whether they are too many.
        """
        for batch in self._batches(self.parts.gate, size):
            for indices, inputs, answers in self._answers(batch):
                labels = np.full(len(indices), -1) if self._file.labels is None else self._file.labels[list(indices)]
                yield labels, inputs, self.as_rows(answers)

    def as_rows(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return outputs with a first axis of rows."""
        return dict(outputs) if self._batched else {name: array[np.newaxis] for name, array in outputs.items()}

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
        if parts.duplicates:
            said.append(f"{parts.duplicates:,} copies of rows count once")
        if parts.conflicts:
            said.append(f"{parts.conflicts:,} inputs have unequal labels")
        if self.bad:
            said.append(f"{len(self.bad)} bad, the first: {self.bad[0].id}: {self.bad[0].reason}"[:300])
        measured: dict[str, Json] = {
            **parts.to_json(),
            "labeled": self.labeled,
            "gate_looks": looks,
            "bad": [{"row": row.id, "reason": row.reason[:300]} for row in self.bad[:_SHOWN_BAD]],
            "bad_rows": len(self.bad),
        }
        method: dict[str, Json] = {"split": "hash of the encoded row", "copies": "count once"}
        return Evidence("data", Verdict.PASSED, subjects, "; ".join(said), measured, method)

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
            self.bad.append(BadRow(self._file.ids[batch[0]], f"the reference cannot answer it: {why}"))

    def _require_numbers(self, answers: Tensors) -> None:
        """Refuse answers that nothing can be compared with: NaN, and in scores that labels judge infinity."""
        for name, array in answers.items():
            if array.dtype.kind == "f" and (~np.isfinite(array) if self.labeled else np.isnan(array)).any():
                raise InvalidInput(f"{name!r} is no number. There is nothing to compare a variant with")

    def _batches(self, indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
        """Yield batches of rows of one shape, in the order of their first rows."""
        waiting: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        size = min(size, self._interface.proven.get(BATCH, (1, 1))[1]) if self._batched else 1
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


def pick_output(
    outputs: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], *, labels: np.ndarray | None, wanted: str | None
) -> str:
    """Return the output that holds class scores, or of rows without labels the answer, an embedding or whatever it is.

    Args:
        outputs: what the reference answers to some rows, first axis rows.
        specs: all outputs.
        labels: classes, or None.
        wanted: its name, if a person said so.

    Raises:
        InvalidInput: there is no such output, or none or several could hold the scores.
    """
    if wanted is not None and wanted not in outputs:
        raise InvalidInput(f"The model has no output {wanted!r}. Its outputs: {', '.join(map(repr, outputs))}.")
    floats = [spec.name for spec in specs if outputs[spec.name].dtype.kind == "f"]
    if labels is None:
        flat = [name for name in floats if outputs[name].ndim == 2]
        return wanted or next(iter([*flat, *floats, *(spec.name for spec in specs)]))
    classes = int(labels.max()) + 1
    fitting = [name for name in floats if outputs[name].ndim == 2 and outputs[name].shape[1] >= max(2, classes)]
    fitting = [name for name in fitting if wanted in (None, name)]
    named = [name for name in _SCORES if name in fitting]
    if len(fitting) == 1 or named:
        return (named or fitting)[0]
    said = ", ".join(f"{name!r} {outputs[name].dtype} {['batch', *outputs[name].shape[1:]]}" for name in outputs)
    place = f"the output {wanted!r}" if wanted else "one output"
    raise InvalidInput(
        f"Labels go up to class {classes - 1}, so {place} of the model must hold float scores of at least "
        f"{max(2, classes)} classes, [batch, classes]. Its outputs: {said}. "
        + ("Say which one: `--output NAME`." if len(fitting) > 1 else "Leave the labels out, to compare answers only.")
    )


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays; those of other sizes are padded with zeros at their ends."""
    shape = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
    if all(array.shape == shape for array in arrays):
        return np.stack(arrays)
    whole = np.zeros((len(arrays), *shape), dtype=arrays[0].dtype)
    for place, array in zip(whole, arrays, strict=True):
        place[tuple(slice(0, size) for size in array.shape)] = array
    return whole
