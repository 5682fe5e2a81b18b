"""V2 over gRPC: the public client gets the engine's answers, and the door refuses, drops and drains as HTTP does.

A worker that is stopped by SIGSTOP is a model that takes long, for as long as a test likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.test_grpc_http2 import Unread
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from lightship.errors import InvalidInput, TooLarge
from lightship.serve.contracts.v2_codec import V2Request, Wanted
from lightship.serve.contracts.v2_grpc_codec import GrpcCodec
from lightship.serve.limits import Clocks, Limits
from lightship.serve.server import Server, ServerOptions
from lightship.serve.source import read_source
from lightship.serve.tensors import pack, unpack
from lightship.tasks.image_pixels import png_bytes
from lightship.types import DTYPES, TensorSpec
from lightship.v2.grpc_messages import message_class

DEADLINE_S = 30.0
SERVICE = "/inference.GRPCInferenceService/"
PROTOCOL = Path(__file__).parents[2] / "src/lightship/v2"
QUICK = Clocks(lame_s=0.01, drain_s=DEADLINE_S, stopped_s=DEADLINE_S, silent_s=5 * DEADLINE_S)
PATIENT = ("--limit", "stopped_s=30", "--limit", "silent_s=150")  # a worker may stand still for as long as a test likes
OPEN_METHODS = ("ServerLive", "ServerReady")
KEYED_METHODS = ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig")


def images(rows: int, seed: int = 0) -> np.ndarray:
    """Return inputs for the small model, float32 (rows, 1, 28, 28)."""
    return np.random.default_rng(seed).normal(size=(rows, 1, 28, 28)).astype(np.float32)


def wanted(array: np.ndarray) -> list[triton.InferInput]:
    """Return the inputs of a request as the public client makes them."""
    tensor = triton.InferInput("image", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return [tensor]


def request(array: np.ndarray | None = None, **fields: Any) -> Any:
    """Return a request message, raw, that a test can spoil."""
    array = images(1) if array is None else array
    message = message_class("ModelInferRequest")(model_name="digits", **fields)
    message.inputs.add(name="image", datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    return message


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def serving(home, *, clocks: Clocks = QUICK, limits: Limits | None = None) -> AsyncIterator[Server]:
    """Run a server in this process, without keys; its worker is a process as always."""
    options = ServerOptions(port=0, grpc_port=0, clocks=clocks, limits=limits or Limits(), depth=1)
    async with Server([read_source(home, "digits")], options) as server:
        yield server


async def until(condition: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    """Wait until a condition of the server holds, or fail at the deadline."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the state inside a server and a process has no event
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def channel_to(server: Server) -> Iterator[grpc.Channel]:
    """Return a connection to a server in this process; its calls wait in threads, not on the loop."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


def infer(channel: grpc.Channel, message: Any, **options: Any) -> grpc.Future:
    """Start a call and return its future."""
    return channel.unary_unary(SERVICE + "ModelInfer").future(message.SerializeToString(), **options)


async def code_of(call: grpc.Future) -> grpc.StatusCode:
    """Wait for the end of a call that fails; return its code."""
    error = await asyncio.to_thread(call.exception, DEADLINE_S)
    assert isinstance(error, grpc.RpcError)
    return error.code()


@pytest.fixture(scope="module")
def door(home, launch):
    """Return a server that speaks gRPC and asks for no keys."""
    return launch(home, "digits", "--auth", "none", "--grpc-port", "0")


@pytest.fixture(scope="module")
def locked_door(home, launch, locked_server):
    """Return a server that speaks gRPC and asks for keys; they are those of the other locked server's home."""
    running = launch(home, "digits", "--grpc-port", "0", "--log-requests")
    running.keys = locked_server.keys
    return running


@pytest.fixture(scope="module")
def client(door) -> Iterator[triton.InferenceServerClient]:
    """Return the public client."""
    with triton.InferenceServerClient(door.grpc_url) as made:
        yield made


@pytest.fixture(scope="module")
def channel(door) -> Iterator[grpc.Channel]:
    """Return a plain connection."""
    with grpc.insecure_channel(door.grpc_url) as made:
        yield made


