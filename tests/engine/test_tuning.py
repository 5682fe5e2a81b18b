"""What was measured on this machine is kept beside the registry, and read again by whom it holds for."""

from __future__ import annotations

import pytest

from lightship.engine.tuning import read_rates, tuning_path, write_rates

BUNDLE = "sha256:" + "ab" * 32


def test_what_is_written_is_read_again(tmp_path):
    """Rates are kept to a tenth, and slow ones are not lost."""
    path = tuning_path(tmp_path, bundle=BUNDLE, variant="int8", machine="c" * 64, threads=2)
    write_rates(path, {1: 10.04, 8: 50.0, 16: 0.004})

    assert read_rates(path) == {1: 10.0, 8: 50.0, 16: 0.004}


@pytest.mark.parametrize(
    "other", [{"bundle": "sha256:" + "cd" * 32}, {"variant": "reference"}, {"machine": "d" * 64}, {"threads": 1}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_it_holds_for_nothing_else(tmp_path, other):
    """Another bundle, variant, machine or number of threads has another file."""
    mine = {"bundle": BUNDLE, "variant": "int8", "machine": "c" * 64, "threads": 2}

    assert tuning_path(tmp_path, **mine) != tuning_path(tmp_path, **{**mine, **other})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"rows_per_s": {}}', '{"rows_per_s": {"0": 1.0}}', '{"rows_per_s": {"1": 0.0}}'),
        *('{"rows_per_s": {"1": 1' + 400 * "0" + "}}", '{"rows_per_s": {"1' + 400 * "0" + '": 1.0}}', 100_000 * "["),
        *('{"rows_per_s": {"1": NaN, "2": 3.0}}', '{"rows_per_s": {"1": Infinity}}', '{"other": 2}', "\xff"),
    ],
    ids=["empty", "list", "none", "no rows", "never", "huge", "rows", "deep", "nan", "infinite", "other", "bytes"],
)  # fmt: skip
def test_a_file_that_says_nothing_is_as_if_it_were_not_there(tmp_path, text):
    """Measuring again costs little."""
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))

    assert read_rates(tmp_path / "x.json") is None
    assert read_rates(tmp_path / "nothing.json") is None
