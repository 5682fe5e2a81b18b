"""Workers that die, stop, hang or are poisoned: they are replaced, and only who is to blame loses an answer.

The trap model takes the least 32-bit integer modulo -1 when an image is all black. The quotient does not fit, and that
is the processor's own trap, which ends a process whatever the program thinks of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.data.home import Home
from lightship.serve.limits import Clocks, Limits
from lightship.serve.server import Server, ServerOptions
from lightship.serve.shares import worker_memory_bytes, worker_threads
from lightship.serve.source import read_source
from lightship.tasks.image_pixels import png_bytes

DEADLINE_S = 30.0
QUICK = Clocks(lame_s=0.01, drain_s=DEADLINE_S)
BLACK = (0 - 0.1307) / 0.3081


def graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    """Return the graph 1x28x28 -> 10 of these nodes."""
    made = helper.make_graph(
        nodes,
        "trap",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


HEAD = [
    helper.make_node("Flatten", ["image"], ["flat"], axis=1),
    helper.make_node("MatMul", ["flat", "dense"], ["plain"]),
    helper.make_node("ReduceMax", ["image"], ["top"], axes=[1, 2, 3], keepdims=0),
    helper.make_node("Sub", ["top", "black"], ["off"]),
]
CONSTANTS = {
    "dense": np.random.default_rng(7).normal(0, 0.05, (784, 10)).astype(np.float32),
    "black": np.float32(BLACK),
    "hundred": np.float32(100),
    "zero": np.float32(0),
    "one": np.int32(1),
    "two": np.int32(2),
    "least_int": np.int32(-(2**31)),
    "column": np.array([1], np.int64),
}


def deadly() -> bytes:
    """Return a graph that ends its process on a black image."""
    return graph(
        [
            *HEAD,
            helper.make_node("Mul", ["off", "hundred"], ["scaled"]),
            helper.make_node("Cast", ["scaled"], ["whole"], to=TensorProto.INT32),
            helper.make_node("Mul", ["whole", "two"], ["even"]),
            helper.make_node("Sub", ["even", "one"], ["odd"]),
            helper.make_node("Mod", ["least_int", "odd"], ["parts"]),
            helper.make_node("Cast", ["parts"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["float", "zero"], ["nothing"]),
            helper.make_node("Unsqueeze", ["nothing", "column"], ["wide"]),
            helper.make_node("Add", ["plain", "wide"], ["logits"]),
        ],
        CONSTANTS,
    )


def endless() -> bytes:
    """Return a graph that loops for minutes on a black image."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Cos", ["x"], ["y"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
        ],
    )
    return graph(
        [
            *HEAD,
            helper.make_node("ReduceMin", ["off"], ["least"], keepdims=0),
            helper.make_node("Less", ["least", "little"], ["is_black"]),
            helper.make_node("Where", ["is_black", "long", "short"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "yes", "zero"], ["turned"], body=body),
            helper.make_node("Mul", ["turned", "zero"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        ],
        {
            **CONSTANTS,
            "little": np.float32(0.01),
            "long": np.int64(1_000_000_000),
            "short": np.int64(1),
            "yes": np.bool_(True),
        },
    )


def greedy() -> bytes:
    """Return a graph that wants four gigabytes for a black image."""
    return graph(
        [
            *HEAD,
            helper.make_node("ReduceMin", ["off"], ["least"], keepdims=0),
            helper.make_node("Less", ["least", "little"], ["is_black"]),
            helper.make_node("Where", ["is_black", "huge", "column"], ["size"]),
            helper.make_node("Expand", ["cell", "size"], ["filled"]),
            helper.make_node("ReduceMax", ["filled"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", "zero"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        ],
        {
            **CONSTANTS,
            "little": np.float32(0.01),
            "huge": np.array([1 << 30], np.int64),
            "cell": np.ones(1, np.float32),
        },
    )


@pytest.fixture(scope="module")
def traps(tmp_path_factory, release_model) -> Home:
    """Return a home with the models ``digits``, ``deadly`` and ``endless``."""
    made = Home(tmp_path_factory.mktemp("traps") / "home").ensure()
    release_model(made, "digits")
    release_model(made, "deadly", graph=deadly())
    release_model(made, "endless", graph=endless())
    release_model(made, "greedy", graph=greedy())
    return made


@contextlib.asynccontextmanager
async def serving(home: Home, *names: str, clocks: Clocks = QUICK, **options: object) -> AsyncIterator[Server]:
    """Run a server in this process, without keys; its workers are processes as always."""
    given = ServerOptions(port=0, clocks=clocks, limits=Limits(), **options)
    async with Server([read_source(home, name) for name in names], given) as server:
        yield server


def client_of(server: Server) -> httpx.AsyncClient:
    """Return a client of a server."""
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=DEADLINE_S)


async def until(condition: Callable[[], bool]) -> float:
    """Wait until a condition of the server holds, or fail at the deadline; return the seconds it took."""
    started = time.monotonic()
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the state inside a server and a process has no event
            await asyncio.sleep(0.005)
    return time.monotonic() - started


def png_of(value: int) -> bytes:
    """Return an image file of one gray."""
    return png_bytes(np.full((28, 28, 1), value, np.uint8))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
async def test_requests_wait_for_a_worker_that_went(traps, number):
    """However it went: those that come in the meantime are answered, by one new process, after no second death."""
    async with serving(traps, "digits") as server, client_of(server) as client:
        (model,) = server.models
        pid = model.worker_pids[0]
        os.kill(pid, number)
        answers = await asyncio.gather(*(client.post("/predict/digits", content=png_of(i)) for i in range(8)))
        deaths, pids = model.deaths, model.worker_pids

    assert [answer.status_code for answer in answers] == [200] * 8
    assert len(pids) == 1
    assert pids != (pid,)
    assert deaths == 1


async def test_a_second_worker_goes_on_while_the_first_is_replaced(traps):
    """They take batches from one queue: what the stopped one has waits for its replacement, the rest does not."""
    clocks = Clocks(lame_s=0.01, stopped_s=2.0, drain_s=DEADLINE_S)
    async with serving(traps, "digits", clocks=clocks, workers=2, depth=1) as server, client_of(server) as client:
        (model,) = server.models
        first, second = model.worker_pids
        os.kill(first, signal.SIGSTOP)
        stuck = asyncio.ensure_future(client.post("/predict/digits", content=png_of(0)))
        await until(lambda: model.running == 1)
        started = time.monotonic()
        quick = [await client.post("/predict/digits", content=png_of(1 + index)) for index in range(5)]
        seconds = time.monotonic() - started
        waited = not stuck.done()
        late = await stuck
        await until(lambda: len(model.worker_pids) == 2)
        pids, deaths = model.worker_pids, model.deaths

    assert [answer.status_code for answer in (late, *quick)] == [200] * 6
    assert waited
    assert seconds < 2.0
    assert second in pids
    assert first not in pids
    assert deaths == 1


async def test_what_two_workers_that_die_together_had_is_no_poison(traps):
    """The request of the first is sent to the second, which is dead too: that was no second try."""
    async with serving(traps, "digits", workers=2, depth=1) as server, client_of(server) as client:
        (model,) = server.models
        pids = model.worker_pids
        os.kill(pids[0], signal.SIGSTOP)
        asked = asyncio.ensure_future(client.post("/predict/digits", content=png_of(3)))
        await until(lambda: model.running == 1)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        answer = await asked
        await until(lambda: len(model.worker_pids) == 2)
        deaths, quarantined = model.deaths, model.quarantined

    assert answer.status_code == 200
    assert (deaths, quarantined) == (2, 0)


async def test_a_model_is_ready_when_all_of_its_workers_are(traps):
    """Else whoever waits for it would send requests to a server that may still fail to start."""
    server = Server([read_source(traps, "digits")], ServerOptions(port=0, clocks=QUICK, workers=2))
    starting = asyncio.ensure_future(server.__aenter__())
    seen = set()
    while not starting.done():
        await asyncio.sleep(0.002)
        seen |= {(model.ready, len(model.worker_descriptors)) for model in server.models}
    (model,) = server.models
    at_last = model.ready
    await server.__aexit__(None, None, None)

    assert (False, 1) in seen
    assert (True, 1) not in seen
    assert at_last


async def test_a_model_that_is_closed_while_it_is_measured_is_not_waited_for(traps):
    """Or no other model would ever be measured."""
    async with serving(traps, "digits", tune=False) as server:
        (model,) = server.models
        os.kill(model.worker_pids[0], signal.SIGSTOP)
        measuring = asyncio.ensure_future(model.measure((1, 2, 4, 8), budget_ms=20_000))
        await asyncio.sleep(0.05)
        await model.close()
        async with asyncio.timeout(DEADLINE_S):
            assert await measuring is None


async def test_requests_that_come_in_one_turn_are_counted_before_they_are_read(traps):
    """JSON is read when all have come: a full queue refuses the others by their heads all the same."""
    body = json.dumps(
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.5] * 784}]}
    ).encode()
    head = b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    options = ServerOptions(port=0, clocks=QUICK, limits=Limits(queue_requests=3), depth=1)
    async with Server([read_source(traps, "digits")], options) as server:
        (model,) = server.models
        read: list[int] = []
        os.kill(model.worker_pids[0], signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(20)]
            await until(lambda: len(server.front.connections) == 20)
            for sock in socks:
                sock.sendall(head + body)  # nobody else has a turn between these
            await until(lambda: model.figures.refused >= 16)
            read.append(model.waiting + model.running)
            os.kill(model.worker_pids[0], signal.SIGCONT)
            await until(lambda: model.waiting + model.running == 0)
        refused, coming = model.figures.refused, model.coming

    assert read == [20 - refused]
    assert read[0] <= 4
    assert coming == 0


