"""The batcher: who runs next, with whom, and who never runs. The clock is a number in the test's hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.errors import DeadlineExceeded, InvalidInput, Overloaded
from lightship.serve.batcher import BatchBounds, Batcher, Item


class Named(Item):
    """An item that can be told from others."""

    name: object = None


def item(
    name: str, *, key: str = "a", rows: int = 1, size: int = 10, deadline: float = 30.0, alone: bool = False
) -> Item:
    """Return an item whose payload is its name."""
    return Named(key=key, rows=rows, size_bytes=size, deadline_s=deadline, name=name, alone=alone)


def names(batch: list[Item]) -> list[str]:
    """Return the names of a batch."""
    return [one.name for one in batch]


def test_an_idle_worker_gets_a_lone_item_at_once():
    """Nothing waits for company."""
    batcher = Batcher(BatchBounds(batch_rows=8))

    batcher.add(item("x"), 0.0)

    assert names(batcher.next_batch(0.0)) == ["x"]
    assert batcher.next_batch(0.0) == []


def test_what_came_while_busy_runs_together_in_order_of_arrival():
    """Equal deadlines: first come, first served, up to the largest batch."""
    batcher = Batcher(BatchBounds(batch_rows=3))
    for name in "abcd":
        batcher.add(item(name), 0.0)

    assert names(batcher.next_batch(0.0)) == ["a", "b", "c"]
    assert names(batcher.next_batch(0.0)) == ["d"]


def test_the_earliest_deadline_goes_first_across_keys():
    """A key with the most urgent item is served first, and only items of that key are in the batch."""
    batcher = Batcher(BatchBounds(batch_rows=8))
    batcher.add(item("slow", key="a", deadline=20), 0.0)
    batcher.add(item("urgent", key="b", deadline=5), 0.0)
    batcher.add(item("more", key="b", deadline=10), 0.0)

    assert names(batcher.next_batch(0.0)) == ["urgent", "more"]
    assert names(batcher.next_batch(0.0)) == ["slow"]


@pytest.mark.parametrize(("rows", "expected"), [(3, ["a", "b"]), (4, ["a"])])
def test_rows_bound_a_batch_at_n_and_n_plus_one(rows, expected):
    """Seven rows fit in seven; eight do not."""
    batcher = Batcher(BatchBounds(batch_rows=7))
    batcher.add(item("a", rows=4), 0.0)
    batcher.add(item("b", rows=rows), 0.0)

    assert names(batcher.next_batch(0.0)) == expected


@pytest.mark.parametrize(("size", "expected"), [(60, ["a", "b"]), (61, ["a"])])
def test_bytes_bound_a_batch_at_n_and_n_plus_one(size, expected):
    """A hundred bytes fit in a hundred; one more does not."""
    batcher = Batcher(BatchBounds(batch_rows=7, batch_bytes=100))
    batcher.add(item("a", size=40), 0.0)
    batcher.add(item("b", size=size), 0.0)

    assert names(batcher.next_batch(0.0)) == expected


def test_an_item_over_the_byte_bound_runs_alone():
    """It must not wait for ever."""
    batcher = Batcher(BatchBounds(batch_rows=7, batch_bytes=100))
    batcher.add(item("big", size=101), 0.0)
    batcher.add(item("small", size=1), 0.0)

    assert names(batcher.next_batch(0.0)) == ["big"]
    assert names(batcher.next_batch(0.0)) == ["small"]


def test_an_item_that_must_be_alone_is():
    """Neither the ones before it nor the ones behind it share its batch."""
    batcher = Batcher(BatchBounds(batch_rows=7))
    for name, alone in (("a", False), ("b", True), ("c", False)):
        batcher.add(item(name, alone=alone), 0.0)

    assert [names(batcher.next_batch(0.0)) for _ in range(3)] == [["a"], ["b"], ["c"]]


def test_the_queue_refuses_the_item_after_the_last_that_fits():
    """Two wait, the third is refused, and a free place is taken again."""
    batcher = Batcher(BatchBounds(batch_rows=1, queue_items=2))
    batcher.add(item("a"), 0.0)
    batcher.add(item("b"), 0.0)

    with pytest.raises(Overloaded, match="2 requests wait"):
        batcher.add(item("c"), 0.0)
    batcher.next_batch(0.0)
    batcher.add(item("c"), 0.0)
    assert len(batcher) == 2


def test_the_queue_refuses_by_bytes():
    """The bytes that wait are bounded; a single item of any size may wait."""
    batcher = Batcher(BatchBounds(batch_rows=9, queue_bytes=100))
    batcher.add(item("a", size=100), 0.0)

    with pytest.raises(Overloaded, match="100 bytes wait"):
        batcher.add(item("b", size=1), 0.0)


def test_part_of_an_admitted_request_is_not_refused():
    """A large request that was let in gets its next part into a full queue."""
    batcher = Batcher(BatchBounds(batch_rows=1, queue_items=1))
    batcher.add(item("a"), 0.0)

    batcher.add(item("b"), 0.0, admitted=True)

    assert len(batcher) == 2


def test_an_expired_item_never_runs_and_is_returned_once():
    """At its deadline it is too late."""
    batcher = Batcher(BatchBounds(batch_rows=9))
    batcher.add(item("late", deadline=1.0), 0.0)
    batcher.add(item("good", deadline=9.0), 0.0)

    assert names(batcher.next_batch(1.0)) == ["good"]
    assert names(batcher.expire(1.0)) == ["late"]
    assert batcher.expire(1.0) == []


def test_an_item_that_comes_too_late_is_refused():
    """It would be taken out at once anyway."""
    with pytest.raises(DeadlineExceeded, match="has passed"):
        Batcher(BatchBounds(batch_rows=9)).add(item("x", deadline=1.0), 1.0)


def test_a_cancelled_item_never_runs():
    """Its place and its bytes are free at once."""
    batcher = Batcher(BatchBounds(batch_rows=9))
    gone, kept = item("gone"), item("kept")
    batcher.add(gone, 0.0)
    batcher.add(kept, 0.0)

    assert batcher.cancel(gone)
    assert not batcher.cancel(gone)
    assert (len(batcher), batcher.size_bytes) == (1, 10)
    assert names(batcher.next_batch(0.0)) == ["kept"]


@pytest.mark.parametrize("rows", [0, 10])
def test_an_item_with_more_rows_than_a_batch_is_refused(rows):
    """Splitting is the caller's work."""
    with pytest.raises(InvalidInput, match="1 to 9 rows"):
        Batcher(BatchBounds(batch_rows=9)).add(item("x", rows=rows), 0.0)


