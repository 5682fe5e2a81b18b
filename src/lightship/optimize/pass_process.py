"""The process that applies passes: ``python -m lightship.optimize.pass_process``, one job a line, one answer a line.

A job names files and installed passes; see ``maker``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from lightship.data.files import write_atomic
from lightship.engine.machine import memory_limit_bytes
from lightship.errors import LightshipError
from lightship.optimize.variant_pass import apply_passes, load_pass
from lightship.tasks.npz import read_npz
from lightship.types import Json

_PR_SET_PDEATHSIG = 1
_MEMORY_SHARE = 0.7  # of the machine's or container's: a pass that wants more fails, and nobody else


def main() -> int:
    """Do the jobs of standard input until it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever asked is gone: nobody wants the answer
    if memory := int(_MEMORY_SHARE * memory_limit_bytes()):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a quantizer prints, in Python or below it, is no answer
        for line in sys.stdin:
            answers.write(json.dumps(_done(json.loads(line))) + "\n")
            answers.flush()
    return 0


def _done(job: Mapping[str, Any]) -> dict[str, Json]:
    try:
        passes = [load_pass(name) for name in job["passes"]]
        calibration = _Batches([Path(path) for path in job["calibration"]])
        graph = apply_passes(passes, Path(job["source"]).read_bytes(), calibration)
    except LightshipError as exc:
        return {"error": str(exc)}
    write_atomic(Path(job["target"]), graph)
    return {}


class _Batches(Sequence[Mapping[str, np.ndarray]]):
    """Batches of rows in files, read when they are looked at."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]: ...
    @overload
    def __getitem__(self, index: slice) -> _Batches: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, np.ndarray] | _Batches:
        if isinstance(index, slice):
            return _Batches(self._paths[index])
        return read_npz(self._paths[index].read_bytes())

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return (self[index] for index in range(len(self)))


if __name__ == "__main__":
    sys.exit(main())
