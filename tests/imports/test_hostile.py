"""Files that were made to read, run or exhaust something. Each is refused by name, quickly, and without a crash."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.imports.conftest import info, linear, model, node

from lightship.engine.onnx_audit import audit_onnx
from lightship.engine.runner import load_runner
from lightship.errors import InvalidInput, LightshipError, NotFound, Refused, UnsupportedMedia
from lightship.imports.model_file import read_graph
from lightship.imports.trial import try_graph
from lightship.imports.trial_process import try_apart
from lightship.imports.tried_graph import Bounds
from lightship.types import Silent

BOUNDED_S = 10.0  # of processor time; without a bound they take minutes. On an idle machine it is under two seconds
X, Y = info("x", ["N", 3]), info("y", ["N", 3])


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, data: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def external(location: str, **keys: str) -> bytes:
    """Return a model whose weight lies in another file."""
    made = onnx.load_from_string(linear())
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **keys}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return made.SerializeToString()


def million_nodes() -> bytes:
    """Return a graph of a million Identity nodes: 18 MB."""
    one = field(1, node("Identity", ["x"], ["y"]).SerializeToString())
    made = onnx.load_from_string(linear())
    graph = made.graph.SerializeToString() + one * 1_000_000
    made.ClearField("graph")
    return made.SerializeToString() + field(7, graph)


def hidden_nodes() -> bytes:
    """Return a graph with few nodes, one of which has 150,000 in a branch."""
    one = field(1, node("Identity", ["x"], ["y"]).SerializeToString())
    branch = helper.make_graph([node("Identity", ["x"], ["t"])], "b", [], [info("t", ["N", 3])])
    huge = onnx.GraphProto.FromString(branch.SerializeToString() + one * 150_000)
    return model(
        [node("If", ["c"], ["y"], then_branch=huge, else_branch=branch)], [X, info("c", [], TensorProto.BOOL)], [Y]
    )


def nested(depth: int) -> bytes:
    """Return a graph with an If in an If in an If …, written from the inside out."""
    graph = helper.make_graph([node("Identity", ["x"], ["t"])], "g", [], [info("t", ["N", 3])]).SerializeToString()
    head = field(2, b"t") + field(4, b"If")  # output, op_type
    for _ in range(depth):
        attribute = field(1, b"then_branch") + varint(20 << 3) + b"\x05" + field(6, graph)
        graph = field(1, head + field(5, attribute))
    return b"\x08\x0a" + field(7, graph) + field(8, field(1, b"") + b"\x10\x12")


def function(name: str, *calls: onnx.NodeProto) -> onnx.FunctionProto:
    """Return a function of the file's own domain."""
    return helper.make_function("own", name, ["x"], ["y"], list(calls), [helper.make_opsetid("", 18)])


def call(name: str, source: str = "x", result: str = "y") -> onnx.NodeProto:
    """Return a call of one."""
    return node(name, [source], [result], domain="own")


def functions(*made: onnx.FunctionProto) -> bytes:
    """Return a graph that calls the function f0."""
    return model([call("f0")], [X], [Y], functions=made, domains=["own"])


def hidden_cycle() -> bytes:
    """Return two functions that call each other, one of them from within a branch."""
    branch = helper.make_graph([call("f0", "x", "t")], "b", [], [info("t", ["N", 3])])
    inner = [node("Constant", [], ["c"], value_int=1), node("Cast", ["c"], ["d"], to=TensorProto.BOOL),
             node("If", ["d"], ["y"], then_branch=branch, else_branch=branch)]  # fmt: skip
    return functions(function("f0", call("f1")), function("f1", *inner))


def bomb() -> bytes:
    """Return functions that each call the next twice: 2**40 nodes."""
    made = [function(f"f{i}", call(f"f{i + 1}", "x", "a"), call(f"f{i + 1}", "a", "y")) for i in range(20)]
    return functions(*made, function("f20", *[node("Identity", ["x"], ["y"])] * 2))


def declared(dims: list[int], **fields: object) -> bytes:
    """Return a model whose weight says that it has this shape."""
    made = onnx.load_from_string(linear())
    tensor = made.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    for name, value in fields.items():
        setattr(tensor, name, value)
    return made.SerializeToString()


def sparse() -> bytes:
    """Return a model with a sparse tensor of few values and 3 GiB written out."""
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    made = onnx.load_from_string(linear())
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3 << 28, 1]))
    return made.SerializeToString()


