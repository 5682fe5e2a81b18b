"""The split: no leak, no loss, no row moved by others."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.data.rows import BadRow, Dataset, LazyRows, Row
from lightship.data.split import PARTS, Split, part_of, split_rows
from lightship.errors import InvalidData, InvalidInput, InvalidMedia

FRACTIONS = {"train": 0.4, "validation": 0.2, "selection": 0.2, "gate": 0.2}
ENOUGH = [f"always {i}".encode() for i in range(60)]  # so many that every class is in every part


def split(rows, *, seed=0, fractions=FRACTIONS, identity=bytes):
    """Split rows with small defaults."""
    dataset = Dataset(rows=rows, bad=(), source="test")
    return split_rows(dataset, identity=identity, seed=seed, fractions=fractions)


def rows_of(inputs: list[bytes], label="x") -> list[Row]:
    """Return one row an input."""
    return [Row(f"row {i}", raw, label) for i, raw in enumerate(inputs)]


def parts_by_input(rows: list[Row], found: Split) -> dict[bytes, set[str]]:
    """Return for each input the parts that it is in."""
    parts: dict[bytes, set[str]] = {}
    for name in PARTS:
        for index in found.part(name):
            parts.setdefault(rows[index].raw, set()).add(name)
    return parts


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=3), max_size=60), st.integers(0, 3))
def test_every_row_is_in_exactly_one_part_and_equal_inputs_in_the_same(extra, seed):
    """No loss and no leak, with any number of duplicates."""
    rows = rows_of(ENOUGH + extra)

    found, bad = split(rows, seed=seed)

    assert not bad
    assert sorted(index for name in PARTS for index in found.part(name)) == list(range(len(rows)))
    assert all(len(parts) == 1 for parts in parts_by_input(rows, found).values())
    assert found.duplicates == len(rows) - len({row.raw for row in rows})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=40), st.randoms(use_true_random=False))
def test_added_and_reordered_rows_move_no_old_row(added, random):
    """The part of a row depends on nothing but itself and the seed; so do the fingerprints on order."""
    before, _ = split(rows_of(ENOUGH))
    mixed = ENOUGH + added
    random.shuffle(mixed)
    shuffled_only = list(ENOUGH)
    random.shuffle(shuffled_only)

    after, _ = split(rows_of(mixed))
    shuffled, _ = split(rows_of(shuffled_only))

    old, new = parts_by_input(rows_of(ENOUGH), before), parts_by_input(rows_of(mixed), after)
    assert all(new[raw] == parts for raw, parts in old.items())
    assert (shuffled.fingerprint, shuffled.fingerprints) == (before.fingerprint, before.fingerprints)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_parts_have_about_their_fractions(seed):
    """The hash is uniform: 2000 rows fall within five standard deviations of their shares."""
    found, _ = split(rows_of([str(i).encode() for i in range(2000)]), seed=seed)

    for name, share in FRACTIONS.items():
        assert abs(len(found.part(name)) - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5


def test_the_hash_never_changes():
    """Golden values: another hash would move the rows of everybody's gate."""
    parts = [part_of(str(i).encode(), seed=7, fractions=FRACTIONS) for i in range(8)]

    expected = []
    for i in range(8):
        inner = hashlib.sha256(str(i).encode()).digest()
        value = int.from_bytes(hashlib.sha256(b"lightship split 1\n7\n" + inner).digest()[:8], "big") / 2**64
        expected.append(PARTS[(value >= 0.4) + (value >= 0.6) + (value >= 0.8)])
    assert parts == expected
    assert parts == ["selection", "validation", "validation", "selection", "selection", "train", "gate", "validation"]


def test_another_seed_gives_another_split():
    """The seed takes part in the hash."""
    assert split(rows_of(ENOUGH), seed=1)[0].gate != split(rows_of(ENOUGH), seed=2)[0].gate