# Right answers


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 40])
def test_the_public_client_gets_the_engines_answers(client, runner, rows):
    """Also for batches beyond the proven one, which are split and joined."""
    array = images(rows, seed=rows)

    got = client.infer("digits", wanted(array), request_id="7", model_version="1")

    parts = [runner.run({"image": array[at : at + 8]})["logits"] for at in range(0, rows, 8)]
    assert np.allclose(got.as_numpy("logits"), np.concatenate(parts), atol=1e-5)
    assert (got.get_response().id, got.get_response().model_version) == ("7", "1")


def test_many_calls_at_once_get_their_own_answers(client, runner):
    """Batched together or not, nobody gets the answer of another."""
    arrays = [images(1 + seed % 3, seed=seed) for seed in range(120)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda array: client.infer("digits", wanted(array)).as_numpy("logits"), arrays))

    for array, answer in zip(arrays, answers, strict=True):
        assert np.allclose(answer, runner.run({"image": array})["logits"], atol=1e-5)


def test_raw_inputs_are_answered_as_over_http(client, door, image):
    """`digits.raw` takes files; one label, probability and row of probabilities for each."""
    files = [png_bytes(image(seed)[:, :, None]) for seed in range(3)]
    tensor = triton.InferInput("raw", [3], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object))

    got = client.infer("digits.raw", [tensor])

    for row, file in enumerate(files):
        told = httpx.post(f"{door.url}/predict/digits", content=file).json()
        assert got.as_numpy("label")[row].decode() == told["label"]
        assert got.as_numpy("probability")[row] == pytest.approx(told["probability"], abs=1e-6)
    assert got.as_numpy("probabilities").shape == (3, 10)


def test_typed_contents_are_answered_typed(channel, runner):
    """The other form of the protocol; the same values."""
    message = request()
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.extend(images(1).ravel())

    answer = message_class("ModelInferResponse").FromString(infer(channel, message).result(DEADLINE_S))

    assert not answer.raw_output_contents
    assert np.allclose(answer.outputs[0].contents.fp32_contents, runner.run({"image": images(1)})["logits"], atol=1e-5)


def test_metadata_says_what_the_model_is(client):
    """What the public client and its tools ask before they infer."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert client.get_server_metadata().name == "lightship"
    metadata = client.get_model_metadata("digits")
    assert (metadata.inputs[0].name, metadata.inputs[0].datatype, list(metadata.inputs[0].shape)) == (
        "image",
        "FP32",
        [-1, 1, 28, 28],
    )
    config = client.get_model_config("digits.raw").config
    assert (config.max_batch_size, config.input[0].data_type) == (8, model_config_pb2.TYPE_STRING)
    assert [list(output.dims) for output in config.output] == [[1], [1], [10]]


@pytest.mark.parametrize("ask", ["infer", "get_model_metadata", "get_model_config"])
def test_a_model_that_is_not_there_is_not_found(client, ask):
    """By name or by version."""
    arguments = (wanted(images(1)),) if ask == "infer" else ()
    for name, version in (("none", ""), ("digits", "2"), ("digits.raw.raw", "")):
        with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*served"):
            getattr(client, ask)(name, *arguments, model_version=version)


def test_a_model_that_is_not_there_is_not_ready(client):
    """As over HTTP and from Triton: who waits for a model asks until the answer is yes."""
    assert not client.is_model_ready("none")
    assert not client.is_model_ready("digits", "2")


def test_what_is_not_offered_is_unimplemented(client):
    """No statistics, no repository, no shared memory; and no reflection."""
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        client.get_inference_statistics("digits")
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        client.load_model("digits")


def test_a_stream_answers_each_request_in_order(client, runner):
    """One answer each; a request that is wrong is told so, and the stream goes on."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        array = images(1, seed=number)
        client.async_stream_infer("none" if number == 10 else "digits", wanted(array), request_id=str(number))
    got = [answers.get(timeout=DEADLINE_S) for _ in range(20)]
    client.stop_stream()

    for number, (result, error) in enumerate(got):
        if number == 10:
            assert "No model of that name" in str(error)
        else:
            assert result.get_response().id == str(number)
            assert result.get_response().parameters["triton_final_response"].bool_param
            direct = runner.run({"image": images(1, seed=number)})["logits"]
            assert np.allclose(result.as_numpy("logits"), direct, atol=1e-5)


# Wrong requests


