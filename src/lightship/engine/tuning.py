"""What was measured of a variant on this machine: how many rows a second it answers in batches of each size.

Such figures hold for one machine, so they lie in the home beside the registry and never in a bundle. The name of a file
says what it holds for: bundle, variant, machine with its libraries, threads. A search writes them, a server reads them
and measures what it does not find.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from lightship.data.files import write_atomic

__all__ = ["read_rates", "tuning_path", "write_rates"]

_MOST_ROWS = 1 << 20  # no batch has more


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


def read_rates(path: Path) -> dict[int, float] | None:
    """Return rows a second by batch, or None where there is nothing of use. Measuring again costs little."""
    try:
        said = json.loads(path.read_bytes())
        rates = {int(rows): float(rate) for rows, rate in said["rows_per_s"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    fine = all(1 <= rows <= _MOST_ROWS and 0 < rate < math.inf for rows, rate in rates.items())
    return rates if rates and fine else None


def write_rates(path: Path, rows_per_s: Mapping[int, float]) -> None:
    """Keep what was measured, rows a second by batch.

    Raises:
        OSError: it cannot be written there.
    """
    write_atomic(path, json.dumps({"rows_per_s": {str(k): round(v, 1) or v for k, v in rows_per_s.items()}}).encode())
