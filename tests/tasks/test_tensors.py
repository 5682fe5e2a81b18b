"""The task of a graph about which nobody said more than its tensors."""

from __future__ import annotations

import numpy as np
import pytest

from lightship.errors import InvalidInput, InvalidTensor, UnsupportedMedia
from lightship.tasks.golden_texts import packed_texts
from lightship.tasks.npz import write_npz
from lightship.tasks.registry import load_task
from lightship.tasks.tensors import TensorRows
from lightship.types import TensorSpec

BATCHED = TensorRows((TensorSpec("x", "FP32", ("batch", 3)),), (TensorSpec("y", "FP32", ("batch", 2)),))
WHOLE = TensorRows((TensorSpec("x", "FP32", (1, 3)),), (TensorSpec("y", "FP32", (1, 2)),))


@pytest.mark.parametrize("task", [BATCHED, WHOLE])
def test_a_configuration_reads_back(task):
    """It is found by its name, and has neither labels nor media."""
    again = load_task("tensors", 1, task.config())

    assert again == task
    assert (again.labels, again.media_types) == ((), ())


@pytest.mark.parametrize(("task", "shape"), [(BATCHED, (3,)), (WHOLE, (1, 3))])
def test_a_raw_input_is_one_row_or_the_whole(task, shape):
    """Without a batch dimension there is nothing to leave out."""
    row = {"x": np.arange(3, dtype=np.float32).reshape(shape)}

    suffix, raw = task.golden(write_npz(row))

    assert suffix == ".npz"
    np.testing.assert_array_equal(task.encode(raw)["x"], row["x"])
    assert task.identity(raw) == raw


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (np.zeros(3, np.float32), UnsupportedMedia, "bytes of a .npz file"),
        (b"rubbish", InvalidInput, ".npz file"),
        (write_npz({"z": np.zeros(3, np.float32)}), InvalidTensor, "must hold the arrays 'x'. Got 'z'"),
        (write_npz({"x": np.zeros(3)}), InvalidTensor, "dtype FP32. Got float64"),
        (write_npz({"x": np.zeros(4, np.float32)}), InvalidTensor, r"shape \[3\]. Got \[4\]"),
        (write_npz({"x": np.zeros((1, 3), np.float32)}), InvalidTensor, r"shape \[3\]. Got \[1, 3\]"),
    ],
)
def test_what_is_no_row_is_refused(raw, error, message):
    """It says what was allowed and what came."""
    with pytest.raises(error, match=message):
        BATCHED.encode(raw)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"inputs": [], "outputs": []},
        {"inputs": 3, "outputs": []},
        {"inputs": [{"name": "x", "dtype": "FP31", "shape": []}], "outputs": []},
        {"inputs": [{"name": "x", "dtype": "FP32", "shape": [0]}], "outputs": []},
        {"inputs": [{"name": "x", "dtype": "FP32", "shape": [True]}], "outputs": []},
        {**BATCHED.config(), "labels": []},
        {**BATCHED.config(), "inputs": BATCHED.config()["inputs"] * 2},
    ],
)
def test_a_wrong_configuration_is_refused(config):
    """A bundle from elsewhere may say anything."""
    with pytest.raises(InvalidInput, match="of tensors"):
        TensorRows.from_config(config)


def test_answers_are_lists_a_row():
    """Numbers as they are, texts as text."""
    task = TensorRows(BATCHED.inputs, (TensorSpec("y", "BYTES", ("batch",)), TensorSpec("n", "INT64", ("batch", 1))))

    rows = task.decode({"y": np.array([b"a", "b"], dtype=object), "n": np.array([[1], [2]])})

    assert rows == [{"y": "a", "n": [1]}, {"y": "b", "n": [2]}]
    with pytest.raises(InvalidTensor, match="'n'"):
        task.decode({"y": np.array([b"a"], dtype=object)})


def test_packed_texts_tell_all_texts_apart():
    """Where one ends and the next begins is part of the form."""
    one = packed_texts(np.array([["ab", ""], ["a", "b"]], dtype=object))

    assert one.dtype == np.uint8
    assert not np.array_equal(one[0], one[1])
    np.testing.assert_array_equal(one[1], packed_texts(np.array([[b"a", b"b"]], dtype=object))[0])
