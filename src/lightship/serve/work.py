"""A request for a model, the batches it travels in, and their way into messages and back. No I/O, no clock."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import msgspec

import lightship.errors
from lightship.errors import LightshipError, Unavailable, WorkerFailed
from lightship.serve.batcher import Item
from lightship.serve.limits import Clocks
from lightship.serve.tensors import PackedTensor, join_rows
from lightship.serve.wire import Done, RunRaw, RunTensors, TensorHead

__all__ = [
    "Answer",
    "Batch",
    "Parts",
    "Room",
    "Told",
    "Work",
    "batch_message",
    "error_named",
    "join_answers",
    "split_answers",
]

log = logging.getLogger(__name__)


class _Forgets(Protocol):
    def forget(self, work: Work) -> None:
        """Take a cancelled request out of the queue."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a request gets: the graph's outputs, or, for raw inputs, one JSON object a row."""

    outputs: tuple[PackedTensor, ...] = ()
    answers: tuple[bytes, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all that is in it."""
        return sum([len(one.data) for one in self.outputs]) + sum(map(len, self.answers))


Told = Callable[[Answer | None, LightshipError | None], None]
"""Gets the answer or the error of a request."""


class Work(Item, kw_only=True):
    """One request for a model: its rows, its deadline, and whom to tell. It waits, and runs in one batch.

    Attributes:
        inputs: the graph's inputs in the interface's order (``tensors`` lane), or
        raws: raw inputs, one a row (``raw`` lane).
        done: called once, on the event loop, with an answer or an error; never after ``cancel``.
        tries: how many workers have died of it, or beside it.
        model: whose queue it may be in.
        parts: of a request that is too large for one batch: what runs of it, one after the other.
        first: of a part: the row of the request that its own begin with.
        owner: id of the key that it came with; empty without keys.
    """

    done: Told | None
    inputs: tuple[PackedTensor, ...] = ()
    raws: tuple[bytes, ...] = ()
    tries: int = 0
    model: _Forgets | None = None
    parts: Parts | None = None
    first: int = 0
    submitted_s: float = 0.0
    owner: str = ""

    def told(self, message: str) -> str:
        """Return what is wrong with these rows for whoever sent the request, of which they may be a later part."""
        return f"{message} (Places count from row {self.first} of the request.)" if self.first else message

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.done is None

    def finish(self, answer: Answer | None, error: LightshipError | None) -> None:
        """Tell the caller, once."""
        done, self.done = self.done, None
        self.inputs = self.raws = ()
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
        if self.done is None:
            return
        self.done = None
        self.inputs, self.raws = (), ()
        if self.parts is not None:
            self.parts.cancel()
        elif self.model is not None:
            self.model.forget(self)


class Room:
    """How many bytes a model holds of answers that are not whole yet."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Count what is going to be held. A single answer may be larger than all together.

        Raises:
            Unavailable: it would be too much.
        """
        if self._held_bytes and self._held_bytes + size_bytes > self._most_bytes:
            raise Unavailable(
                f"The answers that this model puts together have at most {self._most_bytes} bytes (limit "
                "`answers_bytes`). Try again later, or send fewer rows a request."
            )
        self._held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Count what is held no longer."""
        self._held_bytes -= size_bytes


class Parts:
    """A request that is too large for one batch. Its parts wait one after the other: it cannot crowd out the others.

    Args:
        more: called when a part is answered and another has to follow.
        room: for the answer, of which the first parts wait for the last.
        answer_bytes: of the whole answer; None if the graph does not say.

    Raises:
        Unavailable: there is no room.
    """

    def __init__(self, work: Work, more: Callable[[Parts], None], room: Room, *, answer_bytes: int | None) -> None:
        self._work = work
        self._more = more
        self._room = room
        self._sized = answer_bytes is not None
        self._taken = 0
        self._answers: list[Answer] = []
        self._part: Work | None = None
        self._held_bytes = 0
        self._hold(answer_bytes or 0)
        work.parts = self

    def next(self, most_rows: int) -> Work:
        """Return the next rows as work of its own."""
        work, start = self._work, self._taken
        self._taken = stop = min(start + most_rows, work.rows)
        self._part = Work(
            work.key,
            stop - start,
            work.size_bytes * (stop - start) // work.rows,
            work.deadline_s,
            done=self._told,
            inputs=tuple(tensor.rows(start, stop) for tensor in work.inputs),
            raws=work.raws[start:stop],
            first=start,
            owner=work.owner,
        )
        return self._part

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self._part is not None:
            self._part.cancel()
        self._let_go()

    def fail(self, error: LightshipError | None) -> None:
        """Answer the whole request with an error."""
        self._let_go()
        self._work.finish(None, error)

    def _told(self, answer: Answer | None, error: LightshipError | None) -> None:
        if answer is None:
            self.fail(error)
            return
        self._answers.append(answer)
        try:
            if not self._sized:
                self._hold(answer.size_bytes)
            whole = None if self._taken < self._work.rows else join_answers(self._answers)
        except LightshipError as exc:
            self.fail(exc)
            return
        if whole is None:
            self._more(self)
        else:
            self._let_go()
            self._work.finish(whole, None)

    def _hold(self, size_bytes: int) -> None:
        self._room.take(size_bytes)
        self._held_bytes += size_bytes

    def _let_go(self) -> None:
        self._room.give_back(self._held_bytes)
        self._held_bytes = 0
        self._answers.clear()


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
    items: list[Work]
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


def batch_message(number: int, works: Sequence[Work]) -> tuple[RunTensors | RunRaw, list[bytes | memoryview]]:
    """Return the message that runs these together, and its payload."""
    rows = tuple([work.rows for work in works])
    if works[0].raws:
        raws = [raw for work in works for raw in work.raws]
        return RunRaw(number, rows, tuple([len(raw) for raw in raws])), [*raws]
    heads, payload = [], []
    for index, one in enumerate(works[0].inputs):
        data = [work.inputs[index].data for work in works]
        shape = one.shape if len(works) == 1 else (sum(rows), *one.shape[1:])
        heads.append(TensorHead(one.name, one.dtype, shape, sum(map(len, data))))
        payload += data
    return RunTensors(number, rows, tuple(heads)), payload


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
    if texts:
        return [
            Answer((), tuple(texts[stop - count : stop])) for count, stop in zip(rows, accumulate(rows), strict=True)
        ]
    return [Answer(one) for one in zip(*[output.split(rows) for output in outputs], strict=True)]


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
