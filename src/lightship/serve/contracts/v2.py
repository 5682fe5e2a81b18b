"""The V2 protocol (KServe, Triton, Open Inference Protocol) over HTTP: health, metadata, inference.

Every image model ``m`` is there twice: as ``m`` with its graph's own tensors, and as ``m.raw`` with one BYTES input
``raw``, one raw input (an image file) a row, and the outputs ``label``, ``probability`` and ``probabilities``.
Source: open-inference-protocol, specification/protocol/inference_rest.md; the binary form is in ``v2_codec``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

import msgspec
import numpy as np

from lightship.errors import InvalidTensor, LightshipError, NotFound, Unavailable
from lightship.serve.access import ANY_KEY, OPEN, Role
from lightship.serve.contracts.v2_codec import V2Codec, V2Request, V2Response
from lightship.serve.dispatch import Exchange, Route
from lightship.serve.http import Response
from lightship.serve.limits import Limits
from lightship.serve.model import Answer, Catalog, ServedModel, Told, Work
from lightship.serve.tensors import PackedTensor, pack, unpack
from lightship.types import Dim, TensorSpec
from lightship.version import __version__

__all__ = ["V2"]

_INFER = frozenset({Role.INFER})
_BATCH = "batch"


class _View(Protocol):
    """A model as V2 sees it."""

    name: str
    model: ServedModel
    platform: ClassVar[str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def work(self, request: V2Request, deadline_s: float, done: Told) -> Work:
        """Return the work that a request asks for."""

    def results(self, answer: Answer) -> Mapping[str, PackedTensor]:
        """Return the outputs by name."""


class _Tensors:
    """A model as its graph is."""

    platform: ClassVar[str] = "onnx"

    def __init__(self, model: ServedModel) -> None:
        self.name = model.name
        self.model = model
        self.inputs = model.interface.inputs
        self.outputs = model.interface.outputs

    def work(self, request: V2Request, deadline_s: float, done: Told) -> Work:
        rows = _check_shapes(request.inputs, self.model)
        return Work(rows=rows, deadline_s=deadline_s, done=done, inputs=request.inputs)

    def results(self, answer: Answer) -> Mapping[str, PackedTensor]:
        return {output.name: output for output in answer.outputs}


class _Raw:
    """A model with its task around it: raw inputs in, answers out."""

    platform: ClassVar[str] = "lightship"

    def __init__(self, model: ServedModel) -> None:
        self.name = f"{model.name}.raw"
        self.model = model
        self._labels = model.task.labels
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("raw", "BYTES", (_BATCH,)),)
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("label", "BYTES", (_BATCH,)),
            TensorSpec("probability", "FP32", (_BATCH,)),
            TensorSpec("probabilities", "FP32", (_BATCH, len(self._labels))),
        )

    def work(self, request: V2Request, deadline_s: float, done: Told) -> Work:
        raws = tuple(unpack(request.inputs[0]).tolist())
        return Work(rows=len(raws), deadline_s=deadline_s, done=done, raws=raws)

    def results(self, answer: Answer) -> Mapping[str, PackedTensor]:
        answers = [msgspec.json.decode(text) for text in answer.answers]
        labels = np.array([one["label"] for one in answers], dtype=object)
        probability = np.array([one["probability"] for one in answers], dtype=np.float32)
        matrix = [[one["probabilities"][label] for label in self._labels] for one in answers]
        return {
            "label": pack("label", "BYTES", labels),
            "probability": pack("probability", "FP32", probability),
            "probabilities": pack("probabilities", "FP32", np.array(matrix, dtype=np.float32)),
        }


class V2:
    """Answers the V2 routes for the models of a catalog."""

    name: ClassVar[str] = "v2"

    def __init__(self, catalog: Catalog, *, limits: Limits, stopping: Callable[[], bool]) -> None:
        self._catalog = catalog
        self._stopping = stopping
        self._codec = V2Codec(json_bytes=limits.json_bytes)
        self._views: dict[tuple[str, str | None], _View] = {}
        for model in catalog.models:
            views: tuple[_View, ...] = (_Tensors(model), _Raw(model))
            for view in views:
                self._views[(view.name, model.version)] = view
                self._views.setdefault((view.name, None), view)
        for model in catalog.models:  # a model that is really called "x.raw" goes before the raw form of "x"
            self._views[(model.name, model.version)] = _Tensors(model)
        for name in {model.name for model in catalog.models}:
            first = catalog.find(name)
            if first is not None:
                self._views[(name, None)] = self._views[(name, first.version)]

    def routes(self) -> Sequence[Route]:
        """Return the routes of V2."""
        routes = [
            Route("GET", "/v2", ANY_KEY, self._server, contract=self.name),
            Route("GET", "/v2/health/live", OPEN, _live, contract=self.name),
            Route("GET", "/v2/health/ready", OPEN, self._ready, contract=self.name),
        ]
        for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route("GET", base, ANY_KEY, self._metadata, contract=self.name),
                Route("GET", f"{base}/ready", ANY_KEY, self._model_ready, contract=self.name),
                Route("POST", f"{base}/infer", _INFER, self._infer, admit=self._admit, contract=self.name),
            ]
        return routes

    def _view(self, exchange: Exchange) -> _View:
        name, version = exchange.params["model"], exchange.params.get("version")
        view = self._views.get((name, version))
        if view is None:
            if (name, None) in self._views:
                raise NotFound(
                    f"The model {name!r} is not served in that version. GET /v2/models/{name} lists its versions."
                )
            raise NotFound("No model of that name is served here.")
        exchange.model = view.model.name
        return view

    def _server(self, exchange: Exchange) -> None:
        exchange.answer(_json({"name": "lightship", "version": __version__, "extensions": ["binary_tensor_data"]}))

    def _ready(self, exchange: Exchange) -> None:
        ready = self._catalog.ready and not self._stopping()
        exchange.answer(_json({"ready": ready}, status=200 if ready else 503))

    def _model_ready(self, exchange: Exchange) -> None:
        view = self._view(exchange)
        ready = view.model.ready and not self._stopping()
        exchange.answer(_json({"name": view.name, "ready": ready}, status=200 if ready else 503))

    def _metadata(self, exchange: Exchange) -> None:
        view = self._view(exchange)
        exchange.answer(
            _json(
                {
                    "name": view.name,
                    "versions": list(self._catalog.versions(view.model.name)),
                    "platform": view.platform,
                    "inputs": [_spec_json(spec) for spec in view.inputs],
                    "outputs": [_spec_json(spec) for spec in view.outputs],
                }
            )
        )

    def _admit(self, exchange: Exchange) -> None:
        self._view(exchange).model.admit(exchange.head.body_bytes or 0)

    def _infer(self, exchange: Exchange) -> None:
        view = self._view(exchange)
        request = self._codec.read(exchange.body, exchange.head.headers, view.inputs, view.outputs)
        exchange.body = b""
        deadline_s = exchange.deadline_s
        if request.timeout_us is not None:
            deadline_s = min(deadline_s, exchange.arrived_s + request.timeout_us / 1e6)

        def done(answer: Answer | None, error: LightshipError | None) -> None:
            if answer is None:
                exchange.fail(error or Unavailable("The server is being stopped."))
                return
            try:
                outputs = view.results(answer)
                response = V2Response(view.name, view.model.version, request.id, request.wanted)
                exchange.answer(self._codec.write(response, outputs))
            except LightshipError as exc:
                exchange.fail(exc)

        work = view.work(request, deadline_s, done)
        view.model.submit(work)
        exchange.on_gone(work.cancel)


def _live(exchange: Exchange) -> None:
    exchange.answer(_json({"live": True}))


def _json(value: object, *, status: int = 200) -> Response:
    return Response(status, (msgspec.json.encode(value),))


def _spec_json(spec: TensorSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "datatype": spec.dtype,
        "shape": [dim if isinstance(dim, int) else -1 for dim in spec.shape],
    }


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
