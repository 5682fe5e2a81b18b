"""Whether odd values stay where they are: NaN, infinities, extremes, nothing at all (D4).

A server puts the rows of several people into one batch. A graph that takes a maximum over the whole batch (dynamic
int8 does, for its scale) then lets one person's NaN ruin the answers of the others. So each odd row is put among usual
ones, whose answers must be what they are without it. And a variant must not answer surely what the reference
does not answer at all: int8 turns NaN into some number.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lightship.bundle.statement import Evidence, summary_of
from lightship.errors import InvalidInput, LightshipError
from lightship.types import Json, ValueRange, Verdict

__all__ = ["MAGNITUDES", "Seen", "check_values", "proven_values"]

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

MAGNITUDES = (1.0, 1e2, 1e4, 1e8, 1e16, 1e30)
"""Of random values that are tried as whole rows, beyond those that data has."""

STRETCHES = (1.25, 1.5, 2.0)
"""What the usual rows that go furthest are multiplied with, for the values just beyond those that the rows have."""

LEAST_COSINE, MOST_TIMES = 0.9, 2.0
"""A variant follows the reference while their answers have one direction, and lengths apart by such a factor at most.

No row stands behind what is asked here, so this is no measure of quality: it tells an answer from a different one.
"""

NEAR = 0.1
"""Of the largest usual answer: what is as near to the reference's follows it in any direction and length.