def test_bounds_below_one_are_refused():
    """A queue of nothing would refuse everything."""
    with pytest.raises(InvalidInput, match="`queue_items`"):
        BatchBounds(batch_rows=1, queue_items=0)


def test_the_next_deadline_is_the_earliest_of_all_keys():
    """The caller's timer needs it."""
    batcher = Batcher(BatchBounds(batch_rows=9))
    assert batcher.next_deadline() is None
    batcher.add(item("a", key="a", deadline=9.0), 0.0)
    batcher.add(item("b", key="b", deadline=4.0), 0.0)

    assert batcher.next_deadline() == 4.0


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.sampled_from("ab"),
            st.integers(1, 5),
            st.integers(0, 60),
            st.integers(1, 12),
            st.booleans(),
        ),
        st.tuples(st.just("batch")),
        st.tuples(st.just("expire")),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("wait"), st.integers(1, 4)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_no_item_is_lost_doubled_reordered_or_run_too_late(steps):
    """Whatever happens in whatever order, each item ends exactly once, in time, within the bounds."""
    bounds = BatchBounds(batch_rows=5, batch_bytes=100, queue_items=6, queue_bytes=150)
    batcher, now = Batcher(bounds), 0.0
    waiting: dict[int, Item] = {}
    order: dict[int, int] = {}
    added: list[Item] = []
    for step in steps:
        match step:
            case ("add", key, rows, size, patience, alone):
                new = Named(key, rows, size, now + patience, name=len(added), alone=alone)
                full = len(waiting) >= 6 or (waiting and sum(i.size_bytes for i in waiting.values()) + size > 150)
                try:
                    batcher.add(new, now)
                except Overloaded:
                    assert full
                else:
                    assert not full
                    waiting[id(new)] = new
                    order[id(new)] = len(added)
                    added.append(new)
            case ("batch",):
                batch = batcher.next_batch(now)
                check_batch(batch, waiting, order, now, bounds)
                for one in batch:
                    del waiting[id(one)]
            case ("expire",):
                for one in batcher.expire(now):
                    assert waiting.pop(id(one)).deadline_s <= now
                assert all(one.deadline_s > now for one in waiting.values())
            case ("cancel", index):
                if index < len(added):
                    victim = added[index]
                    if batcher.cancel(victim):
                        del waiting[id(victim)]
            case ("wait", seconds):
                now += seconds
                for one in batcher.expire(now):
                    assert waiting.pop(id(one)).deadline_s <= now
        assert len(batcher) == len(waiting)
        assert batcher.size_bytes == sum(one.size_bytes for one in waiting.values())
    while batch := batcher.next_batch(now):
        for one in batch:
            del waiting[id(one)]
    assert not waiting


def check_batch(
    batch: list[Item], waiting: dict[int, Item], order: dict[int, int], now: float, bounds: BatchBounds
) -> None:
    """Check a batch against all that waited: in time, of one key, most urgent first, within the bounds."""
    in_time = [one for one in waiting.values() if one.deadline_s > now]
    assert bool(batch) == bool(in_time)
    if not batch:
        return
    rank = {id(one): (one.deadline_s, order[id(one)]) for one in in_time}
    assert all(id(one) in rank for one in batch)  # only what waits, and in time
    assert len({id(one) for one in batch}) == len(batch)
    assert len({one.key for one in batch}) == 1
    assert rank[id(batch[0])] == min(rank.values())
    same_key = sorted((one for one in in_time if one.key == batch[0].key), key=lambda one: rank[id(one)])
    assert batch == same_key[: len(batch)]
    assert sum(one.rows for one in batch) <= bounds.batch_rows
    assert len(batch) == 1 or sum(one.size_bytes for one in batch) <= bounds.batch_bytes
    assert len(batch) == 1 or not any(one.alone for one in batch)
