"""Server and worker understand each other: whole messages, small and large, and nothing else."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from lightship.errors import WorkerFailed
from lightship.serve.slots import SLOT_BYTES, Slots, mapped_slots
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


@pytest.fixture
def sharing():
    """Return the two ends of a channel with shared memory, the server's first."""
    ours, theirs = Channel.pair()
    slots = Slots()
    ends = Channel(ours, slots=slots), Channel(theirs, shared=mapped_slots(slots.descriptor))
    yield ends
    for end in ends:
        end.close()


def test_a_batch_crosses_in_shared_memory_until_it_is_answered(sharing):
    """Two batches have a slot each, the third goes as before, and an answer makes room for the fourth."""
    server, worker = sharing
    data = [np.random.default_rng(number).bytes(100_000) for number in range(5)]
    received = {}

    for number in (1, 2, 3):
        server.send(RunTensors(number, (1,), ()), [data[number][:7], data[number][7:]])
        received[number] = worker.receive()[1]
    worker.send(Done(1, (), (), (), 0, 0, 0))
    server.receive()
    server.send(RunTensors(4, (1,), ()), [data[4]])
    received[4] = worker.receive()[1]

    assert [bytes(received[number]) == data[number] for number in (2, 3, 4)] == [True, True, True]
    assert bytes(received[1]) == data[4]  # whose slot it was
    assert all(one.readonly for one in received.values())


@pytest.mark.parametrize("size", [0, 1, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1])
def test_a_payload_of_any_size_finds_its_way_beside_shared_memory(sharing, size):
    """Small ones go inline, too large ones by memfd."""
    server, worker = sharing
    data = np.random.default_rng(2).bytes(size)

    server.send(RunTensors(1, (1,), ()), [data])

    assert bytes(worker.receive()[1]) == data


def test_nobody_can_map_shared_memory_for_writing_after_the_server():
    """A worker that was taken over cannot change what the server will send."""
    slots = Slots()
    with pytest.raises(PermissionError):
        mmap.mmap(slots.descriptor, SLOT_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.write(slots.descriptor, b"x")
    slots.close()


def test_a_place_beyond_shared_memory_is_refused(sharing):
    """A message must not lead outside of it."""
    server, worker = sharing
    server.socket.send(struct.pack("<IQq", 1, 10, 1 << 40) + b"x")
    with pytest.raises(WorkerFailed, match="message between server and worker"):
        worker.receive()
