"""V2 by bytes: golden requests and answers, and everything that must be refused with a text that names the field."""

from __future__ import annotations

import base64
import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.errors import InvalidInput, InvalidTensor, TooLarge, UnsupportedMedia
from lightship.serve.contracts.v2_codec import V2Codec, V2Request, Wanted
from lightship.serve.tensors import PackedTensor, pack, unpack
from lightship.types import DTYPES, TensorSpec

X = TensorSpec("x", "FP32", ("batch", 2))
Y = TensorSpec("y", "FP32", ("batch", 2))
GOLDEN_JSON = (
    b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],'
    b'"outputs":[{"name":"y","parameters":{"binary_data":true}}]}'
)
GOLDEN_TAIL = bytes.fromhex("0000803f000020c0")


def codec_of(inputs, outputs, *, json_bytes=1 << 20):
    """Return a new codec for a model with these."""
    return V2Codec(inputs, outputs, model=("m", "1"), json_bytes=json_bytes)


class Codecs:
    """A codec for each pair of inputs and outputs, as a server has one for each model."""

    def __init__(self, *, json_bytes: int) -> None:
        self._json_bytes = json_bytes
        self._made: dict[tuple, V2Codec] = {}

    def of(self, inputs=(X,), outputs=(Y,)) -> V2Codec:
        """Return the codec for these, always the same one."""
        key = (tuple(inputs), tuple(outputs))
        if key not in self._made:
            self._made[key] = codec_of(inputs, outputs, json_bytes=self._json_bytes)
        return self._made[key]

    def read(self, body, headers, inputs, outputs):
        """Read a request with the codec for these."""
        return self.of(inputs, outputs).read(body, headers)

    def write(self, request, tensors):
        """Write an answer."""
        return self.of().write(request, tensors)


@pytest.fixture
def codec() -> Codecs:
    """Return codecs with the default limit."""
    return Codecs(json_bytes=1 << 20)


