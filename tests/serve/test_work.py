"""Requests that are too large for one batch: their parts, and the room that their answers take."""

import numpy as np
import pytest

from lightship.errors import LightshipError, Unavailable
from lightship.serve.tensors import pack
from lightship.serve.work import Answer, Parts, Room, Work

ROW_BYTES = 8


class Asked:
    """A request of some rows, cut into batches of two; what its caller was told."""

    def __init__(self, rows: int, room: Room, *, answer_bytes: int | None) -> None:
        self.told: list[tuple[Answer | None, LightshipError | None]] = []
        inputs = (pack("x", "FP32", np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)),)
        self.work = Work("k", rows, rows * ROW_BYTES, 1e9, done=lambda *told: self.told.append(told), inputs=inputs)
        self.parts = Parts(self.work, self._more, room, answer_bytes=answer_bytes)
        self.part = self.parts.next(2)

    def _more(self, parts: Parts) -> None:
        self.part = parts.next(2)

    def run(self) -> None:
        """Answer what waits of it with its inputs."""
        self.part.finish(Answer(self.part.inputs), None)


def test_answers_of_parts_are_joined_in_their_order():
    """All rows, once."""
    asked = Asked(5, Room(100), answer_bytes=40)
    for _ in range(3):
        asked.run()

    ((answer, error),) = asked.told
    assert error is None
    assert np.frombuffer(answer.outputs[0].data, np.float32).tolist() == list(range(10))


@pytest.mark.parametrize("end", ["answered", "failed", "cancelled"])
def test_room_is_taken_before_the_first_part_runs_and_free_at_the_end(end):
    """Whichever end that is."""
    room = Room(100)
    asked = Asked(10, room, answer_bytes=80)
    asked.run()
    with pytest.raises(Unavailable, match="answers_bytes"):
        Asked(3, room, answer_bytes=24)

    if end == "answered":
        for _ in range(4):
            asked.run()
    elif end == "failed":
        asked.part.finish(None, LightshipError("no"))
    else:
        asked.work.cancel()
        asked.run()  # it was in the worker already

    assert len(asked.told) == (0 if end == "cancelled" else 1)
    Asked(12, room, answer_bytes=96)


def test_where_the_graph_does_not_say_the_size_it_counts_when_it_is_there():
    """Who comes late is refused, the first goes on, and the room is free in the end."""
    room = Room(40)
    first, second = Asked(4, room, answer_bytes=None), Asked(10, room, answer_bytes=None)
    first.run()
    second.run()
    second.run()

    ((answer, error),) = second.told
    assert (answer, type(error)) == (None, Unavailable)
    first.run()
    assert first.told[0][0] is not None
    Asked(5, room, answer_bytes=40)


def test_rows_of_different_shapes_are_not_joined():
    """Cut by rows again, the bytes of one request would be another's."""
    room = Room(100)
    asked = Asked(4, room, answer_bytes=None)
    asked.run()
    asked.part.finish(Answer((pack("x", "FP32", np.zeros((2, 3), np.float32)),)), None)

    ((answer, error),) = asked.told
    assert answer is None
    assert "different shapes" in str(error)
    Asked(12, room, answer_bytes=96)


def test_one_answer_alone_may_be_larger_than_the_room():
    """Else it could never be given."""
    room = Room(10)
    asked = Asked(4, room, answer_bytes=32)
    with pytest.raises(Unavailable):
        Asked(3, room, answer_bytes=1)
    asked.run()
    asked.run()
    assert asked.told[0][0] is not None
