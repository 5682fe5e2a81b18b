"""How the workers of one server share the cores and the memory that it may use."""

from __future__ import annotations

from lightship.engine.machine import memory_limit_bytes, usable_cores

__all__ = ["worker_memory_bytes", "worker_threads"]

_GIB = 1 << 30
_OF_THE_MACHINE = 0.8  # the rest is for the server and for a version that is being loaded beside another
_GRAPHS = 8  # an engine holds a graph several times while it rewrites it


def worker_threads(models: int, *, cores: int | None = None) -> int:
    """Return the engine threads of each worker: all cores for one model, shared for several, at least one."""
    return max(1, (usable_cores() if cores is None else cores) // max(1, models))


def worker_memory_bytes(graph_bytes: int, models: int, *, limit_bytes: int | None = None) -> int:
    """Return what a worker may hold: an equal share of most of the memory, but what its graph is likely to need.

    Never more than most of the memory, however large the graph: a worker that grows beyond it would have the kernel
    choose who dies.
    """
    limit = memory_limit_bytes() if limit_bytes is None else limit_bytes
    most = int(limit * _OF_THE_MACHINE)
    return min(most, max(most // max(1, models), _GIB + _GRAPHS * graph_bytes))
