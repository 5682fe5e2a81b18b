"""How server and worker talk: one message a batch over a Unix socket, of a fixed schema, large data by shared memory.

The socket keeps message borders (SOCK_SEQPACKET). A packet is: header length (4 bytes), payload length (8 bytes), place
in the shared memory or -1 (8 bytes), all little-endian; the header, MessagePack of one of the classes below; then the
payload, if it is small. A batch's that is not is in the shared memory (``slots``) if there is room for it; any other is
in a memfd among the packet's ancillary data. Nothing is unpickled and nothing has a name in the file system.
What stops a batch comes by a socket of its own (``stop_message``): the thread that reads this one may be in the engine.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from lightship.errors import WorkerFailed
from lightship.serve.slots import SLOT_BYTES, Slots
from lightship.types import ValueRange

__all__ = [
    "STOP_BYTES",
    "Beat",
    "Channel",
    "Done",
    "Failure",
    "Load",
    "LoadFailed",
    "Measured",
    "Message",
    "Ready",
    "RunRaw",
    "RunTensors",
    "TensorHead",
    "Tune",
    "stop_message",
    "stopped_batch",
]

Buffer = bytes | memoryview

INLINE_BYTES = 128 * 1024
"""A larger payload goes by memfd. It fits the default send buffer of a Unix socket (212,992 bytes)."""
_PACKET_BYTES = INLINE_BYTES + 64 * 1024
_BUFFERS_AT_ONCE = 512  # the kernel takes 1,024 in one call
_SMALL_BYTES = 8 * 1024  # a payload up to this is sent with its message in any case
_PREFIX = struct.Struct("<IQq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(4)  # one descriptor
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)  # a plain number: an enumeration calls several functions at each "and"
_STOP = struct.Struct("<Q")
STOP_BYTES = _STOP.size


class TensorHead(msgspec.Struct, frozen=True, array_like=True):
    """What a tensor in the payload is; ``size`` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class Load(msgspec.Struct, frozen=True, tag="load", forbid_unknown_fields=True):
    """The first message to a worker.

    Payload: the graph, the task's configuration (JSON), the golden inputs, the expected outputs.

    Attributes:
        options: ``EngineOptions.options_json`` of the variant.
        batch_rows: the largest batch it will get; 0 if the graph has no batch dimension.
        golden: (path in the bundle, size) of each golden input.
        expected: (name of the output, size of its ``.npy`` file).
        places: of the task and the engine, as the server has found them (``extensions.places_of``).
        background: others are being served: load with a lower priority.
        memory_bytes: how much more memory it may take from here on; 0 is no limit.
        values: by input, the values that were proven; a request with others is refused.
    """

    model: str
    engine: str
    threads: int
    options: dict[str, Any]
    task: str
    codec_version: int
    batch_rows: int
    graph_size: int
    config_size: int
    golden: tuple[tuple[str, int], ...]
    expected: tuple[tuple[str, int], ...]
    tolerance: str
    places: dict[str, str]
    background: bool = False
    memory_bytes: int = 0
    values: dict[str, ValueRange] = {}


class Ready(msgspec.Struct, frozen=True, tag="ready", forbid_unknown_fields=True):
    """The worker has loaded its graph and got every golden example right."""

    golden: int
    load_ms: float
    threads: int


class LoadFailed(msgspec.Struct, frozen=True, tag="load-failed", forbid_unknown_fields=True):
    """The worker will not serve; ``error`` is the name of a class of ``lightship.errors``."""

    error: str
    message: str


class RunTensors(msgspec.Struct, frozen=True, tag="tensors", forbid_unknown_fields=True):
    """Run a batch of tensors. Payload: the inputs, each stacked over the requests, whose rows are given."""

    batch: int
    rows: tuple[int, ...]
    inputs: tuple[TensorHead, ...]


