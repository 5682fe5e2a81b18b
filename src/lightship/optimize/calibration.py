"""Ranges of a graph's activations on given rows, in memory that does not grow with the rows.

Three rules: the smallest and largest value; the values that leave out one in ten thousand at either end; the range
whose 8-bit histogram keeps most of the information (relative entropy). The last two need a second look at the rows,
into histograms with the edges of the first. NaN and infinity have no part in a range.
Source: Migacz 2017, "8-bit Inference with TensorRT" (entropy); Wu et al. 2020, arXiv:2004.09602 (percentile).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightship.errors import CannotRun

if TYPE_CHECKING:
    import onnx

__all__ = ["Method", "Range", "activation_ranges", "first_rows", "row_batches"]

Method = Literal["min-max", "percentile", "entropy"]
Range = tuple[float, float]

_BINS = 2048
_LEVELS = 128  # of one sign in 8 bits
_OUTSIDE = 1e-4  # share of the values left out by `percentile`, at each end
_MOST_BYTES = 192 << 20  # of activations held at once
_MOST_VALUES = 65_536  # of one tensor and chunk that enter a histogram; every k-th, so nothing is drawn


def activation_ranges(
    model: onnx.ModelProto, batches: Sequence[Mapping[str, np.ndarray]], *, method: Method = "min-max"
) -> dict[str, Range]:
    """Return (low, high) of each float tensor that the graph computes or takes, by name; low <= 0 <= high.

    Args:
        model: weights inside, at most 2 GiB.
        batches: inputs by name, rows first; split further where memory asks for it.
        method: see above.

    Raises:
        CannotRun: the engine does not run the graph on these rows.
    """
    watch = _Watch(model)
    extremes: dict[str, _Extremes] = {}
    for name, values in watch.values(batches):
        extremes.setdefault(name, _Extremes()).add(values)
    if method == "min-max":
        return {name: seen.range for name, seen in extremes.items()}
    histograms = {name: _Histogram(*seen.range) for name, seen in extremes.items()}
    for name, values in watch.values(batches):
        histograms[name].add(values)
    rule: Callable[[_Histogram], Range] = _Histogram.percentile if method == "percentile" else _Histogram.entropy
    return {name: rule(histogram) for name, histogram in histograms.items()}


def first_rows(batches: Sequence[Mapping[str, np.ndarray]], most: int) -> list[Mapping[str, np.ndarray]]:
    """Return batches with at most ``most`` rows together; a batch that is too long is cut."""
    kept: list[Mapping[str, np.ndarray]] = []
    for batch in batches:
        rows = min(_rows(batch), most)
        if rows < 1:
            break
        kept.append({name: array[:rows] for name, array in batch.items()})
        most -= rows
    return kept


def row_batches(
    model: onnx.ModelProto, batches: Sequence[Mapping[str, np.ndarray]], rows: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches cut into pieces of ``rows``; as they are, where the graph fixes its number of rows."""
    fixed = _fixes_rows(model)
    for batch in batches:
        step = _rows(batch) if fixed else rows
        for start in range(0, _rows(batch), max(step, 1)):
            yield {name: np.ascontiguousarray(array[start : start + step]) for name, array in batch.items()}


def _fixes_rows(model: onnx.ModelProto) -> bool:
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = [tensor.type.tensor_type.shape for tensor in model.graph.input if tensor.name not in weights]
    return any(shape.dim and shape.dim[0].HasField("dim_value") for shape in shapes)


def _rows(batch: Mapping[str, np.ndarray]) -> int:
    return min((len(array) for array in batch.values()), default=0)