def _twice(message: Any) -> None:
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "both forms": (lambda m: m.inputs[0].contents.fp32_contents.append(1), "either 'contents' or an entry"),
    "an empty other form": (lambda m: m.inputs[0].contents.SetInParent(), "either 'contents' or an entry"),
    "no data": (lambda m: m.raw_input_contents.pop(), "must have 784 values.*Got 0"),
    "raw for another": (lambda m: m.raw_input_contents.append(b""), "one entry for each of the 1 inputs"),
    "raw too short": (lambda m: m.raw_input_contents.__setitem__(0, b"\0" * 3132), "needs 3136 bytes. Got 3132"),
    "raw too long": (lambda m: m.raw_input_contents.__setitem__(0, b"\0" * 3140), "needs 3136 bytes. Got 3140"),
    "no inputs": (lambda m: (m.inputs.pop(), m.raw_input_contents.pop()), "Missing: 'image'"),
    "an input twice": (_twice, "must have 1 entries"),
    "an unknown input": (lambda m: setattr(m.inputs[0], "name", "x"), r"inputs\[0\].name must be one of 'image'"),
    "another dtype": (lambda m: setattr(m.inputs[0], "datatype", "FP64"), "must be FP32. Got 'FP64'"),
    "a negative size": (lambda m: m.inputs[0].shape.__setitem__(0, -1), "whole numbers from 1 on. Got -1"),
    "no rows": (lambda m: m.inputs[0].shape.__setitem__(0, 0), "whole numbers from 1 on. Got 0"),
    "no shape": (lambda m: m.inputs[0].ClearField("shape"), "shape \\[\\] needs 4 bytes. Got 3136"),
    "another shape": (lambda m: m.inputs[0].shape.__setitem__(slice(None), [1, 28, 28, 1]), "axis 1 must be 1"),
    "an unknown output": (lambda m: m.outputs.add(name="y"), r"outputs\[0\].name must be one of 'logits'"),
    "an output twice": (lambda m: [m.outputs.add(name="logits") for _ in range(2)], "at most 1 entries"),
    "classification": (
        lambda m: setattr(m.outputs.add(name="logits").parameters["classification"], "int64_param", 3),
        "classification is not offered",
    ),
    "shared memory in": (
        lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "r"),
        "shared_memory_region is not offered",
    ),
    "shared memory out": (
        lambda m: setattr(m.outputs.add(name="logits").parameters["shared_memory_region"], "string_param", "r"),
        "shared_memory_region is not offered",
    ),
    "a timeout of none": (lambda m: setattr(m.parameters["timeout"], "int64_param", 0), "timeout must be microseconds"),
    "a timeout in words": (lambda m: setattr(m.parameters["timeout"], "string_param", "1"), "Got string_param"),
    "a long id": (lambda m: setattr(m, "id", "x" * 1_025), "at most 1024 characters"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_told_what_is_wrong(channel, case):
    """INVALID_ARGUMENT, with the field's name."""
    spoil, message = WRONG[case]
    spoiled = request()
    spoil(spoiled)

    with pytest.raises(grpc.RpcError, match=message) as raised:
        infer(channel, spoiled).result(DEADLINE_S)

    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("rank", [1, 2])
def test_bytes_elements_are_checked(channel, rank):
    """A length past the end, bytes left over, a second dimension."""
    for data in (b"", b"\xff\xff\xff\xff", b"\x01\0\0\0", b"\x01\0\0\0ab"):
        message = message_class("ModelInferRequest")(model_name="digits.raw", raw_input_contents=[data])
        message.inputs.add(name="raw", datatype="BYTES", shape=[1] * rank)
        assert infer(channel, message).exception(DEADLINE_S).code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, b"\x0a\xff", b"\x29"])
def test_bytes_that_are_no_request_are_refused(channel, data):
    """No answer, no insides."""
    with pytest.raises(grpc.RpcError, match=r"not a message|No model") as raised:
        channel.unary_unary(SERVICE + "ModelInfer")(data, timeout=DEADLINE_S)

    assert raised.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_too_large_a_message_is_refused(door):
    """64 MiB of body, as over HTTP; a compressed message could unpack to anything, and is not taken."""
    with grpc.insecure_channel(door.grpc_url, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(SERVICE + "ModelInfer")
        with pytest.raises(grpc.RpcError, match="larger than max") as raised:
            call(bytes((64 << 20) + 1), timeout=DEADLINE_S)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError, match="gzip") as raised:
            call(bytes(100_000), compression=grpc.Compression.Gzip, timeout=DEADLINE_S)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("entry", [b"\x2a\0", b"\x3a\0", b"\x22\0", b"\x2a\x02\x2a\0"])