async def test_a_poison_is_found_by_several_workers(traps):
    """It kills one, then another one; both come back, and nobody else loses an answer."""
    async with serving(traps, "deadly", workers=2) as server, client_of(server) as client:
        (model,) = server.models
        values = [0, *range(100, 112)]
        poison, *good = await asyncio.gather(
            *(client.post("/predict/deadly", content=png_of(value)) for value in values)
        )
        again = await client.post("/predict/deadly", content=png_of(0))
        await until(lambda: len(model.worker_pids) == 2)
        deaths = model.deaths

    assert [answer.status_code for answer in good] == [200] * 12
    assert poison.status_code == again.status_code == 500
    assert "died twice" in poison.json()["error"]
    assert "not run for" in again.json()["error"]
    assert deaths == 2


async def test_one_poison_in_a_full_batch_costs_nobody_else_an_answer(traps):
    """The rest is answered, the poison is 500, kept away, and does not open the circuit."""
    async with serving(traps, "deadly", depth=1) as server, client_of(server) as client:
        (model,) = server.models
        model._depth = 0  # until all wait
        values = [0, *range(100, 107)]
        asked = [asyncio.ensure_future(client.post("/predict/deadly", content=png_of(value))) for value in values]
        await until(lambda: model.waiting == len(values))
        model._depth = 1
        model._pump()
        poison, *innocent = await asyncio.gather(*asked)
        again = await client.post("/predict/deadly", content=png_of(0))
        other = await client.post("/predict/deadly", content=png_of(9))
        as_tensor = await client.post(
            "/v2/models/deadly/infer",
            json={
                "inputs": [
                    {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [1.0] * 784},
                ]
            },
        )

    assert [answer.status_code for answer in innocent] == [200] * 7
    assert poison.status_code == 500
    assert "died twice" in poison.json()["error"]
    assert again.status_code == 500
    assert "not run for" in again.json()["error"]
    assert other.status_code == 200
    assert as_tensor.status_code == 200
    assert model.deaths == 2
    assert model._replicas[0].life.in_a_row == 0


