"""A request for a model, the batches it travels in, and their way into messages and back. No I/O, no clock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import lightship.errors
from lightship.errors import LightshipError, WorkerFailed
from lightship.serve.batcher import Item
from lightship.serve.tensors import PackedTensor, join_rows
from lightship.serve.wire import Done, RunRaw, RunTensors, TensorHead

__all__ = ["Answer", "Batch", "Part", "Told", "Work", "batch_message", "error_named", "join_answers", "split_answers"]

log = logging.getLogger(__name__)


class _Forgets(Protocol):
    def forget(self, work: Work) -> None:
        """Take a cancelled request out of the queue."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets: the graph's outputs, or, for raw inputs, one JSON object a row."""

    outputs: tuple[PackedTensor, ...] = ()
    answers: tuple[bytes, ...] = ()


Told = Callable[[Answer | None, LightshipError | None], None]
"""Gets the answer or the error of a request."""


class Work:
    """One request for a model: its rows, its deadline, and whom to tell.

    Args:
        inputs: the graph's inputs in the interface's order (``tensors`` lane), or
        raws: raw inputs, one a row (``raw`` lane).
        done: called once, on the event loop, with an answer or an error; never after ``cancel``.
    """

    __slots__ = ("_done", "deadline_s", "inputs", "item", "model", "parts", "raws", "rows", "submitted_s", "taken")

    def __init__(
        self,
        *,
        rows: int,
        deadline_s: float,
        done: Told,
        inputs: tuple[PackedTensor, ...] = (),
        raws: tuple[bytes, ...] = (),
    ) -> None:
        self.inputs = inputs
        self.raws = raws
        self.rows = rows
        self.deadline_s = deadline_s
        self.parts: list[Answer] = []
        self.taken = 0  # rows that were put into the queue so far
        self.item: Item | None = None  # the part that waits or runs; a large request has one after the other
        self.model: _Forgets | None = None
        self.submitted_s = 0.0
        self._done: Told | None = done

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._done is None

    def finish(self, answer: Answer | None, error: LightshipError | None) -> None:
        """Tell the caller, once."""
        done, self._done = self._done, None
        self.inputs, self.raws = (), ()
        if done is None:
            return
        try:
            done(answer, error)
        except Exception:
            # One answer that cannot be written must not take the others of its batch with it.
            log.exception("an answer could not be written")
            done(None, LightshipError("The answer could not be written. The server's log tells why."))

    def cancel(self) -> None:
        """Nobody waits any more: leave the queue; a batch that runs already runs on without it."""
        self._done = None
        self.inputs, self.raws = (), ()
        if self.model is not None:
            self.model.forget(self)


@dataclass(slots=True)
class Part:
    """Some rows of a request, as the payload of an item."""

    work: Work
    start: int
    stop: int
    tries: int = 0


@dataclass(slots=True)
class Batch:
    """What the worker was sent as one message.

    Attributes:
        since_s: since when the worker has had nothing before it.
        deadline_s: when the next of its requests has to be told that it is too late.
    """

    number: int
    items: list[Item]
    since_s: float
    deadline_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline_s = min(item.deadline_s for item in self.items)


def batch_message(number: int, parts: Sequence[Part]) -> tuple[RunTensors | RunRaw, list[bytes | memoryview]]:
    """Return the message that runs these parts together, and its payload."""
    rows = tuple(part.stop - part.start for part in parts)
    if parts[0].work.raws:
        raws = [raw for part in parts for raw in part.work.raws[part.start : part.stop]]
        return RunRaw(number, rows, tuple(len(raw) for raw in raws)), list(raws)
    total = sum(rows)
    heads, payload = [], []
    for index, first in enumerate(parts[0].work.inputs):
        size = 0
        for part in parts:
            whole = part.start == 0 and part.stop == part.work.rows
            tensor = part.work.inputs[index] if whole else part.work.inputs[index].rows(part.start, part.stop)
            payload.append(tensor.data)
            size += len(tensor.data)
        shape = first.shape if len(parts) == 1 and rows[0] == parts[0].work.rows else (total, *first.shape[1:])
        heads.append(TensorHead(first.name, first.dtype, shape, size))
    return RunTensors(number, rows, tuple(heads)), payload


def split_answers(done: Done, payload: memoryview, rows: list[int], *, batched: bool) -> list[Answer]:
    """Give each request its rows of a batch's outputs. As many rows must come back as were sent.

    Raises:
        WorkerFailed: they are not.
    """
    total = sum(rows)
    at, outputs = 0, []
    for head in done.outputs:
        if batched and total and head.shape[:1] != (total,):
            raise WorkerFailed(f"A batch of {total} rows gave {list(head.shape)} for {head.name!r}.")
        outputs.append(PackedTensor(head.name, head.dtype, head.shape, payload[at : at + head.size]))
        at += head.size
    texts = []
    for size in done.answers:
        texts.append(bytes(payload[at : at + size]))
        at += size
    if done.answers and len(texts) != total:
        raise WorkerFailed(f"A batch of {total} rows gave {len(texts)} answers.")
    if len(rows) == 1:
        return [Answer(tuple(outputs), tuple(texts))]
    split, start = [], 0
    for count in rows:
        stop = start + count
        split.append(Answer(tuple(output.rows(start, stop) for output in outputs), tuple(texts[start:stop])))
        start = stop
    return split


def join_answers(parts: Sequence[Answer]) -> Answer:
    """Return the answer of a request whose parts ran one after the other."""
    if len(parts) == 1:
        return parts[0]
    outputs = tuple(join_rows(pieces) for pieces in zip(*(part.outputs for part in parts), strict=True))
    return Answer(outputs, tuple(text for part in parts for text in part.answers))


def error_named(name: str, message: str) -> LightshipError:
    """Return the error that a worker named. Only our own classes that are made from a message alone are known."""
    cls = getattr(lightship.errors, name, None)
    if name in lightship.errors.__all__ and isinstance(cls, type) and issubclass(cls, LightshipError):
        try:
            return cls(message)
        except TypeError:
            return LightshipError(message)
    return LightshipError(message)