LOCATIONS = ["../x", "a/../../x", "/etc/passwd", "..\\x", "C:\\x", "", ".", "weights.bin"]


@pytest.mark.parametrize("location", LOCATIONS)
def test_weights_in_another_file_are_refused_wherever_it_is(location):
    """BI-011: no path is looked at; it says how to put the weights into the file."""
    with pytest.raises(Refused, match=r"lies in another file.*save_as_external_data=False"):
        audit_onnx(external(location))


@pytest.mark.parametrize(
    "keys",
    [
        {"offset": "-1"},
        {"length": "x"},
        {"offset": str(2**63), "length": str(2**63)},
        {"__class__": "os"},
        {"checksum": "0"},
    ],
    ids=str,
)
def test_strange_keys_of_external_data_are_never_read(keys):
    """BI-013, BI-014: nothing is set from them."""
    with pytest.raises(Refused, match="lies in another file"):
        audit_onnx(external("weights.bin", **keys))


def inside(location: str, size: int = 32, **keys: str) -> bytes:
    """Return a model whose weight, of 32 bytes, lies in a file beside it."""
    return external(location, length=str(size), **keys)


def test_weights_beside_the_model_are_put_into_it(tmp_path):
    """As exporters write them by default: the graph then needs nothing but its bytes, and gives what it gave."""
    weights = onnx.load_from_string(linear()).graph.initializer[0].raw_data
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model.onnx.data").write_bytes(b"\0" * 8 + weights)
    (tmp_path / "model.onnx").write_bytes(external("data/model.onnx.data", offset="8", length=str(len(weights))))

    source = read_graph(tmp_path / "model.onnx")

    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(
        load_runner(source.graph).run({"x": x})["y"], load_runner(linear()).run({"x": x})["y"]
    )
    assert list(source.facts["files"]) == ["data/model.onnx.data"]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        *((inside(location), "not read|below the folder") for location in (*LOCATIONS[:-1], "missing.bin")),
        (inside("weights.bin", offset="-1"), "offset '-1'"),
        (inside("weights.bin", offset="x"), "offset 'x'"),
        (inside("weights.bin", offset="1"), "bytes 1 to 33 of a file that has 32"),
        (inside("weights.bin", offset=str(2**63)), "offset"),
        (inside("weights.bin", size=31), "its length says 31"),
        (inside("weights.bin", __class__="os"), "each once"),
        (inside("weights.bin", checksum="00"), "another checksum"),
        (inside("soft"), "not read"),
        (inside("hard"), "not read.*2 names"),
        (inside("folder"), "not read"),
        (inside("linked/weights.bin"), "not read.*without following links"),
        (inside("pipe"), "not read"),
    ],
)
def test_weights_that_lie_wrong_are_refused(graph, message, tmp_path):
    """BI-011 to BI-014: places, links, ranges and keys; what is outside of the folder is never opened."""
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "x").write_bytes(b"TOP SECRET" * 4)
    (folder / "soft").symlink_to(tmp_path / "x")
    (folder / "linked").symlink_to(tmp_path)
    os.link(tmp_path / "x", folder / "hard")
    os.mkfifo(folder / "pipe")
    (tmp_path / "weights.bin").write_bytes(b"TOP SECRET" * 4)
    (folder / "weights.bin").write_bytes(b"\0" * 32)
    (folder / "model.onnx").write_bytes(graph)

    with pytest.raises(Refused, match=message) as caught:
        read_graph(folder / "model.onnx")
    assert "SECRET" not in str(caught.value)


