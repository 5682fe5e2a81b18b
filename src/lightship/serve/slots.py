"""Memory that a server writes and one worker reads: what a batch brings crosses without a system call a page.

There are as many slots as a worker has batches at most. One is taken when a batch is sent, and free when the worker has
answered it: by then nothing reads it any more. The worker maps the memory for reading alone, and its seals keep it from
doing anything else; it sees no more than the batches that it is sent anyway.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence

__all__ = ["SLOT_BYTES", "Slots", "mapped_slots"]

Buffer = bytes | memoryview

SLOT_BYTES = 1 << 20
_COUNT = 2  # batches that a worker has at once, see ``ServedModel``
_FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE of linux/fcntl.h: mappings for writing that come after this one
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _FUTURE_WRITE


class Slots:
    """The server's side."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("lightship", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, _COUNT * SLOT_BYTES)
        self._memory = mmap.mmap(self.descriptor, _COUNT * SLOT_BYTES, mmap.MAP_SHARED)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        self._free = [slot * SLOT_BYTES for slot in range(_COUNT)]
        self._taken: dict[int, int] = {}  # by batch

    def put(self, batch: int, payload: Sequence[Buffer]) -> int:
        """Write what a batch brings; return where it is, or -1 if no slot is free. It fits into one."""
        if not self._free or batch in self._taken:
            return -1
        self._taken[batch] = start = self._free.pop()
        memory = self._memory
        memory.seek(start)
        for part in payload:
            memory.write(part)
        return start

    def done(self, batch: int) -> None:
        """The worker has answered a batch."""
        slot = self._taken.pop(batch, None)
        if slot is not None:
            self._free.append(slot)

    def close(self) -> None:
        """Give the memory back; the worker keeps its own view of it."""
        os.close(self.descriptor)
        self._memory.close()


def mapped_slots(descriptor: int) -> memoryview:
    """Return the worker's view of all slots."""
    return memoryview(mmap.mmap(descriptor, _COUNT * SLOT_BYTES, mmap.MAP_SHARED, mmap.PROT_READ))
