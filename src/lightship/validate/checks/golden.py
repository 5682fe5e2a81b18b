"""Whether the golden examples still give what they gave when the model was trained.

Runs the whole way from the raw input: encode as the task does it *now*, then the graph. So it notices what no check on
tensors can: a preprocessing constant that was changed after training (D4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.errors import InvalidInput, LightshipError
from lightship.tasks.task import Raw, Task
from lightship.types import Json, Verdict
from lightship.validate.logits import nonfinite_rows

__all__ = ["check_golden"]


def check_golden(
    task: Task,
    raws: Sequence[Raw],
    recorded_logits: np.ndarray,
    run: Callable[[np.ndarray], np.ndarray],
    *,
    tolerance: float,
    names: Sequence[str],
    subjects: Mapping[str, str],
    recorded_tensors: np.ndarray | None = None,
) -> Evidence:
    """Encode each raw input, run the graph on it, and compare with the record.

    ``FAILED`` names the first input that is off and how far. Encoded tensors must be equal to the bit (the codec is
    versioned); logits may differ by ``tolerance``.

    Args:
        task: as it is now, with one input tensor.
        raws: the golden inputs.
        recorded_logits: of the variant that is run, shape (n, classes).
        run: batch of encoded rows -> logits.
        tolerance: largest allowed difference of a logit.
        names: of the inputs.
        subjects: what was judged, with its SHA-256.
        recorded_tensors: what encode gave, shape (n, ...), if it was recorded.

    Raises:
        InvalidInput: no golden example, unequal counts, or a task with several input tensors.
    """
    if not raws or not len(raws) == len(recorded_logits) == len(names) or len(task.inputs) != 1:
        raise InvalidInput(
            f"The golden check needs examples with one name and one record each, and a task with one input tensor. "
            f"Got {len(raws)} examples, {len(recorded_logits)} records, {len(names)} names, {len(task.inputs)} tensors."
        )
    problem, worst = _first_problem(task, raws, recorded_logits, run, tolerance, names, recorded_tensors)
    measured: dict[str, Json] = {"examples": len(raws), "largest_difference": worst, "reason": problem or None}
    return Evidence(
        check="golden",
        verdict=Verdict.FAILED if problem else Verdict.PASSED,
        subjects=subjects,
        summary=problem
        or f"{len(raws)} golden examples give what they gave (within {worst:.2g}, allowed {tolerance:.2g})",
        measured=measured,
        method={
            "tolerance": tolerance,
            "task": task.name,
            "codec_version": task.codec_version,
            "tensors": "not recorded" if recorded_tensors is None else "equal to the bit",
        },
    )


def _first_problem(
    task: Task,
    raws: Sequence[Raw],
    recorded_logits: np.ndarray,
    run: Callable[[np.ndarray], np.ndarray],
    tolerance: float,
    names: Sequence[str],
    recorded_tensors: np.ndarray | None,
) -> tuple[str, float | None]:
    tensor = task.inputs[0].name
    encoded = []
    for index, (name, raw) in enumerate(zip(names, raws, strict=True)):
        try:
            encoded.append(task.encode(raw)[tensor])
        except LightshipError as exc:
            return f"Golden input {name} can no longer be encoded: {exc}", None
        if recorded_tensors is not None and not np.array_equal(encoded[-1], recorded_tensors[index]):
            how_far = _distance(encoded[-1], recorded_tensors[index])
            return (
                f"Golden input {name} is encoded differently from when the model was trained: {how_far}. "
                "The preprocessing was changed; train again or change it back"
            ), None
    logits = run(np.stack(encoded))
    if logits.shape != recorded_logits.shape:
        return f"The graph gives logits of shape {list(logits.shape)}, recorded are {list(recorded_logits.shape)}", None
    broken = nonfinite_rows(logits)
    if broken.size:
        return f"Golden input {names[int(broken[0])]} gives NaN or infinity", None
    off = np.abs(logits.astype(np.float64) - recorded_logits).reshape(len(raws), -1).max(axis=1)
    worst = float(off.max())
    bad = np.flatnonzero(~(off <= tolerance))  # also catches a NaN in the record
    if bad.size:
        first = int(bad[0])
        return (
            f"Golden input {names[first]} gives other logits than when the model was trained: off by {off[first]:.3g}, "
            f"allowed {tolerance:.3g}; {bad.size} of {len(raws)} examples are off. "
            "The preprocessing, the graph or the engine was changed"
        ), worst if np.isfinite(worst) else None
    return "", worst


def _distance(now: np.ndarray, then: np.ndarray) -> str:
    if now.shape != then.shape or now.dtype != then.dtype:
        return f"{now.dtype} {list(now.shape)}, recorded {then.dtype} {list(then.shape)}"
    return f"off by up to {np.abs(now.astype(np.float64) - then).max():.3g}"
