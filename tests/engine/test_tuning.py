"""What was measured on this machine is kept beside the registry, and read again by whom it holds for."""

from __future__ import annotations

import pytest

from lightship.engine.tuning import Tuned, read_tuned, tuning_path, write_tuned

BUNDLE = "sha256:" + "ab" * 32


def test_what_is_written_is_read_again(tmp_path):
    """Rates are kept to a tenth."""
    path = tuning_path(tmp_path, bundle=BUNDLE, variant="int8", machine="c" * 64, threads=2)
    write_tuned(path, Tuned(8, {1: 10.04, 8: 50.0}))

    assert read_tuned(path) == Tuned(8, {1: 10.0, 8: 50.0})


@pytest.mark.parametrize(
    "other", [{"bundle": "sha256:" + "cd" * 32}, {"variant": "reference"}, {"machine": "d" * 64}, {"threads": 1}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_it_holds_for_nothing_else(tmp_path, other):
    """Another bundle, variant, machine or number of threads has another file."""
    mine = {"bundle": BUNDLE, "variant": "int8", "machine": "c" * 64, "threads": 2}

    assert tuning_path(tmp_path, **mine) != tuning_path(tmp_path, **{**mine, **other})


@pytest.mark.parametrize(
    "text", ["", "[]", '{"batch_rows": 0, "rows_per_s": {}}', '{"batch_rows": 2}', "\xff"],
    ids=["empty", "list", "zero", "half", "bytes"],
)  # fmt: skip
def test_a_file_that_says_nothing_is_as_if_it_were_not_there(tmp_path, text):
    """Measuring again costs little."""
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))

    assert read_tuned(tmp_path / "x.json") is None
    assert read_tuned(tmp_path / "nothing.json") is None