async def test_many_poisons_do_not_open_the_circuit(traps):
    """Each is found out; who asks for something else meanwhile waits and is answered."""
    async with serving(traps, "deadly") as server, client_of(server) as client:
        poisons = [  # black, and different files
            asyncio.ensure_future(client.post("/predict/deadly", content=png_of(0) + bytes([index])))
            for index in range(2)
        ]
        good = [asyncio.ensure_future(client.post("/predict/deadly", content=png_of(100 + i))) for i in range(4)]
        statuses = [answer.status_code for answer in await asyncio.gather(*poisons, *good)]

    assert statuses == [500, 500, 200, 200, 200, 200]


async def test_poisons_that_are_new_each_time_open_the_circuit(traps):
    """The third with no good batch between; it closes with the first good one, and the known ones do not count."""
    async with serving(traps, "deadly") as server, client_of(server) as client:
        (model,) = server.models

        async def ask(index: int) -> httpx.Response:
            return await client.post("/predict/deadly", content=png_of(0) + bytes([index]))

        found = [(await ask(index)).status_code for index in range(3)]
        refused = await ask(3)
        deaths = model.deaths
        good = [await client.post("/predict/deadly", content=png_of(9))]
        async with asyncio.timeout(DEADLINE_S):
            while good[-1].status_code == 503:
                await asyncio.sleep(0.05)
                good.append(await client.post("/predict/deadly", content=png_of(9)))
        known = [(await ask(index)).status_code for index in range(3)]

    assert found == [500, 500, 500]
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert good[-1].status_code == 200
    assert known == [500, 500, 500]
    assert model.deaths == deaths == 6
    assert model._replicas[0].life.in_a_row == 0