def test_a_message_of_many_empty_fields_is_not_parsed(entry):
    """Two bytes on the wire are more than a hundred in memory (BI-074)."""
    with pytest.raises(TooLarge, match="raw_input_contents"):
        GrpcCodec(described_bytes=4 << 20).parse(entry * (1 << 20))


# Values of every dtype


def _values(dtype: str) -> st.SearchStrategy[Any]:
    if dtype == "BYTES":
        return st.binary(max_size=8)
    if dtype == "BOOL":
        return st.booleans()
    if dtype.startswith("FP"):
        return st.floats(width=int(dtype[2:]))
    limits = np.iinfo(DTYPES[dtype])
    return st.integers(int(limits.min), int(limits.max))


@given(st.data(), st.sampled_from(sorted(DTYPES)), st.booleans())
def test_any_value_passes_unchanged_both_ways(data, dtype, raw):
    """What is read and written again is the same to the bit, raw and typed; FP16 has no typed form."""
    rows = data.draw(st.integers(1, 4))
    array = np.array([data.draw(_values(dtype)) for _ in range(rows)], dtype=DTYPES[dtype])
    tensor, codec = pack("x", dtype, array), GrpcCodec(described_bytes=1 << 20)
    spec = TensorSpec("x", dtype, ("n",))
    message = codec.write(("m", "1"), V2Request(None, (), (Wanted("x", raw),)), [tensor])
    sent = message_class("ModelInferRequest")(
        inputs=[{"name": "x", "datatype": dtype, "shape": [rows]}], raw_input_contents=message.raw_output_contents
    )
    if not message.raw_output_contents:
        sent.inputs[0].contents.MergeFromString(message.outputs[0].contents.SerializeToString())

    (got,) = codec.read(codec.parse(sent.SerializeToString()), [spec], []).inputs

    assert bool(message.raw_output_contents) == (raw or dtype == "FP16")
    assert (got.dtype, got.shape) == (dtype, (rows,))
    if dtype.startswith("FP") and np.isnan(array).any():
        assert np.array_equal(unpack(got), array, equal_nan=True)
    else:
        assert bytes(got.data) == bytes(tensor.data)


@pytest.mark.parametrize(
    ("dtype", "field", "values", "message"),
    [
        ("INT8", "int_contents", [128], "range of INT8"),
        ("INT16", "int_contents", [-32_769], "range of INT16"),
        ("UINT8", "uint_contents", [256], "range of UINT8"),
        ("INT8", "uint_contents", [1], "must be in 'int_contents'. Got 'uint_contents'"),
        ("FP32", "fp64_contents", [1.0], "must be in 'fp32_contents'"),
        ("FP16", "fp32_contents", [1.0], "FP16 has no typed contents"),
        ("INT32", "int_contents", [1, 2], "must have 1 values.*Got 2"),
    ],
)
def test_typed_values_must_fit_their_dtype(dtype, field, values, message):
    """A value that would be cut is not cut."""
    sent = message_class("ModelInferRequest")(inputs=[{"name": "x", "datatype": dtype, "shape": [1]}])
    getattr(sent.inputs[0].contents, field).extend(values)

    with pytest.raises(InvalidInput, match=message):
        GrpcCodec(described_bytes=1 << 20).read(sent, [TensorSpec("x", dtype, (1,))], [])


def test_a_byte_of_bool_is_0_or_1():
    """Another would be true in one place and not in the next."""
    sent = message_class("ModelInferRequest")(
        inputs=[{"name": "x", "datatype": "BOOL", "shape": [2]}], raw_input_contents=[b"\1\2"]
    )
    with pytest.raises(InvalidInput, match="must be 0 or 1"):
        GrpcCodec(described_bytes=1 << 20).read(sent, [TensorSpec("x", "BOOL", (2,))], [])


