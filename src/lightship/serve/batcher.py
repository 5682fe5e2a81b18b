"""Decides which waiting requests run next, together. A plain object: no I/O, no clock of its own, no tensors.

The rule is *run when idle, collect while busy*: the caller asks for a batch whenever its worker is free, so nothing
ever waits for company, and under load the batches grow by themselves. The earliest deadline goes first; within one
key and one deadline the order of arrival holds. Cancelled and expired items never run.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
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
        self._heaps: dict[Hashable, list[tuple[float, int, AnyItem]]] = {}  # by key; no empty ones
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

    def refuse_if_full(self, size_bytes: int = 0) -> None:
        """Raise what ``add`` would raise for an item of this size; to be asked before a body is read.

        Raises:
            Overloaded: the queue is full.
        """
        bounds = self.bounds
        if self._items >= bounds.queue_items:
            raise Overloaded(f"The queue of this model is full: {bounds.queue_items} requests wait. Try again later.")
        if self._items and self._bytes + size_bytes > bounds.queue_bytes:
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
        if not 1 <= item.rows <= self.bounds.batch_rows:
            raise InvalidInput(f"An item must have 1 to {self.bounds.batch_rows} rows. Got {item.rows}.")
        if item.deadline_s <= now_s:
            raise DeadlineExceeded("The deadline of the request has passed before it could start.")
        if not admitted:
            self.refuse_if_full(item.size_bytes)
        self._sequence += 1
        item.sequence = self._sequence
        heapq.heappush(self._heaps.setdefault(item.key, []), (item.deadline_s, item.sequence, item))
        self._items += 1
        self._bytes += item.size_bytes

    def cancel(self, item: AnyItem) -> bool:
        """Take an item out; return whether it was still waiting."""
        if not item.sequence:
            return False
        heap = self._heaps[item.key]
        heap.remove((item.deadline_s, item.sequence, item))  # the queue is bounded, so a search is cheap
        heapq.heapify(heap)
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
        return min((heap[0][0] for heap in self._heaps.values()), default=None)

    def next_batch(self, now_s: float) -> list[AnyItem]:
        """Take out the items to run now; an empty list if nothing waits that is in time.

        Expired items are never in it; ``expire`` returns them.
        """
        self._take_out_expired(now_s)
        if not self._heaps:
            return []
        heap = min(self._heaps.values(), key=lambda entries: entries[0][:2])
        bounds = self.bounds
        batch: list[AnyItem] = []
        rows, size = 0, 0
        while heap:
            item = heap[0][2]
            fits = rows + item.rows <= bounds.batch_rows and size + item.size_bytes <= bounds.batch_bytes
            if batch and (item.alone or not fits):
                break
            heapq.heappop(heap)
            item.sequence = 0
            batch.append(item)
            rows += item.rows
            size += item.size_bytes
            if item.alone:
                break
        self._items -= len(batch)
        self._bytes -= size
        if not heap:
            del self._heaps[batch[0].key]
        return batch

    def _take_out_expired(self, now_s: float) -> None:
        late = [heap for heap in self._heaps.values() if heap[0][0] <= now_s]
        for heap in late:
            while heap and heap[0][0] <= now_s:
                self._expired.append(self._pop(heap))

    def _pop(self, heap: list[tuple[float, int, AnyItem]]) -> AnyItem:
        item = heapq.heappop(heap)[2]
        self._left(item)
        return item

    def _left(self, item: AnyItem) -> None:
        item.sequence = 0
        self._items -= 1
        self._bytes -= item.size_bytes
        if not self._heaps[item.key]:
            del self._heaps[item.key]
