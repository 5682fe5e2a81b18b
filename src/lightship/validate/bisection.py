"""Which layer goes wrong first, when a variant answers differently from the reference.

Both graphs are run on a few rows with their inner tensors exposed as outputs. Tensors that both have under one name are
compared in topological order; the first layer whose own error jumps, its inputs being well, is named. Error is the
root mean square of the difference, as a share of the reference's.

What to watch:
- An exposed tensor keeps the engine from fusing what lies around it. A quantized layer is fused with the quantizer
  behind it, so there the tensor *behind* quantizer and dequantizer is compared: the kernel that is run is then the one
  that is served, its saturation included.
- Where exposing changes what the graph itself answers (fused kernels do, and engines err), that tensor is left out.
- Only some tensors are exposed at a time, within a bound of memory, and the walk stops at the first layer found.

Import this module late: it loads onnx.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]  # no stubs

from lightship.engine.runner import LONGEST_RUN_S, EngineOptions, Runner, load_runner
from lightship.errors import InvalidInput, LightshipError
from lightship.types import Json

__all__ = ["Divergence", "first_divergence"]

_MOST_ROWS = 8
_ROWS_A_RUN = 4
_FIRST_EXPOSED = 4
_MOST_EXPOSED = 128
_JUMP = 3.0  # an error that a layer makes itself is at least this many times the error that it was given
_OUTLIER = 1e4  # times the median: constants that mask attention would hide the error of all other values
_DISTURBED = 0.05
"""An answer that moves by more than this when inner tensors are exposed is another engine's path, or its mistake."""
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first layer that goes wrong.

    Attributes:
        layer: name of the node in the reference; if it has none, of the weights that it uses, else of its output.
        operator: its type, e.g. ``Conv``.
        tensor: name of its output.
        before: largest error among its inputs: RMS of the difference / RMS of the reference. 0 for the graph's inputs.
        after: error of its output; infinite where only the variant gives NaN or infinity.
        final: largest error among the outputs of the graph.
        gradual: no layer's own error stands out; this is where the sum of many passed the threshold.
        compared: how many tensors were compared until it was found.
    """

    layer: str
    operator: str
    tensor: str
    before: float
    after: float
    final: float
    gradual: bool
    compared: int

    @property
    def words(self) -> str:
        """One line for the reason of an outcome."""
        off = "NaN or infinity" if math.isinf(self.after) else f"off by {self.after:.1%} of its size"
        if self.gradual:
            return f"the error grows over many layers; at {self.layer!r} ({self.operator}) the answer is {off}"
        given = f"off by {self.before:.1%}" if self.before >= 5e-4 else "right"
        return f"the first layer to go wrong is {self.layer!r} ({self.operator}): its inputs are {given}, it is {off}"

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form; an infinite error is null."""
        return {
            "layer": self.layer,
            "operator": self.operator,
            "tensor": self.tensor,
            "before": _number(self.before),
            "after": _number(self.after),
            "final": _number(self.final),
            "gradual": self.gradual,
            "compared": self.compared,
            "words": self.words,
        }