def test_the_wire_is_the_protocols():
    """Golden bytes of the research, and every field of ours is theirs: name, number and type."""
    message = message_class("ModelInferRequest")(model_name="m", raw_input_contents=[bytes.fromhex("0000803f000020c0")])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    assert message.SerializeToString().hex() == "0a016d2a0d0a01781204465033321a0201023a080000803f000020c0"

    described = descriptor_pb2.FileDescriptorSet.FromString((PROTOCOL / "v2_grpc.binpb").read_bytes()).file[0]
    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    for ours in described.message_type:
        _same_fields(ours, theirs[ours.name])


def _same_fields(ours: Any, theirs: Any) -> None:
    for field in ours.field:
        public = theirs.fields_by_name[field.name]
        assert (field.number, field.type) == (public.number, public.type), f"{ours.name}.{field.name}"
    for nested in ours.nested_type:
        _same_fields(nested, theirs.nested_types_by_name[nested.name])


def test_the_compiled_description_is_up_to_date(tmp_path):
    """`scripts/write-proto` makes it."""
    from grpc_tools import protoc

    out = tmp_path / "out.binpb"
    protoc.main(["protoc", f"-I{PROTOCOL}", f"--descriptor_set_out={out}", "v2_grpc.proto"])

    read = descriptor_pb2.FileDescriptorSet.FromString
    assert read(out.read_bytes()) == read((PROTOCOL / "v2_grpc.binpb").read_bytes())


# Keys


def _asked(running: Any, method: str, metadata: tuple[tuple[str, str], ...]) -> str:
    with grpc.insecure_channel(running.grpc_url) as channel:
        path = method if method.startswith("/") else SERVICE + method
        message = request() if "Infer" in method else message_class(f"{method}Request")(**_names(method))
        kind = channel.stream_stream if method == "ModelStreamInfer" else channel.unary_unary
        call = kind(path)
        try:
            if method == "ModelStreamInfer":
                list(call(iter([message.SerializeToString()]), metadata=metadata, timeout=DEADLINE_S))
            else:
                call(message.SerializeToString(), metadata=metadata, timeout=DEADLINE_S)
        except grpc.RpcError as exc:
            return exc.code().name
        return "OK"


def _names(method: str) -> dict[str, str]:
    return {"name": "digits"} if method.startswith("Model") else {}


@pytest.mark.parametrize("role", ["none", "wrong", "infer", "read", "admin"])
def test_each_method_passes_exactly_the_roles_it_names(locked_door, role):
    """As over HTTP: health is open, metadata for any key, inference for `infer`."""
    keys = {"none": (), "wrong": (("authorization", "Bearer lsk_00000000_" + "A" * 43),)}
    metadata = keys[role] if role in keys else (("authorization", f"Bearer {locked_door.keys[role]}"),)
    known = role not in keys
    for method in OPEN_METHODS:
        assert _asked(locked_door, method, metadata) == "OK"
    for method in KEYED_METHODS:
        assert _asked(locked_door, method, metadata) == ("OK" if known else "UNAUTHENTICATED")
    for method in ("ModelInfer", "ModelStreamInfer"):
        refusal = "PERMISSION_DENIED" if known else "UNAUTHENTICATED"
        assert _asked(locked_door, method, metadata) == ("OK" if role in ("infer", "admin") else refusal), method


def test_a_stranger_cannot_tell_what_there_is(locked_door):
    """An unknown method is UNAUTHENTICATED without a key, UNIMPLEMENTED with one."""
    with grpc.insecure_channel(locked_door.grpc_url) as channel:
        for path in (
            "/a.B/C",
            SERVICE + "ModelStatistics",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ):
            for key, code in ((None, "UNAUTHENTICATED"), (locked_door.keys["infer"], "UNIMPLEMENTED")):
                metadata = (("authorization", f"Bearer {key}"),) if key else ()
                with pytest.raises(grpc.RpcError) as raised:
                    channel.unary_unary(path)(b"", metadata=metadata, timeout=DEADLINE_S)
                assert raised.value.code().name == code


def test_probes_ask_by_the_protocol_of_health(locked_door):
    """Without a key, as Kubernetes does; bytes as grpc.health.v1 has them: SERVING is 1."""
    with grpc.insecure_channel(locked_door.grpc_url) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for service in (b"", b"\x0a\x1einference.GRPCInferenceService"):
            assert check(service, timeout=DEADLINE_S) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as raised:
            check(b"\x0a\x06digits", timeout=DEADLINE_S)
        assert raised.value.code().name == "NOT_FOUND"