Where an answer is one number, or all of it is nearly zero, neither says much: a probability of .001 may be one of .004.
"""

_EXACT = 2**53  # whole numbers beyond are not all told apart in double precision
_MOST_BATCH = 4
_USUAL_ROWS = 8
FINITE, NOT_FINITE, REFUSED = "finite", "not finite", "refused"


@dataclass(frozen=True, slots=True)
class _Case:
    """An odd row: its ``magnitude`` where it is of random values, or which ``end`` of the rows is ``stretched``."""

    name: str
    input: str
    row: np.ndarray
    magnitude: float | None = None
    end: str = ""
    stretched: float | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """What came of one case: the kind of answer, what it is by output, how far the neighbors moved, what is wrong."""

    kind: str
    neighbors: float | None = None
    problem: str = ""
    answer: Mapping[str, np.ndarray] = field(default_factory=dict)


def check_values(
    reference: Run,
    variant: Run | None,
    rows: Mapping[str, np.ndarray],
    *,
    tolerance: float,
    subjects: Mapping[str, str],
    batch: int = _MOST_BATCH,
    seed: int = 0,
) -> Evidence:
    """Try odd values through the reference and the variant.

    ``FAILED`` when an odd row moves the answers of its neighbors by more than the tolerance, the engine fails with what
    is no refusal, or gives another number of rows, for what would be released: the variant if there is one.

    Args:
        reference: batch of encoded rows by input -> outputs by name. An error of ours is a refusal.
        variant: the same; ``None`` when the reference itself would be released.
        rows: usual rows, first axis rows, at least one.
        tolerance: largest allowed change of a neighbor's answer.
        subjects: what was judged, with its SHA-256.
        batch: rows in a batch, at most 4 are used: as many as are proven to be served together. With 1 there are no
            neighbors.
        seed: of the random rows.
    """
    total = min((len(array) for array in rows.values()), default=0)
    if not total or batch < 1:
        raise InvalidInput(
            f"Odd values are tried among usual rows, in batches of at least 1. Got {total} rows, {batch}."
        )
    size = min(batch, _MOST_BATCH)
    usual = {name: np.resize(array, (size, *array.shape[1:])) for name, array in rows.items()}
    furthest = {name: _furthest(array) for name, array in rows.items()}
    cases = _cases(usual, furthest, np.random.default_rng(seed))
    runs = [reference] if variant is None else [reference, variant]
    baselines = [run(usual) for run in runs]
    sizes = _usual_sizes(reference, rows, size)
    trial = _Trial(furthest, compared=variant is not None)
    for case in cases:
        found = [_try(run, usual, case, base, tolerance) for run, base in zip(runs, baselines, strict=True)]
        trial.note(case, found[0], found[-1], follows=_follows(found[0], found[-1], sizes))
    empty = [_try_empty(run, usual) for run in runs]
    trial.note_empty(", ".join(usual), empty[0], empty[-1])
    proven = trial.proven()
    return Evidence(
        check="values",
        verdict=Verdict.FAILED if trial.first else Verdict.PASSED,
        subjects=subjects,
        summary=trial.first or _summary(len(trial.tried), size, proven, trial.masked, compared=variant is not None),
        measured={
            "batch": size,
            "cases": [*trial.tried],
            "proven": {name: dict(found) for name, found in proven.items()},
            "masked": [*trial.masked],
            "contaminated": [*trial.contaminated],
        },
        method={
            "tolerance": tolerance,
            "seed": seed,
            "magnitudes": [*MAGNITUDES],
            "stretches": [*STRETCHES],
            "least_cosine": LEAST_COSINE,
            "most_times": MOST_TIMES,
            "near": NEAR,
            "neighbors": "answers without the odd row",
        },
    )


class _Trial:
    """What came of the cases so far.

    Attributes:
        tried: a line for each case.
        masked: where the variant answers and the reference does not.
        contaminated: where an odd row moves its neighbors.
        first: the first that is wrong; empty while nothing is.
    """

    def __init__(self, furthest: Mapping[str, Mapping[str, np.ndarray]], *, compared: bool) -> None:
        self._furthest, self._compared = furthest, compared
        self.tried: list[Json] = []
        self.masked: list[str] = []
        self.contaminated: list[str] = []
        self.first = ""
        self._nan: dict[str, str] = {}
        self._reached: dict[str, list[tuple[float, bool]]] = {}
        self._stretched: dict[tuple[str, str], list[tuple[float, bool]]] = {}

    def note(self, case: _Case, reference: _Found, last: _Found, *, follows: bool) -> None:
        """Note a case; ``last`` is of what would be released."""
        label = f"{case.name} in {case.input}"
        if last.problem:
            self.first = self.first or f"{label}: {last.problem}"
            self.contaminated += [label] if last.neighbors is not None else []
        if self._compared and reference.kind == NOT_FINITE and last.kind == FINITE:
            self.masked.append(label)
        self._tell(case.name, case.input, reference, last, follows=follows)
        good = follows and all(each.kind == FINITE and not each.problem for each in (reference, last))
        if case.name == "NaN":
            self._nan[case.input] = last.kind
        if case.stretched is not None:
            self._stretched.setdefault((case.input, case.end), []).append((case.stretched, good))
        if case.magnitude is not None:
            self._reached.setdefault(case.input, []).append((case.magnitude, good))

    def note_empty(self, inputs: str, reference: _Found, last: _Found) -> None:
        """Note what came of a batch without rows."""
        self._tell("empty", inputs, reference, last, follows=None)
        if last.problem:
            self.first = self.first or f"an empty batch: {last.problem}"

    def proven(self) -> dict[str, dict[str, Json]]:
        """Return by input how far values were answered well, and what NaN gets."""
        found: dict[str, dict[str, Json]] = {}
        for name, rows in self._furthest.items():
            times = {end: _unbroken(self._stretched.get((name, end), ())) or 1.0 for end in rows}
            ends = [times[end] * _ends(row)[place] for place, (end, row) in enumerate(rows.items())]
            found[name] = {
                "magnitude": _unbroken(self._reached.get(name, ())),
                "stretch": list(times.values()),
                "stretched": [max(-sys.float_info.max, min(each, sys.float_info.max)) for each in ends],
                "nan": self._nan.get(name),
            }
        return found

    def _tell(self, case: str, inputs: str, reference: _Found, last: _Found, *, follows: bool | None) -> None:
        self.tried.append(
            {
                "case": case,
                "input": inputs,
                "reference": reference.kind,
                "variant": last.kind if self._compared else None,
                "follows": follows if self._compared else None,
                "neighbors": _number(last.neighbors),
                "problem": last.problem or None,
            }
        )


class Seen:
    """The values that usual rows have, by input: what a model was judged on must not be refused."""

    def __init__(self) -> None:
        self.ranges: dict[str, ValueRange] = {}
        self._limits: dict[str, tuple[float, float]] = {}

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Note the values of some rows; of inputs of numbers only."""
        for name, array in rows.items():
            if array.dtype.kind not in "fiu" or not array.size:
                continue
            found = ValueRange(*_ends(array), nan=bool(np.isnan(array).any()), infinite=bool(np.isinf(array).any()))
            known = self.ranges.get(name, found)
            self._limits[name] = _limits(array.dtype)
            self.ranges[name] = ValueRange(
                min(known.low, found.low),
                max(known.high, found.high),
                nan=known.nan or found.nan,
                infinite=known.infinite or found.infinite,
            )

    def stretched(self, name: str, times: tuple[float, float]) -> tuple[float, float]:
        """Return the ends of an input's values, further out by factors, but not beyond what its dtype holds."""
        known = self.ranges[name]
        return self.held(name, min(known.low, times[0] * known.low), max(known.high, times[1] * known.high))

    def held(self, name: str, low: float, high: float) -> tuple[float, float]:
        """Return the ends of a range as far as an input's dtype holds them, whole if it holds whole numbers only."""
        least, most = self._limits[name]
        if isinstance(least, int):
            known = self.ranges[name]  # which doubles may not hold, and beyond their digits nothing was stretched
            low, high = max(math.trunc(low), least, -_EXACT), min(math.trunc(high), most, _EXACT)
            return min(known.low, low), max(known.high, high)
        return max(low, least), min(high, most)


