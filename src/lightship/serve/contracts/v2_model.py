"""A served model as V2 sees it, over HTTP and gRPC alike: names, inputs and outputs, and how tensors become work.

A model ``m`` is there as ``m`` with its graph's own tensors, and, if its task has labels, as ``m.raw`` with one BYTES
input ``raw``, one raw input (an image file) a row, and the outputs ``label``, ``probability`` and ``probabilities``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import msgspec
import numpy as np

from lightship.errors import InvalidTensor, NotFound
from lightship.serve.catalog import Catalog
from lightship.serve.contracts.v2_reader import Wanted
from lightship.serve.model import Answer, ServedModel, Told, Work
from lightship.serve.tensors import PackedTensor, pack, unpack
from lightship.types import Dim, TensorSpec

__all__ = ["View", "Views"]

_BATCH = "batch"
_RAW = ".raw"
_REMEMBERED_SHAPES = 1_024
_Shapes = tuple[tuple[int, ...], ...]


class View(Protocol):
    """A model under one of its names."""

    name: str
    model: ServedModel
    platform: ClassVar[str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def work(self, inputs: tuple[PackedTensor, ...], deadline_s: float, done: Told) -> Work:
        """Return the work that a request asks for.

        Args:
            inputs: in the order of ``self.inputs``; bytes and dtypes are right, shapes are checked here.
            deadline_s: monotonic.
            done: see ``Work``.

        Raises:
            InvalidTensor: a shape that the model does not take.
        """

    def results(self, answer: Answer, wanted: Sequence[Wanted]) -> Sequence[PackedTensor]:
        """Return the outputs that were asked for, in that order."""


class _Tensors:
    """A model as its graph is."""

    platform: ClassVar[str] = "onnx"

    def __init__(self, model: ServedModel) -> None:
        self.name = model.name
        self.model = model
        self.inputs = model.interface.inputs
        self.outputs = model.interface.outputs
        # By the shape of the one input, or the shapes of all; those that were checked, and bounded.
        self._shapes: dict[tuple[int, ...] | _Shapes, tuple[int, _Shapes]] = {}

    def work(self, inputs: tuple[PackedTensor, ...], deadline_s: float, done: Told) -> Work:
        shapes: tuple[int, ...] | _Shapes
        if len(inputs) == 1:
            shapes, size = inputs[0].shape, len(inputs[0].data)
        else:
            shapes, size = tuple([one.shape for one in inputs]), sum([len(one.data) for one in inputs])
        rows, key = self._shapes.get(shapes) or self._check(shapes, inputs)
        return Work(key, rows, size, deadline_s, done=done, inputs=inputs)

    def _check(self, shapes: tuple[int, ...] | _Shapes, inputs: tuple[PackedTensor, ...]) -> tuple[int, _Shapes]:
        """Return the number of rows, and the shapes of a row: requests that have these in common run together."""
        rows = _check_shapes(inputs, self.model)
        if len(self._shapes) >= _REMEMBERED_SHAPES:
            self._shapes.clear()
        found = self._shapes[shapes] = (rows, tuple([one.shape[1:] for one in inputs]))
        return found

    def results(self, answer: Answer, wanted: Sequence[Wanted]) -> Sequence[PackedTensor]:
        if len(answer.outputs) == 1:
            return answer.outputs
        outputs = {output.name: output for output in answer.outputs}
        return [outputs[one.name] for one in wanted]


class _Raw:
    """A model with its task around it: raw inputs in, answers out."""

    platform: ClassVar[str] = "lightship"

    def __init__(self, model: ServedModel) -> None:
        self.name = model.name + _RAW
        self.model = model
        self._labels = model.task.labels
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("raw", "BYTES", (_BATCH,)),)
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("label", "BYTES", (_BATCH,)),
            TensorSpec("probability", "FP32", (_BATCH,)),
            TensorSpec("probabilities", "FP32", (_BATCH, len(self._labels))),
        )

    def work(self, inputs: tuple[PackedTensor, ...], deadline_s: float, done: Told) -> Work:
        if len(inputs[0].shape) != 1:
            raise InvalidTensor(f"The shape of input 'raw' must be [rows]. Got {list(inputs[0].shape)}.")
        raws = tuple(unpack(inputs[0]).tolist())
        size = sum([len(raw) for raw in raws])
        return Work("raw", len(raws), size, deadline_s, done=done, raws=raws)

    def results(self, answer: Answer, wanted: Sequence[Wanted]) -> Sequence[PackedTensor]:
        answers = [msgspec.json.decode(text) for text in answer.answers]
        labels = np.array([one["label"] for one in answers], dtype=object)
        probability = np.array([one["probability"] for one in answers], dtype=np.float32)
        matrix = [[one["probabilities"][label] for label in self._labels] for one in answers]
        outputs = {
            "label": pack("label", "BYTES", labels),
            "probability": pack("probability", "FP32", probability),
            "probabilities": pack("probabilities", "FP32", np.array(matrix, dtype=np.float32)),
        }
        return [outputs[one.name] for one in wanted]


class Views:
    """Finds a model by the name that a V2 client uses. Follows the catalog when that changes."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._made: dict[tuple[ServedModel, bool], View] = {}

    def find(self, name: str, version: str | None) -> View:
        """Return a model under a name; without a version, the catalog's own choice.

        A model that is really called ``x.raw`` goes before the raw form of ``x``.

        Raises:
            NotFound: it is not served, or not in that version.
        """
        model = self._catalog.find(name, version)
        if model is not None:
            return self._made.get((model, False)) or self._make(model, raw=False)
        if self._catalog.find(name) is None and name.endswith(_RAW):
            whole = name.removesuffix(_RAW)
            model = self._catalog.find(whole, version)
            if model is not None and model.task.labels:
                return self._made.get((model, True)) or self._make(model, raw=True)
            any_version = self._catalog.find(whole)
            known = any_version is not None and bool(any_version.task.labels)
        else:
            known = self._catalog.find(name) is not None
        if known:
            raise NotFound(f"The model {name!r} is not served in that version. Its metadata lists its versions.")
        raise NotFound("No model of that name is served here.")

    def versions(self, view: View) -> tuple[str, ...]:
        """Return the versions that are served of a view's model."""
        return self._catalog.versions(view.model.name)

    def _make(self, model: ServedModel, *, raw: bool) -> View:
        serving = set(self._catalog.models)  # what has been replaced is not kept alive from here
        self._made = {key: view for key, view in self._made.items() if key[0] in serving}
        view: View = _Raw(model) if raw else _Tensors(model)
        self._made[(model, raw)] = view
        return view