def test_a_link_to_a_secret_next_to_the_model_is_not_opened(tmp_path):
    """BI-012: neither a symbolic nor a hard link; the secret is in no message."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"TOP SECRET" * 10)
    (tmp_path / "soft").symlink_to(secret)
    os.link(secret, tmp_path / "hard")
    for location in ("soft", "hard"):
        path = tmp_path / "model.onnx"
        path.write_bytes(external(location))
        with pytest.raises(Refused) as caught:
            read_graph(path)
        assert "SECRET" not in str(caught.value)


def stuffed(graph: bytes) -> bytes:
    """Return a model with more in its graph, written by hand."""
    made = onnx.load_from_string(linear())
    whole = made.graph.SerializeToString() + graph
    made.ClearField("graph")
    return made.SerializeToString() + field(7, whole)


MANY = 12_000_000  # of two bytes each


def stuffed_node(parts: bytes) -> bytes:
    """Return a model with one node more, written by hand."""
    return stuffed(field(1, field(4, b"Relu") + parts))


def named(name: bytes) -> bytes:
    """Return a model with a node that reads an input of that name."""
    return stuffed(field(1, field(1, name) + field(2, b"z") + field(4, b"Relu")))


def doubled(sparse_too: bool = False) -> bytes:
    """Return a model in which two weights have one name."""
    made = onnx.load_from_string(linear())
    if sparse_too:
        values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
        made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 2]))
    else:
        made.graph.initializer.append(made.graph.initializer[0])
    return made.SerializeToString()


HOSTILE = {
    "value_info": (lambda: stuffed(b"\x6a\0" * MANY), Refused, "more than 500,000 entries of GraphProto.value_info"),
    "annotations": (lambda: stuffed(b"\x72\0" * MANY), Refused, "500,000 entries of GraphProto.quant"),
    "initializers": (lambda: stuffed(b"\x2a\0" * 2_000_000), Refused, "500,000 entries of GraphProto.initializer"),
    "attributes": (lambda: stuffed_node(b"\x2a\0" * MANY), Refused, "500,000 entries of NodeProto.attribute"),
    "node inputs": (lambda: stuffed_node(b"\x0a\0" * MANY), Refused, "1,000,000 entries of NodeProto.input"),
    "unknown parts": (lambda: stuffed(b"\x1a\0" * MANY), Refused, "500,000 entries of a kind that ONNX does not know"),
    "long tags": (lambda: stuffed(b"\x88\x80\x01\0" * (MANY // 2)), Refused, "500,000 entries of a kind"),
    "dimensions": (
        lambda: stuffed(field(5, b"\x08\0" * MANY + b"\x10\1" + field(8, b"q"))), Refused, "'q' .* has 12,000,000",
    ),
    "many kinds": (
        lambda: stuffed(b"".join(tag * 490_000 for tag in (b"\x2a\0", b"\x5a\0", b"\x62\0", b"\x6a\0", b"\x72\0"))),
        Refused,
        "more than 2,000,000 parts",
    ),
    "two weights of one name": (doubled, Refused, "two initializers called 'w'"),
    "a sparse weight of another's name": (lambda: doubled(True), Refused, "two initializers called 'w'"),
    "a name that is not UTF-8": (lambda: named(b"x\xff\x1b"), Refused, r"not UTF-8: NodeProto.input b'x\\xff\\x1b'"),
    "a million nodes": (million_nodes, Refused, "more than 100,000 nodes"),
    "nodes in a branch": (hidden_nodes, Refused, "more than 100,000 nodes"),
    "Ifs 10,000 deep": (lambda: nested(10_000), InvalidInput, "nested deeper"),
    "Ifs 30 deep": (lambda: nested(30), Refused, "24 deep"),
    "function calls itself": (lambda: functions(function("f0", call("f0"))), Refused, "'f0' of the model calls itself"),
    "cycle in a branch": (hidden_cycle, Refused, "calls itself"),
    "functions double": (bomb, Refused, "more than 100,000 nodes"),
    "functions in a chain": (
        lambda: functions(
            *(function(f"f{i}", call(f"f{i + 1}")) for i in range(3_000)), function("f3000", node("Relu", ["x"], ["y"]))
        ),
        Refused,
        "24 deep",
    ),
    "one function twice": (
        lambda: functions(function("f0", node("Relu", ["x"], ["y"])), function("f0", node("Abs", ["x"], ["y"]))),
        Refused,
        "two functions of one name",
    ),
    "foreign domain": (
        lambda: model([node("Evil", ["x"], ["y"], domain="evil.corp")], [X], [Y], domains=["evil.corp"]),
        Refused,
        "domain 'evil.corp'",
    ),
    "foreign domain in a function": (
        lambda: functions(function("f0", node("Evil", ["x"], ["y"], domain="evil.corp"))),
        Refused,
        "domain 'evil.corp'",
    ),
    "EPContext": (
        lambda: model(
            [node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/tmp/x.bin")], [X], [Y],
            domains=["com.microsoft"],
        ),
        Refused,
        "EPContext",
    ),
    "shared library": (
        lambda: model([node("Relu", ["x"], ["y"], path="/tmp/evil.so.1")], [X], [Y]), Refused, "shared library",
    ),
    "3 GiB declared": (lambda: declared([3 << 28, 1]), Refused, r"shape \[805306368, 1\], and holds 32 bytes"),
    "dims overflow": (lambda: declared([2**62, 2**62]), Refused, "and holds 32 bytes"),
    "negative dims": (lambda: declared([-4, -2]), Refused, "sizes are 0 or more"),
    "nothing held": (lambda: declared([4, 2], raw_data=b""), Refused, "holds 0 elements"),
    "unknown type": (lambda: declared([4, 2], data_type=99), Refused, "unknown element type 99"),
    "sparse 3 GiB": (sparse, Refused, "over 2 GiB"),
    "two inputs of one name": (lambda: model([node("Relu", ["x"], ["y"])], [X, X], [Y]), Refused, "two inputs called"),
    "two outputs of one name": (
        lambda: model([node("Relu", ["x"], ["y"])], [X], [Y, Y]), Refused, "two outputs called",
    ),
    "no nodes": (lambda: model([], [X], [X]), InvalidInput, "no graph with nodes"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_before_it_takes_long(name):
    """BI-015, BI-016: by its bytes alone, before an engine sees it."""
    make, error, message = HOSTILE[name]
    data = make()
    started = time.process_time()

    with pytest.raises(error, match=message):
        audit_onnx(data)

    assert time.process_time() - started < BOUNDED_S


def test_a_large_honest_graph_passes_the_count():
    """90,000 nodes with names, attributes and the shapes of all that is between them."""
    count = 90_000
    nodes = [node("Gemm", [f"v{i}", "w"], [f"v{i + 1}"], name=f"n{i}", alpha=1.0, transB=1) for i in range(count)]
    made = onnx.load_from_string(
        model(nodes, [info("v0", ["N", 4])], [info(f"v{count}", ["N", 4])], {"w": np.eye(4, dtype=np.float32)})
    )
    made.graph.value_info.extend(info(f"v{i}", ["N", 4]) for i in range(1, count))

    assert audit_onnx(made.SerializeToString()).nodes == count


def test_a_long_attribute_is_no_excess():
    """A forest keeps millions of numbers in one."""
    forest = node("Relu", ["x"], ["y"], numbers=list(range(1, 3_000_000)))

    assert audit_onnx(model([forest], [X], [Y])).nodes == 1


@pytest.mark.parametrize("place", ["a\x1b[2J", "a\u202eb", "\x1b:"], ids=ascii)
def test_a_place_that_a_terminal_would_obey_is_escaped(place, tmp_path):
    """Whoever made the file must not write on the screen of who imports it."""
    (tmp_path / "model.onnx").write_bytes(inside(place))

    with pytest.raises(Refused) as caught:
        read_graph(tmp_path / "model.onnx")
    assert str(caught.value).isprintable()
    assert ascii(place)[1:-1] in str(caught.value)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7, 0.95, 0.999])
def test_a_file_that_was_cut_short_is_no_model(keep, write):
    """BI-016: at whatever place."""
    data = linear(features=64)

    with pytest.raises((InvalidInput, Refused)):
        read_graph(write(data[: int(len(data) * keep)]))


def test_every_byte_may_be_wrong(write):
    """One flipped byte anywhere gives a refusal of ours or a graph; never another error."""
    data = bytearray(linear())
    for at in range(len(data)):
        data[at] ^= 0xFF
        with contextlib.suppress(LightshipError):
            audit_onnx(bytes(data))
        data[at] ^= 0xFF


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", InvalidInput, "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", UnsupportedMedia, "git lfs pull"),
        (b"PK\x03\x04rest", UnsupportedMedia, "zip archive"),
        (b"\x80\x04\x95rest", UnsupportedMedia, "pickle, which could run any program"),
        (b"\x89HDF\r\n", UnsupportedMedia, "HDF5"),
        (b"\x1c\0\0\0TFL3", UnsupportedMedia, "TensorFlow Lite"),
        (b"GGUF\3", UnsupportedMedia, "GGUF"),
        (b'\x10\0\0\0\0\0\0\0{"a":{}}', UnsupportedMedia, "safetensors"),
        (b"<!DOCTYPE html>", UnsupportedMedia, "HTML"),
        (b"hello world, this is text", UnsupportedMedia, "no format that is read here"),
    ],
)
def test_a_file_of_another_kind_is_named_by_its_bytes(data, error, message, write):
    """Its name ends in .onnx; what it is stands in its first bytes, and the message says what to do."""
    with pytest.raises(error, match=message):
        read_graph(write(data))


def test_a_model_of_any_name_is_read(write):
    """The bytes decide, not the suffix."""
    assert read_graph(write(linear(), "weights.bin")).format == "onnx"


def test_only_regular_files_are_opened(tmp_path):
    """A folder, a pipe, a socket, a device and nothing at all: none of them hangs."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    for name in ("pipe", "folder", "socket"):
        with pytest.raises(InvalidInput, match="cannot be read"):
            read_graph(tmp_path / name)
    listener.close()
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_graph(Path("/dev/zero"))
    with pytest.raises(NotFound, match="no file"):
        read_graph(tmp_path / "none")