async def test_new_poisons_between_good_requests_cost_time_and_no_answers(traps):
    """Whoever asks for something else is answered; after the third in a minute workers are not started at once."""
    async with serving(traps, "deadly") as server, client_of(server) as client:
        (model,) = server.models
        over, statuses, seconds = asyncio.Event(), [], []

        async def others() -> None:
            while not over.is_set():
                statuses.append((await client.post("/predict/deadly", content=png_of(200))).status_code)

        asking = asyncio.ensure_future(others())
        for index in range(5):
            began = time.monotonic()
            poison = await client.post("/predict/deadly", content=png_of(0) + bytes([index, 1]))
            assert poison.status_code == 500
            known = len(statuses)
            async with asyncio.timeout(DEADLINE_S):
                # One answer may be on its way; the next is of the worker that was started last.
                while len(statuses) < known + 2:  # noqa: ASYNC110 - that others were answered has no event
                    await asyncio.sleep(0.005)
            seconds.append(time.monotonic() - began)
        over.set()
        await asking

    assert set(statuses) == {200}
    assert model.deaths == 10
    assert seconds[4] >= 2 * 0.5  # before either start


async def test_a_batch_nobody_waits_for_is_stopped(traps):
    """The engine gives up on it; the worker goes on."""
    async with serving(traps, "endless") as server, client_of(server) as client:
        (model,) = server.models
        pid = model.worker_pids[0]
        late = await client.post("/predict/endless", content=png_of(0), headers={"x-request-timeout-ms": "300"})
        started = time.monotonic()
        good = await client.post("/predict/endless", content=png_of(200))
        seconds = time.monotonic() - started

    assert late.status_code == 504
    assert good.status_code == 200
    assert seconds < 1.0
    assert model.worker_pids in ((), (pid,))
    assert model.deaths == 0


async def test_a_batch_that_does_not_stop_costs_its_worker(traps):
    """A process that cannot listen is replaced within two seconds of the deadline."""
    clocks = Clocks(lame_s=0.01, stopped_s=DEADLINE_S, silent_s=5 * DEADLINE_S, overdue_s=0.5)
    async with serving(traps, "digits", clocks=clocks) as server, client_of(server) as client:
        (model,) = server.models
        os.kill(model.worker_pids[0], signal.SIGSTOP)
        late = await client.post("/predict/digits", content=png_of(1), headers={"x-request-timeout-ms": "200"})
        started = time.monotonic()
        good = await client.post("/predict/digits", content=png_of(2))
        seconds = time.monotonic() - started

    assert late.status_code == 504
    assert good.status_code == 200
    assert seconds < 4.0  # two, where nobody else is at work
    assert model.deaths == 1


async def test_a_worker_that_gives_no_sign_of_life_is_replaced(traps):
    """Also when it is not stopped but locked; here a debugger's stop stands for it, with the other check off."""
    clocks = Clocks(lame_s=0.01, stopped_s=DEADLINE_S, silent_s=0.8)
    async with serving(traps, "digits", clocks=clocks) as server:
        (model,) = server.models
        pid = model.worker_pids[0]
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: model._replicas[0].life._worker is not None and model.worker_pids[0] == pid)
        seconds = 0.0
        # The check for a stopped process goes first and would wait: so let it see a running one.
        worker = model._replicas[0].life._worker
        worker.stands_still = lambda: False
        seconds = await until(lambda: model.deaths == 1)
        await until(lambda: model.ready)

    assert seconds < 2.5


async def test_a_hung_start_is_bounded(traps):
    """A worker that never becomes ready is an error, not a wait for ever."""
    clocks = Clocks(lame_s=0.01, load_s=0.01, stopped_s=DEADLINE_S)
    server = Server([read_source(traps, "digits")], ServerOptions(port=0, clocks=clocks))

    with pytest.raises(Exception, match=r"not ready in 0\.01 s"):
        await server.__aenter__()


