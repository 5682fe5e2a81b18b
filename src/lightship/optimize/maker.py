"""Makes variants in a process beside the search: one that hangs, crashes or eats the memory costs only its own variant.

Quantizers take minutes on some graphs, and nothing inside of a process can stop them. So they run in a process that is
kept from variant to variant, for its imports take seconds, and that is ended when one takes too long (``pass_process``
is the other side).
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lightship.optimize.ledger import Interrupted
from lightship.optimize.variant_pass import PassFailed, VariantPass
from lightship.tasks.npz import write_npz

__all__ = ["Maker", "PassProcess"]


class Maker(Protocol):
    """Applies passes to a graph."""

    def make(self, passes: Sequence[VariantPass], graph: bytes, *, limit_s: float) -> bytes:
        """Return what the passes make of an ONNX graph, one after the other.

        Raises:
            PassFailed: a pass cannot treat the graph.
            Interrupted: it took longer than ``limit_s``, or its process was killed.
        """

    def close(self) -> None:
        """Give back what it holds."""


class PassProcess:
    """Applies installed passes, by name, in a process of its own.

    Args:
        folder: for its files; whoever gives it takes it away.
        calibration: batches of training rows by the name of the input.
    """

    def __init__(self, folder: Path, calibration: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._folder, self._calibration = folder, calibration
        self._rows: list[Path] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def make(self, passes: Sequence[VariantPass], graph: bytes, *, limit_s: float) -> bytes:
        """See ``Maker``."""
        source, target = self._folder / "source.onnx", self._folder / "made.onnx"
        source.write_bytes(graph)
        rows = self._row_files() if any(each.needs_calibration for each in passes) else []
        job = {
            "passes": [each.name for each in passes],
            "source": str(source),
            "target": str(target),
            "calibration": [str(path) for path in rows],
        }
        found = self._ask(job, limit_s)
        if "error" in found:
            raise PassFailed(found["error"])
        return target.read_bytes()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._buried(self._process)

    def _row_files(self) -> list[Path]:
        if self._rows is None:
            self._rows = [self._folder / f"calibration-{index}.npz" for index in range(len(self._calibration))]
            for path, batch in zip(self._rows, self._calibration, strict=True):
                path.write_bytes(write_npz(batch))
        return self._rows

    def _ask(self, job: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], limit_s)[0]:
                raise Interrupted(f"it was stopped after {limit_s:.0f} s of being made. Give the search more minutes")
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        except BaseException:  # a limit, or Ctrl-C: what it is at must not go on beside us
            self.close()
            raise
        if not answer:
            raise self._death(process)
        found: dict[str, Any] = json.loads(answer)
        return found

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            with (self._folder / "said.txt").open("wb") as said:
                self._process = subprocess.Popen(
                    (sys.executable, "-P", "-m", "lightship.optimize.pass_process"),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    start_new_session=True,  # Ctrl-C is the search's to hear
                    cwd=self._folder,
                    env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "TMPDIR": str(self._folder)},
                )
        return self._process

    def _death(self, process: subprocess.Popen[bytes]) -> Interrupted | PassFailed:
        code = self._buried(process)
        if code == -9:
            return Interrupted("the process that made it was killed by signal 9; that happens when memory runs out")
        said = (self._folder / "said.txt").read_text(errors="replace").strip().rpartition("\n")[2]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        return PassFailed(f"the process that made it {how}{f': {said[:300]}' if said else ''}")

    def _buried(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a process that ends, and close its pipes."""
        self._process = None
        with process:
            return process.wait()
