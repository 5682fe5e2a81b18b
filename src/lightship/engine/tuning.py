"""What was measured of a variant on this machine: the batch at which it answers most rows a second.

Such figures hold for one machine, so they lie in the home beside the registry and never in a bundle. The name of a file
says what it holds for: bundle, variant, machine with its libraries, threads. A search writes them, a server reads them
and measures what it does not find.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightship.data.files import write_atomic

__all__ = ["Tuned", "read_tuned", "tuning_path", "write_tuned"]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was measured.

    Attributes:
        batch_rows: rows to run at most in one batch.
        rows_per_s: by batch.
    """

    batch_rows: int
    rows_per_s: Mapping[int, float]


def tuning_path(folder: Path, *, bundle: str, variant: str, machine: str, threads: int) -> Path:
    """Return the file of a variant.

    Args:
        folder: ``tuning/`` of a home.
        bundle: its digest, ``sha256:<hex>``.
        variant: its name in the bundle.
        machine: the ``digest`` of the machine's fingerprint.
        threads: most threads of the engine.
    """
    return folder / f"{bundle.removeprefix('sha256:')[:32]}-{variant}-{machine[:32]}-t{threads}.json"


def read_tuned(path: Path) -> Tuned | None:
    """Return what was measured, or None: not yet, or not by this program. Measuring again costs little."""
    try:
        said = json.loads(path.read_bytes())
        tuned = Tuned(int(said["batch_rows"]), {int(rows): float(rate) for rows, rate in said["rows_per_s"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return tuned if tuned.batch_rows >= 1 else None


def write_tuned(path: Path, tuned: Tuned) -> None:
    """Keep what was measured.

    Raises:
        OSError: it cannot be written there.
    """
    said = {"batch_rows": tuned.batch_rows, "rows_per_s": {str(k): round(v, 1) for k, v in tuned.rows_per_s.items()}}
    write_atomic(path, json.dumps(said).encode())