class _Watch:
    """A graph that shows all of its float tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx
        import onnxruntime as ort

        self._model = model
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        known = {output.name for output in shown.graph.output}
        for node in shown.graph.node:
            for name in node.output:
                if name and name not in known:
                    known.add(name)
                    shown.graph.output.add().name = name  # without a type: the engine infers it
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session: Any = ort.InferenceSession(
                shown.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # the engine's errors have no common base
            raise CannotRun(f"the engine does not load this graph for calibration: {exc}") from exc
        self._floats = [each.name for each in self._session.get_outputs() if each.type == "tensor(float)"]
        self._inputs = [each.name for each in self._session.get_inputs() if each.type == "tensor(float)"]
        self._rows = 1

    def values(self, batches: Sequence[Mapping[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (tensor, finite values) of all rows, as many rows at once as memory allows."""
        for batch in batches:
            for piece in self._pieces(batch):
                yield from self._run(piece)

    def _pieces(self, batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        if _fixes_rows(self._model):
            yield dict(batch)
            return
        yield from row_batches(self._model, first_rows([batch], 1))  # one row shows what the others will cost
        yield from row_batches(self._model, [{name: array[1:] for name, array in batch.items()}], self._rows)

    def _run(self, piece: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        try:
            arrays = self._session.run(self._floats, dict(piece))
        except Exception as exc:  # as above
            raise CannotRun(f"the engine does not run this graph on the calibration rows: {exc}") from exc
        rows = max(_rows(piece), 1)
        self._rows = max(1, _MOST_BYTES * rows // max(sum(array.nbytes for array in arrays), 1))
        for name, array in (*zip(self._floats, arrays, strict=True), *((key, piece[key]) for key in self._inputs)):
            flat = array.ravel()
            if not np.isfinite(flat.sum(dtype=np.float64)):
                flat = flat[np.isfinite(flat)]
            if flat.size:
                yield name, flat


@dataclass(slots=True)
class _Extremes:
    low: float = 0.0
    high: float = 0.0

    def add(self, values: np.ndarray) -> None:
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def range(self) -> Range:
        return self.low, self.high


@dataclass(slots=True)
class _Histogram:
    """Counts of the values between ``low`` and ``high``, int64 (``_BINS``,)."""

    low: float
    high: float
    counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def add(self, values: np.ndarray) -> None:
        step = -(-values.size // _MOST_VALUES)
        if self.high > self.low:
            self.counts += np.histogram(values[::step], _BINS, (self.low, self.high))[0]

    def percentile(self) -> Range:
        """Return the range without the outermost values; zero stays inside."""
        total = self.counts.sum()
        if not total:
            return self.low, self.high
        below = np.concatenate([[0.0], np.cumsum(self.counts) / total])
        edges = np.linspace(self.low, self.high, _BINS + 1)
        low, high = np.interp([_OUTSIDE, 1 - _OUTSIDE], below, edges)
        return min(float(low), 0.0), max(float(high), 0.0)

    def entropy(self) -> Range:
        """Return the range, cut at the same distance from zero on both sides, that keeps most of the information."""
        largest = max(-self.low, self.high)
        if not self.counts.sum() or largest <= 0:
            return self.low, self.high
        middles = np.abs(np.linspace(self.low, self.high, _BINS, endpoint=False) + (self.high - self.low) / 2 / _BINS)
        sizes = np.histogram(middles, _BINS, (0, largest), weights=self.counts.astype(np.float64))[0]
        sizes[0] = sizes[1]  # exact zeros, e.g. behind a ReLU, cost nothing in any range and would decide alone
        cut = _best_cut(sizes) * largest / _BINS
        return max(self.low, -cut), min(self.high, cut)


def _best_cut(sizes: np.ndarray) -> int:
    """Return after how many bins of |value| to cut, by the least relative entropy to ``_LEVELS`` even steps."""
    best, best_loss = len(sizes), np.inf
    for cut in range(_LEVELS, len(sizes) + 1, 16):
        wanted = sizes[:cut].copy()
        wanted[-1] += sizes[cut:].sum()
        filled = sizes[:cut] > 0
        step = np.arange(cut) * _LEVELS // cut
        mass = np.bincount(step, sizes[:cut], _LEVELS)
        share = mass[step] / np.maximum(np.bincount(step, filled, _LEVELS)[step], 1)
        given = np.where(filled, share, 0.0)
        both = (wanted > 0) & (given > 0)
        lost = wanted[(wanted > 0) & (given <= 0)].sum() / wanted.sum()
        p, q = wanted[both] / wanted.sum(), given[both] / max(given.sum(), 1e-30)
        loss = float((p * np.log(p / q)).sum()) + 10 * lost
        if loss < best_loss:
            best, best_loss = cut, loss
    return best