def read(codec: Codecs, body: bytes | dict, *, inputs=(X,), outputs=(Y,), length: int | str | None = None):
    """Read a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    return codec.read(data, headers, inputs, outputs)


def one(data: object, *, shape=(1, 2), dtype: str = "FP32", **more: object) -> dict:
    """Return a request with one JSON input."""
    return {"inputs": [{"name": "x", "shape": list(shape), "datatype": dtype, "data": data, **more}]}


def values(request) -> list:
    """Return the values of the first input."""
    return unpack(request.inputs[0]).tolist()


def test_the_golden_binary_request_is_read(codec):
    """152 bytes of JSON, 8 bytes of tensor."""
    assert len(GOLDEN_JSON) == 152

    request = read(codec, GOLDEN_JSON + GOLDEN_TAIL, length=152)

    assert values(request) == [[1.0, -2.5]]
    assert request.wanted == (Wanted("y", binary=True),)


def test_the_golden_binary_answer_is_written(codec):
    """The header has the length of the JSON, the tensor follows it."""
    outputs = [pack("y", "FP32", np.array([[1.0, -2.5]], np.float32))]

    response = codec.write(V2Request("42", (), (Wanted("y", binary=True),)), outputs)

    body = b"".join(response.body)
    length = int(dict(response.headers)["inference-header-content-length"])
    assert body[length:] == GOLDEN_TAIL
    assert json.loads(body[:length]) == {
        "model_name": "m",
        "model_version": "1",
        "id": "42",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}],
    }
    assert response.content_type == "application/octet-stream"


def test_a_json_answer_is_written(codec):
    """Flat data, no id where none was given."""
    outputs = [pack("y", "FP32", np.array([[1.0, -2.5]], np.float32))]

    response = codec.write(V2Request(None, (), (Wanted("y", binary=False),)), outputs)

    assert json.loads(b"".join(response.body)) == {
        "model_name": "m",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, -2.5]}],
    }


@pytest.mark.parametrize("data", [[1, -2.5], [[1.0, -2.5]]])
def test_data_may_be_flat_or_nested(codec, data):
    """Row-major, both."""
    request = read(codec, {"id": "42", **one(data)})

    assert (request.id, values(request)) == ("42", [[1.0, -2.5]])
    assert request.wanted == (Wanted("y", binary=False),)


def test_mixed_json_and_binary_inputs_are_read(codec):
    """The binary ones follow in the order of the inputs; the result has the order of the interface."""
    inputs = (X, TensorSpec("b", "INT8", ("batch",)), TensorSpec("c", "FP32", ("batch",)))
    body = json.dumps(
        {
            "inputs": [
                {"name": "c", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}},
                {"name": "b", "shape": [1], "datatype": "INT8", "data": [-7]},
                {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            ]
        }
    ).encode()

    request = read(codec, body + GOLDEN_TAIL[:4] + GOLDEN_TAIL, inputs=inputs, length=len(body))

    assert [unpack(tensor).tolist() for tensor in request.inputs] == [[[1.0, -2.5]], [-7], [1.0]]


def test_binary_answers_are_asked_for_all_or_for_one(codec):
    """`binary_data_output` is the default of `binary_data`."""
    outputs = (Y, TensorSpec("z", "FP32", ("batch",)))
    body = {**one([1, 2]), "parameters": {"binary_data_output": True}}

    assert read(codec, body, outputs=outputs).wanted == (Wanted("y", True), Wanted("z", True))
    body["outputs"] = [{"name": "z"}, {"name": "y", "parameters": {"binary_data": False}}]
    assert read(codec, body, outputs=outputs).wanted == (Wanted("z", True), Wanted("y", False))


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("UINT16", [0, 65535]),
        ("UINT32", [0, 2**32 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT8", [-128, 127]),
        ("INT16", [-(2**15), 2**15 - 1]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP32", [-3.4028234663852886e38, 1e-45]),
        ("FP64", [-1.7976931348623157e308, 5e-324]),
        ("BYTES", ["ab", "é"]),
    ],
)
def test_every_dtype_comes_through_json_at_its_limits(codec, dtype, data):
    """Exactly."""
    spec = TensorSpec("x", dtype, (2,))
    request = read(codec, one(data, shape=(2,), dtype=dtype), inputs=(spec,))

    expected = [text.encode() for text in data] if dtype == "BYTES" else np.array(data, DTYPES[dtype]).tolist()
    assert values(request) == expected


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("BOOL", [2, 0]),
        ("BOOL", [0.5, 0]),
        ("BOOL", ["true", True]),
        ("UINT8", [256, 0]),
        ("UINT8", [-1, 0]),
        ("INT8", [300, 0]),
        ("INT8", [1.0, 0]),
        ("INT32", [2**31, 0]),
        ("INT64", [True, 0]),
        ("UINT64", [-1, 0]),
        ("FP32", [1e39, 0]),
        ("FP32", [None, 0]),
        ("FP32", ["1", 0]),
        ("FP32", [True, 0]),
        ("FP32", [{"a": 1}, 0]),
        ("FP16", [1.0, 0]),
        ("BYTES", [1, 0]),
        ("BYTES", [["a"], "b"]),
    ],
)
def test_values_that_the_dtype_cannot_hold_are_refused(codec, dtype, data):
    """Never cut, rounded or wrapped (BI-059)."""
    with pytest.raises(InvalidTensor, match=r"inputs\[0\]"):
        read(codec, one(data, shape=(2,), dtype=dtype), inputs=(TensorSpec("x", dtype, (2,)),))


@pytest.mark.parametrize(
    "data",
    [
        [[1], 2],
        [1, [2]],
        [[1, 2], []],
        [[], [1, 2]],
        [[[1, 2]]],
        [[1, 2, 3], [4]],
        [[1], [2]],
        [[[1], [2]]],
        [[1, [2]]],
        [[]],
        [],
        [1],
        [1, 2, 3],
        1,
        "1,2",
        None,
        {"0": 1},
    ],
)
def test_ragged_short_and_long_data_is_refused(codec, data):
    """The parser would flatten it silently."""
    with pytest.raises(InvalidInput, match=r"inputs\[0\]\.data"):
        read(codec, one(data))


def test_ragged_data_beside_a_bracket_in_a_text_is_refused(codec):
    """A `[` in a string must neither hide a list nor be taken for one."""
    body = {**one([1, 2]), "id": "[[["}
    assert values(read(codec, body)) == [[1.0, 2.0]]

    with pytest.raises(InvalidTensor, match="holds a list"):
        read(codec, {**one([1, [2]]), "id": "[[["})


@pytest.mark.parametrize(
    "shape",
    [
        [-1, 2],
        [0, 2],
        [2**63, 2],
        [10**9, 2],
        [1.0, 2],
        ["1", 2],
        [[1], 2],
        [True, 2],
        [],
        1,
        None,
        [1] * 33,
        [2**31, 2],
    ],
)
def test_impossible_shapes_are_refused_before_anything_is_made(codec, shape):
    """Whatever they multiply to (BI-058)."""
    body = one([1, 2])
    body["inputs"][0]["shape"] = shape
    with pytest.raises(InvalidInput, match=r"inputs\[0\]"):
        read(codec, body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("inputs"), "must have 'inputs'"),
        (lambda b: b.update(inputs={}), "'inputs' must be a list"),
        (lambda b: b.update(inputs=[]), "Missing: 'x'"),
        (lambda b: b.update(inputs=b["inputs"] * 2), "'inputs' must have 1 entries"),
        (lambda b: b["inputs"][0].update(name="z"), r"inputs\[0\].name must be one of 'x'"),
        (lambda b: b["inputs"][0].update(name=""), r"inputs\[0\].name must be one of"),
        (lambda b: b["inputs"][0].update(name=1), "must have a text 'name'"),
        (lambda b: b["inputs"][0].pop("shape"), "must have 'shape'"),
        (lambda b: b["inputs"][0].pop("data"), "must have 'data'"),
        (lambda b: b["inputs"][0].pop("datatype"), "must have a text 'datatype'"),
        (lambda b: b["inputs"][0].update(datatype="FP64"), "must be FP32. Got 'FP64'"),
        (lambda b: b["inputs"][0].update(datatype="FLOAT"), "must be FP32"),
        (lambda b: b["inputs"][0].update(datatyp="FP32"), "Got 'datatyp'"),
        (lambda b: b["inputs"][0].update(parameters=[]), r"inputs\[0\].parameters must be a JSON object"),
        (lambda b: b["inputs"][0].update(parameters={"a": {}}), r"parameters.a must be a text, a number"),
        (lambda b: b.update(output=[]), "Got 'output'"),
        (lambda b: b.update(outputs={}), "'outputs' must be a list"),
        (lambda b: b.update(outputs=[{"name": "q"}]), r"outputs\[0\].name must be one of 'y'. Got 'q'"),
        (lambda b: b.update(outputs=[{"name": "y"}] * 2), "'outputs' must have at most 1"),
        (lambda b: b.update(outputs=[{"name": "y"}] * 10_000), "'outputs' must have at most 1"),
        (lambda b: b.update(outputs=[{}]), "must have a text 'name'"),
        (lambda b: b.update(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "binary_data must be true"),
        (lambda b: b.update(outputs=[{"name": "y", "parameters": {"classification": 1}}]), "classification"),
        (lambda b: b.update(parameters={"binary_data_output": "yes"}), "binary_data_output must be true"),
        (lambda b: b.update(parameters={"timeout": 0}), "timeout must be microseconds"),
        (lambda b: b.update(parameters={"timeout": -1}), "timeout must be microseconds"),
        (lambda b: b.update(parameters={"timeout": 10**18}), "timeout must be microseconds"),
        (lambda b: b.update(parameters={"timeout": 1.5}), "timeout must be microseconds"),
        (lambda b: b.update(id=5), "'id' must be a text"),
        (lambda b: b.update(id="x" * 1_000_00), "'id' must be a text"),
    ],
)
def test_wrong_fields_are_refused_by_name(codec, change, message):
    """Missing, doubled, unknown, of the wrong type (BI-061, BI-067)."""
    body = one([1, 2])
    change(body)
    with pytest.raises(InvalidInput, match=message):
        read(codec, body)


@pytest.mark.parametrize(
    ("names", "message"), [(["x", "x"], r"inputs\[1\].name 'x' is there twice"), (["x"], "Missing: 'b'")]
)
def test_inputs_must_each_be_there_once(codec, names, message):
    """Not twice, not never."""
    entry = {"shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    body = {"inputs": [{"name": name, **entry} for name in names]}
    with pytest.raises(InvalidInput, match=message):
        read(codec, body, inputs=(X, TensorSpec("b", "FP32", ("batch", 2))))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"[]",
        b"1",
        b"null",
        b'"x"',
        b"{",
        b'{"inputs":[]}x',
        b'{"inputs":[],}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"id":"\\ud800","inputs":[]}',
        b'{"id":"\xff","inputs":[]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[Infinity,1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1e400,1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[' + b"1" * 100_000 + b",1]}]}",
        b'{"inputs":' + b"[" * 100_000,
        b'{"inputs":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}],"inputs":[]}',
        b'{"inputs":[{"name":"x","name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2],"data":[3,4]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}],"parameters":{"a":1,"a":2}}',
    ],
)
def test_what_is_not_plain_json_is_refused(codec, text):
    """Broken, too deep, too big a number, doubled keys, a byte order mark (BI-054); and the parser lives on."""
    with pytest.raises(InvalidInput):
        read(codec, text)

    assert values(read(codec, one([1, 2]))) == [[1.0, 2.0]]


def test_json_is_bounded_in_bytes():
    """At its limit and one beyond; binary tensors are not counted."""
    body = json.dumps(one([1, 2])).encode()

    assert read(Codecs(json_bytes=len(body)), body)
    with pytest.raises(TooLarge, match="limit `json_bytes`"):
        read(Codecs(json_bytes=len(body) - 1), body)
    assert read(Codecs(json_bytes=152), GOLDEN_JSON + GOLDEN_TAIL, length=152)


@pytest.mark.parametrize(
    "media",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/json; charset=utf-16",
        'application/json; a=b; charset = "utf-8x"',
    ],
)
def test_other_content_types_are_refused(codec, media):
    """Also tensors without the header that says where they start (BI-055)."""
    with pytest.raises(UnsupportedMedia, match="must be application/json"):
        codec.read(json.dumps(one([1, 2])).encode(), {"content-type": media}, (X,), (Y,))


@pytest.mark.parametrize("media", ["application/json", 'application/json; charset="UTF-8"', "Application/JSON; a=b"])
def test_json_content_types_are_taken(codec, media):
    """With or without a charset."""
    assert codec.read(json.dumps(one([1, 2])).encode(), {"content-type": media}, (X,), (Y,))


@pytest.mark.parametrize("length", ["-1", "161", "10000000000000000000", "x", "", "1.0", "+152", " 152x"])
def test_a_wrong_header_length_is_refused(codec, length):
    """Negative, beyond the body, not a number (BI-060)."""
    with pytest.raises(InvalidInput, match="inference-header-content-length must be"):
        read(codec, GOLDEN_JSON + GOLDEN_TAIL, length=length)


@pytest.mark.parametrize(
    ("size", "tail", "message"),
    [
        (8, GOLDEN_TAIL[:7], "only 7 bytes are left"),
        (8, GOLDEN_TAIL + b"x", r"all inputs \(8\). Got 9"),
        (7, GOLDEN_TAIL[:7], "needs 8 bytes. Got 7"),
        (9, GOLDEN_TAIL + b"x", "needs 8 bytes. Got 9"),
        (-8, GOLDEN_TAIL, "must be a number of bytes"),
        (8.0, GOLDEN_TAIL, "must be a number of bytes"),
        (True, GOLDEN_TAIL, "must be a number of bytes"),
        ("8", GOLDEN_TAIL, "must be a number of bytes"),
        (10**18, GOLDEN_TAIL, "only 8 bytes are left"),
    ],
)
def test_binary_sizes_must_add_up(codec, size, tail, message):
    """To the shape, and to the body."""
    head = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": size}}]}
    ).encode()
    with pytest.raises(InvalidInput, match=message):
        read(codec, head + tail, length=len(head))


@pytest.mark.parametrize(
    ("dtype", "shape", "tail", "message"),
    [
        ("BYTES", [1], b"\x05\0\0\0ab", "past the end"),
        ("BYTES", [2], b"\x01\0\0\0a", "at least 8 bytes"),
        ("BYTES", [1], b"\0\0\0\0\0\0\0\0", "4 bytes follow"),
        ("FP16", [1], b"\0", "needs 2 bytes"),
        ("BOOL", [2], b"\x01\x02", "must be 0 or 1"),
        ("FP16", [2**31 - 1] * 3, b"\0\0", "needs"),
    ],
)
def test_wrong_binary_data_is_refused(codec, dtype, shape, tail, message):
    """Before anything of its announced size is made."""
    entry = {"name": "x", "shape": shape, "datatype": dtype, "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [entry]}).encode()
    with pytest.raises(InvalidTensor, match=message):
        read(codec, head + tail, length=len(head), inputs=(TensorSpec("x", dtype, ("batch",)),))


def test_data_and_binary_size_exclude_each_other(codec):
    """It would not be clear which of the two holds."""
    head = json.dumps(one([1, 2], parameters={"binary_data_size": 8})).encode()
    with pytest.raises(InvalidInput, match="not both"):
        read(codec, head + GOLDEN_TAIL, length=len(head))


def test_fp16_comes_in_binary_form(codec):
    """The golden bytes of the protocol's page."""
    entry = {"name": "x", "shape": [1, 2], "datatype": "FP16", "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [entry]}).encode()

    request = read(codec, head + bytes.fromhex("003c00c1"), length=len(head), inputs=(TensorSpec("x", "FP16", (1, 2)),))

    assert values(request) == [[1.0, -2.5]]


def test_the_raw_form_is_the_data_of_the_one_input(codec):
    """Header 0: the whole body; the answer comes back in binary form."""
    request = read(codec, GOLDEN_TAIL * 3, length=0)
    image = read(codec, b"\x89PNG", length=0, inputs=(TensorSpec("x", "BYTES", ("batch",)),))
    column = read(codec, b"text", length=0, inputs=(TensorSpec("x", "BYTES", ("batch", 1)),))

    assert values(request) == [[1.0, -2.5]] * 3
    assert request.wanted == (Wanted("y", binary=True),)
    assert values(image) == [b"\x89PNG"]
    assert values(column) == [[b"text"]]


@pytest.mark.parametrize(
    ("body", "inputs", "message"),
    [
        (GOLDEN_TAIL[:7], (X,), "multiple of 8 bytes"),
        (b"", (X,), "multiple of 8 bytes"),
        (GOLDEN_TAIL * 2, (TensorSpec("x", "FP32", (1, 2)),), "multiple of 8"),
        (GOLDEN_TAIL, (X, TensorSpec("b", "FP32", (1,))), "one input"),
        (GOLDEN_TAIL, (TensorSpec("x", "FP32", ("batch", "n")),), "one free dimension"),
    ],
)
def test_a_wrong_raw_form_is_refused(codec, body, inputs, message):
    """The shape must follow from the size."""
    with pytest.raises(InvalidInput, match=message):
        read(codec, body, length=0, inputs=inputs)


def test_bytes_may_be_base64_in_json(codec):
    """By the parameter `content_type`."""
    spec = TensorSpec("x", "BYTES", ("batch",))
    text = base64.b64encode(b"\x89PNG\0").decode()

    request = read(codec, one([text], shape=(1,), dtype="BYTES", parameters={"content_type": "base64"}), inputs=(spec,))

    assert values(request) == [b"\x89PNG\0"]
    for wrong in ("@@@@", "YQ", "YQ==\n", "data:image/png;base64,YQ==", "é"):
        with pytest.raises(InvalidTensor, match="base64"):
            read(codec, one([wrong], shape=(1,), dtype="BYTES", parameters={"content_type": "base64"}), inputs=(spec,))
    with pytest.raises(InvalidInput, match="content_type must be 'base64'"):
        read(codec, one([text], shape=(1,), dtype="BYTES", parameters={"content_type": "str"}), inputs=(spec,))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (pack("y", "FP32", np.array([math.nan], np.float32)), "NaN or infinity"),
        (pack("y", "FP64", np.array([math.inf])), "NaN or infinity"),
        (pack("y", "FP16", np.array([1.0], np.float16)), "no JSON form"),
        (PackedTensor("y", "BYTES", (1,), b"\x01\0\0\0\xff"), "not UTF-8"),
    ],
)
def test_outputs_that_json_cannot_say_are_refused_in_json_and_sent_in_binary(codec, tensor, message):
    """No bare NaN ever leaves (BI-064)."""
    with pytest.raises(InvalidTensor, match=message):
        codec.write(V2Request(None, (), (Wanted("y", binary=False),)), [tensor])

    response = codec.write(V2Request(None, (), (Wanted("y", binary=True),)), [tensor])
    assert b"".join(response.body).endswith(bytes(tensor.data))


