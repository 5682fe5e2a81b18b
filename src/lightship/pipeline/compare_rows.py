"""Two releases on the same rows: the answers that were kept from the gate, or rows that both answer here and now.

Kept answers are in no signed file. So they count only if they are whole, belong to the very graphs that were released
and the very rows that the bundles name, and give exactly the figures that were signed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lightship.bundle.arrays import array_from_npy
from lightship.data.files import sha256_hex
from lightship.data.home import Home
from lightship.data.rows import BadRow
from lightship.engine.machine import fingerprint
from lightship.engine.measure import calls_in_a_row, interleaved
from lightship.engine.runner import LONGEST_RUN_S, EngineOptions, Runner, load_runner
from lightship.errors import InvalidInput, LightshipError
from lightship.pipeline.row_labels import classes_given
from lightship.registry.statements import Statements
from lightship.tasks.registry import load_task
from lightship.tasks.row_files import LABEL, RowFile, read_rows
from lightship.tasks.task import Task
from lightship.tasks.tensors import BATCH, is_batched
from lightship.types import DTYPES, Interval, Progress
from lightship.validate.exact_paired import drop_bound
from lightship.validate.fidelity import FidelityMeter
from lightship.validate.logits import labels_of, nonfinite_rows
from lightship.validate.report.comparison import Basis, Figure, PairedRows
from lightship.validate.statistics import mcnemar_one_sided, wilson

__all__ = ["GateAnswers", "figure_of_pairs", "gate_answers", "run_both"]

_ALPHA = 0.05
_BATCH_ROWS = 32
_PAIRS = 200
_LEAST_PAIRS = 30
_TIMING_S = 20.0
_MARGIN = 0.01  # where the search for the bound starts; it changes nothing about the result


@dataclass(frozen=True, slots=True)
class GateAnswers:
    """What became of the gate rows: how many only the first release has right, how many only the second."""

    losses: int
    gains: int
    rows: int


@dataclass(frozen=True, slots=True)
class _Kept:
    """Whether each gate row was answered rightly, by the digest of the row."""

    rows: tuple[str, ...]
    right: np.ndarray


def gate_answers(
    home: Home, one: Statements, two: Statements, *, rows: str, right: tuple[int, int]
) -> GateAnswers | None:
    """Return the paired answers of both releases to the gate rows, or None if they are not at hand.

    Args:
        home: where the runs are.
        one, two: the releases.
        rows: fingerprint of the gate rows that both were judged on.
        right: how many rows each has right, as its signed evidence says.
    """
    kept = [_kept(home, side, rows, wanted) for side, wanted in zip((one, two), right, strict=True)]
    if kept[0] is None or kept[1] is None or kept[0].rows != kept[1].rows:
        return None
    before, after = kept[0].right, kept[1].right
    return GateAnswers(int((before & ~after).sum()), int((~before & after).sum()), len(before))


def _kept(home: Home, side: Statements, rows: str, wanted: int) -> _Kept | None:
    for mark in sorted(home.runs.glob("*/validate-*/stage.json")):
        try:
            found = _kept_in(mark, side, rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, LightshipError):
            continue  # of another version, half removed, or touched: not what was kept
        if found is not None and int(found.right.sum()) == wanted:
            return found
    return None


def _kept_in(mark: Path, side: Statements, rows: str) -> _Kept | None:
    said = json.loads(mark.read_bytes())
    variant = side.manifest.file(side.default.graph)
    if said["decided_by"]["rows"] != rows or variant is None or said["files"]["chosen.onnx"] != variant.sha256:
        return None
    files = {name: (mark.parent / name).read_bytes() for name in ("logits.npy", "rows.json")}
    if any(sha256_hex(data) != said["files"][name] for name, data in files.items()):
        return None
    named = json.loads(files["rows.json"])
    logits = array_from_npy(files["logits.npy"], what="logits.npy")
    names = side.manifest.task.config["labels"]
    right = np.array([names[k] == label for k, label in zip(labels_of(logits), named["labels"], strict=True)])  # type: ignore[index]
    right[nonfinite_rows(logits)] = False
    # Two homes may read one source in two orders. Rows of one digest have one input, so their order does not matter.
    order = sorted(range(len(right)), key=lambda i: (named["rows"][i], named["labels"][i]))
    return _Kept(tuple(f"{named['rows'][i]} {named['labels'][i]}" for i in order), right[order])


def figure_of_pairs(
    name: str, before: Interval | None, after: Interval | None, *, losses: int, gains: int, rows: int
) -> Figure:
    """Return two accuracies on the same rows with the paired difference.

    Its interval joins two exact one-sided bounds (``exact_paired``) at half the error each; they are cut at 0, so
    whether there is a difference at all is McNemar's exact test to tell, two-sided at 5 %.
    """
    half = _ALPHA / 2
    estimate = (gains - losses) / rows
    low = -drop_bound(losses, gains, rows, half, margin=_MARGIN)
    high = drop_bound(gains, losses, rows, half, margin=_MARGIN)
    better, worse = mcnemar_one_sided(gains, losses) <= half, mcnemar_one_sided(losses, gains) <= half
    if better:
        low = max(low, min(1e-9, estimate))  # shown to be above 0, by however little
    if worse:
        high = min(high, max(-1e-9, estimate))
    shown = (
        "It is shown to be better." if better else "It is shown to be worse." if worse else "No difference is shown."
    )
    return Figure(
        name=name,
        unit="share",
        before=before,
        after=after,
        difference=Interval(estimate, min(low, estimate), max(high, estimate), 1 - _ALPHA, rows),
        basis=Basis.PAIRED,
        words=f"Of the same {rows:,} rows {losses} were right before only and {gains} are right now only. {shown}",
    )


def run_both(one: Statements, two: Statements, data: Path, *, label: str = LABEL, progress: Progress) -> PairedRows:
    """Let both releases answer the rows in ``data`` and time them in neighboring pairs.

    Raises:
        NotFound: there is no such file or folder.
        InvalidInput: rows that one of them does not take, or labels that are none.
    """
    runners = _Runners(one, two)
    try:
        return _paired(runners, _given(one, two, data, label), data, progress)
    finally:
        runners.close()


@dataclass(frozen=True)
class _Given:
    """The same rows for both, each as its own task encodes them.

    Attributes:
        files: the rows of each side.
        rows: positions of those that both take.
        truth: the true classes by the numbers of the first side; None: no labels.
        skipped: rows that one of them does not take.
    """

    files: tuple[RowFile, RowFile]
    rows: tuple[int, ...]
    truth: np.ndarray | None
    skipped: int

    def batches(self, size: int) -> Iterator[tuple[list[int], list[dict[str, np.ndarray]]]]:
        """Yield (positions, inputs of each side) of at most ``size`` rows of one shape."""
        waiting: list[int] = []
        encoded: list[list[dict[str, np.ndarray]]] = []
        for index in self.rows:
            pair = [dict(file.row(index)) for file in self.files]
            if waiting and (len(waiting) == size or _shapes(pair) != _shapes(encoded[-1])):
                yield waiting, _stacked(encoded)
                waiting, encoded = [], []
            waiting.append(index)
            encoded.append(pair)
        if waiting:
            yield waiting, _stacked(encoded)


def _shapes(pair: list[dict[str, np.ndarray]]) -> list[dict[str, tuple[int, ...]]]:
    return [{name: array.shape for name, array in side.items()} for side in pair]


def _stacked(pairs: list[list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    return [{name: np.stack([pair[side][name] for pair in pairs]) for name in pairs[0][side]} for side in (0, 1)]


class _Runners:
    """Both default variants, loaded as they would serve."""

    def __init__(self, one: Statements, two: Statements) -> None:
        self.sides = (one, two)
        for side in self.sides:
            interface = side.manifest.interface
            if not is_batched(interface.inputs, interface.outputs):
                raise InvalidInput(
                    f"{side.title} takes whole tensors, not rows, so two answers to the same rows cannot be "
                    "compared. Leave `--data` out."
                )
        self.careful: list[Runner] = []
        try:
            self.careful = [_load(side, limited=True) for side in self.sides]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free both graphs."""
        for runner in self.careful:
            runner.close()

    @property
    def rows(self) -> int:
        """The largest batch that both were proven with."""
        return min(_BATCH_ROWS, *(side.manifest.interface.proven.get(BATCH, (1, 1))[1] for side in self.sides))