class RunRaw(msgspec.Struct, frozen=True, tag="raw", forbid_unknown_fields=True):
    """Encode, run and decode raw inputs. Payload: the inputs of all requests, with these sizes."""

    batch: int
    rows: tuple[int, ...]
    sizes: tuple[int, ...]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why one request of a batch failed; ``error`` as in ``LoadFailed``."""

    index: int
    error: str
    message: str


class Done(msgspec.Struct, frozen=True, tag="done", forbid_unknown_fields=True):
    """A batch has run. Payload: the outputs stacked over the requests that did not fail, then their answers.

    Attributes:
        answers: sizes of the JSON answers, one a row; only for raw inputs.
    """

    batch: int
    outputs: tuple[TensorHead, ...]
    answers: tuple[int, ...]
    failed: tuple[Failure, ...]
    encode_us: int
    run_us: int
    decode_us: int


class Tune(msgspec.Struct, frozen=True, tag="tune", forbid_unknown_fields=True):
    """Measure batches of these sizes, smallest first; give up when a batch to run comes."""

    rows: tuple[int, ...]
    budget_ms: int


class Measured(msgspec.Struct, frozen=True, tag="measured", forbid_unknown_fields=True):
    """How long the batches took that there was time for; ``whole`` says that nothing came between."""

    rows: tuple[int, ...]
    run_us: tuple[int, ...]
    whole: bool


class Beat(msgspec.Struct, frozen=True, tag="beat", forbid_unknown_fields=True):
    """The worker is alive."""


Message = Load | Ready | LoadFailed | RunTensors | RunRaw | Tune | Measured | Beat | Done


def stop_message(batch: int) -> bytes:
    """Return what says on the second socket that nobody waits for this batch any more."""
    return _STOP.pack(batch)


def stopped_batch(data: bytes) -> int:
    """Return the batch that such a message names.

    Raises:
        WorkerFailed: it is none.
    """
    if len(data) != STOP_BYTES:
        raise WorkerFailed("A message that stops a batch is broken.")
    return int(_STOP.unpack(data)[0])


class Channel:
    """One end of the socket between server and worker. Sends and receives whole messages.

    Args:
        slots: the server's end may have shared memory to send by, and
        shared: the worker's a view of it.
    """

    def __init__(self, sock: socket.socket, *, slots: Slots | None = None, shared: memoryview | None = None) -> None:
        self.socket = sock
        self._slots = slots
        self._shared = memoryview(b"") if shared is None else shared
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
        self._packet = bytearray(_PACKET_BYTES)
        self._view = memoryview(self._packet)
        self._views = [self._view]

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Return two connected sockets; neither is inherited by a child unless asked for."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, message: Message, payload: Sequence[Buffer] = ()) -> None:
        """Send a message; the buffers of its payload arrive joined.

        Raises:
            OSError: the other end is gone, or (on a non-blocking socket) has not taken what was sent before.
        """
        header = self._encoder.encode(message)
        size = sum(map(len, payload))
        if self._slots is not None and _SMALL_BYTES < size <= SLOT_BYTES and isinstance(message, RunTensors | RunRaw):
            at = self._slots.put(message.batch, payload)
            if at >= 0:
                self.socket.sendmsg((_PREFIX.pack(len(header), size, at), header))
                return
        prefix = _PREFIX.pack(len(header), size, -1)
        if size <= INLINE_BYTES and len(payload) <= _BUFFERS_AT_ONCE:
            try:
                self.socket.sendmsg((prefix, header, *payload))
                return
            except BlockingIOError:
                if not size:
                    raise  # else: the socket is full for the payload, but a descriptor will fit
        descriptor = _memfd(payload)
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
            self.socket.sendmsg((prefix, header), rights)
        finally:
            os.close(descriptor)

    def receive(self) -> tuple[Message, memoryview] | None:
        """Return the next message and its payload; ``None`` when the other end is gone.

        Raises:
            BlockingIOError: a non-blocking socket has no message.
            WorkerFailed: what came is not a message.
        """
        size, ancillary, flags, _ = self.socket.recvmsg_into(self._views, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        descriptors = _descriptors(ancillary) if ancillary else ()
        try:
            if size == 0:
                return None
            if size < _PREFIX.size or flags & _CUT or len(descriptors) > 1:
                raise WorkerFailed("A message between server and worker is broken.")
            header_size, payload_size, at = _PREFIX.unpack_from(self._packet)
            start = _PREFIX.size + header_size
            message = self._decoder.decode(self._view[_PREFIX.size : start])
            if at >= 0:
                payload = self._shared[at : at + payload_size]
            elif descriptors:
                payload = _mapped(descriptors[0], payload_size)
            else:
                payload = memoryview(bytes(self._view[start:size]))
            if self._slots is not None and isinstance(message, Done):
                self._slots.done(message.batch)
            if len(payload) != payload_size:
                raise WorkerFailed("A message between server and worker has a payload of the wrong size.")
            return message, payload
        except msgspec.MsgspecError as exc:
            raise WorkerFailed("A message between server and worker does not have its schema.") from exc
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        """Close this end; the other sees it at once."""
        self.socket.close()
        if self._slots is not None:
            self._slots.close()


def _memfd(payload: Sequence[Buffer]) -> int:
    descriptor = os.memfd_create("lightship", os.MFD_CLOEXEC)
    try:
        parts = [memoryview(part) for part in payload if len(part)]
        while parts:
            written = os.writev(descriptor, parts[:_BUFFERS_AT_ONCE])
            while parts and written >= len(parts[0]):
                written -= len(parts.pop(0))
            if written:
                parts[0] = parts[0][written:]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _mapped(descriptor: int, size: int) -> memoryview:
    if os.fstat(descriptor).st_size < size:
        raise WorkerFailed("A memfd between server and worker is shorter than it should be.")
    return memoryview(mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ))


def _descriptors(ancillary: list[tuple[int, int, Any]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
