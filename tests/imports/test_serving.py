"""Imported models behind a real server, several at once, of every form: answers against the engine itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from onnx import TensorProto
from tests.imports.conftest import attention, info, linear, model, node, texts

from lightship.data.home import Home
from lightship.engine.runner import EngineOptions, load_runner
from lightship.pipeline.imported import import_model

GRAPHS = {
    "rows": linear(),
    "tokens": attention(),
    "fixed": linear(1),
    "texts": texts(),
    "groups": model(
        [
            node("LabelEncoder", ["c"], ["g"], domain="ai.onnx.ml",
                 keys_strings=["a"], values_strings=["A"], default_string="-"),
        ],
        [info("c", ["N"], TensorProto.STRING)],
        [info("g", ["N"], TensorProto.STRING)],
        domains=["ai.onnx.ml"],
    ),
    "scalar": model([node("Mul", ["x", "k"], ["y"])], [info("x", [3]), info("k", [])], [info("y", [3])]),
    "whole": model([node("ReduceMean", ["x"], ["y"], keepdims=0)], [info("x", ["n", 3])], [info("y", [])]),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return the address of one server of all graphs, each imported by version number."""
    home = Home(tmp_path_factory.mktemp("served") / "home")
    for name, graph in GRAPHS.items():
        path = tmp_path_factory.mktemp("files") / "model.onnx"
        path.write_bytes(graph)
        import_model(path, name=name, home=home, upto={"seq": 16} if name == "tokens" else {})
    log = tmp_path_factory.mktemp("log") / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "lightship.cli.main", "serve", *(f"{name}:1" for name in GRAPHS), "--port", "0",
             "--auth", "none", "--json"],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, "LIGHTSHIP_HOME": str(home.root), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    line = process.stdout.readline()
    assert line, log.read_text()
    yield {**json.loads(line), "log": log}
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    process.stdout.close()


def ask(server: dict, name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Ask with Triton's client, unmodified, in the binary form."""
    client = triton.InferenceServerClient(server["url"].removeprefix("http://"))
    inputs = []
    for key, array in arrays.items():
        kind = "BYTES" if array.dtype == object else {"f": "FP32", "i": "INT64"}[array.dtype.kind]
        inputs.append(triton.InferInput(key, array.shape, kind))
        inputs[-1].set_data_from_numpy(array)
    answer = client.infer(name, inputs)
    client.close()
    return {item["name"]: answer.as_numpy(item["name"]) for item in answer.get_response()["outputs"]}


def direct(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Ask the engine."""
    return load_runner(GRAPHS[name], options=EngineOptions(batched=False)).run(arrays)


CASES = {
    "rows": {"x": np.random.default_rng(2).normal(size=(70, 4)).astype(np.float32)},
    "tokens": {
        "input_ids": np.random.default_rng(2).integers(0, 100, (5, 9)),
        "attention_mask": np.ones((5, 9), np.int64),
    },
    "fixed": {"x": np.ones((1, 4), np.float32)},
    "texts": {"city": np.array(["a", "é", "yes"], dtype=object), "size": np.ones((3, 3), np.float32)},
    "groups": {"c": np.array(["a", "b"], dtype=object)},
    "scalar": {"x": np.ones(3, np.float32), "k": np.array(2.5, np.float32)},
    "whole": {"x": np.random.default_rng(2).normal(size=(100, 3)).astype(np.float32)},
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_server_answers_as_the_engine_does(server, name):
    """Rows beyond a batch, tokens, a fixed shape, texts, a number that is no list, and a graph without rows."""
    arrays = CASES[name]

    found, expected = ask(server, name, arrays), direct(name, arrays)

    assert set(found) == set(expected)
    for key, array in expected.items():
        if array.dtype == object:
            assert [item.decode() for item in found[key].ravel()] == array.ravel().tolist()
        else:
            np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6)
            assert found[key].shape == array.shape


def test_sizes_that_were_not_proven_are_refused_by_name(server):
    """The message says the range."""
    ids = {"data": [[1] * 17], "shape": [1, 17], "datatype": "INT64"}
    body = {"inputs": [{"name": "input_ids", **ids}, {"name": "attention_mask", **ids}]}

    answer = httpx.post(f"{server['url']}/v2/models/tokens/infer", json=body)

    assert answer.status_code == 400
    assert "(seq) was proven for 1 to 16" in answer.json()["error"]


def test_a_model_without_labels_has_no_raw_door(server):
    """Neither its own nor V2's: 404, as any name that is not there."""
    assert httpx.post(f"{server['url']}/predict/rows", content=b"x").status_code == 404
    assert httpx.get(f"{server['url']}/v2/models/rows.raw").status_code == 404
    assert httpx.get(f"{server['url']}/v2/models/rows").json()["inputs"][0]["shape"] == [-1, 4]


def test_the_server_says_that_quality_was_not_judged(server):
    """In its log, once a model, and in its state."""
    events = [json.loads(line)["event"] for line in server["log"].read_text().splitlines()]
    assert sum("is structural: how good its answers are was not measured" in event for event in events) == len(GRAPHS)
