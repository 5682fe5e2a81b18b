"""Server and worker understand each other: whole messages, small and large, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightship.errors import WorkerFailed
from lightship.serve.wire import INLINE_BYTES, Channel, Done, RunTensors, TensorHead


def open_descriptors() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def channels():
    """Return the two ends of a channel."""
    ours, theirs = Channel.pair()
    ends = Channel(ours), Channel(theirs)
    yield ends
    for end in ends:
        end.close()


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 5_000_000])
def test_a_payload_arrives_joined_whatever_its_size(channels, size):
    """Small ones inline, large ones by memfd; no descriptor is left open."""
    data = np.random.default_rng(1).bytes(size)
    message = RunTensors(7, (1, 2), (TensorHead("x", "UINT8", (size,), size),))
    before = open_descriptors()

    channels[0].send(message, [data[: size // 3], b"", memoryview(data)[size // 3 :]])
    received = channels[1].receive()

    assert received is not None
    assert received[0] == message
    assert bytes(received[1]) == data
    del received
    assert open_descriptors() == before


def test_messages_keep_their_borders(channels):
    """Two messages are two messages, however they are read."""
    for number in (1, 2):
        channels[0].send(Done(number, (), (), (), 0, 0, 0), [b"ab" * number])

    for number in (1, 2):
        received = channels[1].receive()
        assert received is not None
        assert (received[0].batch, bytes(received[1])) == (number, b"ab" * number)


def test_more_buffers_than_one_system_call_takes_are_sent(channels):
    """A batch of a thousand small requests."""
    channels[0].send(RunTensors(1, (), ()), [b"x"] * 3000)

    received = channels[1].receive()

    assert received is not None
    assert bytes(received[1]) == b"x" * 3000


def test_the_end_of_the_other_side_is_seen(channels):
    """A closed socket is no message."""
    channels[0].close()

    assert channels[1].receive() is None


@pytest.mark.parametrize("packet", [b"x", b"\x04\0\0\0" + bytes(8) + b"\xff\xff\xff\xff", b"\0\0\0\0\x09" + bytes(7)])
def test_what_is_not_a_message_is_refused(channels, packet):
    """Too short, no MessagePack of the schema, a payload of another size."""
    channels[0].socket.send(packet)

    with pytest.raises(WorkerFailed, match="between server and worker"):
        channels[1].receive()


def test_a_full_socket_does_not_block_the_sender(channels):
    """A payload that no longer fits goes by descriptor; only when not even that fits is it an error."""
    channels[0].socket.setblocking(False)
    sent = 0
    try:
        while sent < 1000:
            channels[0].send(RunTensors(sent, (), ()), [bytes(INLINE_BYTES)])
            sent += 1
    except BlockingIOError:
        pass
    assert 0 < sent < 1000

    for number in range(sent):
        received = channels[1].receive()
        assert received is not None
        assert received[0].batch == number
        assert len(received[1]) == INLINE_BYTES
