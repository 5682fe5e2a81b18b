"""Starts, stops, deaths, full queues, clients that go: what happens to the requests.

A worker that is stopped by SIGSTOP is a model that takes long, for as long as a test likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from lightship.data.home import Home
from lightship.errors import BundleRefused
from lightship.serve.limits import Clocks, Limits
from lightship.serve.server import Server, ServerOptions
from lightship.serve.source import read_source
from lightship.tasks.image_pixels import png_bytes

DEADLINE_S = 30.0
QUICK = Clocks(lame_s=0.01, drain_s=DEADLINE_S, stopped_s=DEADLINE_S, silent_s=5 * DEADLINE_S)


@contextlib.asynccontextmanager
async def serving(
    home: Home, *, clocks: Clocks = QUICK, limits: Limits | None = None, depth: int = 1
) -> AsyncIterator[Server]:
    """Run a server in this process, without keys; its worker is a process as always."""
    options = ServerOptions(port=0, clocks=clocks, limits=limits or Limits(), depth=depth)
    async with Server([read_source(home, "digits")], options) as server:
        yield server


def client_of(server: Server) -> httpx.AsyncClient:
    """Return a client of a server."""
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=DEADLINE_S)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition of the server holds, or fail at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the state inside a server and a process has no event
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def stopped(pid: int):
    """Hold a process still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def png(image) -> bytes:
    """Return an image file."""
    return png_bytes(image(3)[:, :, None])


async def test_a_full_queue_is_429_with_retry_after(home, png):
    """One runs, two wait, the rest are told at once; those that were let in are answered."""
    async with serving(home, limits=Limits(queue_requests=2)) as server, client_of(server) as client:
        (model,) = server.models
        with stopped(model.worker_pids[0]):
            first = asyncio.ensure_future(client.post("/predict/digits", content=png))
            await until(lambda: model.running == 1)
            accepted = [asyncio.ensure_future(client.post("/predict/digits", content=png)) for _ in range(2)]
            await until(lambda: model.waiting == 2)
            started = time.monotonic()
            refused = await asyncio.gather(*(client.post("/predict/digits", content=png) for _ in range(5)))
            seconds = time.monotonic() - started
        answers = await asyncio.gather(first, *accepted)

    assert [answer.status_code for answer in refused] == [429] * 5
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert seconds < 1.0
    assert [answer.status_code for answer in answers] == [200] * 3


async def test_what_waits_while_the_worker_is_busy_runs_together(home, png):
    """Run when idle, collect while busy."""
    async with serving(home) as server, client_of(server) as client:
        (model,) = server.models
        with stopped(model.worker_pids[0]):
            first = asyncio.ensure_future(client.post("/predict/digits", content=png))
            await until(lambda: model.running == 1)
            more = [asyncio.ensure_future(client.post("/predict/digits", content=png)) for _ in range(10)]
            await until(lambda: model.waiting == 10)
        answers = await asyncio.gather(first, *more)

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) <= 3  # equal but for the last digits of another batch size
    assert model.figures.batches == 3  # one, then as many as were proven (8), then the rest


async def test_a_client_that_goes_leaves_the_queue(home, png):
    """Its request never runs; the others' do."""
    async with serving(home) as server, client_of(server) as client:
        (model,) = server.models
        with stopped(model.worker_pids[0]):
            first = asyncio.ensure_future(client.post("/predict/digits", content=png))
            await until(lambda: model.running == 1)
            async with client_of(server) as leaving:
                gone = asyncio.ensure_future(leaving.post("/predict/digits", content=png))
                await until(lambda: model.waiting == 1)
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
            await until(lambda: model.waiting == 0)
        assert (await first).status_code == 200

    assert model.figures.rows == 1
    assert model.figures.cancelled == 1


async def test_a_request_whose_time_is_up_is_504(home, png):
    """In the queue and in the worker alike, at its deadline and not later."""
    async with serving(home) as server, client_of(server) as client:
        (model,) = server.models
        with stopped(model.worker_pids[0]):
            started = time.monotonic()
            answers = await asyncio.gather(
                *(
                    client.post("/predict/digits", content=png, headers={"x-request-timeout-ms": "200"})
                    for _ in range(3)
                )
            )
            seconds = time.monotonic() - started
        assert (await client.post("/predict/digits", content=png)).status_code == 200

    assert [answer.status_code for answer in answers] == [504] * 3
    assert 0.15 < seconds < 2.0
    assert model.figures.expired == 3


async def test_a_killed_worker_costs_nobody_an_answer(home, png):
    """What it had is run once more, alone, in a fresh one; what waited still waits."""
    async with serving(home) as server, client_of(server) as client:
        (model,) = server.models
        pid = model.worker_pids[0]
        with stopped(pid):
            first = asyncio.ensure_future(client.post("/predict/digits", content=png))
            await until(lambda: model.running == 1)
            more = [asyncio.ensure_future(client.post("/predict/digits", content=png)) for _ in range(4)]
            await until(lambda: model.waiting == 4)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not server.ready)
            assert (await client.get("/readyz")).status_code == 503
        answers = await asyncio.gather(first, *more)
        assert (await client.get("/readyz")).status_code == 200
        assert len(model.worker_pids) == 1
        assert model.worker_pids != (pid,)

    assert [answer.status_code for answer in answers] == [200] * 5
    assert model.deaths == 1


