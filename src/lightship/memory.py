"""Memory that nothing uses any more goes back to the machine. Standard library only."""

from __future__ import annotations

import ctypes

__all__ = ["give_back"]


def give_back() -> None:
    """Return free memory to the machine: the C library keeps for each thread what that thread once had.

    It takes some milliseconds for a heap of a hundred megabytes. Where there is no glibc nothing is done: other
    libraries give it back by themselves.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