def test_calls_are_in_the_log_and_the_metrics(locked_door):
    """With their contract, model, key and id; the id comes back."""
    with grpc.insecure_channel(locked_door.grpc_url) as channel:
        metadata = (("authorization", f"Bearer {locked_door.keys['infer']}"), ("x-request-id", "my-call.1"))
        _, call = channel.unary_unary(SERVICE + "ModelInfer").with_call(
            request().SerializeToString(), metadata=metadata, timeout=DEADLINE_S
        )
    assert ("x-request-id", "my-call.1") in [tuple(item) for item in call.trailing_metadata()]
    given = httpx.get(locked_door.control_url + "/metrics", headers=locked_door.headers("read")).text
    assert 'lightship_requests_total{contract="grpc",model="digits",status="200"}' in given
    deadline = time.monotonic() + DEADLINE_S
    while '"my-call.1"' not in locked_door.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lines = [json.loads(line) for line in locked_door.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request") == "my-call.1"]
    assert (line["contract"], line["model"], line["status"]) == ("grpc", "digits", 200)
    assert line["key"] in locked_door.keys["infer"]


def test_a_stream_does_not_outlive_its_key(home, locked_door):
    """A revoked key ends the stream at its next request."""
    from lightship.serve.access import KeyFile, Role

    record, key = KeyFile(home.keys).create(Role.INFER)
    time.sleep(1.1)  # how long the server may take to see a change of the file
    messages: queue.Queue[bytes | None] = queue.Queue()
    with grpc.insecure_channel(locked_door.grpc_url) as channel:
        answers = channel.stream_stream(SERVICE + "ModelStreamInfer")(
            iter(messages.get, None), metadata=(("authorization", f"Bearer {key}"),), timeout=DEADLINE_S
        )
        messages.put(request().SerializeToString())
        assert next(answers)
        KeyFile(home.keys).revoke(record.id)
        time.sleep(1.1)
        messages.put(request().SerializeToString())
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
        messages.put(None)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


# Deadlines, clients that go, overload


async def test_a_deadline_is_kept_and_what_is_late_does_not_run(home):
    """R-05: the call's own deadline, and the parameter `timeout`, which the server tells itself."""
    async with serving(home) as server:
        (model,) = server.models
        with channel_to(server) as channel:
            with stopped(model.worker_pids[0]):
                first = infer(channel, request())
                await until(lambda: model.running == 1)
                began = time.monotonic()
                late = [infer(channel, request(), timeout=0.2) for _ in range(5)]
                timed = request()
                timed.parameters["timeout"].int64_param = 200_000
                told = infer(channel, timed)
                assert await code_of(told) is grpc.StatusCode.DEADLINE_EXCEEDED
                assert "deadline of the request passed" in told.details()
                for call in late:
                    assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
                assert time.monotonic() - began < 2.0
                await until(lambda: model.waiting == 0)
            assert await asyncio.to_thread(first.result, DEADLINE_S)
            batches = model.figures.batches
            assert await asyncio.to_thread(infer(channel, request()).result, DEADLINE_S)
            assert (model.figures.batches, model.figures.rows) == (batches + 1, batches + 1)


async def test_cancelled_calls_leave_nothing_behind(home):
    """R-06: 100 calls in the queue are cancelled; within a second nothing waits, nothing is held, none runs."""
    async with serving(home) as server:
        (model,) = server.models
        with channel_to(server) as channel:
            with stopped(model.worker_pids[0]):
                first = infer(channel, request())
                await until(lambda: model.running == 1)
                calls = [infer(channel, request()) for _ in range(100)]
                await until(lambda: model.waiting == 100)
                for call in calls:
                    call.cancel()
                await until(lambda: model.waiting == 0 and server._grpc.calls == 1, seconds=1.0)
            assert await asyncio.to_thread(first.result, DEADLINE_S)
            await until(lambda: server._grpc.calls == 0 and model.running == 0, seconds=1.0)
            assert model.figures.rows == 1
            assert server._grpc._held_bytes == 0
            assert await asyncio.to_thread(infer(channel, request()).result, DEADLINE_S)


@pytest.mark.parametrize("limits", [Limits(calls=4), Limits(queue_requests=3)], ids=["calls", "queue"])
async def test_overload_is_told_with_when_to_come_again(home, limits):
    """R-04: over the calls that the server takes, and over the model's queue."""
    async with serving(home, limits=limits) as server:
        (model,) = server.models
        with channel_to(server) as channel:
            with stopped(model.worker_pids[0]):
                kept = [infer(channel, request())]
                await until(lambda: model.running == 1)
                kept += [infer(channel, request()) for _ in range(3)]
                await until(lambda: model.waiting == 3)
                for _ in range(40):  # more than there are threads to spare
                    refused = infer(channel, request())
                    assert await code_of(refused) is grpc.StatusCode.RESOURCE_EXHAUSTED
                    trailing = dict(refused.trailing_metadata())
                    assert trailing["retry-after"] == "1"
                    assert trailing["grpc-retry-pushback-ms"] == "1000"
            for call in kept:
                assert await asyncio.to_thread(call.result, DEADLINE_S)


def greeted(sock: socket.socket) -> bool:
    """Return whether the server took a connection: it says its settings first, else it closes."""
    sock.settimeout(DEADLINE_S)
    try:
        return sock.recv(4096) != b""
    except ConnectionError:
        return False


async def test_connections_have_a_limit_of_their_own(home):
    """One too many is closed, and a call on one that is there goes on; when some end, new ones are taken."""
    async with serving(home, limits=Limits(connections=6)) as server:
        with channel_to(server) as channel, contextlib.ExitStack() as stack:
            await asyncio.to_thread(infer(channel, request()).result, DEADLINE_S)
            socks = [stack.enter_context(socket.create_connection(("127.0.0.1", server.grpc_port))) for _ in range(20)]
            taken = [await asyncio.to_thread(greeted, sock) for sock in socks]
            await asyncio.to_thread(infer(channel, request()).result, DEADLINE_S)
            stack.close()
            with channel_to(server) as another:
                await asyncio.to_thread(infer(another, request(), wait_for_ready=True).result, DEADLINE_S)

    assert sum(taken) == 5


async def test_a_burst_on_one_connection_is_answered_or_refused(home):
    """1,000 calls at once: each is answered or told that the server is busy; none is lost or cancelled (R-04)."""
    async with serving(home) as server:
        with channel_to(server) as channel:
            calls = [infer(channel, request(), timeout=DEADLINE_S) for _ in range(1_000)]
            errors = await asyncio.to_thread(lambda: [call.exception(DEADLINE_S) for call in calls])
            told = {(error.code(), error.details()) for error in errors if error is not None}
            assert {code for code, _ in told} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}, told
            assert sum(error is None for error in errors) >= 100
            await until(lambda: server._grpc.calls == 0)