def first_divergence(
    reference: bytes,
    variant: bytes,
    inputs: Mapping[str, np.ndarray],
    *,
    engine: str = "onnxruntime",
    options: EngineOptions | None = None,
    variant_engine: str | None = None,
    variant_options: EngineOptions | None = None,
    threshold: float = 0.1,
    memory_bytes: int = 64 << 20,
) -> Divergence | None:
    """Find the first layer of ``variant`` whose output is not the reference's.

    Give the same graph twice and two engines to find where the engines part.

    Args:
        reference: ONNX.
        variant: ONNX that was made from it; its tensors keep their names where quantizers and fusions left them.
        inputs: rows by the name of the input, first axis rows; at most 8 rows are used.
        engine: runs the reference.
        options: of that engine.
        variant_engine: runs the variant; by default the same.
        variant_options: by default the same.
        threshold: errors up to this are no divergence. Where the answers themselves are worse, half of their error
            is the threshold: rounding to int8 is not what is looked for then.
        memory_bytes: bound of the tensors that are held at once. One tensor of a few rows may be larger.

    Returns:
        ``None`` when no tensor is off by more than the threshold.

    Raises:
        InvalidInput: bytes that are no ONNX graph, or no rows.
        LightshipError: an engine cannot load or run a graph as it is.
    """
    rows = _few_rows(inputs)
    ours = _Probe(reference, engine, options or EngineOptions(), "the reference")
    theirs = _Probe(variant, variant_engine or engine, variant_options or options or EngineOptions(), "the variant")
    pairs = _shared(ours, theirs)
    outputs = [item.name for item in ours.model.graph.output]
    if not set(outputs) <= {item.name for item in theirs.model.graph.output}:
        raise InvalidInput("A variant must have the outputs of the reference. Give a variant of this very graph.")
    ours.answer(rows)
    theirs.answer(rows)
    final = max((_error(ours.answers[name], theirs.answers[name]) for name in outputs), default=0.0)
    ours.may_move, theirs.may_move = _DISTURBED, max(_DISTURBED, final / 2)
    limit = max(threshold, final / 2) if math.isfinite(final) else threshold

    nodes = {name: node for node in ours.model.graph.node for name in node.output if name}
    ancestors = _Ancestors(ours.model)
    errors: dict[str, float] = {}
    crossed: Divergence | None = None
    for found in _walk(ours, theirs, pairs, rows, memory_bytes):
        for tensor, after in found.items():
            before = max((errors[name] for name in ancestors.measured(tensor, errors)), default=0.0)
            errors[tensor] = after
            if not after > limit:
                continue
            jumped = after >= _JUMP * before
            if jumped or crossed is None:
                node = _culprit(nodes, tensor, errors, ours.weights)
                here = Divergence(
                    _name_of(node, ours.weights), node.op_type, tensor, before, after, final, not jumped, len(errors)
                )
                if jumped:
                    return here
                crossed = here
    return crossed