def test_an_answer_too_long_for_json_is_refused_in_json_only():
    """At the limit, one beyond, and in binary; numbers are written while everybody waits."""
    codec = codec_of((X,), (Y,), json_bytes=160)
    tensors = {rows: [pack("y", "FP32", np.zeros((rows, 2), np.float32))] for rows in (5, 6)}
    in_json = V2Request(None, (), (Wanted("y", binary=False),))

    assert codec.write(in_json, tensors[5]).status == 200
    with pytest.raises(InvalidTensor, match="12 values; JSON takes at most 10"):
        codec.write(in_json, tensors[6])
    assert codec.write(V2Request(None, (), (Wanted("y", binary=True),)), tensors[6]).status == 200


def test_a_shape_of_lists_is_refused_in_plain_words(codec):
    """Not with what the parser calls them."""
    with pytest.raises(InvalidTensor, match="Got a list or an object"):
        read(codec, b'{"inputs":[{"name":"x","shape":[[1],2],"datatype":"FP32","data":[1,2]}]}')


def test_a_timeout_is_taken_in_microseconds(codec):
    """As Triton's clients send it; unknown parameters are passed over, as the protocol has it."""
    assert read(codec, {**one([1, 2]), "parameters": {"timeout": 1500, "priority": 3}}).timeout_us == 1500


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(st.data(), SHAPES, st.booleans())
def test_any_numbers_of_any_shape_come_through_flat_and_nested(data, shape, nested):
    """Bit for bit, as float32 would have them."""
    count = math.prod(shape)
    numbers = data.draw(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=count, max_size=count)
    )
    array = np.array(numbers, np.float32).reshape(shape)
    body = msgspec.json.encode(one(array.tolist() if nested else array.ravel().tolist(), shape=shape))

    request = Codecs(json_bytes=1 << 20).read(body, {}, (TensorSpec("x", "FP32", shape),), (Y,))

    assert unpack(request.inputs[0]).tobytes() == array.tobytes()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 151))