async def test_an_allocation_that_fails_costs_one_request(traps):
    """Its own; the worker goes on, and another model does not notice."""
    options = {"worker_memory_bytes": 512 << 20, "depth": 1}
    async with serving(traps, "greedy", "digits", **options) as server, client_of(server) as client:
        greedy_model, _ = server.models
        pids = [model.worker_pids[0] for model in server.models]
        answers = await asyncio.gather(
            client.post("/predict/greedy", content=png_of(0)),
            *(client.post(f"/predict/{name}", content=png_of(9)) for name in ("greedy", "digits") for _ in range(3)),
        )

        assert [model.worker_pids[0] for model in server.models] == pids

    assert [answer.status_code for answer in answers] == [503, *[200] * 6]
    assert int(answers[0].headers["retry-after"]) >= 1
    assert "more memory" in answers[0].json()["error"]
    assert greedy_model.deaths == 0


def far() -> bytes:
    """Return a graph that looks for row 2^30 of a table of two on a black image."""
    return graph(
        [
            *HEAD,
            helper.make_node("ReduceMin", ["off"], ["least"], keepdims=0),
            helper.make_node("Less", ["least", "little"], ["is_black"]),
            helper.make_node("Where", ["is_black", "huge", "column"], ["at"]),
            helper.make_node("Gather", ["table", "at"], ["found"]),
            helper.make_node("Mul", ["found", "zero"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        ],
        {
            **CONSTANTS,
            "little": np.float32(0.01),
            "huge": np.array([1 << 30], np.int64),
            "table": np.ones(2, np.float32),
        },
    )


async def test_what_the_graph_cannot_run_is_the_clients_over_http_and_grpc(traps, release_model):
    """400 and INVALID_ARGUMENT; memory is 503 and RESOURCE_EXHAUSTED. Neighbors in the batch are answered."""
    grpc = pytest.importorskip("grpc")
    messages = pytest.importorskip("lightship.v2.grpc_messages")
    release_model(traps, "far", graph=far())
    black = np.full((1, 1, 28, 28), BLACK, np.float32)

    def code_of(port: int, name: str) -> grpc.StatusCode:
        asked = messages.message_class("ModelInferRequest")(model_name=name)
        asked.inputs.add(name="image", datatype="FP32", shape=black.shape)
        asked.raw_input_contents.append(black.tobytes())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            return call.future(asked.SerializeToString()).exception(DEADLINE_S).code()

    options = {"worker_memory_bytes": 512 << 20, "depth": 1, "grpc_port": 0}
    async with serving(traps, "far", "greedy", **options) as server, client_of(server) as client:
        answers = await asyncio.gather(*(client.post("/predict/far", content=png_of(v)) for v in (0, 9, 0, 100)))
        codes = [await asyncio.to_thread(code_of, server.grpc_port, name) for name in ("far", "greedy")]
        deaths = [model.deaths for model in server.models]

    assert [answer.status_code for answer in answers] == [400, 200, 400, 200]
    assert "cannot be run on this input: image (1, 1, 28, 28)" in answers[0].json()["error"]
    assert "Gather" not in answers[0].text
    assert codes == [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert deaths == [0, 0]


async def test_a_worker_over_its_memory_is_replaced(traps):
    """What it holds is looked at, also when no single allocation was too large."""
    async with serving(traps, "digits", worker_memory_bytes=1 << 30) as server, client_of(server) as client:
        (model,) = server.models
        pid = model.worker_pids[0]
        model._replicas[0].life._worker.memory_bytes = lambda: 2 << 30  # a leak, as the watch would see it
        await until(lambda: model.deaths == 1)
        await until(lambda: model.ready)
        answer = await client.post("/predict/digits", content=png_of(9))
        assert model.worker_pids[0] != pid

    assert answer.status_code == 200


async def test_a_model_that_does_not_fit_says_so(traps):
    """At the start, with the option's name."""
    options = ServerOptions(port=0, clocks=QUICK, worker_memory_bytes=1 << 20)
    server = Server([read_source(traps, "digits")], options)

    with pytest.raises(Exception, match=r"memory|died while it was loading"):
        await server.__aenter__()


def test_models_share_cores_and_memory():
    """All for one; a share each for several; never nothing, never more than most of the machine."""
    assert [worker_threads(models, cores=4) for models in (1, 2, 3, 9)] == [4, 2, 1, 1]
    assert worker_memory_bytes(0, 1, limit_bytes=10 << 30) == int(0.8 * (10 << 30))
    assert worker_memory_bytes(0, 100, limit_bytes=10 << 30) == 1 << 30
    assert worker_memory_bytes(8 << 30, 2, limit_bytes=10 << 30) == int(0.8 * (10 << 30))
