"""The binary form of V2, against the client that its authors publish."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lightship.apply.tensors import pack_request, unpack_response
from lightship.errors import InvalidTensor, LightshipError
from lightship.types import DTYPES

NUMBERS = {name: dtype for name, dtype in DTYPES.items() if name != "BYTES"}


@pytest.mark.parametrize("name", DTYPES)
def test_requests_are_what_the_reference_client_sends(name):
    """Same tensors and the same bytes after the head, for every dtype."""
    if name == "BYTES":
        array = np.array([[b"a", b"", b"\x00\xff"]], dtype=object)
    else:
        array = np.arange(6).reshape(2, 3).astype(DTYPES[name])
    body, length = pack_request({"x": array}, ["y"])

    given_by_triton = triton.InferInput("x", list(array.shape), name)
    given_by_triton.set_data_from_numpy(array)
    theirs, their_length = triton.InferenceServerClient.generate_request_body(
        [given_by_triton], outputs=[triton.InferRequestedOutput("y", binary_data=True)]
    )
    assert body[length:] == theirs[their_length:]
    ours, expected = json.loads(body[:length]), json.loads(theirs[:their_length])
    assert ours["inputs"] == expected["inputs"]
    assert [output["name"] for output in ours["outputs"]] == [output["name"] for output in expected["outputs"]]
    assert [output["parameters"]["binary_data"] for output in expected["outputs"]] == [True]


@given(st.sampled_from(sorted(NUMBERS)).flatmap(
    lambda name: arrays.arrays(NUMBERS[name], arrays.array_shapes(min_dims=0, min_side=0, max_side=4))))  # fmt: skip
def test_numbers_come_back_to_the_bit(array):
    """A server that echoes gives the same array: also empty ones, scalars and NaN."""
    body, length = pack_request({"x": array}, None)
    head = json.loads(body[:length])
    answer = json.dumps({"outputs": head["inputs"]}).encode()
    found = unpack_response(answer + body[length:], str(len(answer)))[1]["x"]

    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=9), max_size=6))
def test_bytes_come_back_to_the_bit(items):
    """Elements of any length, with zeros at their end."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    body, length = pack_request({"x": array}, None)
    answer = json.dumps({"outputs": json.loads(body[:length])["inputs"]}).encode()

    assert unpack_response(answer + body[length:], str(len(answer)))[1]["x"].tolist() == items


def test_big_endian_and_strided_arrays_are_sent_right():
    """What matters is the values, not how they lie in memory."""
    array = np.arange(12, dtype=">f4").reshape(3, 4)[::2, ::-1]
    body, length = pack_request({"x": array}, None)

    assert json.loads(body[:length])["inputs"][0]["datatype"] == "FP32"
    assert np.array_equal(np.frombuffer(body[length:], "<f4").reshape(array.shape), array)


def test_answers_in_json_are_read_too():
    """A server may leave the binary form out."""
    answer = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [1.5, 2]},
                          {"name": "z", "datatype": "BYTES", "shape": [1], "data": ["ü"]}]}  # fmt: skip
    _, found = unpack_response(json.dumps(answer).encode(), None)

    assert found["y"].tolist() == [[1.5], [2.0]]
    assert found["z"].tolist() == ["ü".encode()]


@pytest.mark.parametrize(
    ("outputs", "tail"),
    [
        ([{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}], b"1234"),
        ([{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}], b"12345"),
        ([{"name": "y", "datatype": "FP32", "shape": [3], "parameters": {"binary_data_size": 8}}], b"12345678"),
        ([{"name": "y", "datatype": "FP32", "shape": [-2, -1], "parameters": {"binary_data_size": 8}}], b"12345678"),
        ([{"name": "y", "datatype": "WHAT", "shape": [1], "parameters": {"binary_data_size": 1}}], b"1"),
        ([{"name": "y", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}], b"\x09\0\0\0a"),
        ([{"name": "y", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 5}}], b"\x01\0\0\0a"),
        ([{"name": "y", "shape": [1]}], b""),
        ([{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": -4}}], b""),
        ([3], b""),
        (None, b""),
    ],
)
def test_an_answer_that_contradicts_itself_is_refused(outputs, tail):
    """Sizes, shapes and bytes must agree; nobody gets half of an array."""
    head = json.dumps({"outputs": outputs}).encode()
    with pytest.raises(LightshipError, match="not what the V2 protocol says"):
        unpack_response(head + tail, str(len(head)))


@pytest.mark.parametrize("length", ["-1", "999", "x"])
def test_a_head_of_impossible_length_is_refused(length):
    """The header is checked like everything else."""
    with pytest.raises(LightshipError, match="not what the V2 protocol says"):
        unpack_response(b'{"outputs": []}', length)


@pytest.mark.parametrize(
    "inputs", [{}, {"x": np.array([1j])}, {"x": np.array([None])}, {"x": np.array(["2026"], "M8")}]
)
def test_what_the_protocol_cannot_carry_is_refused(inputs):
    """The message says which input and what is possible."""
    with pytest.raises(InvalidTensor, match=r"at least one|must be (one of|bytes or text)"):
        pack_request(inputs, None)
