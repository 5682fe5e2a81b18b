"""Rows in parts: a row's part is its own affair, and copies are no further rows."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from lightship.data import parts
from lightship.data.parts import PARTS, row_digest, share_rows


def _digests(count: int) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in range(count)]


def test_shares_are_kept_and_every_row_is_in_one_part():
    """A fifth to calibrate, three tenths to choose, half to judge."""
    shared = share_rows(_digests(2_000), None)

    sizes = [len(shared.part(name)) for name in PARTS]
    assert sum(sizes) == 2_000
    assert sorted(i for name in PARTS for i in shared.part(name)) == list(range(2_000))
    assert np.allclose(np.array(sizes) / 2_000, [0.2, 0.3, 0.5], atol=0.04)


def test_rows_that_come_or_go_move_no_other():
    """The part depends on the row alone: not on its place, nor on those beside it."""
    digests = _digests(300)
    first = share_rows(digests, None)
    second = share_rows(digests[100:][::-1], None)

    for name in PARTS:
        before = {digests[i] for i in first.part(name) if i >= 100}
        assert {digests[100:][::-1][i] for i in second.part(name)} == before


def test_a_copy_is_no_further_row():
    """A hundred copies of ten rows would make intervals that are far too narrow."""
    shared = share_rows(_digests(10) * 100, [bytes([number % 10]) for number in range(1_000)])

    assert (shared.given, shared.duplicates, shared.conflicts) == (1_000, 990, 0)
    assert sum(len(shared.part(name)) for name in PARTS) == 10


def test_one_input_with_two_labels_lies_in_one_part_and_is_told():
    """Else the gate would see what the choice was made on."""
    digests = _digests(40)
    shared = share_rows([*digests, *digests], [b"0"] * 40 + [b"1"] * 40)

    assert (shared.duplicates, shared.conflicts) == (0, 40)
    for name in PARTS:
        assert {i % 40 for i in shared.part(name) if i < 40} == {i % 40 for i in shared.part(name) if i >= 40}


def test_bad_rows_are_in_no_part_and_large_sources_are_bounded(monkeypatch):
    """Which rows are left over does not depend on their order."""
    monkeypatch.setattr(parts, "MOST_ROWS", {"calibration": 5, "selection": 5, "gate": 5})
    digests: list[bytes | None] = [*_digests(100)]
    digests[3] = None
    shared, again = share_rows(digests, None), share_rows(digests[::-1], None)

    assert shared.given == 99
    assert [len(shared.part(name)) for name in PARTS] == [5, 5, 5]
    assert sum(shared.left_over.values()) == 84
    assert shared.fingerprints == again.fingerprints


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros(4, np.float64)},
        {"x": np.zeros((2, 2), np.float32)},
        {"y": np.zeros(4, np.float32)},
        {"x": np.array([0, 0, 0, 1e-30], np.float32)},
    ],
    ids=["dtype", "shape", "name", "value"],
)
def test_what_a_graph_can_tell_apart_has_another_digest(other):
    """And what it cannot has the same."""
    row = {"x": np.zeros(4, np.float32)}

    assert row_digest(row) == row_digest({"x": np.asfortranarray(np.zeros((4,), np.float32))})
    assert row_digest(row) != row_digest(other)


def test_texts_do_not_run_into_each_other():
    """``ab`` and ``c`` are not ``a`` and ``bc``."""
    assert row_digest({"t": np.array([b"ab", b"c"], object)}) != row_digest({"t": np.array([b"a", b"bc"], object)})


def test_a_gate_that_was_seen_is_known_again_with_other_labels():
    """Looks are counted by inputs: corrected labels, or none at all, make no fresh rows of them."""
    digests = _digests(40)
    plain = share_rows(digests, None)
    labeled = share_rows([*digests, digests[0]], [b"0"] * 40 + [b"1"])
    other = share_rows(_digests(41), None)

    assert plain.gate_inputs == labeled.gate_inputs != other.gate_inputs
    assert plain.fingerprints["gate"] != labeled.fingerprints["gate"]