async def test_a_client_that_never_sends_its_message_is_cut_off(home):
    """It holds one of the places for large messages, and must give it back."""
    limits = Limits(bodies_bytes=64 << 20)  # one message at a time
    async with serving(home, clocks=dataclasses.replace(QUICK, body_s=0.5), limits=limits) as server:
        with channel_to(server) as channel:
            never = asyncio.Event()

            def nothing() -> Iterator[bytes]:
                while not never.is_set():
                    time.sleep(0.05)
                yield b""

            slow = channel.stream_unary(SERVICE + "ModelInfer").future(nothing())
            await until(lambda: server._grpc.calls == 1)
            assert await asyncio.to_thread(infer(channel, request()).result, DEADLINE_S)
            never.set()
            assert await code_of(slow) is grpc.StatusCode.CANCELLED
            await until(lambda: server._grpc.calls == 0)


async def test_the_bytes_of_all_answers_that_are_not_taken_are_bounded(home):
    """What goes beyond is refused; after `write_s` who has not taken its answer is cut off for it."""
    clocks, limits = dataclasses.replace(QUICK, write_s=2.0), Limits(answers_bytes=200 << 10)
    many = request(images(3_000))  # answered with 117 KiB
    async with serving(home, clocks=clocks, limits=limits) as server:
        address, path = f"127.0.0.1:{server.grpc_port}", SERVICE.encode() + b"ModelInfer"
        unread = await asyncio.to_thread(Unread, address, path, many.SerializeToString())
        with channel_to(server) as channel:
            await until(lambda: server._grpc._untaken._answers)
            assert await asyncio.to_thread(infer(channel, request()).result, DEADLINE_S)
            assert await code_of(infer(channel, many)) is grpc.StatusCode.UNAVAILABLE
            await asyncio.sleep(clocks.write_s)
            assert await asyncio.to_thread(infer(channel, many).result, DEADLINE_S)
        assert await asyncio.to_thread(unread.rest) < 3_000 * 40
        unread.socket.close()
        await until(lambda: not server._grpc._untaken._answers)