def test_no_bytes_make_it_fail_otherwise(data, length):
    """Whatever comes, it is refused as what it is. All 152 bytes of JSON with any 8 after them would be right."""
    codec = Codecs(json_bytes=1 << 20)
    for body, headers in ((data, {}), (GOLDEN_JSON[:length] + data, {"inference-header-content-length": str(length)})):
        with pytest.raises(InvalidInput):
            codec.read(body, headers, (X,), (Y,))


def outcome(codec: V2Codec, body: bytes, headers: dict[str, str]) -> object:
    """Return what a request is read as, or how it is refused."""
    try:
        request = codec.read(body, headers)
    except InvalidInput as exc:
        return type(exc), str(exc)
    tensors = [(one.name, one.dtype, one.shape, bytes(one.data)) for one in request.inputs]
    return request.id, request.wanted, request.timeout_us, tensors


FLAT = (
    b'{"id":"a","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data": [1.5, -2, 3e2,4]}],'
    b'"outputs":[{"name":"y"}]}'
)
PIECES = [
    b"[",
    b"]",
    b",",
    b"1",
    b"-",
    b".5",
    b'"',
    b'"data":[',
    b"{",
    b"}",
    b" ",
    b"e400",
    b"null",
    b"true",
    b"\n",
    b":",
]

