"""The V2 protocol (KServe, Triton, Open Inference Protocol) over gRPC: health, metadata, inference.

The wire is described in ``v2_grpc.proto``, the models as V2 sees them are in ``v2_model``. What is offered: the open
protocol, of Triton's additions the model's configuration and the stream, and gRPC's own question for health. There is
no reflection, and nothing that loads, unloads or maps memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lightship.errors import LightshipError, NotFound, Unavailable
from lightship.serve.access import ANY_KEY, OPEN, Role
from lightship.serve.catalog import Catalog
from lightship.serve.contracts.v2_grpc_codec import GrpcCodec, parsed
from lightship.serve.contracts.v2_model import View, Views
from lightship.serve.dispatch import Exchange
from lightship.serve.grpc_front import GrpcMethod
from lightship.serve.limits import Limits
from lightship.serve.model import Answer, Work
from lightship.types import TensorSpec
from lightship.v2.grpc_messages import message_class
from lightship.version import __version__

__all__ = ["V2Grpc"]

_SERVICE = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # a message with an enumeration as its field 1
_INFER = frozenset({Role.INFER})
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}  # the others are TYPE_ and our name


class V2Grpc:
    """Answers the methods of V2 for the models of a catalog."""

    name: ClassVar[str] = "grpc"

    def __init__(self, catalog: Catalog, *, limits: Limits, stopping: Callable[[], bool]) -> None:
        self._catalog = catalog
        self._stopping = stopping
        self._views = Views(catalog)
        self._codec = GrpcCodec(described_bytes=limits.json_bytes // 4)

    def methods(self) -> Sequence[GrpcMethod]:
        """Return the methods; what is not among them is not offered."""
        return [
            GrpcMethod(_SERVICE + "ServerLive", OPEN, self._live),
            GrpcMethod(_SERVICE + "ServerReady", OPEN, self._ready),
            GrpcMethod(_HEALTH, OPEN, self._health),
            GrpcMethod(_SERVICE + "ServerMetadata", ANY_KEY, self._server),
            GrpcMethod(_SERVICE + "ModelReady", ANY_KEY, self._model_ready),
            GrpcMethod(_SERVICE + "ModelMetadata", ANY_KEY, self._metadata),
            GrpcMethod(_SERVICE + "ModelConfig", ANY_KEY, self._config),
            GrpcMethod(_SERVICE + "ModelInfer", _INFER, self._infer),
            GrpcMethod(_SERVICE + "ModelStreamInfer", _INFER, self._stream_infer, stream=True),
        ]

    async def _live(self, exchange: Exchange, data: bytes) -> bytes:  # noqa: ARG002 - the methods' signature
        parsed("ServerLiveRequest", data)
        return _bytes("ServerLiveResponse", live=True)

    async def _ready(self, exchange: Exchange, data: bytes) -> bytes:  # noqa: ARG002 - the methods' signature
        parsed("ServerReadyRequest", data)
        return _bytes("ServerReadyResponse", ready=self._catalog.ready and not self._stopping())

    async def _health(self, exchange: Exchange, data: bytes) -> bytes:  # noqa: ARG002 - the methods' signature
        """Say what Kubernetes and load balancers ask, by gRPC's own protocol of health."""
        name = parsed("ModelReadyRequest", data).name  # as theirs, a message with a text as its field 1
        if name not in ("", _SERVICE.strip("/")):
            raise NotFound("No service of that name is here.")
        return _SERVING if self._catalog.ready and not self._stopping() else _NOT_SERVING

    async def _server(self, exchange: Exchange, data: bytes) -> bytes:  # noqa: ARG002 - the methods' signature
        parsed("ServerMetadataRequest", data)
        return _bytes("ServerMetadataResponse", name="lightship", version=__version__)

    async def _model_ready(self, exchange: Exchange, data: bytes) -> bytes:
        try:
            view = self._view(exchange, parsed("ModelReadyRequest", data))
        except NotFound:  # a question of yes or no: clients that wait for a model ask until it is yes
            return _bytes("ModelReadyResponse", ready=False)
        return _bytes("ModelReadyResponse", ready=view.model.ready and not self._stopping())

    async def _metadata(self, exchange: Exchange, data: bytes) -> bytes:
        view = self._view(exchange, parsed("ModelMetadataRequest", data))
        return _bytes(
            "ModelMetadataResponse",
            name=view.name,
            versions=list(self._views.versions(view)),
            platform=view.platform,
            inputs=[_spec(spec) for spec in view.inputs],
            outputs=[_spec(spec) for spec in view.outputs],
        )

    async def _config(self, exchange: Exchange, data: bytes) -> bytes:
        view = self._view(exchange, parsed("ModelConfigRequest", data))
        batched = view.model.source.batch_rows > 0
        config = {
            "name": view.name,
            "platform": view.platform,
            "max_batch_size": view.model.source.batch_rows,
            "input": [_config_spec(spec, batched=batched) for spec in view.inputs],
            "output": [_config_spec(spec, batched=batched) for spec in view.outputs],
        }
        return _bytes("ModelConfigResponse", config=config)

    async def _infer(self, exchange: Exchange, data: bytes) -> bytes:
        answer: bytes = (await self._answer(exchange, data)).SerializeToString()
        return answer

    async def _stream_infer(self, exchange: Exchange, data: bytes) -> bytes:
        answer = await self._answer(exchange, data)
        answer.parameters["triton_final_response"].bool_param = True  # what a client of Triton's streams looks for
        return _bytes("ModelStreamInferResponse", infer_response=answer)

    @staticmethod
    def stream_error(text: str) -> bytes:
        """Return what says on a stream that one request failed; the stream goes on."""
        return _bytes("ModelStreamInferResponse", error_message=text)

    async def _answer(self, exchange: Exchange, data: bytes) -> Any:
        message = self._codec.parse(data)
        view = self._views.find(message.model_name, message.model_version or None)
        exchange.model = view.model.name
        view.model.admit(len(data), exchange.key)
        request = self._codec.read(message, view.inputs, view.outputs)
        deadline_s = exchange.deadline_s
        if request.timeout_us is not None:
            deadline_s = min(deadline_s, exchange.arrived_s + request.timeout_us / 1e6)
        told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(answer: Answer | None, error: LightshipError | None) -> None:
            if told.done():
                return
            if answer is None:
                told.set_exception(error or Unavailable("The server is being stopped."))
            else:
                told.set_result(answer)

        work = view.work(request.inputs, deadline_s, done)
        if exchange.key is not None:
            work.owner = exchange.key.id
        del message, data  # the work holds what it needs, and lets go of it when it is done
        answer = await _done(view, work, told)
        model = (view.name, view.model.version)
        return self._codec.write(model, request, view.results(answer, request.wanted))

    def _view(self, exchange: Exchange, message: Any) -> View:
        view = self._views.find(message.name, message.version or None)
        exchange.model = view.model.name
        return view


async def _done(view: View, work: Work, told: asyncio.Future[Answer]) -> Answer:
    """Let a model do its work; drop it if nobody waits any more."""
    view.model.submit(work)
    try:
        return await told
    except asyncio.CancelledError:
        work.cancel()
        raise


def _bytes(kind: str, **fields: object) -> bytes:
    data: bytes = message_class(kind)(**fields).SerializeToString()
    return data


def _spec(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.dtype, "shape": _sizes(spec)}


def _config_spec(spec: TensorSpec, *, batched: bool) -> dict[str, object]:
    dtype = _CONFIG_TYPES.get(spec.dtype, f"TYPE_{spec.dtype}")
    # Triton says one size 1 for what has none besides the batch.
    return {"name": spec.name, "data_type": dtype, "dims": (_sizes(spec)[1:] or [1]) if batched else _sizes(spec)}


def _sizes(spec: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape]