def test_bytes_of_the_engines_own_format_are_not_let_in_as_a_producers_name():
    """ONNX Runtime looks for ORTM at byte 4, which is where a producer's name can stand; it must read ONNX."""
    made = onnx.load_from_string(linear())
    made.ClearField("ir_version")
    body = b"\x08\x0a" + field(2, b"ORTM")[:6] + made.SerializeToString()
    assert body[4:8] == b"ORTM"

    assert try_apart(body, given=None, bounds=Bounds(), progress=Silent()).interface.proven == {"batch": (1, 32)}


@pytest.mark.parametrize("size", [1 << 40, 1 << 31, 1 << 20, 1 << 16], ids=["2**82", "16 EiB", "4 TB", "16 GB"])
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_a_graph_that_asks_for_all_memory_ends_its_own_process_only(size, given):
    """A huge tensor of ones from twelve bytes: the trial says that it is memory, this process goes on."""
    graph = model(
        [
            node("ConstantOfShape", ["huge"], ["ones"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
            node("ReduceSum", ["ones"], ["s"], keepdims=0),
            node("Add", ["x", "s"], ["y"]),
        ],
        [X],
        [Y],
        {"huge": np.array([size, size])},
    )
    rows = {"x": np.ones((2, 3), np.float32)} if given else None

    with pytest.raises(Refused, match="needs more memory than a trial may have"):
        try_apart(graph, given=rows, bounds=Bounds(), progress=Silent(), limit_s=60)


def endless() -> bytes:
    """Return a graph with a loop of 2**62 rounds."""
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("Add", ["v", "v"], ["w"])],
        "body",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("v", None)],
        [info("go_on", [], TensorProto.BOOL), info("w", None)],
    )
    return model(
        [node("Loop", ["rounds", "yes", "x"], ["y"], body=body)],
        [X],
        [Y],
        {"rounds": np.array(1 << 62), "yes": np.array(True)},
    )