EDITS = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 12), st.sampled_from(PIECES))


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from([FLAT, FLAT.replace(b" [1.5", b"[[1.5").replace(b"2, 3", b"2],[3").replace(b"4]", b"4]]")]),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 12), st.sampled_from(PIECES)),
        min_size=1,
        max_size=4,
    ),
)
def test_what_was_read_before_changes_nothing_in_json(text, edits):
    """A codec that has seen such a request and one that has not give the same for every neighbor of it."""
    warm = codec_of((X,), (Y,))
    outcome(warm, text, {})
    for at, cut, put in edits:
        start = int(at * len(text))
        text = text[:start] + put + text[start + cut :]

        assert outcome(warm, text, {}) == outcome(codec_of((X,), (Y,)), text, {})


@pytest.mark.parametrize(
    "numbers",
    [
        b"[9,8,7,6]",
        b"[9,8,7]",
        b"[9,8,7,6,5]",
        b"[]",
        b"[9,8,7,1e39]",
        b"[9,8,7,null]",
        b"[9,[8],7,6]",
        b"[9,8,7,6],1",
        b"[9,8,7,6],[1]",
        b"[9,8,7,6]]",
        b"[",
        b"]",
        b"",
    ],
)
def test_other_numbers_in_a_known_frame_are_read_as_if_it_were_new(numbers):
    """Also wrong ones, and what only looks like a list."""
    warm = codec_of((X,), (Y,))
    outcome(warm, FLAT, {})
    text = FLAT.replace(b"[1.5, -2, 3e2,4]", numbers)

    assert outcome(warm, text, {}) == outcome(codec_of((X,), (Y,)), text, {})