async def test_a_request_that_kills_twice_fails_and_the_others_do_not(home, png, image):
    """The second death with the same request in hand is its last try."""
    async with serving(home) as server, client_of(server) as client:
        (model,) = server.models
        with stopped(model.worker_pids[0]):
            culprit = asyncio.ensure_future(client.post("/predict/digits", content=png))
            await until(lambda: model.running == 1)
            os.kill(model.worker_pids[0], signal.SIGKILL)
            await until(lambda: model.deaths == 1)
        model._depth = 0  # hold the next batch back until the new worker can be stopped
        await until(lambda: model.ready)
        with stopped(model.worker_pids[0]):
            model._depth = 1
            model._pump()
            await until(lambda: model.running == 1)
            os.kill(model.worker_pids[0], signal.SIGKILL)
            await until(lambda: model.deaths == 2)
        answer = await culprit
        assert (await client.post("/predict/digits", content=png_bytes(image(5)[:, :, None]))).status_code == 200
        again = await client.post("/predict/digits", content=png_bytes(image(4)[:, :, None]))
        refused = await client.post("/predict/digits", content=png)

    assert answer.status_code == 500
    assert "died twice" in answer.json()["error"]
    assert again.status_code == 200
    assert refused.status_code == 500
    assert "not run for" in refused.json()["error"]
    assert model.figures.batches == 4  # its two, and those of the two others


async def test_a_hung_worker_is_replaced(home, png):
    """It is killed when one batch takes too long."""
    async with (
        serving(home, clocks=Clocks(lame_s=0.01, hang_s=0.3, stopped_s=DEADLINE_S)) as server,
        client_of(server) as client,
    ):
        (model,) = server.models
        with stopped(model.worker_pids[0]):
            answer = await client.post("/predict/digits", content=png)

    assert answer.status_code == 200
    assert model.deaths == 1


async def test_the_worker_dies_with_its_server(home):
    """No orphan holds the memory."""
    async with serving(home) as server:
        pid = server.models[0].worker_pids[0]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_stopping_answers_what_was_accepted(home, png):
    """Not ready at once, no new connections, the last answers say so."""
    async with serving(home) as server:
        (model,) = server.models
        client = client_of(server)
        with stopped(model.worker_pids[0]):
            waiting = [asyncio.ensure_future(client.post("/predict/digits", content=png)) for _ in range(5)]
            await until(lambda: model.running + model.waiting == 5)
            server.stop()
            assert not server.ready
            leaving = asyncio.ensure_future(server.__aexit__(None, None, None))
            await until(lambda: server.front.closing)
            with pytest.raises(httpx.ConnectError):
                async with client_of(server) as late:
                    await late.get("/livez")
        answers = await asyncio.gather(*waiting)
        await leaving
        await client.aclose()

    assert [answer.status_code for answer in answers] == [200] * 5
    assert {answer.headers.get("connection") for answer in answers} == {"close"}


async def test_a_second_stop_does_not_wait(home, png):
    """Who asks twice means it."""
    async with serving(home) as server:
        client = client_of(server)
        with stopped(server.models[0].worker_pids[0]):
            waiting = asyncio.ensure_future(client.post("/predict/digits", content=png))
            await until(lambda: server.models[0].running == 1)
            server.stop()
            leaving = asyncio.ensure_future(server.__aexit__(None, None, None))
            await until(lambda: server.front.closing)
            server.stop()
            async with asyncio.timeout(5):
                await leaving
        with pytest.raises(httpx.HTTPError):
            await waiting
        await client.aclose()


def test_sigterm_under_load_loses_nothing_and_exits_with_0(home, launch, png):
    """Every request that got a connection gets its answer."""
    server = launch(home, "digits", "--auth", "none")

    def hammer(_: int) -> tuple[int, list[str]]:
        """Ask until no connection is to be had; return the number of answers and what was lost."""
        answers = 0
        with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client:
            while True:
                try:
                    status = client.post("/predict/digits", content=png).status_code
                except httpx.ConnectError:
                    return answers, []
                except httpx.HTTPError as exc:
                    return answers, [repr(exc)]
                if status != 200:
                    return answers, [f"status {status}"]
                answers += 1

    with ThreadPoolExecutor(8) as pool:
        hammering = [pool.submit(hammer, index) for index in range(8)]
        while httpx.get(f"{server.control_url}/models").json()["models"][0]["running"] == 0:
            pass
        server.process.send_signal(signal.SIGTERM)
        results = [future.result(DEADLINE_S) for future in hammering]

    assert server.process.wait(DEADLINE_S) == 0
    assert sum(answers for answers, _ in results) > 0
    assert [lost for _, some in results for lost in some] == []