def proven_values(evidence: Evidence, seen: Seen) -> dict[str, ValueRange]:
    """Return what a server may run, for ``Interface.values``; nothing of inputs that were not tried.

    Of floats, from minus to plus the magnitude up to which reference and variant answered well and alike. At least what
    usual rows have, stretched if a stretched row was answered well, as far as that one went. NaN and infinities only
    where usual rows have them: an answer to them is else an accident of the kernels, as where a rectifier takes NaN for
    zero.

    Args:
        evidence: of ``check_values``.
        seen: every row that the model was judged on.
    """
    proven = evidence.measured.get("proven")
    if evidence.verdict is not Verdict.PASSED or not isinstance(proven, dict):
        return {}
    ranges = {}
    for name, usual in seen.ranges.items():
        tried = proven.get(name)
        if isinstance(tried, dict):
            reach, (least, most) = _float(tried.get("magnitude")), _pair(tried.get("stretched"))
            low, high = seen.stretched(name, _pair(tried.get("stretch")))
            low, high = max(low, least), min(high, most)  # other rows may go further than those that were tried
            if not isinstance(usual.low, int):  # whole numbers are only stretched
                low, high = min(0.0 - reach, low), max(reach, high)
            low, high = seen.held(name, min(usual.low, low), max(usual.high, high))
            ranges[name] = replace(usual, low=low, high=high)
    return ranges


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _pair(value: object) -> tuple[float, float]:
    ends = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return (_float(ends[0]), _float(ends[1])) if len(ends) == 2 else (0.0, 0.0)


