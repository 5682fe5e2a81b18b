"""The V2 protocol (KServe, Triton, Open Inference Protocol) over HTTP: health, metadata, inference.

The models as V2 sees them are in ``v2_model``, the forms of requests and answers in ``v2_codec``.
Source: open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import msgspec

from lightship.errors import LightshipError, Unavailable
from lightship.serve.access import ANY_KEY, OPEN, Role
from lightship.serve.catalog import Catalog
from lightship.serve.contracts.v2_codec import V2Codec, V2Request, is_text
from lightship.serve.contracts.v2_model import View, Views
from lightship.serve.dispatch import Exchange, Route
from lightship.serve.http import Response
from lightship.serve.limits import Limits
from lightship.serve.model import Answer, ServedModel
from lightship.serve.source import ModelSource
from lightship.types import TensorSpec
from lightship.version import __version__

__all__ = ["V2"]

_INFER = frozenset({Role.INFER})
_TOGETHER_BYTES = 1 << 20  # of texts that are read in one go: their numbers are held until the last is read


class V2:
    """Answers the V2 routes for the models of a catalog."""

    name: ClassVar[str] = "v2"

    def __init__(self, catalog: Catalog, *, limits: Limits, stopping: Callable[[], bool]) -> None:
        self._catalog = catalog
        self._stopping = stopping
        self._json_bytes = limits.json_bytes
        self._views = Views(catalog)
        self._models: tuple[ServedModel, ...] = ()
        self._doors: dict[str, _Door] = {}  # by path, while these models are served
        self._texts: list[Exchange] = []  # requests in JSON that came in this turn of the loop
        self._texts_bytes = 0

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

    def _view(self, exchange: Exchange) -> View:
        view = self._views.find(exchange.params["model"], exchange.params.get("version"))
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
                    "versions": list(self._views.versions(view)),
                    "platform": view.platform,
                    "inputs": [_spec_json(spec) for spec in view.inputs],
                    "outputs": [_spec_json(spec) for spec in view.outputs],
                    "parameters": _served_json(view.model.source),
                }
            )
        )

    def _admit(self, exchange: Exchange) -> None:
        if self._models is not self._catalog.models:
            self._models, self._doors = self._catalog.models, {}
        head = exchange.head
        exchange.admitted = door = self._doors.get(head.path) or self._new_door(exchange)
        exchange.version = model = door.model
        exchange.model = model.name
        model.admit(head.body_bytes or 0, exchange.key)

    def _new_door(self, exchange: Exchange) -> _Door:
        view = self._view(exchange)
        codec = next((door.codec for door in self._doors.values() if door.view is view), None)
        names = (view.name, view.model.version)
        codec = codec or V2Codec(view.inputs, view.outputs, model=names, json_bytes=self._json_bytes)
        door = self._doors[exchange.head.path] = _Door(view, view.model, codec)
        return door

    def _infer(self, exchange: Exchange) -> None:
        door: _Door = exchange.admitted
        headers = exchange.head.headers
        if not is_text(headers):
            body, exchange.body = exchange.body, b""
            self._submit(exchange, door, door.codec.read(body, headers))
            return
        if not self._texts:
            asyncio.get_running_loop().call_soon(self._read_texts)
        self._texts.append(exchange)
        self._texts_bytes += len(exchange.body)
        door.model.coming += 1
        if self._texts_bytes > _TOGETHER_BYTES:
            self._read_texts()

    def _read_texts(self) -> None:
        """Read all texts that came in one turn of the loop, one after the other, and then queue them.

        The parser of numbers and the interpreter take the first-level caches from each other; so they pay for it once
        a turn, not once a request.
        """
        texts, self._texts, self._texts_bytes = self._texts, [], 0
        for exchange in texts:
            exchange.admitted.model.coming -= 1
        read: list[tuple[Exchange, _Door, V2Request]] = []
        for exchange in texts:
            door: _Door = exchange.admitted
            if exchange.gone:
                continue
            body, exchange.body = exchange.body, b""
            try:
                read.append((exchange, door, door.codec.read(body, exchange.head.headers)))
            except Exception as exc:  # noqa: BLE001 - it is answered, and logged if it is a fault of ours
                exchange.failed(exc)
        for exchange, door, request in read:
            try:
                self._submit(exchange, door, request)
            except Exception as exc:  # noqa: BLE001 - it is answered, and logged if it is a fault of ours
                exchange.failed(exc)

    def _submit(self, exchange: Exchange, door: _Door, request: V2Request) -> None:
        deadline_s = exchange.deadline_s
        if request.timeout_us is not None:
            deadline_s = min(deadline_s, exchange.arrived_s + request.timeout_us / 1e6)
        work = door.view.work(request.inputs, deadline_s, partial(_told, exchange, request))
        if exchange.key is not None:
            work.owner = exchange.key.id
        door.model.submit(work)
        exchange.on_gone = work.cancel


class _Door(msgspec.Struct, frozen=True, eq=False):
    """A model as a path names it, and what reads and writes for it."""

    view: View
    model: ServedModel
    codec: V2Codec


def _told(exchange: Exchange, request: V2Request, answer: Answer | None, error: LightshipError | None) -> None:
    if answer is None:
        exchange.fail(error or Unavailable("The server is being stopped."))
        return
    door: _Door = exchange.admitted
    try:
        exchange.answer(door.codec.write(request, door.view.results(answer, request.wanted)))
    except LightshipError as exc:
        exchange.fail(exc)


def _live(exchange: Exchange) -> None:
    exchange.answer(_json({"live": True}))


def _json(value: object, *, status: int = 200) -> Response:
    return Response(status, (msgspec.json.encode(value),))


def _served_json(source: ModelSource) -> dict[str, object]:
    """Say what answers under this name, so that a client can hold the answers against what was released."""
    said: dict[str, object] = {"version": str(source.version), "bundle": source.bundle, "variant": source.variant.name}
    if source.instead_of is not None:
        said["instead_of"] = source.instead_of[0]
    return said


def _spec_json(spec: TensorSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "datatype": spec.dtype,
        "shape": [dim if isinstance(dim, int) else -1 for dim in spec.shape],
    }