@pytest.mark.parametrize("tail", [GOLDEN_TAIL, GOLDEN_TAIL[:-1], GOLDEN_TAIL + b"x", b"", b"\0" * 8, GOLDEN_TAIL * 2])
def test_what_was_read_before_changes_nothing_in_binary(tail):
    """The bytes are new each time, and so is their number."""
    warm = codec_of((X,), (Y,))
    headers = {"inference-header-content-length": "152"}
    outcome(warm, GOLDEN_JSON + GOLDEN_TAIL, headers)

    cold = codec_of((X,), (Y,))
    assert outcome(warm, GOLDEN_JSON + tail, headers) == outcome(cold, GOLDEN_JSON + tail, headers)


def test_a_length_that_is_known_is_held_against_each_body():
    """The header was fine with a longer body; what is left of this one is not its JSON."""
    warm = codec_of((X,), (Y,))
    headers = {"inference-header-content-length": "152"}
    outcome(warm, GOLDEN_JSON + GOLDEN_TAIL, headers)

    for body in (b"", GOLDEN_JSON[:151], GOLDEN_JSON):
        with pytest.raises(InvalidInput):
            warm.read(body, headers)
        assert outcome(warm, body, headers) == outcome(codec_of((X,), (Y,)), body, headers)


def test_bytes_of_texts_are_looked_at_in_a_known_layout_too():
    """A length among them points past the end."""
    spec = TensorSpec("x", "BYTES", ("batch", 2))
    codec = codec_of((spec,), (Y,))
    text = GOLDEN_JSON.replace(b"FP32", b"BYTES").replace(b'size":8', b'size":10')
    headers = {"inference-header-content-length": str(len(text))}
    codec.read(text + b"\1\0\0\0a\1\0\0\0b", headers)

    with pytest.raises(InvalidTensor, match="past the end"):
        codec.read(text + b"\1\0\0\0a\2\0\0\0b", headers)


@pytest.mark.parametrize("junk", [b"JUNK", b"\0" * 16])
def test_what_follows_a_known_text_is_seen(junk):
    """A text whose numbers are in it has no binary part, whether it is known or not."""
    warm = codec_of((X,), (Y,))
    headers = {"inference-header-content-length": str(len(FLAT))}
    outcome(warm, FLAT, {})

    assert outcome(warm, FLAT + junk, headers) == outcome(codec_of((X,), (Y,)), FLAT + junk, headers)
    assert isinstance(outcome(warm, FLAT + junk, headers)[0], type)


def test_bytes_that_are_no_truth_values_are_refused_in_a_known_layout_too():
    """The text is known, the values are not."""
    spec = TensorSpec("x", "BOOL", ("batch", 2))
    codec = codec_of((spec,), (Y,))
    text = GOLDEN_JSON.replace(b"FP32", b"BOOL").replace(b'size":8', b'size":2')
    headers = {"inference-header-content-length": str(len(text))}
    codec.read(text + b"\1\0", headers)

    with pytest.raises(InvalidTensor, match="must be 0 or 1"):
        codec.read(text + b"\1\2", headers)
