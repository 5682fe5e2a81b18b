"""Ask a server over gRPC (V2, raw contents): what ``AsyncClient`` does over HTTP, as far as an endpoint is judged.

The key goes as metadata ``authorization``, by the rule of the HTTP client: encrypted, or to this machine.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from lightship.apply.answers import Answer
from lightship.apply.calls import Inference, ModelMetadata, Retries, plain_text
from lightship.apply.client import key_for
from lightship.apply.tensors import pack_tensor, unpack_tensor
from lightship.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    LightshipError,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from lightship.types import TensorSpec
from lightship.v2.grpc_library import load_grpc
from lightship.v2.grpc_messages import message_class

__all__ = ["GrpcClient", "is_grpc"]

_SERVICE = "/inference.GRPCInferenceService/"
_ERRORS: Mapping[str, type[LightshipError]] = {
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Forbidden,
    "NOT_FOUND": NotFound,
    "INVALID_ARGUMENT": InvalidInput,
    "OUT_OF_RANGE": TooLarge,
    "ABORTED": Conflict,
    "FAILED_PRECONDITION": Conflict,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unavailable,
}
_AGAIN = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")


def is_grpc(url: str) -> bool:
    """Whether an address is of a gRPC server: ``grpc://host:port``, or ``grpcs://`` with TLS."""
    return url.startswith(("grpc://", "grpcs://"))


class GrpcClient:
    """A client for asyncio; an async context manager.

    Args:
        url: ``grpc://host:port``, or ``grpcs://host:port`` with TLS.
        key: the API key; by default what the variable LIGHTSHIP_KEY holds, if anything.
        timeout_s: for one call: all its tries and the waits between them.
        authority: certificates to trust, PEM; None: the usual ones.
        allow_plain: send the key unencrypted to another machine.

    Raises:
        InvalidInput: an address that is none, or the key would go unencrypted to another machine.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        authority: bytes | None = None,
        allow_plain: bool = False,
    ) -> None:
        self._target, self._encrypted = _parsed(url)
        host = urlsplit(url).hostname or ""
        found = key_for(host, key, scheme=urlsplit(url).scheme, allow_plain=allow_plain)
        self._metadata = (("authorization", f"Bearer {found}"),) if found else ()
        self._retries, self._authority = Retries(timeout_s=timeout_s), authority
        self._channel: Any = None

    async def __aenter__(self) -> Self:
        grpc = load_grpc()
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        if self._encrypted:
            credentials = grpc.ssl_channel_credentials(self._authority)
            self._channel = grpc.aio.secure_channel(self._target, credentials, options=options)
        else:
            self._channel = grpc.aio.insecure_channel(self._target, options=options)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()

    async def metadata(self, model: str) -> ModelMetadata:
        """Return what a model takes and gives; over gRPC a server does not tell its bundle and variant."""
        name, _, version = model.partition(":")
        found = await self._call("ModelMetadata", {"name": name, "version": version})
        return ModelMetadata(
            name=found.name,
            versions=tuple(found.versions),
            platform=found.platform,
            inputs=tuple(TensorSpec(one.name, one.datatype, tuple(one.shape)) for one in found.inputs),
            outputs=tuple(TensorSpec(one.name, one.datatype, tuple(one.shape)) for one in found.outputs),
        )

    async def inference(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> Inference:
        """Run tensors through a model's graph; the answer says of which version it is."""
        name, _, version = model.partition(":")
        tensors, contents = [], []
        for each, array in inputs.items():
            datatype, data = pack_tensor(each, np.asarray(array))
            tensors.append({"name": each, "datatype": datatype, "shape": list(np.shape(array))})
            contents.append(data)
        found = await self._call(
            "ModelInfer",
            {
                "model_name": name,
                "model_version": version,
                "inputs": tensors,
                "outputs": [{"name": each} for each in outputs or ()],
                "raw_input_contents": contents,
            },
        )
        if len(found.outputs) != len(found.raw_output_contents):
            raise LightshipError(
                "The server's answer is not what the V2 protocol says: not every output has its bytes."
            )
        try:
            given = {
                one.name: unpack_tensor({"name": one.name, "datatype": one.datatype, "shape": one.shape}, data)
                for one, data in zip(found.outputs, found.raw_output_contents, strict=True)
            }
        except (ValueError, struct.error) as exc:
            raise LightshipError(f"The server's answer is not what the V2 protocol says: {exc}.") from exc
        return Inference(given, found.model_name, found.model_version)

    async def predict(self, model: str, raw: bytes, labels: Sequence[str]) -> Answer:
        """Return the answer to one raw input, by the model ``NAME.raw``.

        Args:
            model: its name on the server, or ``name:version``.
            raw: the input.
            labels: of the task, in the order of the probabilities: over gRPC these come without.
        """
        name, colon, version = model.partition(":")
        found = await self.inference(f"{name}.raw{colon}{version}", {"raw": np.array([raw], dtype=object)})
        shares = found.outputs.get("probabilities", np.zeros((1, 0)))
        said = found.outputs.get("label", np.array([b""], dtype=object))
        if shares.shape != (1, len(labels)) or said.shape != (1,):
            raise LightshipError(f"The server's answer has {shares.shape} probabilities for {len(labels)} labels.")
        ranked = {label: float(share) for label, share in zip(labels, shares[0], strict=True)}
        label = bytes(said[0]).decode(errors="replace")
        given = int(found.version) if found.version.isdigit() else None
        return Answer(label, ranked.get(label, 0.0), ranked, model=name, version=given)

    async def _call(self, method: str, fields: Mapping[str, Any]) -> Any:
        """Call a method until it is answered, the tries are used up, or the time would be over."""
        grpc = load_grpc()
        request = message_class(f"{method}Request")(**fields)
        call = self._channel.unary_unary(
            _SERVICE + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_class(f"{method}Response").FromString,
        )
        retries = self._retries
        deadline = retries.clock() + retries.timeout_s
        for attempt in range(retries.count + 1):
            try:
                return await call(request, timeout=max(deadline - retries.clock(), 0.001), metadata=self._metadata)
            except grpc.aio.AioRpcError as exc:
                code, error = exc.code().name, _error_of(exc)
            wait_s = retries.chance() * min(retries.most_s, retries.base_s * 2**attempt)
            if code not in _AGAIN or attempt == retries.count or retries.clock() + wait_s >= deadline:
                raise error
            await asyncio.sleep(wait_s)
        raise LightshipError("A call ended without an answer.")  # not reached: the last attempt returns or raises


def _parsed(url: str) -> tuple[str, bool]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if not is_grpc(url) or not parts.hostname or not port or parts.path.strip("/") or parts.query or parts.username:
        raise InvalidInput(f"The address of a gRPC server must be such as grpc://127.0.0.1:8001. Got {url[:200]!r}.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}", parts.scheme == "grpcs"


def _error_of(error: Any) -> LightshipError:
    code = error.code().name
    text = plain_text(error.details() or f"The server answered {code} without a message.")
    if code == "UNAVAILABLE" and "connect" in text.lower():
        text = f"The server cannot be reached: {text}. Is it running, and is the address right?"
    if code == "UNAUTHENTICATED":
        text += " Give a key: `--key-file` or LIGHTSHIP_KEY."
    return _ERRORS.get(code, LightshipError)(text)