def test_equal_inputs_with_unequal_labels_are_reported_and_kept():
    """Both rows stay, together, and their ids are named."""
    rows = [*rows_of(ENOUGH, "x"), Row("twin", ENOUGH[5], "x"), Row("rival", ENOUGH[7], "y")]
    rows += [Row(f"y{i}", f"y {i}".encode(), "y") for i in range(60)]

    found, _ = split(rows)

    assert found.conflicts == (("row 7", "rival"),)
    assert found.duplicates == 2
    assert sum(sum(of_part.values()) for of_part in found.class_counts.values()) == len(rows)


def test_a_changed_label_changes_the_fingerprint():
    """The fingerprint stands for labels too, in the part that the row lies in and nowhere else."""
    rows = [Row(f"{i}", raw, "xy"[i % 2]) for i, raw in enumerate(ENOUGH * 2)]
    rows = [*rows, *(Row(f"z{i}", b"z%d" % i, "xy"[i % 2]) for i in range(100))]
    before, _ = split(rows)
    at = before.gate[0]
    other = {"x": "y", "y": "x"}[rows[at].label]

    after, _ = split([*rows[:at], Row("changed", rows[at].raw, other), *rows[at + 1 :]])

    assert after.fingerprint != before.fingerprint
    assert [name for name in PARTS if after.fingerprints[name] != before.fingerprints[name]] == ["gate"]


def test_a_class_without_a_row_in_some_part_is_refused_by_name():
    """One row of a class cannot be in four parts."""
    rows = [*rows_of(ENOUGH), Row("lonely", b"one", "rare bird")]

    with pytest.raises(InvalidData, match=r"class 'rare bird' \(1 rows in all\) in part '(train|validation)'"):
        split(rows)


def test_rows_that_cannot_be_decoded_become_bad_rows():
    """The reason is the decoder's; the row is in no part."""

    def identity(raw):
        if raw == ENOUGH[3]:
            raise InvalidMedia("The PNG is truncated.")
        return raw

    found, bad = split(rows_of(ENOUGH), identity=identity)

    assert bad == (BadRow("row 3", "The PNG is truncated."),)
    assert 3 not in {index for name in PARTS for index in found.part(name)}


def test_bad_rows_of_source_and_split_count_together():
    """A source with 40 bad rows and 25 undecodable ones among 60 is mostly bad."""
    dataset = Dataset(rows=rows_of(ENOUGH), bad=tuple(BadRow(f"b{i}", "missing") for i in range(40)), source="test")
    broken = set(ENOUGH[:25])

    def identity(raw):
        if raw in broken:
            raise InvalidMedia("broken")
        return raw

    with pytest.raises(InvalidData, match="65 of 100 rows of test cannot be used"):
        split_rows(dataset, identity=identity, seed=0, fractions=FRACTIONS)


def test_a_row_whose_file_has_gone_becomes_a_bad_row():
    """Reading happens late, so it may fail late."""

    def load(index):
        if index == 4:
            raise InvalidData("x.png was there and cannot be read now")
        return ENOUGH[index]

    rows = LazyRows([str(i) for i in range(60)], ["x"] * 60, load)

    _, bad = split(rows)

    assert [row.id for row in bad] == ["4"]


@pytest.mark.parametrize(
    "fractions",
    [
        {"train": 1.0, "validation": 0.0, "selection": 0.0, "gate": 0.0},
        {"train": 0.5, "validation": 0.2, "selection": 0.2, "gate": 0.2},
        {"train": float("nan"), "validation": 0.2, "selection": 0.2, "gate": 0.2},
    ],
)
def test_fractions_must_be_shares_of_one_whole(fractions):
    """Zero, NaN and a wrong sum are refused."""
    with pytest.raises(InvalidInput, match="add up to 1"):
        split(rows_of(ENOUGH), fractions=fractions)


def test_fractions_need_all_four_parts():
    """A missing part is named by the list of those that are needed."""
    with pytest.raises(InvalidInput, match="train, validation, selection, gate"):
        split(rows_of(ENOUGH), fractions={"train": 0.5, "test": 0.5})


def test_arrays_and_their_identity_bytes_split_too():
    """The split itself never looks at the input."""
    rows = [Row(str(i), np.full((2, 2), i, np.uint8), "x") for i in range(60)]

    found, _ = split(rows, identity=lambda raw: raw.tobytes())

    assert sum(len(found.part(name)) for name in PARTS) == 60