def _check_shapes(inputs: Sequence[PackedTensor], model: ServedModel) -> int:
    """Check the shapes of inputs, which are in the interface's order; return the number of rows.

    Raises:
        InvalidTensor: names the input and the axis.
    """
    sizes: dict[str, int] = {}
    proven = model.interface.proven
    for spec, tensor in zip(model.interface.inputs, inputs, strict=True):
        if len(spec.shape) != len(tensor.shape):
            raise InvalidTensor(_shape_message(spec, tensor, f"it must have {len(spec.shape)} dimensions"))
        for axis, (dim, size) in enumerate(zip(spec.shape, tensor.shape, strict=True)):
            if isinstance(dim, int):
                if size != dim:
                    raise InvalidTensor(_shape_message(spec, tensor, f"axis {axis} must be {dim}"))
            elif sizes.setdefault(dim, size) != size:
                raise InvalidTensor(_shape_message(spec, tensor, f"axis {axis} ({dim}) is {sizes[dim]} elsewhere"))
            elif not (dim == _BATCH and model.source.batch_rows):  # rows beyond the proven batch are split
                low, high = proven.get(dim, (1, 1))
                if not low <= size <= high:
                    message = f"axis {axis} ({dim}) was proven for {low} to {high}"
                    raise InvalidTensor(_shape_message(spec, tensor, message))
    return sizes.get(_BATCH, 1) if model.source.batch_rows else 1


def _shape_message(spec: TensorSpec, tensor: PackedTensor, what: str) -> str:
    shape: list[Dim] = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return f"The shape of input {spec.name!r} must fit {shape}: {what}. Got {list(tensor.shape)}."
