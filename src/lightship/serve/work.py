"""A request for a model, the batches it travels in, and their way into messages and back. No I/O, no clock."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import msgspec

import lightship.errors
from lightship.errors import LightshipError, WorkerFailed
from lightship.serve.batcher import Item
from lightship.serve.limits import Clocks
from lightship.serve.tensors import PackedTensor, join_rows
from lightship.serve.wire import Done, RunRaw, RunTensors, TensorHead

__all__ = ["Answer", "Batch", "Part", "Told", "Work", "batch_message", "error_named", "join_answers", "split_answers"]

log = logging.getLogger(__name__)


class _Forgets(Protocol):
    def forget(self, work: Work) -> None:
        """Take a cancelled request out of the queue."""


class Answer(msgspec.Struct, frozen=True):
    """What a request gets: the graph's outputs, or, for raw inputs, one JSON object a row."""

    outputs: tuple[PackedTensor, ...] = ()
    answers: tuple[bytes, ...] = ()


Told = Callable[[Answer | None, LightshipError | None], None]
"""Gets the answer or the error of a request."""


class Work(msgspec.Struct, eq=False, kw_only=True):
    """One request for a model: its rows, its deadline, and whom to tell.

    Attributes:
        inputs: the graph's inputs in the interface's order (``tensors`` lane), or
        raws: raw inputs, one a row (``raw`` lane).
        done: called once, on the event loop, with an answer or an error; never after ``cancel``.
        key: what its rows have in common with others that can run in the same batch.
        size_bytes: of its inputs.
        parts: answers of the parts that have run.
        taken: rows that were put into the queue so far.
        item: the part that waits or runs; a large request has one after the other.
        owner: id of the key that it came with; empty without keys.
    """

    rows: int
    deadline_s: float
    done: Told | None
    inputs: tuple[PackedTensor, ...] = ()
    raws: tuple[bytes, ...] = ()
    key: Hashable = "raw"
    size_bytes: int
    parts: tuple[Answer, ...] = ()
    taken: int = 0
    item: Part | None = None
    model: _Forgets | None = None
    submitted_s: float = 0.0
    owner: str = ""

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.done is None

    def finish(self, answer: Answer | None, error: LightshipError | None) -> None:
        """Tell the caller, once."""
        done, self.done = self.done, None
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
        self.done = None
        self.inputs, self.raws = (), ()
        if self.model is not None:
            self.model.forget(self)


class Part(Item, kw_only=True):
    """The rows [start, stop) of a request, as they wait and run. Most requests have one part."""

    work: Work
    start: int = 0
    stop: int
    tries: int = 0

    def told(self, message: str) -> str:
        """Return what is wrong with these rows for whoever sent the request, of which they may be a later part."""
        return f"{message} (Places count from row {self.start} of the request.)" if self.start else message


@dataclass(slots=True)
class Batch:
    """What the worker was sent as one message.

    Attributes:
        since_s: since when the worker has had nothing before it.
        items: the earliest deadline first.
        deadline_s: when the next of its requests has to be told that it is too late.
        over_s: when nobody waited for it any more, and the worker was told.
    """

    number: int
    items: list[Part]
    since_s: float
    deadline_s: float = field(init=False)
    over_s: float | None = None
    killed: bool = False

    def __post_init__(self) -> None:
        self.deadline_s = self.items[0].deadline_s

    def kill_s(self, clocks: Clocks) -> float:
        """Return when its worker has to be replaced, if this batch is the one that runs."""
        if self.killed:
            return math.inf
        hangs_s = self.since_s + clocks.hang_s
        return hangs_s if self.over_s is None else min(hangs_s, max(self.since_s, self.over_s) + clocks.overdue_s)


def batch_message(number: int, parts: Sequence[Part]) -> tuple[RunTensors | RunRaw, list[bytes | memoryview]]:
    """Return the message that runs these parts together, and its payload."""
    rows = tuple([part.rows for part in parts])
    first = parts[0].work
    if first.raws:
        raws = [raw for part in parts for raw in part.work.raws[part.start : part.stop]]
        return RunRaw(number, rows, tuple(len(raw) for raw in raws)), list(raws)
    inputs = [part.work.inputs if part.rows == part.work.rows else _inputs(part) for part in parts]
    heads, payload = [], []
    for index, one in enumerate(inputs[0]):
        data = [tensors[index].data for tensors in inputs]
        shape = one.shape if len(parts) == 1 else (sum(rows), *one.shape[1:])
        heads.append(TensorHead(one.name, one.dtype, shape, sum(map(len, data))))
        payload += data
    return RunTensors(number, rows, tuple(heads)), payload


def _inputs(part: Part) -> tuple[PackedTensor, ...]:
    return tuple(tensor.rows(part.start, part.stop) for tensor in part.work.inputs)


def split_answers(done: Done, payload: memoryview, rows: Sequence[int], *, batched: bool) -> list[Answer]:
    """Give each request its rows of a batch's outputs. As many rows must come back as were sent.

    Raises:
        WorkerFailed: they are not.
    """
    total = sum(rows)
    outputs: list[PackedTensor] = []
    at = 0
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
    stops = list(accumulate(rows))
    bounds = list(zip([0, *stops], stops, strict=False))
    if texts:
        return [Answer((), tuple(texts[start:stop])) for start, stop in bounds]
    if len(outputs) == 1:
        return [Answer((one,)) for one in outputs[0].split(bounds)]
    return [Answer(one) for one in zip(*[output.split(bounds) for output in outputs], strict=True)]


def join_answers(parts: Sequence[Answer]) -> Answer:
    """Return the answer of a request whose parts ran one after the other."""
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