async def test_a_stream_that_is_read_holds_nothing(home):
    """Answer after answer, more than the limit in sum."""
    many = request(images(3_000)).SerializeToString()
    async with serving(home, limits=Limits(answers_bytes=200 << 10)) as server:
        with channel_to(server) as channel:
            answers = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter([many] * 4))
            got = await asyncio.to_thread(lambda: [len(answer) for answer in answers])
            assert min(got) > 3_000 * 40
            await until(lambda: not server._grpc._untaken._answers)


async def test_a_worker_that_dies_is_not_the_callers_business(home):
    """The request runs once more, as over HTTP."""
    async with serving(home) as server:
        (model,) = server.models
        with channel_to(server) as channel:
            os.kill(model.worker_pids[0], signal.SIGSTOP)
            call = infer(channel, request())
            await until(lambda: model.running == 1)
            os.kill(model.worker_pids[0], signal.SIGKILL)
            assert await asyncio.to_thread(call.result, DEADLINE_S)


# Starting and stopping


def _state(running: Any) -> dict[str, Any]:
    return httpx.get(running.control_url + "/models").json()["models"][0]


def test_a_stop_lets_calls_finish(home, launch):
    """SIGTERM: not ready at once, the call under way is answered, an idle stream ends, exit code 0."""
    running = launch(home, "digits", "--auth", "none", "--grpc-port", "0", *PATIENT)
    with grpc.insecure_channel(running.grpc_url) as channel:
        waiting: queue.Queue[bytes | None] = queue.Queue()
        stream = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter(waiting.get, None))
        waiting.put(request().SerializeToString())
        assert next(stream)
        with stopped(_state(running)["worker_pids"][0]):
            call = infer(channel, request())
            while _state(running)["running"] == 0:
                time.sleep(0.01)
            running.process.send_signal(signal.SIGTERM)
            ready = channel.unary_unary(SERVICE + "ServerReady")
            with contextlib.suppress(grpc.RpcError):  # UNAVAILABLE once it has stopped listening
                while message_class("ServerReadyResponse").FromString(ready(b"", timeout=DEADLINE_S)).ready:
                    time.sleep(0.01)
            time.sleep(0.6)  # past the lame time: the server drains
            assert running.process.poll() is None
        assert call.result(DEADLINE_S)
        with pytest.raises(grpc.RpcError):
            next(stream)
        waiting.put(None)
        assert running.process.wait(DEADLINE_S) == 0


def test_a_second_signal_does_not_wait(home, launch):
    """A call that hangs is ended."""
    running = launch(home, "digits", "--auth", "none", "--grpc-port", "0", *PATIENT)
    with grpc.insecure_channel(running.grpc_url) as channel, stopped(_state(running)["worker_pids"][0]):
        call = infer(channel, request())
        while _state(running)["running"] == 0:
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        running.process.send_signal(signal.SIGTERM)
        assert isinstance(call.exception(DEADLINE_S), grpc.RpcError)
        assert running.process.wait(DEADLINE_S) == 0


def test_a_port_that_is_taken_is_told_before_models_are_loaded(home):
    """Exit code 4, and nothing is shared with the other program."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        command = [sys.executable, "-m", "lightship.cli.main", "serve", "digits", "--auth", "none", "--port", "0"]
        done = subprocess.run(
            [*command, "--grpc-port", str(other.getsockname()[1])],
            check=False,
            env={**os.environ, "LIGHTSHIP_HOME": str(home.root)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
    assert done.returncode == 4
    assert "cannot be used for gRPC" in done.stderr
    assert "is ready" not in done.stderr


def test_without_the_option_grpc_is_not_loaded(server, door):
    """Nobody pays for what is off; neither start-up nor memory."""
    assert server.grpc_url == ""
    assert "cygrpc" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "cygrpc" in Path(f"/proc/{door.process.pid}/maps").read_text()