def test_a_loop_without_an_end_is_stopped():
    """The whole trial has a limit by the clock; its process is gone afterwards."""
    started = time.monotonic()

    with pytest.raises(Refused, match="not done with its trial in 4 s"):
        try_apart(endless(), given=None, bounds=Bounds(), progress=Silent(), limit_s=4)

    assert time.monotonic() - started < 10


def test_a_graph_that_runs_too_long_twice_is_not_tried_again(monkeypatch):
    """Every size and style for a minute each would keep the import busy until its own limit ends it."""
    monkeypatch.setattr("lightship.imports.tried_graph.MAX_RUN_S", 0.3)
    runs = []

    with pytest.raises(Refused, match=r"ran longer than 0\.3 s .* on 2 inputs of other values or sizes"):
        try_graph(endless(), tell=lambda *said: runs.append(said))

    assert runs == [("load", 0)]  # no run came to its end


def test_the_trial_can_write_no_file(tmp_path):
    """RLIMIT_FSIZE is 0 there: whatever a graph finds in a kernel, nothing it writes stays."""
    place = tmp_path / "file"
    code = (
        "import os, sys; from lightship.imports.trial_process import _bound; _bound(0)\n"
        "file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "try: os.write(file, b'x')\n"
        "except OSError: print('no')\n"
    )

    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=False)

    assert done.stdout == "no\n"
    assert place.stat().st_size == 0


def test_ctrl_c_ends_the_trial_too(tmp_path, write):
    """The process of the trial goes with the command, and nothing stays."""
    command = [sys.executable, "-m", "lightship.cli.main", "import", str(write(endless())), "--name", "m1"]
    process = subprocess.Popen(
        command, env={**os.environ, "LIGHTSHIP_HOME": str(tmp_path / "home")}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (children := _children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "Interrupted" in said
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
    assert not list((tmp_path / "home").rglob("blobs/*/*"))


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
