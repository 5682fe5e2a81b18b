"""Decides which waiting requests run next, together. A plain object: no I/O, no clock of its own, no tensors.

The rule is *run when idle, collect while busy*: the caller asks for a batch whenever its worker is free, so nothing
ever waits for company, and under load the batches grow by themselves. The earliest deadline goes first; within one
key and one deadline the order of arrival holds. Cancelled and expired items never run.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from lightship.errors import DeadlineExceeded, InvalidInput, Overloaded

__all__ = ["BatchBounds", "Batcher", "Item"]


@dataclass(frozen=True, slots=True)
class BatchBounds:
    """How much may wait, and how much may run together.

    Attributes:
        batch_rows: rows of one batch; never more than the graph was proven for.
        batch_bytes: bytes of one batch; a single item may have more, and then runs alone.
        queue_items, queue_bytes: what may wait.
    """

    batch_rows: int
    batch_bytes: int = 64 << 20
    queue_items: int = 256
    queue_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise InvalidInput(f"`{name}` of `BatchBounds` must be at least 1. Got {getattr(self, name)}.")


class Item(msgspec.Struct, eq=False):
    """Some rows that wait to be run. The caller makes a subclass with what it wants to know of them.

    Attributes:
        key: only items with equal keys can run in one batch: the lane and the shapes and dtypes of a row.
        rows: how many rows, at least 1 and at most ``batch_rows``.
        size_bytes: bytes of its inputs.
        deadline_s: time after which it must not start.
        alone: runs in a batch of its own (a shape without batch dimension; the second try after a crash).
        sequence: its place in the order of arrival while it waits; 0 when it does not.
    """

    key: Hashable
    rows: int
    size_bytes: int
    deadline_s: float
    alone: bool = False
    sequence: int = 0


AnyItem = TypeVar("AnyItem", bound=Item)


class Batcher(Generic[AnyItem]):
    """The queue of one model version."""

    def __init__(self, bounds: BatchBounds) -> None:
        self.bounds = bounds
        # By key, no empty ones; in their order: most come with the latest deadline so far, and go to the end.
        self._queues: dict[Hashable, list[AnyItem]] = {}
        self._expired: list[AnyItem] = []  # taken out, not yet asked for
        self._sequence = 0
        self._items = 0
        self._bytes = 0

    def __len__(self) -> int:
        """Return how many items wait."""
        return self._items

    @property
    def size_bytes(self) -> int:
        """Bytes of input that wait."""
        return self._bytes

    def refuse_if_full(self, size_bytes: int = 0, *, coming: int = 0) -> None:
        """Raise what ``add`` would raise for an item of this size; to be asked before a body is read.

        Args:
            size_bytes: of its inputs.
            coming: items that were let in before it and are not added yet.

        Raises:
            Overloaded: the queue is full.
        """
        waiting, bounds = self._items + coming, self.bounds
        if waiting >= bounds.queue_items:
            raise Overloaded(f"The queue of this model is full: {bounds.queue_items} requests wait. Try again later.")
        if waiting and self._bytes + size_bytes > bounds.queue_bytes:
            raise Overloaded(f"The queue of this model is full: {self._bytes} bytes wait. Try again later.")

    def add(self, item: AnyItem, now_s: float, *, admitted: bool = False) -> None:
        """Let an item wait.

        Args:
            item: not waiting yet.
            now_s: the time.
            admitted: part of a request that was let in before, which must not be refused half-way.

        Raises:
            Overloaded: the queue is full.
            DeadlineExceeded: it is too late for this item.
            InvalidInput: it has more rows than a batch may have.
        """
        bounds, key, size, deadline_s = self.bounds, item.key, item.size_bytes, item.deadline_s
        if not 1 <= item.rows <= bounds.batch_rows:
            raise InvalidInput(f"An item must have 1 to {bounds.batch_rows} rows. Got {item.rows}.")
        if deadline_s <= now_s:
            raise DeadlineExceeded("The deadline of the request has passed before it could start.")
        items, held = self._items + 1, self._bytes + size
        if (items > bounds.queue_items or held > bounds.queue_bytes) and not admitted:
            self.refuse_if_full(size)
        self._sequence = item.sequence = self._sequence + 1
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = [item]
        elif deadline_s >= queue[-1].deadline_s:
            queue.append(item)
        else:
            insort(queue, item, key=_place)
        self._items, self._bytes = items, held

    def cancel(self, item: AnyItem) -> bool:
        """Take an item out; return whether it was still waiting."""
        if not item.sequence:
            return False
        queue = self._queues[item.key]
        del queue[bisect_left(queue, _place(item), key=_place)]
        self._left(item)
        return True

    def expire(self, now_s: float) -> list[AnyItem]:
        """Take out and return the items whose deadline has passed, so that the caller can answer them."""
        self._take_out_expired(now_s)
        expired, self._expired = self._expired, []
        return expired

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of all that wait, for the caller's timer."""
        if self._expired:
            return self._expired[0].deadline_s
        return min([queue[0].deadline_s for queue in self._queues.values()], default=None)

    def next_batch(self, now_s: float) -> list[AnyItem]:
        """Take out the items to run now; an empty list if nothing waits that is in time.

        Expired items are never in it; ``expire`` returns them.
        """
        self._take_out_expired(now_s)
        if not self._queues:
            return []
        queue = min(self._queues.values(), key=_first)
        most_rows, most_bytes = self.bounds.batch_rows, self.bounds.batch_bytes
        batch: list[AnyItem] = []
        rows, size = 0, 0
        for item in queue:
            rows += item.rows
            size += item.size_bytes
            if batch and (rows > most_rows or size > most_bytes or item.alone):
                size -= item.size_bytes
                break
            item.sequence = 0
            batch.append(item)
            if item.alone:
                break
        self._items -= len(batch)
        self._bytes -= size
        del queue[: len(batch)]
        if not queue:
            del self._queues[batch[0].key]
        return batch

    def _take_out_expired(self, now_s: float) -> None:
        late = [queue for queue in self._queues.values() if queue[0].deadline_s <= now_s]
        for queue in late:
            count = bisect_right(queue, now_s, key=_deadline)
            expired = queue[:count]
            del queue[:count]
            for item in expired:
                self._left(item)
            self._expired += expired

    def _left(self, item: AnyItem) -> None:
        item.sequence = 0
        self._items -= 1
        self._bytes -= item.size_bytes
        if item.key in self._queues and not self._queues[item.key]:
            del self._queues[item.key]


def _place(item: Item) -> tuple[float, int]:
    return item.deadline_s, item.sequence


def _first(queue: Sequence[Item]) -> tuple[float, int]:
    return _place(queue[0])


def _deadline(item: Item) -> float:
    return item.deadline_s