def _few_rows(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = min((len(array) for array in inputs.values()), default=0)
    if not rows:
        raise InvalidInput("To find the first diverging layer needs at least one row of every input. Got none.")
    return {name: array[: min(rows, _MOST_ROWS)] for name, array in inputs.items()}


class _Probe:
    """A graph that can be run with some of its inner tensors as outputs."""

    def __init__(self, graph: bytes, engine: str, options: EngineOptions, what: str) -> None:
        load_runner(graph, engine=engine, options=options).close()  # audits it, and says what is wrong with it as it is
        self.model = _parsed(graph, what)
        self.weights = {item.name for item in self.model.graph.initializer}
        self.weights |= {name for node in self.model.graph.node if node.op_type == "Constant" for name in node.output}
        self.types = _types(self.model)
        self.answers: dict[str, np.ndarray] = {}
        self.may_move = math.inf
        self._given = [item.name for item in self.model.graph.output]
        self._engine = engine
        # What is run here are the audited bytes with more outputs, and an inner tensor need not have rows.
        self._options = replace(options, limit_s=LONGEST_RUN_S, audited=True, batched=False)

    def runner(self, tensors: Sequence[str]) -> Runner:
        """Load the graph with these tensors as outputs beside its own."""
        outputs = self.model.graph.output
        outputs.extend(self._info(name) for name in tensors if name not in self._given)
        try:
            graph = self.model.SerializeToString()
        except (EncodeError, ValueError) as exc:
            raise InvalidInput("A graph of 2 GB or more cannot be looked into layer by layer.") from exc
        finally:
            del outputs[len(self._given) :]
        return load_runner(graph, engine=self._engine, options=self._options)

    def answer(self, rows: Mapping[str, np.ndarray]) -> None:
        """Note what the graph answers when nothing is exposed."""
        with closing(self.runner(())) as runner:
            found = [runner.run(batch) for _, _, batch in _batches(runner, rows)]
        self.answers = {name: np.concatenate([np.atleast_1d(each[name]) for each in found]) for name in self._given}

    def is_disturbed(self, found: Mapping[str, np.ndarray], at: int, count: int) -> bool:
        """Tell whether exposing tensors changed what the graph itself answers: then they are not what is served."""
        return any(
            _error(answer[at : at + count], found[name]) > self.may_move for name, answer in self.answers.items()
        )

    def _info(self, name: str) -> onnx.ValueInfoProto:
        """Return the tensor as an output: typed, if its type could be told, which some engines want."""
        return self.types.get(name) or onnx.ValueInfoProto(name=name)


def _parsed(graph: bytes, what: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(graph)
    except DecodeError as exc:
        raise InvalidInput(f"The bytes of {what} are no ONNX model. Give the bytes of a .onnx file.") from exc
    return model


def _shared(ours: _Probe, theirs: _Probe) -> list[tuple[str, str]]:
    """Return (name in the reference, name in the variant) of float tensors that both compute, in topological order."""
    made = {name for node in theirs.model.graph.node for name in node.output}
    behind = _behind_quantizers(theirs.model)
    cut = _cut_by(ours.model)
    pairs = []
    for node in ours.model.graph.node:
        if node.op_type == "Constant":
            continue
        for name in node.output:
            known = ours.types.get(name)
            if name and name in made and (known is None or known.type.tensor_type.elem_type in _FLOATS):
                # A quantizer before a Relu may have a range from 0 on: it does what the Relu does, or takes its place.
                if name not in behind or name not in cut:
                    pairs.append((name, behind.get(name, name)))
                elif cut[name] not in made:
                    pairs.append((cut[name], behind[name]))
    return pairs


def _cut_by(model: onnx.ModelProto) -> dict[str, str]:
    """Return tensor -> what is left of it, for tensors that are used by nothing but one Relu or Clip."""
    uses: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            uses[name].append(node)
    outputs = {item.name for item in model.graph.output}
    return {
        name: users[0].output[0]
        for name, users in uses.items()
        if len(users) == 1 and name not in outputs and users[0].op_type in ("Relu", "Clip")
    }


def _behind_quantizers(model: onnx.ModelProto) -> dict[str, str]:
    """Return tensor -> what comes back from int8, for tensors that are used by nothing but a quantizer."""
    uses: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            uses[name].append(node)
    outputs = {item.name for item in model.graph.output}
    found = {}
    for name, users in uses.items():
        if name in outputs or len(users) != 1 or users[0].op_type != "QuantizeLinear":
            continue
        back = [node for node in uses[users[0].output[0]] if node.op_type == "DequantizeLinear"]
        if back:
            found[name] = back[0].output[0]
    return found


def _types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the type of each tensor, as far as it can be told without running the graph."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):  # then a run tells
        return {}
    return {item.name: item for item in (*inferred.value_info, *inferred.output)}


class _Ancestors:
    """The nearest tensors before a tensor of which the error is known."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._inputs = {name: list(node.input) for node in model.graph.node for name in node.output if name}

    def measured(self, tensor: str, known: Mapping[str, float]) -> list[str]:
        found, seen, rest = [], {tensor}, list(self._inputs.get(tensor, ()))
        while rest:
            name = rest.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in known:
                found.append(name)
            else:
                rest.extend(self._inputs.get(name, ()))
        return found


def _culprit(
    nodes: Mapping[str, onnx.NodeProto], tensor: str, known: Mapping[str, float], weights: set[str]
) -> onnx.NodeProto:
    """Return the node to name: where the variant fused several into one, the last of them that has weights."""
    rest, seen = [tensor], {tensor}
    while rest:
        node = nodes[rest.pop(0)]
        if weights & set(node.input) and any(name not in weights for name in node.input):
            return node
        for name in node.input:
            if name in nodes and name not in known and name not in seen and name not in weights:
                seen.add(name)
                rest.append(name)
    return nodes[tensor]


def _name_of(node: onnx.NodeProto, weights: set[str]) -> str:
    if node.name:
        return node.name
    return str(next((name for name in node.input if name in weights), node.output[0]))


def _walk(
    ours: _Probe,
    theirs: _Probe,
    pairs: Sequence[tuple[str, str]],
    rows: Mapping[str, np.ndarray],
    memory_bytes: int,
) -> Iterator[dict[str, float]]:
    """Yield the errors of a few tensors at a time, in the order of ``pairs``; as many as the bound of memory allows."""
    start, count = 0, _FIRST_EXPOSED
    while start < len(pairs):
        piece = pairs[start : start + count]
        sizes: list[int] = []
        try:
            found = _errors(ours, theirs, piece, rows, sizes)
        except LightshipError:  # one of them is of a kind that an engine does not give; the others are looked at alone
            found = {}
            for pair in piece:
                try:
                    found |= _errors(ours, theirs, [pair], rows, sizes)
                except LightshipError:
                    continue
        yield found
        start += len(piece)
        if sizes:
            count = int(max(1, min(_MOST_EXPOSED, memory_bytes * len(piece) / max(sum(sizes), 1))))


def _errors(
    ours: _Probe,
    theirs: _Probe,
    pairs: Sequence[tuple[str, str]],
    rows: Mapping[str, np.ndarray],
    sizes: list[int],
) -> dict[str, float]:
    """Return the error of each pair over all rows; ``sizes`` gets the bytes that the tensors of one run took."""
    sums = {name: _Squares() for name, _ in pairs}
    most = 0
    with (
        closing(ours.runner([name for name, _ in pairs])) as one,
        closing(theirs.runner([name for _, name in pairs])) as two,
    ):
        for at, count, batch in _batches(one, rows):
            right, found = one.run(batch), two.run(batch)
            if ours.is_disturbed(right, at, count) or theirs.is_disturbed(found, at, count):
                raise LightshipError("Looking at these tensors changes what the graph answers.")
            most = max(most, sum(right[name].nbytes + found[other].nbytes for name, other in pairs))
            for name, other in pairs:
                sums[name].add(right[name], found[other])
    sizes.append(most)
    return {name: item.error for name, item in sums.items() if item.comparable}


def _batches(runner: Runner, rows: Mapping[str, np.ndarray]) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """Yield (first row, rows, inputs) of batches; a graph of fixed size gets rows again until it is full."""
    fixed = next((s.shape[0] for s in runner.interface.inputs if s.shape and isinstance(s.shape[0], int)), None)
    total = len(next(iter(rows.values())))
    at = 0
    while at < total:
        count = fixed or min(_ROWS_A_RUN, total - at)
        yield (
            at,
            count,
            {name: np.resize(array[at : at + count], (count, *array.shape[1:])) for name, array in rows.items()},
        )
        at += count


def _error(right: np.ndarray, found: np.ndarray) -> float:
    """Return the error of one array."""
    sums = _Squares()
    sums.add(right, found)
    return sums.error if sums.comparable else 0.0


class _Squares:
    """The squares of one tensor and of its error, summed over batches."""

    def __init__(self) -> None:
        self.comparable = True
        self._size = self._off = 0.0
        self._broken = False

    def add(self, right: np.ndarray, found: np.ndarray) -> None:
        if right.shape != found.shape or right.dtype.kind != "f" or found.dtype.kind != "f" or not right.size:
            self.comparable = False
            return
        one, two = right.astype(np.float64), found.astype(np.float64)
        finite = np.isfinite(one)
        self._broken |= bool((~np.isfinite(two) & finite).any())
        kept = finite & np.isfinite(two)
        size = np.abs(one[kept])
        if (size > 0).any():
            usual = size <= _OUTLIER * np.median(size[size > 0])
            self._size += float(np.square(size[usual]).sum())
            self._off += float(np.square((two[kept] - one[kept])[usual]).sum())
        else:
            self._off += float(np.square(two[kept]).sum())

    @property
    def error(self) -> float:
        if self._broken or (self._off > 0 and self._size == 0):
            return math.inf
        return math.sqrt(self._off / self._size) if self._size else 0.0


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