def test_killing_the_server_kills_its_workers(home, launch):
    """Also without a chance to say goodbye."""
    server = launch(home, "digits", "--auth", "none", "--workers", "2")
    (state,) = httpx.get(f"{server.control_url}/models").json()["models"]

    server.process.kill()
    server.process.wait(DEADLINE_S)

    assert len(state["worker_pids"]) == 2
    deadline = time.monotonic() + DEADLINE_S
    while any(is_alive(pid) for pid in state["worker_pids"]):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Return whether there is such a process, and it is not one that is dead and that nobody reaps here."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


def serve(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``lightship serve`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "lightship.cli.main", "serve", *arguments],
        env={**os.environ, "LIGHTSHIP_HOME": str(home.root)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_a_changed_preprocessing_constant_is_noticed_before_serving(tmp_path, release_model):
    """The mean in the bundle is not the one that the golden examples were made with (A3): exit 6, by name."""
    home = Home(tmp_path / "home").ensure()
    release_model(home, "digits", mean="0.1407", golden_mean="0.1307")

    done = serve(home, "digits", "--port", "0", "--auth", "none")

    assert done.returncode == 6
    assert "golden input golden/inputs/0.png" in done.stderr
    assert "expected 'logits'" in done.stderr
    assert done.stdout == ""


async def test_the_failed_self_test_leaves_no_worker_and_no_port(tmp_path, release_model):
    """A server that did not start holds nothing."""
    home = Home(tmp_path / "home").ensure()
    release_model(home, "digits", mean="0.1407", golden_mean="0.1307")
    server = Server([read_source(home, "digits")], ServerOptions(port=0, clocks=QUICK))

    with pytest.raises(BundleRefused, match=r"golden/inputs/0\.png"):
        await server.__aenter__()

    assert server.models[0].worker_pids == ()


def test_a_damaged_bundle_is_refused_by_the_name_of_the_file(tmp_path, release_model):
    """One flipped bit of the graph: exit 6."""
    home = Home(tmp_path / "home").ensure()
    release_model(home, "digits")
    graph = max(
        (home.store / "blobs" / "sha256").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0
    )
    graph.chmod(0o644)
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)

    done = serve(home, "digits", "--port", "0", "--auth", "none")

    assert done.returncode == 6
    assert "variants/reference/model.onnx" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("none",), 3, "There is no model 'none'"),
        (("digits@staging",), 3, "no alias 'staging'"),
        (("digits:9",), 3, "no version 9"),
        (("digits", "--auth", "none", "--host", "0.0.0.0"), 2, "loopback"),
        (("digits", "--port", "70000"), 2, "70000"),
        ((), 2, "NAME"),
    ],
)
def test_a_server_that_cannot_start_says_why(home, arguments, code, message):
    """With the exit code of the error."""
    done = serve(home, *arguments)

    assert done.returncode == code, done.stderr
    assert message in done.stderr


def test_a_taken_port_is_an_error(home, server):
    """Known before any model is loaded."""
    done = serve(home, "digits", "--auth", "none", "--port", str(server.address[1]))

    assert done.returncode == 4
    assert "cannot be used" in done.stderr


def test_the_first_start_makes_a_key_and_does_not_print_it(tmp_path, release_model, launch):
    """It prints where the key is."""
    home = Home(tmp_path / "home").ensure()
    release_model(home, "digits")

    server = launch(home, "digits")

    key = (home.keys / "default.key").read_text().strip()
    said = server.log.read_text()
    assert str(home.keys / "default.key") in said
    assert key not in said
    assert httpx.get(f"{server.url}/v2").status_code == 401
    assert httpx.get(f"{server.url}/v2", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_a_worker_loads_no_training_code_and_no_database(server):
    """It is small, and starts quickly."""
    pid = httpx.get(f"{server.control_url}/models").json()["models"][0]["worker_pids"][0]
    maps = Path(f"/proc/{pid}/maps").read_text()

    assert "onnxruntime" in maps
    for name in ("torch", "sqlalchemy", "uvloop", "cryptography"):
        assert f"/{name}/" not in maps


def test_keys_are_made_listed_and_revoked_on_the_command_line(tmp_path):
    """The key is printed once, to stdout alone."""

    def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lightship.cli.main", "keys", *arguments],
            env={**os.environ, "LIGHTSHIP_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    made = json.loads(keys("create", "--role", "read", "--note", "mine", "--json").stdout)
    assert made["key"].startswith(f"lsk_{made['id']}_")
    (listed,) = json.loads(keys("list", "--json").stdout)["keys"]
    assert (listed["id"], listed["role"], listed["note"]) == (made["id"], "read", "mine")
    assert made["key"] not in keys("list").stdout
    assert keys("revoke", made["id"]).returncode == 0
    assert keys("revoke", made["id"]).returncode == 3
    assert json.loads(keys("list", "--json").stdout) == {"keys": []}
    assert np.all([path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "keys").iterdir()])
