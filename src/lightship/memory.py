"""Memory that nothing uses any more goes back to the machine. Standard library only."""

from __future__ import annotations

import ctypes

__all__ = ["give_back", "keep_one_heap"]

_ARENA_MAX = -8  # M_ARENA_MAX of <malloc.h>


def keep_one_heap() -> None:
    """Let all threads of this process share one heap; for a process whose threads wait for each other anyway.

    Call it before there are any. Otherwise the C library gives each thread its own, and what lies on top of such a heap
    stays there, up to 64 MB a thread, even when the process asks to give it back. Where there is no glibc nothing is
    done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Return free memory to the machine: the C library keeps what the process once had.

    It takes some milliseconds for a heap of a hundred megabytes. Where there is no glibc nothing is done: other
    libraries give it back by themselves.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
