"""Talk to a Lightship server: ``Client`` and ``AsyncClient``, over httpx, with the same calls (``calls``).

The key goes over https, or to this machine. A client that would send it in clear text over a network refuses to start,
because everybody on the way could use it from then on; ``allow_plain_http=True`` is for networks that encrypt below.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import anyio
import anyio.to_thread
import httpx
import numpy as np

from lightship.apply import calls
from lightship.apply.answers import Answer
from lightship.apply.calls import Broken, Call, Inference, ModelMetadata, Pause, Reply, Retries, Send
from lightship.apply.images import Image, upload
from lightship.errors import InvalidInput, LightshipError

__all__ = ["AsyncClient", "Client", "key_for"]

T = TypeVar("T")

KEY_VARIABLE = "LIGHTSHIP_KEY"
MAX_ANSWER_BYTES = 1 << 30
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
# Shorter than a server keeps idle connections, so that a request is not written into one that it is just closing.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)


def key_for(host: str, key: str | None, *, scheme: str, allow_plain: bool) -> str | None:
    """Return the key to send to a host: the one given, else what the variable LIGHTSHIP_KEY holds, if anything.

    Raises:
        InvalidInput: it is none, or would go unencrypted to another machine.
    """
    key = key if key is not None else os.environ.get(KEY_VARIABLE)
    if not key:
        return None
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InvalidInput("A key is printable ASCII without spaces. Check the file or variable it came from.")
    if scheme in ("http", "grpc") and not _is_loopback(host) and not allow_plain:
        raise InvalidInput(
            f"The key would go to {host} over plain {scheme}, where others can read it. Use {scheme}s, or "
            "allow_plain_http=True if the network itself encrypts."
        )
    return key


class _Address:
    """Where to send, with what, and the check that the key may go there."""

    def __init__(self, base_url: str, key: str | None, *, allow_plain_http: bool) -> None:
        url = _parsed(base_url)
        self.base = str(url).rstrip("/")
        found = key_for(url.host, key, scheme=url.scheme, allow_plain=allow_plain_http)
        self.headers = {"user-agent": "lightship-client", "accept": "application/json, application/octet-stream"}
        if found:
            self.headers["authorization"] = f"Bearer {found}"

    def request(self, client: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request:
        """Return the request that ``step`` describes."""
        return client.build_request(
            step.method,
            self.base + step.path,
            headers={**self.headers, **step.headers},
            content=step.body or None,
            timeout=step.timeout_s,
        )


class Client:
    """A client for threads. A context manager; safe to share between threads.

    Args:
        base_url: of the server, e.g. ``https://models.example.com`` or ``http://127.0.0.1:8000``; may have a path.
        key: the API key; by default what the variable LIGHTSHIP_KEY holds, if anything.
        timeout_s: for one call: all its tries and the waits between them.
        retries: tries after the first, for 429, 503 and connections that did not come about; see ``calls``.
        verify: False trusts any certificate (do not); an ``ssl.SSLContext`` decides itself, e.g. with an own authority.
        allow_plain_http: send the key over plain http to another machine.

    Raises:
        InvalidInput: an address that is none, or the key would go over plain http to another machine.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        verify: ssl.SSLContext | bool = True,
        allow_plain_http: bool = False,
    ) -> None:
        self._address = _Address(base_url, key, allow_plain_http=allow_plain_http)
        self._retries = Retries(timeout_s=timeout_s, count=retries)
        self._http = httpx.Client(verify=verify, limits=_LIMITS)

    def __repr__(self) -> str:
        return f"Client({self._address.base!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(self, model: str, image: Image) -> Answer:
        """Return the answer of ``model`` to one image.

        Args:
            model: its name on the server, or ``name:version``.
            image: bytes of a PNG, JPEG or WebP file, the path of one, or uint8 (height, width[, 1 or 3]).

        Raises:
            InvalidInput: the server, or this client, cannot use the image; subclasses say why.
            NotFound: no such model, or no file at the path.
            Unauthenticated, Forbidden: the key is missing, unknown, or not allowed.
            Unavailable: too busy, not reachable, or too late, after all tries.
        """
        body, kind = upload(image)
        return self._run(calls.predict(model, body, kind, retries=self._retries))

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run tensors through a model's graph, by the V2 protocol in its binary form.

        Args:
            model: its name on the server.
            inputs: by name, with batch axis, in the dtypes that ``metadata`` gives.
            outputs: the outputs wanted; all when None.

        Raises:
            InvalidTensor: an input that the protocol cannot carry.
            LightshipError: as ``predict``.
        """
        return self._run(calls.infer(model, inputs, outputs, retries=self._retries))

    def inference(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> Inference:
        """Do what ``infer`` does, and return with the outputs which model and version they are of."""
        return self._run(calls.inference(model, inputs, outputs, retries=self._retries))

    def metadata(self, model: str) -> ModelMetadata:
        """Return what a model takes and gives."""
        return self._run(calls.metadata(model, retries=self._retries))

    def ready(self, model: str | None = None) -> bool:
        """Return whether the server (or that model) would answer now. Asked once; no connection is a no.

        Raises:
            Unauthenticated, Forbidden: the server wants another key for this.
        """
        return self._run(calls.ready(model, retries=self._retries))

    def _run(self, call: Call[T]) -> T:
        event: Reply | Broken | None = None
        while True:
            step = _advance(call, event)
            if isinstance(step, _Finished):
                return step.value
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                event = None
            else:
                event = self._send(step)

    def _send(self, step: Send) -> Reply | Broken:
        # httpx bounds each read, not the whole: a server that drips bytes would be waited for without end.
        deadline = time.monotonic() + step.timeout_s
        try:
            response = self._http.send(self._address.request(self._http, step), stream=True)
            try:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += _bounded(chunk, body)
                    if time.monotonic() > deadline:
                        return Broken(f"its answer took more than {step.timeout_s:.1f} s", sent=True, late=True)
            finally:
                response.close()
        except httpx.RequestError as exc:
            return _broken(exc)
        return _reply(response, bytes(body))


class AsyncClient:
    """``Client`` for asyncio and trio: the same arguments and calls, awaited."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        verify: ssl.SSLContext | bool = True,
        allow_plain_http: bool = False,
    ) -> None:
        self._address = _Address(base_url, key, allow_plain_http=allow_plain_http)
        self._retries = Retries(timeout_s=timeout_s, count=retries)
        self._http = httpx.AsyncClient(verify=verify, limits=_LIMITS)

    def __repr__(self) -> str:
        return f"AsyncClient({self._address.base!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(self, model: str, image: Image) -> Answer:
        """See ``Client.predict``."""
        body, kind = await anyio.to_thread.run_sync(upload, image)  # reads a file, or compresses: not on the loop
        return await self._run(calls.predict(model, body, kind, retries=self._retries))

    async def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Client.infer``."""
        return await self._run(calls.infer(model, inputs, outputs, retries=self._retries))

    async def inference(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> Inference:
        """See ``Client.inference``."""
        return await self._run(calls.inference(model, inputs, outputs, retries=self._retries))

    async def metadata(self, model: str) -> ModelMetadata:
        """See ``Client.metadata``."""
        return await self._run(calls.metadata(model, retries=self._retries))

    async def ready(self, model: str | None = None) -> bool:
        """See ``Client.ready``."""
        return await self._run(calls.ready(model, retries=self._retries))

    async def _run(self, call: Call[T]) -> T:
        event: Reply | Broken | None = None
        while True:
            step = _advance(call, event)
            if isinstance(step, _Finished):
                return step.value
            if isinstance(step, Pause):
                await anyio.sleep(step.seconds)
                event = None
            else:
                event = await self._send(step)

    async def _send(self, step: Send) -> Reply | Broken:
        try:
            with anyio.fail_after(step.timeout_s):
                response = await self._http.send(self._address.request(self._http, step), stream=True)
                try:
                    body = bytearray()
                    async for chunk in response.aiter_bytes():
                        body += _bounded(chunk, body)
                finally:
                    await response.aclose()
        except TimeoutError:
            return Broken(f"more than {step.timeout_s:.1f} s", sent=True, late=True)
        except httpx.RequestError as exc:
            return _broken(exc)
        return _reply(response, bytes(body))


@dataclass(frozen=True, slots=True)
class _Finished(Generic[T]):
    value: T


def _advance(call: Call[T], event: Reply | Broken | None) -> Send | Pause | _Finished[T]:
    try:
        return call.send(event)
    except StopIteration as stop:
        return _Finished(stop.value)


def _parsed(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as exc:
        raise InvalidInput(f"`base_url` of a client must be an http or https address. {exc}.") from exc
    if url.scheme not in {"http", "https"} or not url.host:
        raise InvalidInput(
            f"`base_url` of a client must be an address such as http://127.0.0.1:8000. Got {base_url[:200]!r}."
        )
    if url.port is not None and not 0 < url.port < 65536:
        raise InvalidInput(f"The port in `base_url` of a client must be in [1, 65535]. Got {url.port}.")
    if url.userinfo or url.query or url.fragment:
        raise InvalidInput("`base_url` of a client must have no user, query or fragment. Give a key as `key=`.")
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bounded(chunk: bytes, body: bytearray) -> bytes:
    if len(body) + len(chunk) > MAX_ANSWER_BYTES:
        raise LightshipError(f"The server's answer is larger than {MAX_ANSWER_BYTES >> 20} MiB. It was not read.")
    return chunk


def _reply(response: httpx.Response, body: bytes) -> Reply:
    return Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)


def _broken(error: httpx.RequestError) -> Broken:
    reason = str(error) or type(error).__name__
    never_sent = isinstance(error, _NEVER_SENT)
    return Broken(reason, sent=not never_sent, late=isinstance(error, httpx.TimeoutException) and not never_sent)