def _usual_sizes(reference: Run, rows: Mapping[str, np.ndarray], size: int) -> dict[str, float]:
    """Return the largest finite number that usual rows get, by output of floats."""
    sizes: dict[str, float] = {}
    for start in range(0, min(_USUAL_ROWS, *(len(array) for array in rows.values())), size):
        batch = np.arange(start, start + size)
        for name, array in reference({name: array.take(batch, 0, mode="wrap") for name, array in rows.items()}).items():
            if array.dtype.kind == "f":
                sizes[name] = max(sizes.get(name, 0.0), _largest(array))
    return sizes


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def _ends(array: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest finite number, as Python's own: whole ones of whole ones."""
    finite = array[np.isfinite(array)]
    return (finite.min().item(), finite.max().item()) if finite.size else (0.0, 0.0)


def _limits(dtype: np.dtype) -> tuple[float, float]:
    """Return the least and the greatest number that a dtype holds, as Python's own."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _furthest(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows with the least and the greatest number; none of other values."""
    if rows.dtype.kind not in "fiu":
        return {}
    ends = [_ends(row) for row in rows]
    places = {"least": np.argmin([low for low, _ in ends]), "greatest": np.argmax([high for _, high in ends])}
    return {end: rows[place : place + 1].reshape(rows.shape[1:]) for end, place in places.items()}


def _cases(
    usual: Mapping[str, np.ndarray], furthest: Mapping[str, Mapping[str, np.ndarray]], random: np.random.Generator
) -> list[_Case]:
    cases: list[_Case] = []
    for name, array in usual.items():
        row, kind = array[:1].reshape(array.shape[1:]), array.dtype.kind  # an array also where it is one text
        if kind == "f":
            whole: dict[str, object] = {"NaN": np.nan, "+infinity": np.inf, "-infinity": -np.inf}
            whole |= {"smallest": np.finfo(array.dtype).tiny, "zeros": 0.0}
            one = row.copy()
            one.reshape(-1)[:1] = np.nan
            cases.append(_Case("one NaN", name, one))
            top = float(np.finfo(array.dtype).max)
            for end, far in furthest[name].items():
                for times in STRETCHES:
                    with np.errstate(over="ignore"):
                        more = np.clip(far * row.dtype.type(times), -top, top)
                    cases.append(_Case(_stretch_label(end, times), name, more, end=end, stretched=times))
            for label, value in (("largest", top), ("least", -top)):
                cases.append(_Case(label, name, np.full_like(row, value), top))
            for magnitude in (each for each in MAGNITUDES if each < top):
                drawn = random.uniform(-1, 1, size=row.shape)
                drawn *= magnitude / max(float(np.abs(drawn).max(initial=0.0)), 1e-30)  # one number is all there may be
                for label, signed in (("random", drawn), ("opposite random", -drawn)):
                    cases.append(_Case(f"{label} up to {magnitude:g}", name, signed.astype(array.dtype), magnitude))
        elif kind in "iu":
            limits = np.iinfo(array.dtype)
            whole = {"largest": limits.max, "least": limits.min, "zeros": 0, "ones": 1}
            # No further than that: one that says how long something is must not ask for all of the memory.
            for end, far in furthest[name].items():
                for times in STRETCHES:
                    more = _whole(far, times)
                    cases.append(_Case(_stretch_label(end, times), name, more, end=end, stretched=times))
        elif kind == "b":
            whole = {"all true": True, "all false": False}
        else:  # texts
            whole = {"empty text": "", "long text": "x" * 10_000, "no letters": "\x00\u202e\U0001f600"}
        cases += [_Case(label, name, np.full_like(row, value)) for label, value in whole.items()]
    return cases


def _stretch_label(end: str, times: float) -> str:
    return f"row of the {end} value, {times:g} times as large"


def _whole(row: np.ndarray, times: float) -> np.ndarray:
    """Stretch whole numbers and round them, as far as the dtype holds them; those beyond doubles' digits stay."""
    least, most = _limits(row.dtype)
    more = np.clip(np.rint(row.astype(np.float64) * times), max(least, -_EXACT), min(most, _EXACT)).astype(row.dtype)
    whole: np.ndarray = np.where((row > -_EXACT) & (row < _EXACT), more, row)
    return whole


def _try(
    run: Run, usual: Mapping[str, np.ndarray], case: _Case, base: Mapping[str, np.ndarray], tolerance: float
) -> _Found:
    """Put the odd row in the middle of the batch and compare the others with what they are without it."""
    size = len(usual[case.input])
    place = size // 2
    batch = {name: array.copy() for name, array in usual.items()}
    batch[case.input][place] = case.row
    outputs, found = _run(run, batch, size)
    if outputs is None:
        return found
    answer = {name: array[place] for name, array in outputs.items() if array.dtype.kind in "fc"}
    kind = FINITE if all(np.isfinite(each).all() for each in answer.values()) else NOT_FINITE
    if not answer:  # of a classifier without scores
        answer = {name: np.asarray(array[place]) for name, array in outputs.items()}
    others = np.delete(np.arange(size), place)
    worst = max((_distance(outputs[name][others], base[name][others]) for name in base), default=0.0)
    if worst > tolerance:
        moved = "to NaN or infinity" if math.isinf(worst) else f"by {worst:.3g}, allowed {tolerance:.3g}"
        return _Found(kind, worst, f"the other rows of the batch move {moved}", answer)
    return _Found(kind, worst if len(others) else None, answer=answer)


def _follows(reference: _Found, variant: _Found, sizes: Mapping[str, float]) -> bool:
    """Return whether each answer of floats is one that the reference could have given; others must be the same."""
    if reference.kind != variant.kind or reference.answer.keys() != variant.answer.keys():
        return False
    return reference.kind != FINITE or all(
        _is_alike(array, variant.answer[name], little=NEAR * sizes.get(name, 0.0))
        for name, array in reference.answer.items()
    )


def _is_alike(reference: np.ndarray, variant: np.ndarray, *, little: float) -> bool:
    if reference.shape != variant.shape:
        return False
    if reference.dtype.kind not in "fc":
        return np.array_equal(reference, variant)
    expected, found = reference.ravel().astype(np.float64), variant.ravel().astype(np.float64)
    with np.errstate(over="ignore"):
        if float(np.abs(expected - found).max(initial=0.0)) <= little:
            return True
    scale = max(float(np.abs(expected).max(initial=0.0)), float(np.abs(found).max(initial=0.0)))
    if not scale:
        return True
    expected, found = expected / scale, found / scale  # squares of the largest floats are infinite
    lengths = sorted((float(np.linalg.norm(expected)), float(np.linalg.norm(found))))
    return lengths[1] <= MOST_TIMES * lengths[0] and float(expected @ found) >= LEAST_COSINE * lengths[0] * lengths[1]


def _unbroken(steps: Sequence[tuple[float, bool]]) -> float | None:
    """Return the largest magnitude up to which every one that was tried was answered well."""
    broken = min((magnitude for magnitude, good in steps if not good), default=math.inf)
    return max((magnitude for magnitude, good in steps if good and magnitude < broken), default=None)


def _try_empty(run: Run, usual: Mapping[str, np.ndarray]) -> _Found:
    return _run(run, {name: array[:0] for name, array in usual.items()}, 0)[1]


def _run(run: Run, batch: Mapping[str, np.ndarray], size: int) -> tuple[Mapping[str, np.ndarray] | None, _Found]:
    try:
        outputs = run(batch)
    except LightshipError:
        return None, _Found(REFUSED)
    except Exception as exc:  # noqa: BLE001 - an engine is anybody's code; what it raises here, it raises in a server
        return None, _Found(REFUSED, problem=f"the engine fails: {type(exc).__name__}")
    wrong = [name for name, array in outputs.items() if array.ndim == 0 or len(array) != size]
    if wrong:
        return None, _Found(REFUSED, problem=f"{size} rows gave {wrong[0]!r} of shape {outputs[wrong[0]].shape}")
    return outputs, _Found(FINITE)


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return math.inf
    if found.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(found, expected) else math.inf
    same = (
        (found == expected) | (np.isnan(found) & np.isnan(expected)) if found.dtype.kind == "f" else found == expected
    )
    if same.all():
        return 0.0
    off = np.abs(found[~same].astype(np.float64) - expected[~same].astype(np.float64))
    return math.inf if not np.isfinite(off).all() else float(off.max())


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _summary(
    tried: int, size: int, proven: Mapping[str, Mapping[str, Json]], masked: Sequence[str], *, compared: bool
) -> str:
    alone = "one row at a time" if size == 1 else f"among {size - 1} usual rows, which stay as they are"
    line = f"{tried} kinds of odd values tried {alone}"
    reached = [f"{name} up to {found['magnitude']:g}" for name, found in proven.items() if found["magnitude"]]
    if reached:
        what = "the variant follows the reference" if compared else "finite answers"
        line += f"; {what} for {summary_of(', '.join(reached), most=300)}"
    if masked:
        line += f"; the variant answers what the reference does not: {summary_of(', '.join(masked), most=300)}"
    return line
