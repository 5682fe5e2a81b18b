"""Which batch sizes work. Each is tried, and every row must get the answer it gets alone (D4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.errors import InvalidInput, LightshipError
from lightship.types import Json, Verdict

__all__ = ["BATCH_SIZES", "check_shapes", "proven_batch"]

BATCH_SIZES = tuple(range(1, 34))
"""Every size up to a power of two, for which kernels have fast paths, and one beyond it: what is called proven is a
range, and a batcher uses all of it. Together that is as many rows as a small gate part has."""


def check_shapes(
    run: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    *,
    tolerance: float,
    subjects: Mapping[str, str],
    sizes: Sequence[int] = BATCH_SIZES,
) -> Evidence:
    """Try batch sizes and record the range that is proven.

    ``PASSED`` when size 1 works; ``measured["proven"]["batch"]`` is ``[1, the size below the first that fails]``.
    ``FAILED`` when not even one row can be run.

    Args:
        run: batch of encoded rows -> logits. An error of ours is a size that fails.
        rows: encoded rows, shape (n, ...), n >= 1; repeated when a batch is larger.
        tolerance: largest allowed difference between a row's answer in a batch and alone.
        subjects: what was judged, with its SHA-256.
        sizes: ascending, the first is 1.
    """
    if not len(rows) or not sizes or sizes[0] != 1 or list(sizes) != sorted(set(sizes)):
        raise InvalidInput(
            f"Shapes need rows, and ascending sizes from 1 on. Got {len(rows)} rows, sizes {list(sizes)}."
        )
    batch = rows[np.arange(max(sizes)) % len(rows)]
    alone: list[np.ndarray] = []
    tried: list[Json] = []
    proven = 0
    for size in sizes:
        problem, worst = _try(run, batch[:size], alone, tolerance)
        tried.append({"size": size, "largest_difference": worst, "problem": problem or None})
        if problem:
            break
        proven = size
    verdict = Verdict.PASSED if proven else Verdict.FAILED
    stopped = f"; size {size} fails: {problem}" if problem else ""
    return Evidence(
        check="shapes",
        verdict=verdict,
        subjects=subjects,
        summary=(f"Batches of 1 to {proven} rows work" if proven else "Not even one row is answered as it should be")
        + stopped,
        measured={"proven": {"batch": [1, proven]} if proven else {}, "tried": tried},
        method={"sizes": [*sizes], "tolerance": tolerance, "compared": "every row's answer with its answer alone"},
    )


def proven_batch(evidence: Evidence) -> tuple[int, int]:
    """Return the proven range of batch sizes, for ``Interface.proven``.

    Raises:
        InvalidInput: evidence of another check, or one that failed.
    """
    proven = evidence.measured.get("proven")
    sizes = proven.get("batch") if isinstance(proven, dict) else None
    if not isinstance(sizes, list):
        raise InvalidInput(f"This evidence proves no batch size: check {evidence.check!r}, {evidence.verdict}.")
    low, high = sizes
    return int(str(low)), int(str(high))


def _try(
    run: Callable[[np.ndarray], np.ndarray], batch: np.ndarray, alone: list[np.ndarray], tolerance: float
) -> tuple[str, float | None]:
    """Run one batch; ``alone`` grows by the answers of single rows that were not asked for yet."""
    try:
        for index in range(len(alone), len(batch)):
            answer = run(batch[index : index + 1])
            if len(answer) != 1:
                return f"one row gave {len(answer)} answers", None
            alone.append(answer[0])
        together = run(batch)
    except LightshipError as exc:
        return str(exc), None
    if len(together) != len(batch):
        return f"{len(batch)} rows gave {len(together)} answers", None
    single = np.stack(alone[: len(batch)])
    if together.shape != single.shape:
        return f"answers of shape {list(together.shape)}, alone {list(single.shape)}", None
    if not np.isfinite(together).all() or not np.isfinite(single).all():
        return "NaN or infinity in the answers", None
    off = np.abs(together.astype(np.float64) - single).reshape(len(batch), -1).max(axis=1)
    worst = float(off.max())
    if worst > tolerance:
        return f"row {int(off.argmax())} is off by {worst:.3g} from its answer alone, allowed {tolerance:.3g}", worst
    return "", worst
