"""Inputs that killed a worker when they ran alone: refused at once for a while, so that they kill no other."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from lightship.errors import LightshipError
from lightship.serve.work import Work

__all__ = ["Quarantine"]

_QUARANTINE_S = 60.0
_MOST = 256


class Quarantine:
    """The inputs of one model that must not run. Bounded: the oldest goes when there are too many.

    Nothing is hashed while it is empty, nor an input whose size is none of theirs.
    """

    def __init__(self, *, seconds: float = _QUARANTINE_S, most: int = _MOST) -> None:
        self._seconds = seconds
        self._most = most
        self.until: OrderedDict[tuple[int, bytes], float] = OrderedDict()

    def __len__(self) -> int:
        """Return how many inputs are kept away."""
        return len(self.until)

    def add(self, work: Work, now_s: float) -> None:
        """Keep these rows away from now on."""
        key = (_size(work), _digest(work))
        self.until[key] = now_s + self._seconds
        self.until.move_to_end(key)
        while len(self.until) > self._most:
            self.until.popitem(last=False)

    def refuse(self, work: Work, now_s: float) -> None:
        """Raise if these rows are kept away.

        Raises:
            LightshipError: they are.
        """
        while self.until and next(iter(self.until.values())) <= now_s:
            self.until.popitem(last=False)
        size = _size(work)
        if all(size != known for known, _ in self.until):
            return
        until_s = self.until.get((size, _digest(work)))
        if until_s is not None:
            raise LightshipError(
                f"This input made the model's process die and is not run for {until_s - now_s:.0f} s more. "
                "Do not send it again unchanged."
            )


def _size(work: Work) -> int:
    return sum(map(len, work.raws)) + sum(len(one.data) for one in work.inputs)


def _digest(work: Work) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for raw in work.raws:
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    for tensor in work.inputs:
        state.update(f"{tensor.dtype}{tensor.shape}".encode())
        state.update(tensor.data)
    return state.digest()
