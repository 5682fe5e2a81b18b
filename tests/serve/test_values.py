"""Values outside of what was proven are refused by the server, by name, and the others of their batch are answered."""

from __future__ import annotations

import asyncio
import re

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.apply.client import AsyncClient, Client
from lightship.data.home import Home
from lightship.errors import InvalidTensor
from lightship.pipeline.imported import import_model
from lightship.types import ValueRange

RANGE = ValueRange(-100.0, 100.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory, release_model, launch):
    """Return a server of ``bounded``, whose values were proven, ``open``, whose were not, and ``words``, a table."""
    home = Home(tmp_path_factory.mktemp("values") / "home").ensure()
    release_model(home, "bounded", values={"image": RANGE})
    release_model(home, "open")
    path = home.root / "words.onnx"
    path.write_bytes(words())
    import_model(path, name="words", home=home, accept_unproven=True)
    return launch(home, "bounded", "open", "words", "--auth", "none")


def words() -> bytes:
    """Return a graph that looks tokens up in a table of 50 rows and adds their vectors."""
    table = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["each"]),
        helper.make_node("ReduceSum", ["each", "axis"], ["sum"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 6])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.ModelProto.SerializeToString(model)


def rows(count: int = 1) -> np.ndarray:
    """Return usual rows."""
    return np.random.default_rng(5).normal(size=(count, 1, 28, 28)).astype(np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 101.0, -3e38], ids=str)
def test_a_value_outside_is_400_with_input_range_and_place(server, value):
    """Whoever sends it learns what was wrong, with which of the rows."""
    image = rows(3)
    image[2, 0, 5, 7] = value
    with Client(server.url) as client, pytest.raises(InvalidTensor.__mro__[1]) as refused:
        client.infer("bounded", {"image": image})

    said = str(refused.value)
    assert "The values of input 'image' must be -100 to 100, which is what the model was proven for." in said
    place = re.search(r"at \[(\d), 0, 5, 7\]\.(?: \(Places count from row (\d) of the request\.\))?", said)
    assert place, said
    assert int(place[1]) + int(place[2] or 0) == 2


def test_what_was_not_proven_is_not_refused(server):
    """A release without ranges says nothing, and old bundles have none."""
    image = rows()
    image[0, 0, 0, 0] = np.nan
    with Client(server.url) as client:
        assert client.infer("open", {"image": image})["logits"].shape == (1, 10)
        assert client.infer("bounded", {"image": rows() * 0 + 100})["logits"].shape == (1, 10)


async def test_the_others_of_a_batch_get_their_answers(server, runner):
    """One in five is refused; a row that was dropped at the wrong place would give people each other's answers."""
    async with AsyncClient(server.url, timeout_s=60) as client:

        async def ask(number: int) -> np.ndarray | str:
            image = rows(1) + number / 100
            if number % 5 == 3:
                image[0, 0, 1, 1] = np.inf
            try:
                return (await client.infer("bounded", {"image": image}))["logits"]
            except Exception as exc:  # noqa: BLE001 - what came is what is judged
                return str(exc)

        answers = await asyncio.gather(*(ask(number) for number in range(40)))

    for number, answer in enumerate(answers):
        if number % 5 == 3:
            assert "Got inf at [0, 0, 1, 1]" in str(answer)
        else:
            expected = runner.run({"image": rows(1) + np.float32(number / 100)})["logits"]
            assert answer == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("ids", [50, -1, 2**40])
def test_row_numbers_beyond_their_table_are_refused(server, ids):
    """Not by the engine, in the middle of a batch: it would halve the batch until it has found the request."""
    tokens = np.arange(6)[None].copy()
    tokens[0, 4] = ids
    with Client(server.url) as client:
        assert client.infer("words", {"ids": np.arange(44, 50)[None]})["sum"].shape == (1, 4)
        with pytest.raises(InvalidTensor.__mro__[1], match=r"input 'ids' must be 0 to 49, .* at \[0, 4\]"):
            client.infer("words", {"ids": tokens})


def test_json_is_judged_alike(server):
    """The same check, whichever form a request has."""
    body = {"inputs": [{"name": "ids", "shape": [1, 6], "datatype": "INT64", "data": [0, 1, 2, 3, 4, 77]}]}
    answer = httpx.post(f"{server.url}/v2/models/words/infer", json=body, timeout=60)

    assert answer.status_code == 400
    assert "Got 77 at [0, 5]" in answer.json()["error"]