def _load(side: Statements, *, limited: bool) -> Runner:
    variant = side.default
    options = EngineOptions.from_json(variant.options)
    if limited:
        options = replace(options, limit_s=LONGEST_RUN_S)
    return load_runner(side.bundle.read(variant.graph), engine=variant.engine, options=options)


def _run(side: Statements, runner: Runner, inputs: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Run some rows; a graph that was proven from some number of rows up gets the last row again."""
    least = side.manifest.interface.proven.get(BATCH, (1, 1))[0]
    missing = max(0, least - rows)
    padded = {name: np.concatenate([array, *[array[-1:]] * missing]) for name, array in inputs.items()}
    return {name: array[:rows] for name, array in runner.run(padded if missing else inputs).items()}


def _paired(runners: _Runners, given: _Given, data: Path, progress: Progress) -> PairedRows:
    outputs = _shared_outputs(*runners.sides)
    answered = _Answered(*runners.sides, outputs, labeled=given.truth is not None)
    progress.start("Run both on the same rows", len(given.rows))
    first: list[dict[str, np.ndarray]] | None = None
    digest = hashlib.sha256()
    for rows, inputs in given.batches(runners.rows):
        first = first or inputs
        for name, array in sorted(inputs[0].items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + _bytes(array))
        answers = [
            _run(side, runner, arrays, len(rows))
            for side, runner, arrays in zip(runners.sides, runners.careful, inputs, strict=True)
        ]
        answered.add(answers[0], answers[1], None if given.truth is None else given.truth[rows])
        progress.advance(len(rows))
    progress.done(f"{len(given.rows)} rows")
    figures = [*answered.figures()]
    if first is not None:
        figures.append(_timed(runners, first, progress))
    machine = fingerprint()
    setup = (
        ("machine", f"{machine['cpu']}, {machine['cores']} cores"),
        ("threads", "1"),
        ("rows in a timed call", "1"),
        ("rows", "as they were given; whether a model was trained on them is not known"),
        *((("skipped", f"{given.skipped} rows that one of them does not take"),) if given.skipped else ()),
    )
    return PairedRows(data.name, len(given.rows), f"sha256:{digest.hexdigest()}", tuple(figures), setup)


def _bytes(array: np.ndarray) -> bytes:
    return repr(array.tolist()).encode() if array.dtype == object else array.tobytes()


class _Answered:
    """What both said, row by row, without keeping the answers."""

    def __init__(self, one: Statements, two: Statements, outputs: list[str], *, labeled: bool) -> None:
        self._one, self._two, self._outputs = one, two, outputs
        self._scores = _scores(one, two, outputs, labeled=labeled)
        self._meter = FidelityMeter(outputs)
        self._agree = self._rows = 0
        self._right: list[np.ndarray] = []

    def add(self, one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray], truth: np.ndarray | None) -> None:
        """Take the answers to the same rows."""
        _require_same_sizes(one, two, self._outputs)
        self._meter.add(one, two)
        if self._scores is None:
            return
        before, after = _labels(one[self._scores]), _labels(two[self._scores])
        after = _in_terms_of(self._one, self._two, after)
        self._rows += len(before)
        self._agree += int(((before == after) & (before >= 0)).sum())
        if truth is not None:
            self._right.append(np.stack([before == truth, after == truth]))

    def figures(self) -> Iterator[Figure]:
        """Yield accuracy, agreement, and how alike the numbers are."""
        if self._right:
            before, after = np.concatenate(self._right, axis=1)
            yield figure_of_pairs(
                "Accuracy",
                wilson(int(before.sum()), len(before)),
                wilson(int(after.sum()), len(after)),
                losses=int((before & ~after).sum()),
                gains=int((~before & after).sum()),
                rows=len(before),
            )
        if self._rows:
            words = f"{self._agree:,} of {self._rows:,} rows get the same class from both."
            shared = wilson(self._agree, self._rows)
            yield Figure("Agreement of the two", "share", None, shared, None, Basis.PAIRED, words)
        found = self._meter.result()
        words = f"The greatest difference of two numbers is {found.largest:.3g}."
        if found.nonfinite_rows:
            words += f" {found.nonfinite_rows} rows are NaN or infinite now and were not before."
        for name, unit, value in (("Cosine", "cosine", found.cosine), ("SNR", "dB", found.snr_db)):
            if value is not None:
                yield Figure(f"{name} of the two", unit, None, value, None, Basis.PAIRED, words)
                words = ""


def _require_same_sizes(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray], outputs: list[str]) -> None:
    for name in outputs:
        if one[name].shape[1:] != two[name].shape[1:]:
            raise InvalidInput(
                f"The two answer the same row with {name!r} of the sizes {list(one[name].shape[1:])} and "
                f"{list(two[name].shape[1:])}, so they cannot be compared number by number. Leave `--data` out."
            )


def _labels(scores: np.ndarray) -> np.ndarray:
    """Return the class of each row, -1 for a row with NaN or infinity."""
    said = labels_of(scores)
    said[nonfinite_rows(scores)] = -1
    return said


def _in_terms_of(one: Statements, two: Statements, said: np.ndarray) -> np.ndarray:
    """Return the second's classes by the numbers that the first gives them; -2 for one that it does not have."""
    names = [side.manifest.task.config.get("labels") for side in (one, two)]
    if names[0] == names[1] or not isinstance(names[0], list) or not isinstance(names[1], list):
        return said
    numbers = np.array([names[0].index(name) if name in names[0] else -2 for name in names[1]])
    return np.where(said < 0, said, numbers[said])


def _shared_outputs(one: Statements, two: Statements) -> list[str]:
    """Return the outputs of numbers that both have, which is what can be compared."""
    specs = [{spec.name: spec for spec in side.manifest.interface.outputs} for side in (one, two)]
    shared = [name for name, spec in specs[0].items() if name in specs[1] and np.dtype(DTYPES[spec.dtype]).kind == "f"]
    if not shared:
        raise InvalidInput(
            f"{one.title} and {two.title} have no output of numbers in common: {', '.join(specs[0])} and "
            f"{', '.join(specs[1])}. Their answers cannot be compared; leave `--data` out."
        )
    return shared


def _scores(one: Statements, two: Statements, outputs: list[str], *, labeled: bool) -> str | None:
    """Return the output that holds class scores, if there are classes: by the task, or by labels that were given.

    Raises:
        InvalidInput: there are labels, and it is not clear which output answers them.
    """
    flat = [spec.name for spec in one.manifest.interface.outputs if spec.name in outputs and len(spec.shape) == 2]
    if len(flat) == 1 and (labeled or all(side.manifest.task.config.get("labels") for side in (one, two))):
        return flat[0]
    if labeled:
        raise InvalidInput(
            f"The rows have labels, and {one.title} and {two.title} have {len(flat)} outputs that could hold "
            f"scores of classes ({', '.join(flat) or 'none'}). Leave the labels out."
        )
    return None


def _timed(runners: _Runners, first: Sequence[Mapping[str, np.ndarray]], progress: Progress) -> Figure:
    """Time one row on both, as they would serve, without the cost of a limit."""
    one, two = runners.sides
    rows = [{name: np.ascontiguousarray(array[:1]) for name, array in inputs.items()} for inputs in first]
    started = time.perf_counter()
    for side, runner, row in zip(runners.sides, runners.careful, rows, strict=True):
        _run(side, runner, row, 1)
    once = max(time.perf_counter() - started, 1e-6)
    in_a_row = calls_in_a_row(once / 2)
    pairs = int(min(_PAIRS, max(_LEAST_PAIRS, _TIMING_S / (once * in_a_row))))
    loaded = [_load(side, limited=False) for side in runners.sides]
    progress.start("Time both in pairs", None)
    try:
        timing = interleaved(
            lambda: _run(one, loaded[0], rows[0], 1),
            lambda: _run(two, loaded[1], rows[1], 1),
            pairs=pairs,
            warmup=min(20, pairs // 3),
            in_a_row=(in_a_row, in_a_row),
        )
    finally:
        for runner in loaded:
            runner.close()
    progress.done(timing.words)
    ratio = timing.ratio
    return Figure(
        name="Time of one row",
        unit="ms",
        before=_exact(timing.a_ms.p50),
        after=_exact(timing.b_ms.p50),
        difference=Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low, ratio.confidence, ratio.n),
        basis=Basis.PAIRED,
        words=f"{timing.words}, in {pairs} neighboring pairs in one process.",
    )


def _exact(value: float) -> Interval:
    return Interval(value, value, value, 1.0, 0)


def _given(one: Statements, two: Statements, data: Path, label: str) -> _Given:
    files = tuple(_file(side, data, label) for side in (one, two))
    given = _Given((files[0], files[1]), (), None, 0)
    bad: list[BadRow] = []
    usable = []
    truth, unlabeled = classes_given(files[0].labels, _task(one).labels)
    for index, name in enumerate(files[0].ids):
        try:
            if index in unlabeled:
                raise InvalidInput(unlabeled[index])
            for file in files:
                file.row(index)
            usable.append(index)
        except InvalidInput as exc:
            bad.append(BadRow(name, str(exc)))
    files[0].require_usable(bad, of=len(files[0]))
    return replace(given, rows=tuple(usable), truth=truth, skipped=len(bad))


def _task(side: Statements) -> Task:
    said = side.manifest.task
    return load_task(said.name, said.codec_version, said.config)


def _file(side: Statements, data: Path, label: str) -> RowFile:
    try:
        return read_rows(data, task=_task(side), interface=side.manifest.interface, label=label)
    except InvalidInput as exc:
        raise InvalidInput(f"{side.title} does not take these rows: {exc}") from exc
